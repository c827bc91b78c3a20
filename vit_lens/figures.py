"""Plotly figures of a record: they choose and draw what it holds, and neither compute nor show."""

__all__ = ["SUFFIXES", "head_map", "residual_strip", "save", "top_sites"]

import base64
import html
import importlib.util
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import PIL.Image

from vit_lens.errors import OutputError, RecordError
from vit_lens.files import make_directory, write_atomic
from vit_lens.metrics import DRAWN_THRESHOLD, NUMBERS
from vit_lens.records import Record, select
from vit_lens.records.pictures import encode_png

if TYPE_CHECKING:
    import plotly.graph_objects as go

SUFFIXES = (".png", ".svg", ".pdf", ".html")
PARTS = {"attn": "attn", "mlp": "MLP"}
DIVERGING = [[0.0, "#2368a6"], [0.5, "#f4f1ea"], [1.0, "#c4520f"]]
SEQUENTIAL = [[0.0, "#f4f1ea"], [1.0, "#1d5b7d"]]
TILE = 150


def head_map(record: Record, image: int = 0, value: str = "cos_input", lens: str | None = None) -> "go.Figure":
    """Draw one number of every head, attention block and MLP as a layer x head heat map.

    Args:
        record: the record.
        image: index of the image.
        value: a number of the table: cos_input, cos_lens_clean, faithfulness or norm_h.
        lens: which reading, as `vit_lens.records.select` takes it; None is the first steering lens.
    """
    import plotly.graph_objects as go

    number = _number(value)
    rows = select(record.table, image=image, lens=lens, types=("head", "attn", "mlp"))
    layers, columns, grid, names = _grid(rows, value)
    known = [abs(v) for v in grid.values() if not math.isnan(v)]
    limit = max(known, default=0.0) or 1.0
    bounds = f"{number.low:g} to {number.high:g}" if number.high is not None else f"from {number.low:g}"
    figure = go.Figure(
        go.Heatmap(
            z=[[grid[layer, column] for column in columns] for layer in layers],
            customdata=[[names[layer, column] for column in columns] for layer in layers],
            x=columns,
            y=layers,
            zmin=-limit if number.signed else 0.0,
            zmax=limit,
            zmid=0.0 if number.signed else None,
            colorscale=DIVERGING if number.signed else SEQUENTIAL,
            colorbar={"title": {"text": f"{number.title}<br>({number.unit}, {bounds})"}},
            hovertemplate="%{customdata}: %{z:.3f}<extra></extra>",
            xgap=1,
            ygap=1,
        )
    )
    figure.update_xaxes(title="head, then the whole attention block and the MLP", type="category", showgrid=False)
    figure.update_yaxes(
        title="layer", autorange="reversed", dtick=max(1, len(layers) // 12), showgrid=False, zeroline=False
    )
    return _dress(
        figure, f"{number.title}: {_title(record, rows, image)}", 200 + 46 * len(columns), 190 + 34 * len(layers)
    )


def top_sites(
    record: Record, k: int = 6, by: str = "cos_input", image: int = 0, lens: str | None = None
) -> "go.Figure":
    """Draw the input and the pictures of the ``k`` sites with the largest ``by``, best first."""
    if k < 1:
        raise RecordError(f"k is {k}; ask for at least one site")
    number = _number(by)
    rows = select(record.table, image=image, lens=lens, types=("head", "attn", "mlp"))
    best = rows.loc[rows[by].notna()].sort_values(by, ascending=False, kind="stable").head(k)
    if best.empty:
        raise RecordError(
            f"no site of image {image} has {by!r} yet; an unfinished sweep, or one without a decoder, lacks the "
            "numbers of pictures: rank by cos_lens_clean"
        )
    tiles = [(record.input(image), "input")]
    tiles += [(record.picture(int(row["row"])), _caption(row, by)) for row in best.to_dict("records")]
    title = f"Top {len(best)} by {number.title.lower()}: {_title(record, best, image)}"
    return _tiles(tiles, title, columns=min(7, len(tiles)))


def residual_strip(record: Record, image: int = 0, by: str = "cos_input") -> "go.Figure":
    """Draw the Diffusion Lens over layers, the input first."""
    _number(by)
    types = ("resid_post", "resid_pre")
    rows = select(record.table, image=image, lens="diffusion", types=types)
    start = (rows["site_type"] == "resid_pre") & (rows["layer"] == rows["layer"].min())
    rows = rows.loc[start | (rows["site_type"] == "resid_post")] if "resid_post" in set(rows["site_type"]) else rows
    rows = rows.sort_values(["layer", "site_type"], ascending=[True, False], kind="stable")
    tiles = [(record.input(image), "input")]
    tiles += [(record.picture(int(row["row"])), _caption(row, by)) for row in rows.to_dict("records")]
    return _tiles(tiles, f"Layer by layer: {_title(record, rows, image)}", columns=min(10, len(tiles)))


def save(figure: "go.Figure", path: str | os.PathLike[str]) -> Path:
    """Write a figure as .png, .svg, .pdf (these need a Chrome or Chromium browser) or .html; returns the path."""
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


def _export(figure: "go.Figure", kind: str) -> bytes:
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


def _number(name: str) -> Any:
    if name not in NUMBERS:
        raise RecordError(f"no number {name!r} in a record; choose one of {', '.join(NUMBERS)}")
    return NUMBERS[name]


def _grid(rows: pd.DataFrame, value: str) -> tuple[list[int], list[str], dict[Any, float], dict[Any, str]]:
    """Lay the rows out by layer and column; the first row of a site counts, places without one stay nan."""
    layers = sorted({int(layer) for layer in rows["layer"]})
    heads = sorted({int(head) for head in rows["head"].dropna()})
    columns = [*map(str, heads), *(name for part, name in PARTS.items() if part in set(rows["site_type"]))]
    grid = {(layer, column): math.nan for layer in layers for column in columns}
    names = dict.fromkeys(grid, "")
    for row in rows.to_dict("records"):
        place = (int(row["layer"]), str(int(row["head"])) if row["site_type"] == "head" else PARTS[row["site_type"]])
        if not names[place]:
            grid[place], names[place] = float(row[value]), html.escape(row["site"])
    return layers, columns, grid, names


def _title(record: Record, rows: pd.DataFrame, image: int) -> str:
    name = next(str(entry["name"]) for entry in record.manifest["images"] if entry["index"] == image)
    return html.escape(f"{rows['lens_label'].iloc[0]}, {name}")


def _caption(row: dict[Any, Any], by: str) -> str:
    lines = [html.escape(row["site"]) + ("" if pd.isna(row[by]) else f"  {row[by]:.2f}")]
    if row["faithfulness"] < DRAWN_THRESHOLD:
        lines.append("<i>the decoder could<br>not draw this</i>")
    return "<br>".join(lines)


def _tiles(tiles: list[tuple[PIL.Image.Image, str]], title: str, columns: int) -> "go.Figure":
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    n_rows = math.ceil(len(tiles) / columns)
    captions = [caption for _, caption in tiles]
    width, height = 60 + columns * TILE, 123 + n_rows * (TILE + 58)
    figure = make_subplots(
        rows=n_rows,
        cols=columns,
        subplot_titles=captions,
        horizontal_spacing=0.1 / columns,
        vertical_spacing=58 / height if n_rows > 1 else 0.0,
    )
    for place, (picture, _) in enumerate(tiles):
        uri = f"data:image/png;base64,{base64.b64encode(encode_png(picture)).decode('ascii')}"
        figure.add_trace(go.Image(source=uri, hoverinfo="skip"), row=place // columns + 1, col=place % columns + 1)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_annotations(font_size=11)
    return _dress(figure, title, width, height)


def _dress(figure: "go.Figure", title: str, width: int, height: int) -> "go.Figure":
    figure.update_layout(
        title={"text": title, "font": {"size": 15}},
        template="plotly_white",
        width=max(width, 420),
        height=height,
        margin={"l": 60, "r": 20, "t": 118, "b": 50},
        font={"family": "system-ui, Helvetica, Arial, sans-serif", "size": 12, "color": "#1c1b19"},
    )
    return figure
