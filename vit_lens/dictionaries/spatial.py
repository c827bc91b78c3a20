"""Where on an image features fire: on how many patches at most, how much of it, how concentrated, how spread out."""

__all__ = ["SpatialFeatures", "patch_grid", "spatial_features"]

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.config import PatchEmbedConfig
from vit_lens.dictionaries.denoiser_tokens import DenoiserTokens
from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.drawn import grid_of
from vit_lens.dictionaries.source import ActivationSource
from vit_lens.dictionaries.statistics import refuse_other
from vit_lens.dictionaries.steps import StepTokens, steps_of
from vit_lens.errors import DictionaryError

if TYPE_CHECKING:
    import pandas as pd

_TOKENS_AT_ONCE = 2048
_TOP = 0.25  # the share of patches that concentration is of


@dataclass(frozen=True, eq=False, repr=False)
class SpatialFeatures:
    """Where features fire; :func:`spatial_features` makes it.

    A map is a feature's activation, in size, on the patches of one image, at one step of a diffusion model. Means are
    over the maps in which the feature fires at all; NaN for one that never does.

    Attributes:
        most: On how many patches of one image the feature fires at most.
        area: The share of patches on which it fires.
        concentration: How much of the activation is on the quarter of the patches where it is largest.
        spread: The root of the mean squared distance of the activation from its centre, in patches; NaN without a grid.
        n_maps: Of each feature in how many maps it fires.
        grid: Rows and columns of patches; None where they are not known.
        n_patches: How many patches a map has.
        n_read: How many maps were read.

    >>> found = vl.dictionaries.random_dictionary(128, 40, k=4, site="blocks.5.hook_resid_post")
    >>> source = vl.ActivationSource.of_model(model, images, "L5.resid_post", tokens="patches")
    >>> result = spatial_features(found, source)
    >>> result, 0 <= result.sparse(6) <= result.sparse(15) <= 1
    (SpatialFeatures(40 features on 2 maps of 4 x 4 patches), True)
    """

    most: Int[Tensor, " feature"]
    area: Float[Tensor, " feature"]
    concentration: Float[Tensor, " feature"]
    spread: Float[Tensor, " feature"]
    n_maps: Int[Tensor, " feature"]
    grid: tuple[int, int] | None
    n_patches: int
    n_read: int

    def __repr__(self) -> str:
        of = f"{self.n_patches}" if self.grid is None else f"{self.grid[0]} x {self.grid[1]}"
        return f"SpatialFeatures({len(self.most)} features on {self.n_read} maps of {of} patches)"

    def sparse(self, n: int = 6) -> float:
        """Return the share, of the features that fire, of those that never fire on more than ``n`` patches of an image.

        Raises:
            DictionaryError: None fires.
        """
        live = self.most > 0
        if not live.any():
            raise DictionaryError(f"none of {len(live)} features fires")
        return float((self.most[live] <= n).double().mean())

    def to_frame(self) -> "pd.DataFrame":
        """Return a row for each feature: feature, most, area, concentration, spread, n_maps."""
        import pandas as pd

        columns = ("most", "area", "concentration", "spread", "n_maps")
        return pd.DataFrame({"feature": range(len(self.most)), **{one: getattr(self, one).tolist() for one in columns}})


