"""Read open_clip towers by name and tag, or from a local checkpoint."""

__all__ = ["chosen_activation", "read_open_clip", "tower_from_files"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vit_lens.errors import CheckpointError
from vit_lens.images import PreprocessSpec
from vit_lens.pretrained import registry
from vit_lens.pretrained.fitting import Blueprint, fitted
from vit_lens.pretrained.open_clip_towers import open_clip_blueprint
from vit_lens.pretrained.source import TowerSource, source_of
from vit_lens.pretrained.tensors import open_tower

# Tensors of a whole CLIP checkpoint that belong to the text side or to the loss.
TEXT_PREFIXES = (
    "text.",
    "text_decoder.",
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "text_projection",
    "logit_scale",
    "logit_bias",
    "attn_mask",
    "input_resolution",
    "context_length",
    "vocab_size",
)


def read_open_clip(
    model: str,
    tag: str | Path,
    *,
    quick_gelu: bool | None,
    dtype: torch.dtype,
    device: str | torch.device,
    preprocess_spec: PreprocessSpec | None,
    cache_dir: str | Path | None,
) -> TowerSource:
    """Read a model name with a pretrained tag (may download) or the path of a checkpoint (never does).

    Raises:
        CheckpointError: The name or tag is unknown, the file cannot be had, or its tensors do not fit.
        UnsupportedTowerError: The model is not a plain ViT.
    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    model_cfg = registry.model_config(model)
    if quick_gelu is not None and registry.is_timm(model_cfg):
        raise CheckpointError(
            f"quick_gelu={quick_gelu} would have no effect on {model}: a timm trunk has its own activation"
        )
    tag_cfg = registry.tag_config(model, tag) if isinstance(tag, str) else {}
    if tag_cfg:
        act = chosen_activation(model, tag, quick_gelu)
        blueprint = open_clip_blueprint(registry.build_visual(model_cfg, quick_gelu=act))
        spec = preprocess_spec or registry.spec_of(tag_cfg, blueprint.cfg.image_size)
        encoder_id = registry.encoder_id_of_tag(model, str(tag))
        path = _download(tag_cfg, encoder_id, cache_dir)
    else:
        path = Path(tag).expanduser()
        if not path.is_file():
            raise CheckpointError(
                f"{tag} is neither a file nor a pretrained tag of {model} ({', '.join(tags) or 'none'})"
            )
        act = False if registry.is_timm(model_cfg) else chosen_activation(model, tag, quick_gelu)
        blueprint = open_clip_blueprint(registry.build_visual(model_cfg, quick_gelu=act))
        spec, encoder_id = preprocess_spec or registry.tags_spec(model, blueprint.cfg.image_size), None
    return tower_from_files(
        blueprint, [path], dtype=dtype, device=device, spec=spec, encoder_id=encoder_id, name=path.name
    )


def tower_from_files(
    blueprint: Blueprint,
    paths: Sequence[Path],
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    spec: PreprocessSpec | None,
    encoder_id: str | None,
    name: str,
) -> TowerSource:
    """Read the weights of an open_clip tower of known sizes; without an id it gets a local one."""
    tensors = open_tower(paths, drop=TEXT_PREFIXES, only_if="visual.").renamed(lambda n: n.removeprefix("visual."))
    state_dict = fitted(blueprint, tensors, paths, dtype=dtype, device=device)
    return source_of(blueprint.cfg, state_dict, spec, encoder_id=encoder_id, label=f"local/{name}")


def chosen_activation(model: str, tag: str | Path, quick_gelu: bool | None) -> bool:
    """Return whether a pretrained tag, or a local checkpoint, is to be run with QuickGELU.

    Args:
        model: A known model name.
        tag: Of it, or the path of a checkpoint, which does not say its activation.
        quick_gelu: What the caller says.

    Raises:
        CheckpointError: The caller contradicts the tag, or says nothing where the model name leaves it open.
    """
    tag_cfg = registry.tag_config(model, tag) if isinstance(tag, str) else {}
    if tag_cfg and quick_gelu is None:
        return registry.tag_quick_gelu(model, str(tag))
    said = tag_cfg.get("quick_gelu")
    if said is not None and said != quick_gelu:
        raise CheckpointError(f"{model} with tag {tag} was trained with quick_gelu={said}; leave quick_gelu= out")
    if quick_gelu is not None:
        return quick_gelu
    choices = registry.activation_choices(model)
    if len(choices) > 1:
        raise CheckpointError(
            f"checkpoints of {model} exist with both activations and the file does not say which; pass quick_gelu=True "
            "(weights from OpenAI, MetaCLIP, DFN and models fine-tuned from them) or quick_gelu=False"
        )
    return choices.pop()


def _download(tag_cfg: Mapping[str, Any], encoder_id: str, cache_dir: str | Path | None) -> Path:
    import open_clip

    try:
        path = open_clip.download_pretrained(dict(tag_cfg), cache_dir=None if cache_dir is None else str(cache_dir))
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{encoder_id} could not be downloaded ({error}). Check the connection, or download the file elsewhere and "
            "pass its path as tag="
        ) from error
    if not path:
        raise CheckpointError(
            f"the registry of open_clip names no file for {encoder_id}; pass a checkpoint's path as tag="
        )
    return Path(path)
