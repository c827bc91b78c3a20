"""The page of a plate: one file with every picture inside, and no script."""

__all__ = ["write_plate"]

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from vit_lens.figures import picture_uri
from vit_lens.identity import MINI_ENCODER
from vit_lens.metrics import DRAWN_THRESHOLD
from vit_lens.records import thumbnail_uri
from vit_lens.report import page_path, write_page
from vit_lens.studies.paper.plate import PLATE_NUMBERS, Plate, Strip, Tile, number_text

_SHARP = 96  # smaller pictures go in whole
_WIDE, _QUALITY = 240, 84


def write_plate(plate: Plate, out: str | os.PathLike[str]) -> Path:
    """Write the page of a plate to ``out``, a path that ends in .html; return it.

    Raises:
        OutputError: The page cannot be written, or ``out`` is not an .html file.
    """
    used = {name for strip in plate.strips for tile in strip.tiles for name in tile.numbers}
    return write_page(
        page_path(out), ("vit_lens.studies.paper", "plate.html.j2"),
        styles=[("vit_lens.report", "page.css"), ("vit_lens.studies.paper", "plate.css")],
        filters={"number": number_text}, plate=plate, mini=plate.settings.get("encoder") == MINI_ENCODER,
        strips=[_strip(strip) for strip in plate.strips],
        numbers=[(short, meaning) for name, (short, meaning) in PLATE_NUMBERS.items() if name in used],
        threshold=DRAWN_THRESHOLD,
        settings=[(name.capitalize(), _plain(value)) for name, value in plate.settings.items()],
    )  # fmt: skip


def _strip(strip: Strip) -> dict[str, Any]:
    return {
        "rows": 1 + max((len(tile.below) for tile in strip.tiles), default=0),
        "title": strip.title, "words": strip.words, "facts": list(strip.facts.items()),
        "tiles": [_tile(tile) | {"below": [_tile(under) for under in tile.below]} for tile in strip.tiles],
    }  # fmt: skip


def _tile(tile: Tile) -> dict[str, Any]:
    numbers = [(PLATE_NUMBERS[name][0], value) for name, value in tile.numbers.items()]
    return {"label": tile.label, "uri": _uri(tile.picture), "numbers": numbers, "drawn": tile.is_drawn}


def _uri(picture: UInt8[np.ndarray, "height width 3"]) -> str:
    shown = PIL.Image.fromarray(picture)
    return picture_uri(shown) if max(shown.size) <= _SHARP else thumbnail_uri(shown, _WIDE, _QUALITY)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
