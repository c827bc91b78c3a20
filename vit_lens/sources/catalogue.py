"""open_clip's installed registry: what a model name, and a pretrained tag or a checkpoint of it, stand for."""

__all__ = [
    "CUSTOM_OPTIONS", "OpenClipName", "OpenClipWeights", "build_text", "build_visual", "create_text", "create_visual",
    "is_timm", "known_models", "model_config", "obstacle", "open_clip_tokenizer", "open_clip_weights", "require_tag",
    "spec_of", "text_obstacle",
]  # fmt: skip

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vit_lens.errors import CheckpointError, expect, nearest
from vit_lens.files import check_fields
from vit_lens.images import PreprocessSpec
from vit_lens.sources.configs import check_ranges, understood
from vit_lens.sources.refusals import refuse

_PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode", "fill_color")
_QUICKGELU_SUFFIX = "-quickgelu"
CUSTOM_OPTIONS = {  # the part that each adds to a block
    "qk_norm": "attn.ln_q", "scaled_cosine_attn": "attn.logit_scale", "scale_heads": "attn.head_scale",
    "scale_attn_inner": "attn.ln_inner", "scale_attn": "ln_attn", "scale_fc": "mlp.ln",
}  # fmt: skip
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
    """Return every model name of the installed open_clip.

    >>> "ViT-B-32" in known_models()
    True
    """
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


def require_tag(model: str, tag: str | Path | None) -> str | Path:
    """Return the tag or path that goes with a model name.

    Raises:
        CheckpointError: There is none; the message lists the tags.
    """
    if tag is None:
        raise CheckpointError(
            f"{model} needs tag=: one of its pretrained tags ({', '.join(tags_of(model)) or 'there are none'}) or the "
            "path of a checkpoint"
        )
    return tag


def tags_of(model: str) -> list[str]:
    """Return the pretrained tags of a model name."""
    import open_clip

    return open_clip.list_pretrained_tags_by_model(model)


@dataclass(frozen=True)
class OpenClipName:
    """One of open_clip's models, with a pretrained tag or the path of a checkpoint.

    Attributes:
        model: The model's name.
        tag: The pretrained tag, or the path of a checkpoint.

    >>> OpenClipName("ViT-B-32", "openai").told
    'ViT-B-32 (openai)'
    """

    model: str
    tag: str | Path

    @property
    def told(self) -> str:
        """How messages call it."""
        return f"{self.model} ({self.tag})"


@dataclass(frozen=True, kw_only=True)
class OpenClipWeights:
    """The weights that a name stands for; nothing is fetched yet.

    Attributes:
        model: The model's name.
        config: The model's config.
        tag: The pretrained tag; None for a file.
        entry: What open_clip's registry says about the tag; empty for a file.
        path: The path of a file; None for a tag.
        quick_gelu: Whether the weights are to be run with QuickGELU.
    """

    model: str
    config: Mapping[str, Any]
    tag: str | None
    entry: Mapping[str, Any]
    path: Path | None
    quick_gelu: bool

    @property
    def encoder_id(self) -> str | None:
        """The id of a tag; a ``-quickgelu`` name has the id of the name without, for the same file."""
        if self.tag is None:
            return None
        base, tag = self.model.removesuffix(_QUICKGELU_SUFFIX), self.tag.lower().replace("-", "_")
        same = base != self.model and _entry(base, tag) == _entry(self.model, tag)
        return f"open_clip/{base if same else self.model}/{tag}"

    def spec(self, size: tuple[int, int]) -> PreprocessSpec | None:
        """Return the preprocessing of a tag, or for a file the one that all tags agree on (open_clip's without tags).

        None where they disagree.
        """
        entries = [self.entry] if self.tag else [_entry(self.model, tag) for tag in tags_of(self.model)] or [{}]
        specs = {spec_of(entry, size) for entry in entries}
        return specs.pop() if len(specs) == 1 else None

    def fetch(self, cache_dir: str | Path | None) -> Path:
        """Return the path of the file; a tag's may be downloaded.

        Raises:
            CheckpointError: It cannot be downloaded.
        """
        import open_clip

        if self.path is not None:
            return self.path
        cache = None if cache_dir is None else str(cache_dir)
        try:
            path = open_clip.download_pretrained(dict(self.entry), cache_dir=cache)
        except (OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{self.encoder_id} could not be downloaded ({error}). Check the connection, or download the file "
                "elsewhere and pass its path as tag="
            ) from error
        if not path:
            raise CheckpointError(
                f"the registry of open_clip names no file for {self.encoder_id}; pass a checkpoint's path as tag="
            )
        return Path(path)


