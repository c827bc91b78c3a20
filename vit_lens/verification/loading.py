"""Load a source by name, with the library that published it and none of our readers of weights."""

__all__ = ["load_source"]

import importlib.resources
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from vit_lens.errors import CheckpointError
from vit_lens.identity import MINI_ENCODER
from vit_lens.pretrained.folders import Folder, HubFolder, LocalFolder, split_subfolder
from vit_lens.pretrained.tensors import read_json
from vit_lens.verification.families import SourceTower, source_tower

if TYPE_CHECKING:
    from vit_lens.model import HookedViT

_HF_CLASSES = {  # model_type of a config.json: classes to try, the first that finds all its weights
    "clip": ("CLIPModel",),
    "clip_vision_model": ("CLIPVisionModelWithProjection", "CLIPVisionModel"),
    "siglip": ("SiglipModel",),
    "siglip_vision_model": ("SiglipVisionModel",),
    "dinov2": ("Dinov2Model",),
    "dinov2_with_registers": ("Dinov2WithRegistersModel",),
}


def load_source(name: str | Path, model: "HookedViT", *, tag: str | Path | None = None) -> SourceTower:
    """Load the weights that ``model`` was loaded from once more, with the library that published them.

    Args:
        name: As for ``HookedViT.from_pretrained``.
        model: What was loaded; where a checkpoint leaves the activation open, the model's is taken.
        tag: As for ``HookedViT.from_pretrained``.

    Returns:
        The tower, of the model's dtype and on its device.

    Raises:
        CheckpointError: That library cannot load them.
    """
    from safetensors import SafetensorError

    try:
        with _quiet():
            module = _load(str(name), model, tag)
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"the source of {name} cannot be loaded by its own library: {reason}") from error
    return source_tower(module).to(device=model.device, dtype=model.dtype)


def _load(name: str, model: "HookedViT", tag: str | Path | None) -> nn.Module:
    if model.encoder_id.startswith("open_clip/"):
        _, architecture, found = model.encoder_id.split("/")
        if f"{architecture}-quickgelu" in name:
            architecture += "-quickgelu"
        return _open_clip(architecture, found, quick_gelu=_activation_of(architecture, found))
    if tag is not None:
        file = str(Path(tag).expanduser())
        return _open_clip(name.removeprefix("open_clip/"), file, quick_gelu=model.cfg.act_fn == "quick_gelu")
    if model.encoder_id == MINI_ENCODER:
        folder = importlib.resources.files("vit_lens") / "mini" / "pair" / "encoder"
        with importlib.resources.as_file(folder) as path:
            return _folder(LocalFolder(path), str(path), "")
    root, subfolder = split_subfolder(name)
    if model.encoder_id.startswith("hf/"):
        repo_id = root.removeprefix("hf/")
        return _folder(HubFolder(repo_id), repo_id, subfolder)
    path = Path(root).expanduser()
    return _folder(LocalFolder(path), str(path), subfolder)


def _folder(folder: Folder, root: str, subfolder: str) -> nn.Module:
    config = folder.find(f"{subfolder}/config.json" if subfolder else "config.json")
    if config is None:
        schema = "local-dir" if isinstance(folder, LocalFolder) else "hf-hub"
        return _open_clip(f"{schema}:{Path(root, subfolder) if subfolder else root}", None)
    return _hugging_face(root, subfolder, str(read_json(config).get("model_type")))


def _hugging_face(root: str, subfolder: str, model_type: str) -> nn.Module:
    import transformers

    if model_type not in _HF_CLASSES:
        raise CheckpointError(f"{root}: model_type {model_type!r}; sources are loaded for {', '.join(_HF_CLASSES)}")
    missing: list[str] = []
    for name in _HF_CLASSES[model_type]:
        cls = getattr(transformers, name)
        tower, info = cls.from_pretrained(root, subfolder=subfolder, output_loading_info=True)
        missing = sorted(key for key in info["missing_keys"] if not key.endswith("position_ids"))
        if not missing:
            return tower
        if missing != ["visual_projection.weight"]:
            break
    raise CheckpointError(f"{root}: transformers misses {', '.join(missing[:5])} and would fill them at random")


def _open_clip(architecture: str, pretrained: str | None, *, quick_gelu: bool | None = None) -> nn.Module:
    """Load an open_clip model; ``quick_gelu`` where the checkpoint knows its activation better than open_clip does."""
    import open_clip
    from open_clip.transformer import QuickGELU

    with warnings.catch_warnings():  # a tag may have another activation than its architecture; it is set below
        warnings.filterwarnings("ignore", message="QuickGELU mismatch", category=UserWarning)
        visual: Any = open_clip.create_model(architecture, pretrained=pretrained).visual
    if quick_gelu is not None and hasattr(visual, "transformer"):
        for block in visual.transformer.resblocks:
            block.mlp.gelu = QuickGELU() if quick_gelu else nn.GELU()
    return visual


def _activation_of(architecture: str, tag: str) -> bool:
    """Return what a tag was trained with: open_clip only warns where it differs from the architecture's config."""
    import open_clip

    config = (open_clip.get_model_config(architecture) or {}).get("quick_gelu", False)
    said = open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu")
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
