"""From readings to captioned pictures: all that a figure shows is drawn in one go, with the same noise."""

__all__ = ["RANKS", "Chosen", "Layer", "best", "image_tile", "layers_of", "rank_by", "read_tiles"]

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vit_lens.conditions import Condition
from vit_lens.errors import StudyError, nearest
from vit_lens.estimates import leak_of_draws
from vit_lens.studies.paper.kept_tiles import draw
from vit_lens.studies.paper.paper_setup import PaperSetup
from vit_lens.studies.paper.plate import Tile
from vit_lens.studies.paper.site_readings import SiteReading

RANKS = {
    "cos": "cosine of the lens embedding with the input's",
    "S": "centred similarity of the lens embedding to the input (S)",
    "picture": "cosine of the re-encoded picture with the input's embedding (circular)",
}
"""What sites may be ranked by."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """One picture of every site: the lens embedding, or what stands below it.

    Attributes:
        label: Under the picture; None for the name of the site.
        embeds: What is drawn.
        clean: Embedding of the image that was read.
        numbers: Of every site, by the keys of ``PLATE_NUMBERS``; nan for what is undefined.
    """

    label: str | None
    embeds: Float[Tensor, "site d_embed"]
    clean: Float[Tensor, " d_embed"]
    numbers: Mapping[str, Float[Tensor, " site"]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Chosen:
    """Sites in the order in which they are shown, and the layers of pictures from top to bottom."""

    sites: tuple[str, ...]
    order: list[int]
    layers: list[Layer]


def rank_by(setup: PaperSetup, reading: SiteReading, by: str) -> Float[Tensor, " site"]:
    """Return a similarity to the input by name; ``picture`` draws every site.

    Raises:
        StudyError: There is no such similarity.
    """
    if by not in RANKS:
        raise StudyError(f"no ranking {by!r}; nearest: {nearest(by, RANKS)}")
    if by == "picture":
        asked = Condition(pooled=reading.embeds)
        return draw(setup, asked, reading.clean.expand_as(reading.embeds)).likeness
    return reading.S if by == "S" else reading.cos


def best(score: Float[Tensor, " site"], top: int) -> list[int]:
    """Return the indices of the ``top`` largest, undefined ones last.

    Raises:
        StudyError: There are fewer.
    """
    if not 1 <= top <= len(score):
        raise StudyError(f"the top {top} of {len(score)} sites; ask for 1 to {len(score)}")
    return torch.argsort(score.nan_to_num(-torch.inf), descending=True, stable=True)[:top].tolist()


def layers_of(reading: SiteReading) -> list[Layer]:
    """Return a reading's embeddings with its numbers, above its controls: a random direction, and those beside it.

    Of the further controls another image's output is drawn; all have a leak index.
    """
    own = {"cos": reading.cos, "S": reading.S, "leak": _leak(reading, reading.control_draws_S)}
    own |= {f"leak_{kind}": _leak(reading, found.S) for kind, found in reading.others.items()}
    control = {"cos": reading.control_cos, "S": reading.control_S}
    layers = [
        Layer(label=None, embeds=reading.embeds, clean=reading.clean, numbers=own),
        Layer(label="control", embeds=reading.controls[0], clean=reading.clean, numbers=control),
    ]
    if (other := reading.others.get("other")) is not None:
        numbers = {"cos": other.cos.mean(0), "S": other.S.mean(0)}
        layers.append(Layer(label="other image", embeds=other.embeds[0], clean=reading.clean, numbers=numbers))
    return layers


def _leak(reading: SiteReading, draws: Float[Tensor, "draw site"]) -> Float[Tensor, " site"]:
    """Return the leak index of a control at every site; nan where it is not applicable."""
    found = [
        leak_of_draws(of_site.tolist(), float(site), least=float(chance)).value
        for of_site, site, chance in zip(draws.T, reading.S, reading.chance, strict=True)
    ]
    return torch.tensor([math.nan if value is None else value for value in found], dtype=torch.float64)


def read_tiles(
    setup: PaperSetup, clean: Float[Tensor, " d_embed"], chosen: Sequence[Chosen]
) -> tuple[Tile, list[list[Tile]]]:
    """Draw the input's own embedding, and of each choice all layers of its sites.

    Returns:
        The picture of the input's embedding, which is the best that the decoder can do; and one list for each choice.
    """
    layers = [(one.order, layer) for one in chosen for layer in one.layers]
    embeds = torch.cat([clean[None], *(layer.embeds[order] for order, layer in layers)])
    cleans = torch.cat([clean[None], *(layer.clean.expand(len(order), -1) for order, layer in layers)])
    drawn = draw(setup, Condition(pooled=embeds), cleans)
    tiles = iter(
        Tile(label="", picture=picture, numbers={"drawn": float(faithful), "picture": float(alike)})
        for picture, faithful, alike in zip(drawn.pictures, drawn.faithfulness, drawn.likeness, strict=True)
    )
    own = replace(next(tiles), label="its embedding, drawn")
    return own, [_columns(one, tiles) for one in chosen]


def image_tile(label: str, picture: UInt8[np.ndarray, "height width 3"]) -> Tile:
    """Return an image as it is: no drawing, no numbers."""
    return Tile(label=label, picture=picture)


def _columns(one: Chosen, tiles: Iterator[Tile]) -> list[Tile]:
    lines = [[_numbered(next(tiles), one, layer, site) for site in one.order] for layer in one.layers]
    return [replace(column[0], below=tuple(column[1:])) for column in zip(*lines, strict=True)]


def _numbered(tile: Tile, one: Chosen, layer: Layer, site: int) -> Tile:
    values = {name: float(of_sites[site]) for name, of_sites in layer.numbers.items()}
    known = {name: None if math.isnan(value) else value for name, value in values.items()}
    return replace(tile, label=layer.label or one.sites[site], numbers=known | dict(tile.numbers))