@torch.no_grad()
def spatial_features(
    dictionary: Dictionary, source: ActivationSource, *, grid: tuple[int, int] | None = None
) -> SpatialFeatures:
    """Measure on which patches features fire.

    Args:
        dictionary: The dictionary.
        source: All patches of images that it was not learnt from.
        grid: Rows and columns of patches; None asks the model, where the source runs one.

    Raises:
        DictionaryError: The dictionary is of another model, hook point or step, images have different numbers of
            patches, or these are not those of the grid.

    >>> source = vl.ActivationSource.of_array(torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0)))
    >>> found = spatial_features(vl.dictionaries.random_dictionary(8, 20, k=3), source, grid=(2, 3))
    >>> found.to_frame().columns.tolist(), bool((found.area[found.most > 0] >= 1 / 6).all())
    (['feature', 'most', 'area', 'concentration', 'spread', 'n_maps'], True)
    """
    refuse_other(dictionary, source)
    grid = patch_grid(source) if grid is None else grid
    sums: _Maps | None = None
    for start in range(0, len(source.inputs), source.buffer):
        part = source.inputs[start : start + source.buffer]
        tokens, labels = source.reader.read(part)
        steps = steps_of(labels[:, 1]) if source.provenance.at_steps is not None else torch.zeros_like(labels[:, 1])
        for index in part:
            of_input = labels[:, 0] == index
            for step in steps[of_input].unique().tolist():
                own = of_input & (steps == step)
                x = tokens[own.to(tokens.device)][labels[own, 1].argsort().to(tokens.device)]
                sums = sums or _Maps(dictionary, len(x), grid)
                sums.add(x, index)
    if sums is None:
        raise DictionaryError("the source has no token")
    return sums.result()


def patch_grid(source: ActivationSource) -> tuple[int, int] | None:
    """Return rows and columns of the patches that a source's tokens are; None where no model says so.

    Args:
        source: A source that runs a model, of all patches of an image.

    >>> patch_grid(vl.ActivationSource.of_model(model, images, "L5.resid_post", tokens="patches"))
    (4, 4)
    >>> patch_grid(vl.ActivationSource.of_array(torch.randn(3, 16, 8)))
    """
    reader = source.reader
    while isinstance(reader, StepTokens):
        reader = reader.reader
    if isinstance(reader, DenoiserTokens):
        return grid_of(reader)
    cfg = getattr(getattr(reader, "model", None), "cfg", None)
    return cfg.grid if isinstance(cfg, PatchEmbedConfig) and source.provenance.tokens == "patches" else None


class _Maps:
    """Sums over maps."""

    def __init__(self, dictionary: Dictionary, n: int, grid: tuple[int, int] | None):
        if grid is not None and math.prod(grid) != n:
            raise DictionaryError(f"{n} tokens of an image, and a grid of {grid[0]} x {grid[1]}; expected all patches")
        self.dictionary, self.n, self.grid = dictionary, n, grid
        self.places = None if grid is None else torch.cartesian_prod(*(torch.arange(float(side)) for side in grid))
        self.most, self.n_maps = torch.zeros(2, dictionary.n_features, dtype=torch.long)
        self.area, self.top, self.spread = torch.zeros(3, dictionary.n_features, dtype=torch.float64)
        self.n_read = 0

    def add(self, x: Float[Tensor, "patch d"], index: int) -> None:
        if len(x) != self.n:
            raise DictionaryError(f"input {index} has {len(x)} tokens, another {self.n}; expected as many patches")
        found = self.dictionary
        parts = [found.encode(part.to(found.W_dec.device)).abs().cpu() for part in x.split(_TOKENS_AT_ONCE)]
        codes = torch.cat(parts)
        n_active = (codes > 0).sum(0)
        fires = n_active.nonzero()[:, 0]
        own = codes[:, fires].double()
        total = own.sum(0)
        self.most = torch.maximum(self.most, n_active)
        self.n_maps[fires] += 1
        self.area[fires] += n_active[fires].double() / self.n
        self.top[fires] += own.topk(math.ceil(_TOP * self.n), dim=0).values.sum(0) / total
        if self.places is not None:
            places, share = self.places.double().view(self.n, 2), own / total
            centre = share.T @ places  # [feature 2]
            self.spread[fires] += (share.T @ places.square() - centre.square()).sum(1).clamp(min=0).sqrt()
        self.n_read += 1

    def result(self) -> SpatialFeatures:
        n = torch.where(self.n_maps > 0, self.n_maps.double(), torch.nan)
        spread = self.spread / n if self.places is not None else torch.full_like(self.spread, torch.nan)
        return SpatialFeatures(
            most=self.most, area=self.area / n, concentration=self.top / n, spread=spread, n_maps=self.n_maps,
            grid=self.grid, n_patches=self.n, n_read=self.n_read,
        )  # fmt: skip
