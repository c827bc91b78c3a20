"""Load a source by name, with the library that published it and none of our readers of weights."""

__all__ = ["load_source"]

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from vit_lens.errors import CheckpointError, VitLensError
from vit_lens.pretrained.folders import HubFolder
from vit_lens.pretrained.names import FolderName, OpenClipName, resolve_name
from vit_lens.pretrained.tensors import read_json
from vit_lens.verification.families import SourceTower, source_tower

if TYPE_CHECKING:
    from vit_lens.models import HookedViT

_HF_CLASSES = {  # model_type of a config.json: classes to try, the first that finds all its weights
    "clip": ("CLIPModel",),
    "clip_vision_model": ("CLIPVisionModelWithProjection", "CLIPVisionModel"),
    "siglip": ("SiglipModel",),
    "siglip_vision_model": ("SiglipVisionModel",),
    "dinov2": ("Dinov2Model",),
    "dinov2_with_registers": ("Dinov2WithRegistersModel",),
}
_OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"
)  # fmt: skip


def load_source(
    name: str | Path,
    model: "HookedViT",
    *,
    tag: str | Path | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> SourceTower:
    """Load the weights of a name with the library that published them, wherever ``model`` came from.

    Args:
        name: As for ``HookedViT.from_pretrained``.
        model: What is to be compared; where a local open_clip checkpoint leaves the activation open, the model's is
            taken.
        tag: As for ``HookedViT.from_pretrained``.
        revision: As for ``HookedViT.from_pretrained``.
        cache_dir: As for ``HookedViT.from_pretrained``.

    Returns:
        The tower, of the model's dtype and on its device; ``kind`` says where it was loaded from.

    Raises:
        CheckpointError: There is nothing of this name, or that library cannot load it.
    """
    from safetensors import SafetensorError

    found = resolve_name(name, tag=tag, revision=revision, cache_dir=cache_dir)
    try:
        with _quiet():
            if isinstance(found, OpenClipName):
                module = _tag_or_file(found, model, cache_dir)
            else:
                module = _folder(found)
    except VitLensError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"the source of {name} cannot be loaded by its own library: {reason}") from error
    tower = source_tower(module).to(device=model.device, dtype=model.dtype)
    tower.kind += f" of {_told(found)}"
    return tower


def _told(found: OpenClipName | FolderName) -> str:
    if isinstance(found, OpenClipName):
        return f"{found.model} ({found.tag})"
    where = f"{found.folder.label}:{found.subfolder}" if found.subfolder else found.folder.label
    return found.encoder_id or where


def _tag_or_file(found: OpenClipName, model: "HookedViT", cache_dir: str | Path | None) -> nn.Module:
    tag = found.tag
    quick_gelu = _activation_of(found.model, tag) if isinstance(tag, str) else None
    if quick_gelu is None:  # a local file
        tag, quick_gelu = Path(tag).expanduser(), model.cfg.act_fn == "quick_gelu"
    cache = None if cache_dir is None else str(cache_dir)
    return _open_clip(found.model, str(tag), quick_gelu=quick_gelu, cache_dir=cache)


def _folder(found: FolderName) -> nn.Module:
    folder, prefix = found.folder, f"{found.subfolder}/" if found.subfolder else ""
    config = folder.find(f"{prefix}config.json")
    if config is not None:
        return _hugging_face(found, str(read_json(config).get("model_type")))
    config = folder.find(f"{prefix}open_clip_config.json")
    if config is None or not any(folder.find(prefix + name) for name in _OPEN_CLIP_WEIGHTS):
        raise CheckpointError(f"{_told(found)} has no tower in the format of Hugging Face or open_clip")
    return _open_clip(f"local-dir:{config.parent}", None)


def _hugging_face(found: FolderName, model_type: str) -> nn.Module:
    import transformers

    folder, root, options = found.folder, _told(found), {"subfolder": found.subfolder}
    if isinstance(folder, HubFolder):
        where, options = folder.repo_id, options | {"revision": folder.revision, "cache_dir": folder.cache_dir}
    else:
        where = str(folder.root)
    if model_type not in _HF_CLASSES:
        raise CheckpointError(f"{root}: model_type {model_type!r}; sources are loaded for {', '.join(_HF_CLASSES)}")
    missing: list[str] = []
    for name in _HF_CLASSES[model_type]:
        cls = getattr(transformers, name)
        tower, info = cls.from_pretrained(where, output_loading_info=True, **options)
        missing = sorted(key for key in info["missing_keys"] if not key.endswith("position_ids"))
        if not missing:
            return tower
        if missing != ["visual_projection.weight"]:
            break
    raise CheckpointError(f"{root}: transformers misses {', '.join(missing[:5])} and would fill them at random")


def _open_clip(
    architecture: str, pretrained: str | None, *, quick_gelu: bool | None = None, cache_dir: str | None = None
) -> nn.Module:
    """Load an open_clip model; ``quick_gelu`` where the checkpoint knows its activation better than open_clip does."""
    import open_clip
    from open_clip.transformer import QuickGELU

    with warnings.catch_warnings():  # a tag may have another activation than its architecture; it is set below
        warnings.filterwarnings("ignore", message="QuickGELU mismatch", category=UserWarning)
        visual: Any = open_clip.create_model(architecture, pretrained=pretrained, cache_dir=cache_dir).visual
    if quick_gelu is not None and hasattr(visual, "transformer"):
        for block in visual.transformer.resblocks:
            block.mlp.gelu = QuickGELU() if quick_gelu else nn.GELU()
    return visual


def _activation_of(architecture: str, tag: str) -> bool | None:
    """Return what a tag was trained with: open_clip only warns where it differs from the architecture's config.

    None if there is no such tag.
    """
    import open_clip

    tag_cfg = open_clip.get_pretrained_cfg(architecture, tag)
    if not tag_cfg:
        return None
    config = (open_clip.get_model_config(architecture) or {}).get("quick_gelu", False)
    said = tag_cfg.get("quick_gelu")
    return bool(config if said is None else said)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the load reports of the libraries from the terminal: what matters in them is checked here."""
    from transformers.utils import logging as transformers_logging

    before, bars = logging.root.manager.disable, transformers_logging.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.disable(before)
        if bars:
            transformers_logging.enable_progress_bar()
