"""Figures of a record: they choose and draw what it holds, and neither compute nor show."""

__all__ = ["head_map", "residual_strip", "top_sites"]

import html
import math
from typing import Any

import pandas as pd
import PIL.Image
import plotly.graph_objects as go

from vit_lens.controls import CONTROLS
from vit_lens.errors import RecordError
from vit_lens.figures.dressing import layer_map, tile_figure
from vit_lens.metrics import DRAWN_THRESHOLD, NUMBERS, control_columns
from vit_lens.records import Record, over_seeds, select

PARTS = {"attn": "attn", "mlp": "MLP"}
MAPPED = ("head", "attn", "mlp", "pool_head", "pool_attn", "pool_mlp")
POOL = "pool"


def head_map(record: Record, input: int = 0, value: str = "cos_input", lens: str | None = None) -> go.Figure:
    """Draw one number of every head, attention block and MLP as a layer x head heat map; attention pooling comes last.

    Numbers of pictures are means over noise seeds.

    Args:
        record: The record.
        input: The index of the input.
        value: A number of the table: cos_input, cos_lens_clean, faithfulness, norm_h, or of a control
            (cos_lens_control, cos_lens_other, leak, leak_other, ...; :data:`vit_lens.metrics.NUMBERS`).
        lens: The reading, as :func:`vit_lens.records.select` takes it; None is the first steering lens.

    Raises:
        RecordError: There is no such input, reading or number.

    >>> record = vl.sweep(model, None, images[:1], lens="dsl:alpha=10", sites=["heads", "mlp"], out=tmp / "map")
    >>> figure = vl.figures.head_map(record, value="cos_lens_clean")
    >>> figure.data[0].x
    ('0', '1', '2', '3', '4', '5', '6', '7', 'MLP')
    """
    number = _number(value)
    _check_held(record, value)
    rows = over_seeds(select(record, input=input, lens=lens, types=MAPPED))
    grid, names = _grid(rows, value)
    known = [abs(v) for v in grid.values() if not math.isnan(v)]
    return layer_map(
        grid, names, title=f"{number.title}: {_title(record, rows, input)}",
        unit=f"{number.title}<br>({_unit(number)})",
        across="head, then the whole attention block and the MLP", digits=".3f", signed=number.signed,
        limit=min(max(known, default=0.0), number.cap or math.inf),
    )  # fmt: skip


