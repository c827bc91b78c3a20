"""Faithfulness over layers: how well each lens's pictures show what they were asked to, by kind of site."""

__all__ = ["faithfulness_layers"]

import html

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_lens.errors import RecordError
from vit_lens.figures import dress
from vit_lens.metrics import DRAWN_THRESHOLD

_COLOURS = ("#1d5b7d", "#c4520f", "#4b7d3a", "#7a4a9a", "#a08a1c", "#555555")


def faithfulness_layers(layers: pd.DataFrame) -> go.Figure:
    """Draw mean faithfulness over layers: a panel for each kind of site, a line for each lens, its placebo dotted.

    Bars reach from the lowest to the highest noise seed, each averaged over images and sites.

    Args:
        layers: Table ``layers`` of the study's result.

    Raises:
        RecordError: The table is empty or another study's.
    """
    needed = {"reading", "kind", "layer", "faithfulness", "lowest", "highest", "placebo"}
    if layers.empty or not needed <= set(layers.columns):
        raise RecordError(f"this is not the table 'layers' of study faithfulness; it has {', '.join(layers.columns)}")
    kinds = list(dict.fromkeys(layers["kind"]))
    figure = make_subplots(
        rows=1, cols=len(kinds), subplot_titles=[html.escape(kind) for kind in kinds], shared_yaxes=True
    )
    for number, (reading, rows) in enumerate(layers.groupby("reading", sort=False)):
        own = [(column, kind) for column, kind in enumerate(kinds, start=1) if kind in set(rows["kind"])]
        for column, kind in own:
            some, colour = rows.loc[rows["kind"] == kind], _COLOURS[number % len(_COLOURS)]
            _lines(figure, some, str(reading), colour, column, in_legend=column == own[0][0])
    figure.add_hline(y=DRAWN_THRESHOLD, line={"color": "#8a857c", "width": 1, "dash": "dot"})
    figure.update_xaxes(title="layer", type="category")
    figure.update_yaxes(range=[-0.05, 1.02])
    figure.update_yaxes(title="cosine of the picture with what was asked", col=1)
    title = f"Faithfulness by layer; below {DRAWN_THRESHOLD:g} the decoder could not draw this"
    dress(figure, title, 200 + 270 * len(kinds), 480)
    figure.update_layout(legend={"orientation": "h", "y": -0.18, "x": 0}, margin={"b": 110})
    return figure


def _lines(figure: go.Figure, rows: pd.DataFrame, reading: str, colour: str, column: int, *, in_legend: bool) -> None:
    name, layers = html.escape(reading), ["pool" if pd.isna(layer) else str(int(layer)) for layer in rows["layer"]]
    reach = {
        "type": "data", "symmetric": False, "array": rows["highest"] - rows["faithfulness"],
        "arrayminus": rows["faithfulness"] - rows["lowest"], "thickness": 1.2,
    }  # fmt: skip
    lines = {"faithfulness": (name, "solid", reach), "placebo": (f"{name}, placebo", "dot", None)}
    for key, (label, dash, error) in lines.items():
        figure.add_scatter(
            x=layers, y=rows[key], mode="lines+markers", name=label, legendgroup=label, showlegend=in_legend,
            line={"color": colour, "dash": dash}, error_y=error, row=1, col=column,
        )  # fmt: skip
