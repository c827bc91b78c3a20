"""What the towers of Hugging Face's transformers have in common."""

__all__ = ["HuggingFace", "ModelType", "Positions", "fitted", "no_progress_bars", "stored_shape", "stored_size"]

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_lens.errors import CheckpointError, UnsupportedTowerError
from vit_lens.images import PreprocessSpec
from vit_lens.sources.configs import plain_config, understood
from vit_lens.sources.families.family import Family, SupportedTower
from vit_lens.sources.folders import TowerFolder
from vit_lens.sources.recipe import Shape
from vit_lens.sources.refusals import kind, refuse
from vit_lens.sources.source_tower import SourceTower

Positions = Callable[[Tensor], Tensor]


class ModelType(NamedTuple):
    """Classes of transformers that a ``model_type`` in a config.json stands for.

    Attributes:
        config: Of the config.
        tower: Of the tower.
        sources: That load it, to be tried until one finds all its weights.
    """

    config: str
    tower: str
    sources: tuple[str, ...]


class HuggingFace(Family):
    """A family of transformers, whose towers are built from their config and fit their positions to other sizes.

    Attributes:
        model_types: Each a :class:`ModelType`.
        older_classes: Those of ``classes`` that only older versions of transformers have.
        nested: Name of the tower in a whole model.
        config_part: Name of the tower's config in that of a whole model.
        final_norm: Name of the norm after the last block.
        activation: Name of the MLP's nonlinearity in a config.
        fits_positions: Whether a forward pass has to be asked to fit positions to the pixels.
    """

    older_classes: tuple[str, ...] = ()
    nested: str = "vision_model"
    config_part: str = "vision_config"
    final_norm: str = "post_layernorm"
    fits_positions: bool = True
    activation: str = "hidden_act"

    def core(self, tower: Any) -> Any:
        """Return the module that holds embeddings and layers; whole models and older versions nest it."""
        while not hasattr(tower, "embeddings"):
            tower = getattr(tower, self.nested)
        return tower

    def tensors(self, tower: Any) -> dict[str, Tensor]:
        stored = self.core(tower).state_dict()
        return {name: stored[key] for name, key in self.names(stored).items()}

    def size(
        self, image_size: tuple[int, int] | None, spec: PreprocessSpec | None, what: str
    ) -> tuple[int, int] | None:
        return image_size

    def listen(self, tower: Any) -> SourceTower:
        core = self.core(tower)
        parts = nn.ModuleDict({"core": core, "project": getattr(tower, "visual_projection", nn.Identity())})
        return SourceTower(
            f"transformers {kind(tower)}",
            parts,
            partial(_embed, options={"interpolate_pos_encoding": True} if self.fits_positions else {}),
            blocks=core.encoder.layers if hasattr(core.encoder, "layers") else core.encoder.layer,
            final_norm=getattr(core, self.final_norm),
            own_size=stored_size(core.embeddings),
        )

    def build(self, config: Mapping[str, Any], path: Path, names: Collection[str]) -> nn.Module:
        import transformers
        from transformers.activations import ACT2FN

        own, tower_class = self.tower_of(self.library_config(config, path), names)
        if (act := getattr(own, self.activation)) not in ACT2FN:
            refuse(f"a tower with {self.activation}={act!r}, which is no activation of transformers")
        with understood(path), torch.device("meta"):
            return getattr(transformers, tower_class)(own)

    def library_config(self, config: Mapping[str, Any], path: Path) -> Any:
        """Return the config of transformers that a file stands for; unknown keys do not reach it."""
        import transformers

        plain = plain_config(config, path, self.classes)
        with understood(path):
            return getattr(transformers, self.model_types[config["model_type"]].config).from_dict(plain)

    def tower_of(self, config: Any, names: Collection[str]) -> tuple[Any, str]:
        """Return the tower's own config, of a config in memory, and its class."""
        return getattr(config, self.config_part, config), self.model_types[config.model_type].tower

    def load(self, folder: TowerFolder, config: Mapping[str, Any]) -> nn.Module:
        import transformers

        where, options = folder.library_place
        if isinstance(folder.root, Path):
            folder.weights(self.weight_files)  # none of which lies outside
        options["config"] = self.library_config(config, Path(folder.label, self.config_file))
        missing = []
        for name in self.model_types[config["model_type"]].sources:
            with no_progress_bars():
                tower, info = getattr(transformers, name).from_pretrained(where, output_loading_info=True, **options)
            missing = sorted(key for key in info["missing_keys"] if not key.endswith("position_ids"))
            if not missing:
                return tower
        told = ", ".join(missing[:5])
        raise CheckpointError(f"{folder.told}: transformers misses {told} and would fill them at random")

    def table(self) -> list[SupportedTower]:
        return [row for row in super().table() if row.name not in self.older_classes]


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep transformers from showing progress bars in a ``with`` block.

    >>> with no_progress_bars():
    ...     source = vl.sources.load_module(vl.sources.resolve_name("mini"), quick_gelu=False)
    """
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _embed(parts: Any, pixels: Tensor, options: dict[str, bool]) -> Tensor:
    core = parts["core"]
    pooled = core(pixel_values=pixels, **options).pooler_output
    if pooled is None:
        raise UnsupportedTowerError(
            f"the transformers {kind(core)} has no pooling head, so it gives no embedding to compare"
        )
    return parts["project"](pooled)


def stored_size(embeddings: Any) -> tuple[int, int]:
    """Return the image size (height, width) of a tower's stored positions."""
    size = getattr(embeddings, "patch_embeddings", embeddings).image_size
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def fitted(embeddings: Any, size: tuple[int, int], n_tokens: int, put: Callable[[Any, Tensor], None]) -> Positions:
    """Return a function from stored positions to [1 pos d_model] at ``size``, by ``interpolate_pos_encoding``.

    Args:
        embeddings: The source's module, which has that function.
        size: Of the image.
        n_tokens: At that size.
        put: Stores positions in a copy of ``embeddings``, from where the function takes them.
    """
    if not hasattr(embeddings, "interpolate_pos_encoding"):
        refuse(f"image_size= for {kind(embeddings)}, which cannot interpolate its positions")

    def positions(stored: Float[Tensor, "*one stored d_model"]) -> Float[Tensor, "1 pos d_model"]:
        holder: Any = copy.copy(embeddings)
        for name in ("_parameters", "_buffers", "_modules"):  # so that replacing one does not reach the original
            setattr(holder, name, dict(getattr(embeddings, name)))
        put(holder, stored)
        try:
            with torch.no_grad():
                return holder.interpolate_pos_encoding(stored.new_empty(1, n_tokens, stored.shape[-1]), *size)
        except RuntimeError as error:
            refuse(f"positions that {kind(holder)} cannot interpolate to {size} ({error})")

    return positions


def stored_shape(tensors: Mapping[str, Tensor], name: str, shape: Shape) -> Shape:
    """Return the shape in which positions of another size are stored: any number of rows."""
    stored = tensors.get(name)
    if stored is None or stored.ndim != len(shape):
        return shape
    return (*shape[:-2], stored.shape[-2], shape[-1])
