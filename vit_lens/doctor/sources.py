"""The tower as its own library loads it, which HookedViT must equal layer by layer."""

__all__ = ["SourceTower", "load_source"]

import importlib.resources
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_lens.errors import CheckpointError
from vit_lens.identity import MINI_ENCODER
from vit_lens.model import HookedViT
from vit_lens.pretrained.folders import Folder, HubFolder, LocalFolder, split_subfolder
from vit_lens.pretrained.tensors import read_json


@dataclass(frozen=True, kw_only=True)
class SourceTower:
    """A tower of open_clip or transformers, and where to listen in it."""

    library: str
    module: nn.Module
    embed: Callable[[Tensor], Tensor]
    entry: nn.Module
    blocks: list[nn.Module]
    tokens_first: bool = False

    def run(
        self, pixels: Float[Tensor, "batch channel height width"]
    ) -> tuple[list[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch d_embed"]]:
        """Return what enters block 0 and what leaves every block, and the embedding."""
        found: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            out = output[0] if isinstance(output, tuple) else output
            found.append(out.transpose(0, 1) if self.tokens_first and module is not self.entry else out)

        handles = [module.register_forward_hook(keep) for module in (self.entry, *self.blocks)]
        try:
            with torch.no_grad():
                return found, self.embed(pixels)
        finally:
            for handle in handles:
                handle.remove()


def load_source(name: str | Path, model: HookedViT, *, tag: str | Path | None = None) -> SourceTower:
    """Load the weights that ``model`` was loaded from once more, with the library that published them.

    Raises:
        CheckpointError: That library cannot load them.
    """
    from safetensors import SafetensorError

    try:
        with _quiet():
            source = _load(name, model, tag)
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"the source of {name} cannot be loaded by its own library: {reason}") from error
    source.module.to(device=model.device, dtype=model.dtype).eval()
    return source


def _load(name: str | Path, model: HookedViT, tag: str | Path | None) -> SourceTower:
    if model.encoder_id.startswith("open_clip/"):
        _, architecture, found = model.encoder_id.split("/")
        return _open_clip(architecture, found, model)
    if tag is not None:
        return _open_clip(str(name).removeprefix("open_clip/"), str(Path(tag).expanduser()), model)
    if model.encoder_id == MINI_ENCODER:
        folder = importlib.resources.files("vit_lens") / "mini" / "pair" / "encoder"
        with importlib.resources.as_file(folder) as path:
            return _folder(LocalFolder(path), str(path), "", model)
    root, subfolder = split_subfolder(str(name))
    if model.encoder_id.startswith("hf/"):
        repo_id = root.removeprefix("hf/")
        return _folder(HubFolder(repo_id), repo_id, subfolder, model)
    path = Path(root).expanduser()
    return _folder(LocalFolder(path), str(path), subfolder, model)


def _folder(folder: Folder, root: str, subfolder: str, model: HookedViT) -> SourceTower:
    config = folder.find(f"{subfolder}/config.json" if subfolder else "config.json")
    if config is None:
        schema = "local-dir" if isinstance(folder, LocalFolder) else "hf-hub"
        return _open_clip(f"{schema}:{Path(root, subfolder) if subfolder else root}", None, model)
    return _hugging_face(root, subfolder, read_json(config).get("model_type"), model)


def _hugging_face(root: str, subfolder: str, model_type: str | None, model: HookedViT) -> SourceTower:
    import transformers

    kind = "CLIPVisionModelWithProjection" if model.cfg.has_proj else "CLIPVisionModel"
    cls = getattr(transformers, "CLIPModel" if model_type == "clip" else kind)
    tower, info = cls.from_pretrained(root, subfolder=subfolder, output_loading_info=True)
    missing = sorted(key for key in info["missing_keys"] if not key.endswith("position_ids"))
    if missing:
        raise CheckpointError(f"{root}: transformers misses {', '.join(missing[:5])} and would fill them at random")
    core = tower
    while not hasattr(core, "embeddings"):
        core = core.vision_model
    project = tower.visual_projection if model.cfg.has_proj else nn.Identity()
    return SourceTower(
        library="transformers",
        module=tower,
        embed=lambda pixels: project(core(pixel_values=pixels).pooler_output),
        entry=core.pre_layrnorm,
        blocks=list(core.encoder.layers),
    )


def _open_clip(architecture: str, pretrained: str | None, model: HookedViT) -> SourceTower:
    import open_clip
    from open_clip.transformer import QuickGELU

    with warnings.catch_warnings():  # a tag may have another activation than its architecture; it is set below
        warnings.filterwarnings("ignore", message="QuickGELU mismatch", category=UserWarning)
        visual: Any = open_clip.create_model(architecture, pretrained=pretrained).visual
    blocks = list(visual.transformer.resblocks)
    for block in blocks:
        block.mlp.gelu = QuickGELU() if model.cfg.act_fn == "quick_gelu" else nn.GELU()

    def embed(pixels: Tensor) -> Tensor:
        out = visual(pixels)
        return out[0] if isinstance(out, tuple) else out

    return SourceTower(
        library="open_clip",
        module=visual,
        embed=embed,
        entry=visual.ln_pre,
        blocks=blocks,
        tokens_first=not getattr(visual.transformer, "batch_first", False),
    )


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
