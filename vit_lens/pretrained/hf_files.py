"""Read Hugging Face CLIP towers from a local directory or the Hub."""

__all__ = ["read_folder"]

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vit_lens.convert import from_hf_clip
from vit_lens.errors import CheckpointError
from vit_lens.identity import aliases, fingerprint
from vit_lens.images import PreprocessSpec
from vit_lens.pretrained import registry
from vit_lens.pretrained.checks import refuse
from vit_lens.pretrained.fitting import fitted
from vit_lens.pretrained.folders import Folder
from vit_lens.pretrained.hf_towers import hf_config
from vit_lens.pretrained.open_clip_files import tower_from_files
from vit_lens.pretrained.open_clip_towers import open_clip_config
from vit_lens.pretrained.source import TowerSource
from vit_lens.pretrained.tensors import read_json, read_tower

_TEXT_PREFIXES = ("text_model.", "text_projection.", "logit_scale")
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
) -> TowerSource:
    """Read a tower from a directory in Hugging Face's format, or in the one that open_clip publishes.

    Raises:
        CheckpointError: Files are missing or damaged, or the tensors do not fit the config.
        UnsupportedTowerError: The config is not CLIP's.
    """
    prefix = f"{subfolder}/" if subfolder else ""
    where = folder.label + (f", subfolder {subfolder!r}" if subfolder else "")
    config_path = folder.find(f"{prefix}config.json")
    if config_path is None:
        open_clip_path = folder.find(f"{prefix}open_clip_config.json")
        if open_clip_path is None:
            raise CheckpointError(f"{where} has no config.json; expected a CLIP tower in Hugging Face's format")
        paths = _weights(folder, prefix, _OPEN_CLIP_WEIGHTS, where)
        cfg, spec = _open_clip_folder_config(open_clip_path)
        return tower_from_files(
            cfg, paths, dtype=dtype, device=device, spec=preprocess_spec or spec, encoder_id=encoder_id, name=name
        )
    config = read_json(config_path)
    _require_clip(config, where)
    paths = _weights(folder, prefix, _WEIGHTS, where)
    tensors = read_tower(paths, dtype=dtype, drop=_TEXT_PREFIXES)
    cfg = hf_config(_build(config, with_projection="visual_projection.weight" in tensors))
    state_dict = fitted(from_hf_clip, tensors, cfg, paths, device)
    encoder_id = encoder_id or f"local/{name}@{fingerprint(state_dict)}"
    return TowerSource(
        cfg=cfg,
        state_dict=state_dict,
        preprocess_spec=preprocess_spec or _preprocessor(folder, subfolder),
        encoder_id=encoder_id,
        aliases=aliases(encoder_id),
    )


def _require_clip(config: Mapping[str, Any], where: str) -> None:
    model_type = config.get("model_type")
    if model_type not in ("clip", "clip_vision_model"):
        refuse(f"{where} of model_type {model_type!r}; expected 'clip' or 'clip_vision_model'")


def _build(config: Mapping[str, Any], *, with_projection: bool) -> nn.Module:
    """Build the tower without memory for its weights, so that its parts can be asked what they are."""
    from transformers import CLIPConfig, CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

    if config["model_type"] == "clip":
        whole: Any = CLIPConfig.from_dict(dict(config))
        vision = whole.vision_config
        vision.projection_dim = whole.projection_dim
    else:
        vision = CLIPVisionConfig.from_dict(dict(config))
    try:
        with torch.device("meta"):
            return (CLIPVisionModelWithProjection if with_projection else CLIPVisionModel)(vision)
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


def _open_clip_folder_config(path: Path) -> tuple[Any, PreprocessSpec]:
    content = read_json(path)
    if "model_cfg" not in content:
        raise CheckpointError(f"{path} has no model_cfg")
    model_cfg = content["model_cfg"]
    visual = registry.build_visual(model_cfg, quick_gelu=bool(model_cfg.get("quick_gelu", False)))
    cfg = open_clip_config(visual)
    return cfg, registry.spec_of(content.get("preprocess_cfg", {}), cfg.image_size)
