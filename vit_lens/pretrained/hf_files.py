"""Read Hugging Face towers (CLIP, SigLIP, DINOv2) from a local directory or the Hub."""

__all__ = ["read_folder"]

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vit_lens.convert import canonical_dinov2
from vit_lens.errors import CheckpointError
from vit_lens.images import PreprocessSpec
from vit_lens.pretrained import registry
from vit_lens.pretrained.checks import refuse
from vit_lens.pretrained.fitting import Blueprint, fitted
from vit_lens.pretrained.folders import Folder
from vit_lens.pretrained.hf_towers import NAFLEX, hf_blueprint
from vit_lens.pretrained.open_clip_files import tower_from_files
from vit_lens.pretrained.open_clip_towers import open_clip_blueprint
from vit_lens.pretrained.source import TowerSource, source_of
from vit_lens.pretrained.tensors import open_tower, read_json

# model_type of a config.json: the classes of the config and of the tower.
_TYPES = {
    "clip": ("CLIPConfig", "CLIPVisionModel"),
    "clip_vision_model": ("CLIPVisionConfig", "CLIPVisionModel"),
    "siglip": ("SiglipConfig", "SiglipVisionModel"),
    "siglip_vision_model": ("SiglipVisionConfig", "SiglipVisionModel"),
    "dinov2": ("Dinov2Config", "Dinov2Model"),
    "dinov2_with_registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel"),
}
_TEXT_PREFIXES = ("text_model.", "text_projection.", "logit_scale", "logit_bias")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_PREPROCESSOR = "preprocessor_config.json"
# Where pipelines that keep the tower in a subfolder keep its image processor.
_PREPROCESSOR_FOLDERS = ("image_processor", "feature_extractor", "")


def read_folder(
    folder: Folder,
    subfolder: str,
    *,
    encoder_id: str | None,
    name: str,
    dtype: torch.dtype,
    device: str | torch.device,
    preprocess_spec: PreprocessSpec | None,
    image_size: tuple[int, int] | None = None,
) -> TowerSource:
    """Read a tower from a directory in Hugging Face's format, or in the one that open_clip publishes.

    Raises:
        CheckpointError: Files are missing or damaged, or the tensors do not fit the config.
        UnsupportedTowerError: The config is of a tower that is not supported.
    """
    prefix = f"{subfolder}/" if subfolder else ""
    where = folder.label + (f", subfolder {subfolder!r}" if subfolder else "")
    config_path = folder.find(f"{prefix}config.json")
    if config_path is None:
        open_clip_path = folder.find(f"{prefix}open_clip_config.json")
        if open_clip_path is None:
            raise CheckpointError(f"{where} has no config.json; expected a tower in Hugging Face's format")
        if image_size is not None:
            refuse(f"image_size= for the open_clip tower in {where}, which has no interpolate_pos_encoding")
        paths = _weights(folder, prefix, _OPEN_CLIP_WEIGHTS, where)
        blueprint, spec = _open_clip_folder(open_clip_path)
        return tower_from_files(
            blueprint, paths, dtype=dtype, device=device, spec=preprocess_spec or spec, encoder_id=encoder_id, name=name
        )
    config = read_json(config_path)
    model_type = _model_type(config, where)
    spec, size = _spec_and_size(model_type, preprocess_spec or _preprocessor(folder, subfolder), image_size)
    if preprocess_spec is not None and spec != preprocess_spec:
        raise CheckpointError(f"preprocess_spec of size {preprocess_spec.size} with image_size={size}; give one size")
    paths = _weights(folder, prefix, _WEIGHTS, where)
    is_dinov2 = model_type.startswith("dinov2")
    tensors = open_tower(paths, drop=_TEXT_PREFIXES).renamed(
        canonical_dinov2 if is_dinov2 else lambda name: name.removeprefix("vision_model.")
    )
    blueprint = hf_blueprint(_build(config, with_projection="visual_projection.weight" in tensors), size)
    state_dict = fitted(blueprint, tensors, paths, dtype=dtype, device=device)
    return source_of(blueprint.cfg, state_dict, spec, encoder_id=encoder_id, label=f"local/{name}")


def _model_type(config: Mapping[str, Any], where: str) -> str:
    model_type = str(config.get("model_type"))
    if model_type.startswith("siglip2"):
        refuse(f"{where}: {NAFLEX}")
    if model_type not in _TYPES:
        refuse(f"{where} of model_type {model_type!r}; expected {', '.join(map(repr, _TYPES))}")
    return model_type


def _spec_and_size(
    model_type: str, spec: PreprocessSpec | None, image_size: tuple[int, int] | None
) -> tuple[PreprocessSpec | None, tuple[int, int] | None]:
    """Return preprocessing and positions for one size: the caller's; for DINOv2 else what its processor crops."""
    if image_size is None:
        return spec, spec.size if spec is not None and model_type.startswith("dinov2") else None
    return spec if spec is None or spec.size == image_size else spec.at(image_size), image_size


def _build(config: Mapping[str, Any], *, with_projection: bool) -> nn.Module:
    """Build the tower without memory for its weights, so that its parts can be asked what they are."""
    import transformers

    config_class, model_class = _TYPES[config["model_type"]]
    whole: Any = getattr(transformers, config_class).from_dict(dict(config))
    vision = getattr(whole, "vision_config", whole)
    if config["model_type"] == "clip":
        vision.projection_dim = whole.projection_dim
    if with_projection:
        model_class = "CLIPVisionModelWithProjection"
    try:
        with torch.device("meta"):
            return getattr(transformers, model_class)(vision)
    except KeyError as error:
        refuse(f"a tower with hidden_act={vision.hidden_act!r} (no such activation: {error})")


def _weights(folder: Folder, prefix: str, names: tuple[str, ...], where: str) -> list[Path]:
    for name in names:
        path = folder.find(prefix + name)
        if path is not None:
            break
    else:
        raise CheckpointError(f"{where} has no weights; expected one of {', '.join(names)}")
    if path.suffix != ".json":
        return [path]
    shards = []
    for shard in sorted(set(read_json(path).get("weight_map", {}).values())):
        if Path(shard).is_absolute() or ".." in Path(shard).parts:
            raise CheckpointError(f"{where}: {path.name} names {shard!r}, which lies outside of its directory")
        found = folder.find(prefix + shard)
        if found is None:
            raise CheckpointError(f"{where} lacks {shard}, which {path.name} names")
        shards.append(found)
    return shards


def _preprocessor(folder: Folder, subfolder: str) -> PreprocessSpec | None:
    for place in dict.fromkeys((subfolder, *(_PREPROCESSOR_FOLDERS if subfolder else ("",)))):
        path = folder.find(f"{place}/{_PREPROCESSOR}" if place else _PREPROCESSOR)
        if path is not None:
            return PreprocessSpec.from_hf_preprocessor(read_json(path))
    return None


def _open_clip_folder(path: Path) -> tuple[Blueprint, PreprocessSpec]:
    content = read_json(path)
    if "model_cfg" not in content:
        raise CheckpointError(f"{path} has no model_cfg")
    model_cfg = content["model_cfg"]
    visual = registry.build_visual(model_cfg, quick_gelu=bool(model_cfg.get("quick_gelu", False)))
    blueprint = open_clip_blueprint(visual)
    return blueprint, registry.spec_of(content.get("preprocess_cfg", {}), blueprint.cfg.image_size)