def open_clip_weights(name: OpenClipName, quick_gelu: bool | None = None) -> OpenClipWeights:
    """Look up what weights a name of open_clip's stands for; nothing is fetched.

    Args:
        name: A model name with a tag, or with the path of a checkpoint, which does not say its activation.
        quick_gelu: Whether a checkpoint was trained with QuickGELU, where its model name leaves that open; None where
            something else says it.

    Raises:
        CheckpointError: There is no such model, tag or file; or the caller contradicts the tag, or says nothing where
            the model name leaves the activation open.

    >>> weights = open_clip_weights(OpenClipName("ViT-B-32", "openai"))
    >>> weights.encoder_id, weights.quick_gelu
    ('open_clip/ViT-B-32/openai', True)
    """
    model, config = name.model, model_config(name.model)
    entry = _entry(model, name.tag) if isinstance(name.tag, str) else {}
    path = None if entry else Path(name.tag).expanduser()
    if path is not None and not path.is_file():
        known = ", ".join(tags_of(model)) or "none"
        raise CheckpointError(f"{name.tag} is neither a file nor a pretrained tag of {model} ({known})")
    if entry and quick_gelu is None:
        quick_gelu = _trained_with(config, entry)
        if quick_gelu and entry.get("quick_gelu") is None:
            warnings.warn(
                f"tag {name.tag!r} does not name its activation; the config of {model} says quick_gelu=True and is "
                "used. Pass quick_gelu= to decide yourself",
                UserWarning,
                stacklevel=4,
            )
    elif quick_gelu is None:
        choices = {_trained_with(config, {}), *(_trained_with(config, _entry(model, tag)) for tag in tags_of(model))}
        if len(choices) > 1:
            raise CheckpointError(
                f"checkpoints of {model} exist with both activations and the file does not say which; pass "
                "quick_gelu=True (weights from OpenAI, MetaCLIP, DFN and models fine-tuned from them) or "
                "quick_gelu=False"
            )
        quick_gelu = choices.pop()
    elif entry.get("quick_gelu") not in (None, quick_gelu):
        raise CheckpointError(
            f"{model} with tag {name.tag} was trained with quick_gelu={entry['quick_gelu']}; leave quick_gelu= out"
        )
    tag = str(name.tag) if entry else None
    return OpenClipWeights(model=model, config=config, tag=tag, entry=entry, path=path, quick_gelu=quick_gelu)


def spec_of(cfg: Mapping[str, Any], size: tuple[int, int]) -> PreprocessSpec:
    """Return the preprocessing of a tag's config, at the size that the tower takes."""
    chosen = {key: cfg[key] for key in _PREPROCESS_KEYS if cfg.get(key) is not None}
    return PreprocessSpec.from_open_clip_cfg({**chosen, "size": size})


def create_visual(name: OpenClipName, *, file_quick_gelu: bool, cache_dir: str | Path | None = None) -> nn.Module:
    """Load a vision tower; see :func:`_create`."""
    clip, act = _create(name, file_quick_gelu, cache_dir)
    return _with_activation(clip.visual, act)


def create_text(name: OpenClipName, *, file_quick_gelu: bool, cache_dir: str | Path | None = None) -> nn.Module:
    """Load a model for its text tower; see :func:`_create`."""
    clip, act = _create(name, file_quick_gelu, cache_dir)
    _with_activation(getattr(clip, "text", clip), act)
    return clip


def _create(
    name: OpenClipName, file_quick_gelu: bool, cache_dir: str | Path | None
) -> tuple[Any, Callable[[], nn.Module]]:
    """Load a model as open_clip does, but with the activation that the weights were trained with.

    open_clip only warns where a tag's activation differs from the model's config.

    Args:
        name: A model with a tag or a file.
        file_quick_gelu: Whether a file, which does not say it, is run with QuickGELU.
        cache_dir: Where downloads are kept.

    Returns:
        The model, and what makes the activation that its weights were trained with.
    """
    import open_clip
    from open_clip.transformer import QuickGELU

    entry = _entry(name.model, name.tag) if isinstance(name.tag, str) else {}
    pretrained = str(name.tag) if entry else str(Path(name.tag).expanduser())
    quick_gelu = _trained_with(model_config(name.model), entry) if entry else file_quick_gelu
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="QuickGELU mismatch", category=UserWarning)
        cache = None if cache_dir is None else str(cache_dir)
        clip: Any = open_clip.create_model(name.model, pretrained=pretrained, cache_dir=cache)
    return clip, QuickGELU if quick_gelu else nn.GELU


def _with_activation(tower: Any, act: Callable[[], nn.Module]) -> nn.Module:
    for block in tower.transformer.resblocks if hasattr(tower, "transformer") else ():
        block.mlp.gelu = act()
    return tower


def _entry(model: str, tag: str) -> dict[str, Any]:
    """Return what the registry says about a pretrained tag; empty if there is no such tag."""
    import open_clip

    return dict(open_clip.get_pretrained_cfg(model, tag))


