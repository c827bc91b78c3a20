"""A plate: captioned pictures in strips, each beside its control, with what is needed to make and to doubt them."""

__all__ = ["PLATE_NUMBERS", "Plate", "Strip", "Tile", "number_text"]

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vit_lens.errors import RecordError
from vit_lens.files import make_directory, write_atomic
from vit_lens.metrics import DRAWN_THRESHOLD

_FORMAT = "vit_lens.plate.1"

PLATE_NUMBERS: dict[str, tuple[str, str]] = {
    "cos": ("cos", "cosine of the lens embedding with the input's embedding, before anything is decoded"),
    "S": (
        "S",
        "centred similarity to the input: the same cosine after each side's mean over the reference images is taken "
        "away, so that what all images share, and what this site says of every image, does not count",
    ),
    "leak": (
        "leak",
        "leak index, S(control) / S(site): near 0 the likeness came from the site, near 1 a random direction of equal "
        "norm has as much of it; not applicable where S(site) is no more than chance gives",
    ),
    "leak_other": ("leak, other image", "the same for what the site writes for another image, at the same norm"),
    "leak_covariance": ("leak, covariance", "the same for random directions with the site's covariance"),
    "overlay": (
        "overlay",
        "cosine of what the site's lens embedding gains with the overlay (composite minus image) with what the overlay "
        "alone adds to the embedding of a blank",
    ),
    "drawn": (
        "drawn",
        "faithfulness: cosine of the re-encoded picture with the embedding that the decoder was asked to draw",
    ),
    "picture": (
        "picture",
        "cosine of the re-encoded picture with the embedding of the image that was read; circular, since this encoder "
        "also conditioned the decoder",
    ),
}
"""Short title and meaning of every number under a picture."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Tile:
    """One picture with its numbers, and what stands below it to compare with.

    Attributes:
        label: What stands under the picture, above all the site.
        picture: The picture.
        numbers: The picture's numbers, by the keys of ``PLATE_NUMBERS``; None says "undefined". Empty for an image that
            is no drawing.
        below: The site's controls, a random direction and another image's output of equal norm, drawn with the same
            noise; or more.
    """

    label: str
    picture: UInt8[np.ndarray, "height width 3"]
    numbers: Mapping[str, float | None] = field(default_factory=dict)
    below: "tuple[Tile, ...]" = ()

    def __post_init__(self) -> None:
        for name, value in self.numbers.items():
            if name not in PLATE_NUMBERS:
                raise RecordError(f"{self.label}: no number {name!r} in a plate; it knows {', '.join(PLATE_NUMBERS)}")
            if value is not None and not math.isfinite(value):
                raise RecordError(f"{self.label}: {name} is {value}; give None for what is undefined")

    @property
    def is_drawn(self) -> bool:
        """Whether the decoder could draw this; True for an image that is no drawing."""
        faithfulness = self.numbers.get("drawn", 1.0)
        return faithfulness is not None and faithfulness >= DRAWN_THRESHOLD

    def describe(self) -> dict[str, Any]:
        """Return everything but the picture."""
        below = [tile.describe() for tile in self.below]
        return {"label": self.label, "numbers": dict(self.numbers), "drawn": self.is_drawn, "below": below}


@dataclass(frozen=True, eq=False, kw_only=True)
class Strip:
    """Pictures in a line: one lens, one image.

    Attributes:
        title: Lens and settings, in words.
        tiles: The pictures, from left to right.
        words: What a reader must know of this line.
        facts: Numbers of the line as a whole, by name; None says "undefined".
    """

    title: str
    tiles: tuple[Tile, ...]
    words: str = ""
    facts: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class Plate:
    """A figure of strips.

    Attributes:
        name: The name of its files, without an ending.
        title: The headline.
        words: What the figure shows, in sentences.
        strips: The lines of pictures, from top to bottom.
        settings: Model, decoder, images, seeds: what another run needs.
        unknown: What the original does not say, and what stands here instead, in pairs.
        notes: What a reader must know, in sentences.
        command: The command that makes it again; None where there is none.
    """

    name: str
    title: str
    words: str
    strips: tuple[Strip, ...]
    settings: Mapping[str, Any]
    unknown: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    command: str | None = None

    def save(self, directory: Path) -> Path:
        """Write everything but the pictures as ``<name>.json``; return its path.

        Raises:
            OutputError: The file cannot be written.
        """
        make_directory(directory)
        found = {
            "format": _FORMAT, "name": self.name, "title": self.title, "words": self.words, "command": self.command,
            "settings": dict(self.settings), "notes": list(self.notes),
            "unknown": [{"what": what, "here": here} for what, here in self.unknown],
            "strips": [
                {"title": strip.title, "words": strip.words, "facts": dict(strip.facts),
                 "tiles": [tile.describe() for tile in strip.tiles]}
                for strip in self.strips
            ],
        }  # fmt: skip
        path = directory / f"{self.name}.json"
        write_atomic(path, (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
        return path


def number_text(value: float | None) -> str:
    """Return a number as pages and figures show it, to two digits."""
    return "undefined" if value is None else f"{round(value, 2) + 0.0:.2f}".replace("-", "\u2212")  # no minus zero
