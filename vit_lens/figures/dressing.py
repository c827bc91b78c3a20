"""What every figure shares: colours, layout, pictures inside a figure, and files."""

__all__ = [
    "DIVERGING", "SEQUENTIAL", "SUFFIXES", "TILE", "check_image", "colours", "dress", "layer_map", "picture_uri",
    "save", "tile_figure",
]  # fmt: skip

import base64
import importlib.util
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import PIL.Image
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_lens.errors import LensError, OutputError
from vit_lens.files import make_directory, write_atomic
from vit_lens.records import encode_png

SUFFIXES = (".png", ".svg", ".pdf", ".html")
DIVERGING = [[0.0, "#2368a6"], [0.5, "#f4f1ea"], [1.0, "#c4520f"]]
SEQUENTIAL = [[0.0, "#f4f1ea"], [1.0, "#1d5b7d"]]
TILE = 150
_BAR = 40  # pixels of the bar of buttons
_LINE = 15  # pixels of a line of a caption


def save(figure: go.Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure to a file whose name says how.

    Args:
        figure: The figure.
        path: A name that ends in .png, .svg, .pdf (these need a Chrome or Chromium browser and kaleido) or .html.

    Returns:
        The path.

    Raises:
        OutputError: The name ends otherwise, the browser is missing, or the file cannot be written.

    >>> import plotly.graph_objects as go
    >>> vl.figures.save(go.Figure(), tmp / "figure.html").name
    'figure.html'
    >>> vl.figures.save(go.Figure(), tmp / "figure.jpeg")
    Traceback (most recent call last):
    vit_lens.errors.OutputError: cannot save a figure as 'figure.jpeg'; the name must end in .png, .svg, .pdf, .html
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise OutputError(f"cannot save a figure as {path.name!r}; the name must end in {', '.join(SUFFIXES)}")
    if suffix == ".html":
        data = figure.to_html(include_plotlyjs=True, full_html=True).encode()
    else:
        data = _export(figure, suffix[1:])
    make_directory(path.parent)
    write_atomic(path, data)
    return path


def dress(figure: go.Figure, title: str, width: int, height: int) -> go.Figure:
    """Give a figure its title, size and type face; every figure of the package passes here.

    Args:
        figure: The figure, which is changed and returned.
        title: The title, in plotly's HTML.
        width: The width in pixels; 420 if it is less.
        height: The height in pixels.

    >>> import plotly.graph_objects as go
    >>> vl.figures.dress(go.Figure(), "Heads", 300, 200).layout.width
    420
    """
    figure.update_layout(
        title={"text": title, "font": {"size": 15}},
        template="plotly_white", width=max(width, 420), height=height,
        margin={"l": 60, "r": _BAR, "t": 118, "b": 50}, modebar={"orientation": "v"},  # beside the title, not over it
        font={"family": "system-ui, Helvetica, Arial, sans-serif", "size": 12, "color": "#1c1b19"},
    )  # fmt: skip
    return figure


def colours(limit: float, signed: bool) -> dict[str, Any]:
    """Return the colours of a heat map up to a limit: around zero for signed numbers, from zero for others."""
    scale = (
        {"zmin": -limit, "zmid": 0.0, "colorscale": DIVERGING} if signed else {"zmin": 0.0, "colorscale": SEQUENTIAL}
    )
    return {"zmax": limit, **scale}


def check_image(image: int, n: int) -> None:
    """Raise a LensError where there is no such image among ``n``."""
    if not 0 <= image < n:
        raise LensError(f"no image {image}; there are images 0 to {n - 1}")


def layer_map(
    values: Mapping[tuple[Any, str], float], names: Mapping[tuple[Any, str], str], *, title: str, unit: str,
    across: str, digits: str, signed: bool, limit: float,
) -> go.Figure:  # fmt: skip
    """Draw numbers of parts of a tower as a layer x column heat map, the first layer on top.

    Args:
        values: By layer and column, in the order in which they are shown; a place without one stays empty.
        names: Of the parts, by place.
        title: Of the figure.
        unit: Of the numbers.
        across: What the columns are.
        digits: How plotly writes a number.
        signed: Whether the colours are centred on 0.
        limit: The number with the strongest colour; 0 for 1.
    """
    layers, columns = (list(dict.fromkeys(place[axis] for place in values)) for axis in (0, 1))
    limit = limit or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=[[values[layer, column] for column in columns] for layer in layers], x=columns, y=layers,
            customdata=[[names.get((layer, column), "") for column in columns] for layer in layers],
            **colours(limit, signed), colorbar={"title": {"text": unit}},
            hovertemplate=f"%{{customdata}}: %{{z:{digits}}}<extra></extra>", xgap=1, ygap=1,
        )
    )  # fmt: skip
    figure.update_xaxes(title=across, type="category", showgrid=False)
    figure.update_yaxes(
        title="layer", autorange="reversed", dtick=max(1, len(layers) // 12), showgrid=False, zeroline=False,
        type="category" if isinstance(layers[0], str) else "linear",
    )  # fmt: skip
    return dress(figure, title, 200 + 46 * len(columns), 190 + 34 * len(layers))


def tile_figure(tiles: list[tuple[PIL.Image.Image, str]], title: str, columns: int) -> go.Figure:
    """Draw captioned pictures side by side, ``columns`` in a row."""
    n_rows = math.ceil(len(tiles) / columns)
    captions = [caption for _, caption in tiles]
    more = max(0, _LINE * (max(caption.count("<br>") for caption in captions) - 2))  # beyond three lines
    top = 118 + more + _LINE * title.count("<br>")
    width, height = 60 + columns * TILE, 5 + top - more + n_rows * (TILE + 58 + more)
    figure = make_subplots(
        rows=n_rows, cols=columns, subplot_titles=captions, horizontal_spacing=0.1 / columns,
        vertical_spacing=(58 + more) / height if n_rows > 1 else 0.0,
    )  # fmt: skip
    for place, (picture, _) in enumerate(tiles):
        trace = go.Image(source=picture_uri(picture), hoverinfo="skip")
        figure.add_trace(trace, row=place // columns + 1, col=place % columns + 1)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_annotations(font_size=11)
    dress(figure, title, width, height)
    return figure.update_layout(margin_t=top, title={"y": 1 - 30 / height, "yanchor": "top"})


def picture_uri(picture: PIL.Image.Image) -> str:
    """Return a picture as a PNG data URI, which a figure can carry.

    >>> import PIL.Image
    >>> vl.figures.picture_uri(PIL.Image.open(images[0]))[:22]
    'data:image/png;base64,'
    """
    return f"data:image/png;base64,{base64.b64encode(encode_png(picture)).decode('ascii')}"


def _export(figure: go.Figure, kind: str) -> bytes:
    if importlib.util.find_spec("kaleido") is None:
        raise OutputError(
            f"saving a figure as .{kind} needs the package kaleido: pip install kaleido; or save it as .html"
        )
    try:
        return figure.to_image(format=kind, scale=2 if kind == "png" else 1)
    except (RuntimeError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OutputError(
            f"saving a figure as .{kind} needs a Chrome or Chromium that starts ({reason}); install one, "
            "or set BROWSER_PATH to it, or save as .html"
        ) from error
