"""The page of a plate: one file with every picture inside, and no script."""

__all__ = ["write_plate"]

import base64
import hashlib
import importlib.resources
import json
import os
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import PIL.Image
from jaxtyping import UInt8
from markupsafe import Markup

from vit_lens.errors import OutputError
from vit_lens.files import make_directory, write_atomic
from vit_lens.identity import MINI_ENCODER
from vit_lens.metrics import DRAWN_THRESHOLD
from vit_lens.records import encode_png, thumbnail_uri
from vit_lens.records.plates import PLATE_NUMBERS, Plate, Strip, Tile, number_text

_SHARP = 96  # smaller pictures go in whole
_WIDE, _QUALITY = 240, 84


def write_plate(plate: Plate, out: str | os.PathLike[str]) -> Path:
    """Write the page of a plate to ``out``, a path that ends in .html; return it.

    Raises:
        OutputError: The page cannot be written, or ``out`` is not an .html file.
    """
    target = Path(out)
    if target.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"the page is an HTML file, not {target.name!r}; give a path that ends in .html")
    make_directory(target.parent)
    write_atomic(target, _render(plate).encode())
    return target


def _render(plate: Plate) -> str:
    files = importlib.resources.files("vit_lens.report")
    style = "".join(files.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "plate.css"))
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["number"] = number_text
    template = environment.from_string(files.joinpath("plate.html.j2").read_text(encoding="utf-8"))
    used = {name for strip in plate.strips for tile in strip.tiles for name in tile.numbers}
    return template.render(
        policy=Markup(f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'"),
        style=Markup(style),
        plate=plate,
        mini=plate.settings.get("encoder") == MINI_ENCODER,
        strips=[_strip(strip) for strip in plate.strips],
        numbers=[(short, meaning) for name, (short, meaning) in PLATE_NUMBERS.items() if name in used],
        threshold=DRAWN_THRESHOLD,
        settings=[(name.capitalize(), _plain(value)) for name, value in plate.settings.items()],
    )


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
    if max(picture.shape[:2]) > _SHARP:
        return thumbnail_uri(PIL.Image.fromarray(picture), _WIDE, _QUALITY)
    return f"data:image/png;base64,{base64.b64encode(encode_png(picture)).decode('ascii')}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
