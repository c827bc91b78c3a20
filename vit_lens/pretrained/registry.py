"""What open_clip's installed registry says about model names and pretrained tags."""

__all__ = [
    "activation_choices",
    "build_visual",
    "encoder_id_of_tag",
    "is_timm",
    "known_models",
    "model_config",
    "obstacle",
    "require_tag",
    "spec_of",
    "tag_config",
    "tag_quick_gelu",
    "tags_spec",
]

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vit_lens.errors import CheckpointError, nearest
from vit_lens.images import PreprocessSpec
from vit_lens.pretrained.checks import refuse

_PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode", "fill_color")
_QUICKGELU_SUFFIX = "-quickgelu"
# Families of timm's models, by module: what keeps them from being a plain ViT. Others are built and read.
_TIMM_FAMILIES = {
    "convnext": "ConvNeXt, a convolutional tower",
    "eva": "EVA or PE-Core: rotary positions, SwiGLU, norms inside, or keys without bias",
    "fastvit": "FastViT, a convolutional tower",
    "swin_transformer": "Swin: windows of attention",
    "vision_transformer_hybrid": "a ViT with a convolutional stem",
    "vision_transformer_relpos": "a ViT with relative positions",
    "vitamin": "ViTamin: convolutional stages",
}


def known_models() -> list[str]:
    """Return every model name of the installed open_clip."""
    import open_clip

    return open_clip.list_models()


def model_config(model: str) -> dict[str, Any]:
    """Return a copy of the config of a known model name.

    Raises:
        CheckpointError: The installed open_clip has no such name.
    """
    import open_clip

    config = open_clip.get_model_config(model)
    if config is None:
        raise CheckpointError(f"open_clip has no model {model!r}; nearest: {nearest(model, open_clip.list_models())}")
    return config


def tag_config(model: str, tag: str) -> dict[str, Any]:
    """Return what the registry says about a pretrained tag; empty if there is no such tag."""
    import open_clip

    return dict(open_clip.get_pretrained_cfg(model, tag))


def require_tag(model: str, tag: str | Path | None) -> str | Path:
    """Return the tag or path that goes with a model name.

    Raises:
        CheckpointError: There is none; the message lists the tags.
    """
    import open_clip

    if tag is None:
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise CheckpointError(
            f"{model} needs tag=: one of its pretrained tags ({', '.join(tags) or 'there are none'}) or the path of a "
            "checkpoint"
        )
    return tag


def tag_quick_gelu(model: str, tag: str) -> bool:
    """Return the activation that a tag was trained with.

    A tag that says so overrides its model's config (open_clip only warns). A tag that says nothing was trained
    with its config; where that config has quick_gelu, a warning says that the tag is silent.
    """
    config = bool(model_config(model).get("quick_gelu", False))
    said = tag_config(model, tag).get("quick_gelu")
    if said is None and config:
        warnings.warn(
            f"tag {tag!r} does not name its activation; the config of {model} says quick_gelu=True and is used. "
            "Pass quick_gelu= to decide yourself",
            UserWarning,
            stacklevel=4,
        )
    return config if said is None else bool(said)


def activation_choices(model: str) -> set[bool]:
    """Return the values of quick_gelu that a checkpoint of this model name may have been trained with."""
    import open_clip

    config = bool(model_config(model).get("quick_gelu", False))
    tags = open_clip.list_pretrained_tags_by_model(model)
    return {config} | {bool(tag_config(model, tag).get("quick_gelu", config)) for tag in tags}


def tags_spec(model: str, size: tuple[int, int]) -> PreprocessSpec | None:
    """Return the preprocessing that all tags of a model agree on, open_clip's default without tags, else None."""
    import open_clip

    configs = [tag_config(model, tag) for tag in open_clip.list_pretrained_tags_by_model(model)] or [{}]
    specs = {spec_of(cfg, size) for cfg in configs}
    return specs.pop() if len(specs) == 1 else None


def spec_of(cfg: Mapping[str, Any], size: tuple[int, int]) -> PreprocessSpec:
    """Return the preprocessing of a tag's config, at the size that the tower takes."""
    chosen = {key: cfg[key] for key in _PREPROCESS_KEYS if cfg.get(key) is not None}
    return PreprocessSpec.from_open_clip_cfg({**chosen, "size": size})


def encoder_id_of_tag(model: str, tag: str) -> str:
    """Return the id of a pretrained tag; a ``-quickgelu`` name has the id of the name without, for the same file."""
    base, tag = model.removesuffix(_QUICKGELU_SUFFIX), tag.lower().replace("-", "_")
    same = base != model and tag_config(base, tag) == tag_config(model, tag)
    return f"open_clip/{base if same else model}/{tag}"


def build_visual(model_cfg: Mapping[str, Any], *, quick_gelu: bool) -> nn.Module:
    """Build the vision tower of a config without memory for its weights.

    Only the vision tower: the text towers of some configs fetch files from the Hub when they are built.

    Raises:
        UnsupportedTowerError: The config is not one of a plain ViT.
    """
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    vision = copy.deepcopy(dict(model_cfg["vision_cfg"]))
    reason = obstacle(vision)
    if reason:
        refuse(reason)
    if is_timm(model_cfg):
        vision["timm_model_pretrained"] = False  # nothing is downloaded to learn sizes
    with torch.device("meta"):
        return _build_vision_tower(model_cfg["embed_dim"], CLIPVisionCfg(**vision), quick_gelu)


def is_timm(model_cfg: Mapping[str, Any]) -> bool:
    """Whether the vision tower of a config is one of timm's models."""
    return bool(model_cfg["vision_cfg"].get("timm_model_name"))


def obstacle(vision_cfg: Mapping[str, Any]) -> str:
    """Return what a config by itself says to keep its tower from being a plain ViT, or nothing.

    Of timm's models it says the family; those of the plain family still have to be built and read.
    """
    if vision_cfg.get("timm_model_name"):
        return _timm_obstacle(str(vision_cfg["timm_model_name"]))
    if isinstance(vision_cfg.get("layers"), (list, tuple)):
        return "ModifiedResNet (a convolutional tower)"
    if isinstance(vision_cfg.get("attentional_pool"), str):
        return f"attentional pooling of type {vision_cfg['attentional_pool']!r} (attn_pool_contrastive)"
    options = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
    custom = [name for name in options if vision_cfg.get(name)]
    if custom or vision_cfg.get("block_type") == "custom":
        return f"custom residual blocks ({', '.join(custom) or 'block_type=custom'})"
    if vision_cfg.get("act_kwargs"):
        return f"an activation with act_kwargs={vision_cfg['act_kwargs']}"
    return ""


def _timm_obstacle(name: str) -> str:
    import timm

    if not timm.is_model(name):
        return f"a timm trunk ({name}, which the installed timm {timm.__version__} does not have)"
    family = timm.model_entrypoint(name).__module__.rsplit(".", 1)[-1]
    if family == "vision_transformer":
        return ""
    return f"a timm trunk ({name}: {_TIMM_FAMILIES.get(family, f'of the family {family}')})"