def top_sites(record: Record, k: int = 6, by: str = "cos_input", input: int = 0, lens: str | None = None) -> go.Figure:
    """Draw the input and the pictures of the sites with the largest of a number, best first, each before its controls.

    The input begins each line. Controls are all that were drawn; where the record holds none, the figure says so.
    Pictures are those of the first noise seed, their numbers means over all, with the range of their faithfulness.

    Args:
        record: The record.
        k: How many sites are shown, at least 1.
        by: The number that ranks them, as in :func:`head_map`.
        input: The index of the input.
        lens: The reading, as :func:`vit_lens.records.select` takes it; None is the first steering lens.

    Raises:
        RecordError: There is no such input, reading or number, no site has the number yet, or ``k`` is below 1.

    >>> drawing = vl.Drawing(settings=decoder.settings(steps=1), batch_size=2)
    >>> record = vl.sweep(
    ...     model, decoder, images[:1], lens="dsl:alpha=10", sites=["L7H0", "L7H1"], drawing=drawing, out=tmp / "top"
    ... )
    >>> figure = vl.figures.top_sites(record, k=1)
    >>> len(figure.data), figure.layout.annotations[0].text
    (2, 'input')
    """
    if k < 1:
        raise RecordError(f"k is {k}; ask for at least one site")
    number = _number(by)
    _check_held(record, by)
    rows = over_seeds(select(record, input=input, lens=lens, types=MAPPED))
    best = rows.loc[rows[by].notna()].sort_values(by, ascending=False, kind="stable").head(k)
    if best.empty:
        raise RecordError(
            f"no site of input {input} has {by!r} yet; an unfinished sweep, or one without a decoder, lacks the "
            "numbers of pictures: rank by cos_lens_clean"
        )
    pairs = [[row, *_controls_of(record, row)] for row in best.to_dict("records")]
    alone = sum(len(pair) == 1 for pair in pairs)
    start, per_line = (record.input(input), "input"), max(1, 6 // max(map(len, pairs)))
    tiles = []
    for place, pair in enumerate(pairs):
        tiles += [start] if place % per_line == 0 else []
        tiles += [(record.picture(int(row["row"])), _caption(record, row, by)) for row in pair]
        if len(pair) == 1 and alone < len(pairs):
            tiles.append((PIL.Image.new("RGB", tiles[-1][0].size, "white"), "<i>no control drawn</i>"))
    title = f"Top {len(best)} by {number.title.lower()}: {_title(record, best, input)}{_seeds(best)}"
    if alone == len(pairs):
        title += "<br><sub>no control drawn beside these: sweep again with controls=True (--controls)</sub>"
    return tile_figure(tiles, title, columns=min(1 + per_line * max(map(len, pairs)), len(tiles)))


def residual_strip(record: Record, input: int = 0, by: str = "cos_input") -> go.Figure:
    """Draw the Diffusion Lens over layers, the input first.

    Args:
        record: A record that was read with the Diffusion Lens.
        input: The index of the input.
        by: The number that stands below each picture, as in :func:`head_map`.

    Raises:
        RecordError: There is no such input or number, no residual was read, or a picture is missing.

    >>> drawing = vl.Drawing(settings=decoder.settings(steps=1), batch_size=2)
    >>> sites = ["L3.resid_post", "L7.resid_post"]
    >>> record = vl.sweep(
    ...     model, decoder, images[:1], lens="diffusion", sites=sites, drawing=drawing, out=tmp / "strip"
    ... )
    >>> figure = vl.figures.residual_strip(record)
    >>> [annotation.text.split("  ")[0] for annotation in figure.layout.annotations]
    ['input', 'L3.resid_post', 'L7.resid_post']
    """
    _number(by)
    _check_held(record, by)
    types = ("resid_post", "resid_pre")
    rows = over_seeds(select(record, input=input, lens="diffusion", types=types))
    start = (rows["site_type"] == "resid_pre") & (rows["layer"] == rows["layer"].min())
    rows = rows.loc[start | (rows["site_type"] == "resid_post")] if "resid_post" in set(rows["site_type"]) else rows
    rows = rows.sort_values(["layer", "site_type"], ascending=[True, False], kind="stable")
    tiles = [(record.input(input), "input")]
    tiles += [(record.picture(int(row["row"])), _caption(record, row, by)) for row in rows.to_dict("records")]
    return tile_figure(
        tiles, f"Layer by layer: {_title(record, rows, input)}{_seeds(rows)}", columns=min(10, len(tiles))
    )


def _number(name: str) -> Any:
    if name not in NUMBERS:
        raise RecordError(f"no number {name!r} in a record; choose one of {', '.join(NUMBERS)}")
    return NUMBERS[name]


def _check_held(record: Record, name: str) -> None:
    if name not in record.table:
        raise RecordError(
            f"{record.path} has no {name!r}: it was made by an earlier version, which had fewer controls; sweep again, "
            f"or choose one of {', '.join(known for known in NUMBERS if known in record.table)}"
        )


def _seeds(rows: pd.DataFrame) -> str:
    n = int(rows["n_seeds"].max())
    return f"<br><sub>numbers of pictures: mean (lowest to highest) of {n} noise seeds</sub>" if n > 1 else ""


def _unit(number: Any) -> str:
    if number.high is not None:
        return f"{number.unit}, {number.low:g} to {number.high:g}"
    if number.cap is not None:
        return f"{number.unit}, {number.cap:g} and above alike"
    return f"{number.unit}, from {number.low:g}"


def _controls_of(record: Record, row: dict[Any, Any]) -> list[dict[Any, Any]]:
    """Return the controls of a site, in a list that is empty where the record has none."""
    own = [reading.id for reading in record.readings.values() if reading.of == row["reading"]]
    table = record.table
    rows = table.loc[(table["input"] == row["input"]) & (table["site"] == row["site"]) & table["reading"].isin(own)]
    return over_seeds(rows).to_dict("records")


def _grid(rows: pd.DataFrame, value: str) -> tuple[dict[Any, float], dict[Any, str]]:
    """Lay the rows out by layer and column; the first row of a site counts, places without one stay nan.

    Layers are numbers; with attention pooling they are texts, the last of them ``pool``.
    """
    numbers = sorted({int(layer) for layer in rows["layer"].dropna()})
    layers: list[Any] = [*map(str, numbers), POOL] if rows["layer"].isna().any() else list(numbers)
    kinds = set(rows["site_type"].str.removeprefix("pool_"))
    heads = sorted({int(head) for head in rows["head"].dropna()})
    columns = [*map(str, heads), *(name for part, name in PARTS.items() if part in kinds)]
    grid = {(layer, column): math.nan for layer in layers for column in columns}
    names = dict.fromkeys(grid, "")
    for row in rows.to_dict("records"):
        kind = row["site_type"].removeprefix("pool_")
        layer = POOL if pd.isna(row["layer"]) else type(layers[0])(row["layer"])
        place = (layer, str(int(row["head"])) if kind == "head" else PARTS[kind])
        if not names[place]:
            grid[place], names[place] = float(row[value]), html.escape(row["site"])
    return grid, names


def _title(record: Record, rows: pd.DataFrame, input: int) -> str:
    name = next(str(entry["name"]) for entry in record.manifest["inputs"] if entry["index"] == input)
    return html.escape(f"{record.readings[rows['reading'].iloc[0]].label}, {name}")


def _caption(record: Record, row: dict[Any, Any], by: str) -> str:
    control = record.readings[row["reading"]].control
    name = f"{control} control" if control else row["site"]
    lines = [html.escape(name) + ("" if pd.isna(row[by]) else f"  {row[by]:.2f}")]
    leaks = {name: control_columns(name).leak for name in CONTROLS}
    known = [f"{name} {row[of]:.2f}" for name, of in leaks.items() if of in row and not pd.isna(row[of])]
    if len(known) == 1 and not pd.isna(row["leak"]):
        lines.append(f"leak {row['leak']:.2f}")
    elif known:
        lines += ["leak", *(f"{one}" for one in known)]
    if row["n_seeds"] > 1:
        low, high = row["faithfulness_low"], row["faithfulness_high"]
        lines.append(f"drawn {row['faithfulness']:.2f} ({low:.2f} to {high:.2f})")
    if row["faithfulness"] < DRAWN_THRESHOLD:
        lines.append("<i>the decoder could<br>not draw this</i>")
    return "<br>".join(lines)