def _trained_with(config: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    """Whether weights were trained with QuickGELU: a tag that says so overrides its model's config."""
    said = entry.get("quick_gelu")
    return bool(config.get("quick_gelu", False) if said is None else said)


def build_visual(
    model_cfg: Mapping[str, Any], where: object, *, quick_gelu: bool | None = None, device: str = "meta"
) -> nn.Module:
    """Build the vision tower of a config, on the meta device without memory for its weights.

    Only the vision tower: the text towers of some configs fetch files from the Hub when they are built.

    Args:
        model_cfg: The config of a whole model, of which known keys reach open_clip.
        where: Where it was found, for messages.
        quick_gelu: Whether its activation is QuickGELU; None for what the config says.
        device: Where the tower is built.

    Raises:
        CheckpointError: The config lacks something, or a value is of another kind or out of range.
        UnsupportedTowerError: The config is not one of a plain ViT.
    """
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    vision: Any = copy.deepcopy(model_cfg.get("vision_cfg"))
    says = model_cfg.get("quick_gelu", False)
    expect(vision, dict, f"vision_cfg in {where}", CheckpointError, "sizes of a tower")
    expect(says, bool, f"quick_gelu in {where}", CheckpointError, "true or false")
    expect(model_cfg.get("embed_dim"), int, f"embed_dim in {where}", CheckpointError, "the width of the embedding")
    check_ranges(vision | {"embed_dim": model_cfg["embed_dim"]}, where)
    reason = obstacle(vision)
    if reason:
        refuse(reason)
    if is_timm(model_cfg):
        vision["timm_model_pretrained"] = False  # nothing is downloaded to learn sizes
    given = {name: value for name, value in vision.items() if value is not None}  # which open_clip's own say anywhere
    check_fields(CLIPVisionCfg, given, f"vision_cfg in {where}", CheckpointError)
    with understood(where), torch.device(device):
        cfg = CLIPVisionCfg(**vision)
        return _build_vision_tower(model_cfg["embed_dim"], cfg, says if quick_gelu is None else quick_gelu)


def build_text(
    model_cfg: Mapping[str, Any], where: object, *, quick_gelu: bool | None = None, device: str = "meta"
) -> nn.Module:
    """Build the text tower of a config, on the meta device without memory for its weights.

    Args:
        model_cfg: The config of a whole model, of which known keys reach open_clip.
        where: Where it was found, for messages.
        quick_gelu: Whether its activation is QuickGELU; None for what the config says.
        device: Where the tower is built.

    Raises:
        CheckpointError: The config lacks something, or a value is of another kind or out of range.
        UnsupportedTowerError: The config is not one of a plain text tower.
    """
    from open_clip.model import CLIPTextCfg, _build_text_tower

    text: Any = copy.deepcopy(model_cfg.get("text_cfg"))
    says = model_cfg.get("quick_gelu", False)
    expect(text, dict, f"text_cfg in {where}", CheckpointError, "sizes of a tower")
    expect(says, bool, f"quick_gelu in {where}", CheckpointError, "true or false")
    expect(model_cfg.get("embed_dim"), int, f"embed_dim in {where}", CheckpointError, "the width of the embedding")
    check_ranges(text | {"embed_dim": model_cfg["embed_dim"]}, where)
    if reason := text_obstacle(text):
        refuse(reason)
    given = {name: value for name, value in text.items() if value is not None}
    check_fields(CLIPTextCfg, given, f"text_cfg in {where}", CheckpointError)
    with understood(where), torch.device(device):
        return _build_text_tower(
            model_cfg["embed_dim"], CLIPTextCfg(**text), says if quick_gelu is None else quick_gelu
        )


def text_obstacle(text_cfg: Mapping[str, Any]) -> str:
    """Return what a config by itself says to keep its text tower from being a plain one, or nothing."""
    if text_cfg.get("hf_model_name"):
        return f"a text tower of Hugging Face's ({text_cfg['hf_model_name']})"
    if text_cfg.get("embed_cls"):
        return "a text tower with a class token behind the text (CoCa)"
    if (pool := text_cfg.get("pool_type", "argmax")) not in ("argmax", "eos"):
        return f"a text tower with pool_type={pool!r}; expected 'argmax' or 'eos'"
    custom = [name for name in CUSTOM_OPTIONS if text_cfg.get(name)]
    if custom or text_cfg.get("block_type") == "custom":
        return f"custom residual blocks ({', '.join(custom) or 'block_type=custom'})"
    if text_cfg.get("act_kwargs"):
        return f"an activation with act_kwargs={text_cfg['act_kwargs']}"
    return ""


def open_clip_tokenizer(model: str) -> Any:
    """Return the tokenizer of a model name; those of Hugging Face's may be downloaded.

    Raises:
        CheckpointError: It cannot be had.
    """
    import open_clip

    try:
        return open_clip.get_tokenizer(model)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the tokenizer of {model} could not be had ({error}); check the connection") from error


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
    custom = [name for name in CUSTOM_OPTIONS if vision_cfg.get(name)]
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
