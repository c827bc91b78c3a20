"""A plate as one figure: strips of pictures, each above its control."""

__all__ = ["plate_figure"]

import html
import textwrap
from collections.abc import Iterator
from typing import Any

import PIL.Image
import plotly.graph_objects as go

from vit_lens.figures import dress, picture_uri
from vit_lens.studies.paper.plate import Plate, Strip, Tile, number_text

_TILE, _GAP, _LINE = 104, 10, 13
_HEADING, _SPACE = 16, 10
_SHORT = {"leak_other": "leak, other", "leak_covariance": "leak, cov."}
_UNDRAWN = "<i>the decoder could<br>not draw this</i>"
_FADED = 0.35
_SHOWN = (("overlay",), ("cos", "S"), ("leak",), ("leak_other",), ("leak_covariance",))


def plate_figure(plate: Plate) -> go.Figure:
    """Draw a plate: one line for each strip, controls below their sites. What the decoder could not draw is faded.

    Under a picture stand its numbers: cos and S (raw and centred similarity to the input) and the leak index.
    """
    columns = max(len(strip.tiles) for strip in plate.strips)
    width = columns * (_TILE + _GAP)
    heights = [_height(strip, width) for strip in plate.strips]
    height = sum(heights)
    images: list[dict[str, Any]] = []
    words: list[dict[str, Any]] = []
    top = height
    for strip, tall in zip(plate.strips, heights, strict=True):
        words.append(_words("<br>".join(_heading(strip, width)), 0, top, size=12, align="left"))
        for left, y, tile in _places(strip, top - _head(strip, width)):
            images.append(_image(tile, left, y))
            words.append(_words(_caption(tile), left + _TILE / 2, y - _TILE, size=10, align="center"))
        top -= tall
    axis = {"visible": False, "fixedrange": True}
    figure = go.Figure(layout={"images": images, "annotations": words})  # at once: one by one takes minutes
    figure.update_layout(xaxis=axis | {"range": [0, width]}, yaxis=axis | {"range": [0, height]})
    dress(figure, _title(plate, width), width + 60, height + 100)
    return figure.update_layout(margin={"l": 30, "r": 30, "t": 80, "b": 20}, plot_bgcolor="white")


def _places(strip: Strip, top: float | int) -> Iterator[tuple[float | int, float | int, Tile]]:
    for column, tile in enumerate(strip.tiles):
        for line, shown in enumerate((tile, *tile.below)):
            yield column * (_TILE + _GAP), top - line * _pitch(strip), shown


def _image(tile: Tile, x: float | int, y: float | int) -> dict[str, Any]:
    return {
        "source": picture_uri(PIL.Image.fromarray(tile.picture)), "xref": "x", "yref": "y", "x": x, "y": y,
        "sizex": _TILE, "sizey": _TILE, "opacity": 1.0 if tile.is_drawn else _FADED, "layer": "below",
    }  # fmt: skip


def _height(strip: Strip, width: int) -> int:
    lines = 1 + max(len(tile.below) for tile in strip.tiles)
    return _head(strip, width) + lines * _pitch(strip) + _GAP


def _pitch(strip: Strip) -> int:
    shown = [under for tile in strip.tiles for under in (tile, *tile.below)]
    return _TILE + _LINE * (1 + max(_caption(tile).count("<br>") for tile in shown)) + _GAP


def _head(strip: Strip, width: int) -> int:
    return _SPACE + _HEADING * len(_heading(strip, width))


def _caption(tile: Tile) -> str:
    lines = [html.escape(tile.label)]
    for names in _SHOWN:
        if line := "  ".join(_number(name, tile.numbers[name]) for name in names if name in tile.numbers):
            lines.append(line)
    if not tile.is_drawn:
        lines.append(_UNDRAWN)
    return "<br>".join(lines)


def _number(name: str, value: float | None) -> str:
    short = _SHORT.get(name, name)  # a tile is narrow
    return f"{short} n/a" if value is None and name.startswith("leak") else f"{short} {number_text(value)}"


def _heading(strip: Strip, width: int) -> list[str]:
    heading = [f"<b>{html.escape(strip.title)}</b>"]
    if strip.facts:
        said = "; ".join(f"{what} {number_text(value)}" for what, value in strip.facts.items())
        lines = textwrap.wrap(f"Spearman of the ranking, over all sites: {said}", max(40, int(width // 6.5)))
        heading += [html.escape(line) for line in lines]
    return heading


def _title(plate: Plate, width: int) -> str:
    said = f"{plate.title} (reconstruction). {plate.settings['encoder']} drawn by {plate.settings['decoder']}"
    return "<br>".join(textwrap.wrap(html.escape(said), max(40, int(width // 8))))


def _words(text: str, x: float | int, y: float | int, *, size: int, align: str) -> dict[str, Any]:
    return {
        "text": text, "x": x, "y": y, "xref": "x", "yref": "y", "showarrow": False, "yanchor": "top",
        "xanchor": "left" if align == "left" else "center", "align": align, "font": {"size": size},
    }  # fmt: skip
