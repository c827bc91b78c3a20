"""Curves of every reading over layers, part by part."""

__all__ = ["reading_curves"]

import html
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_lens.figures import dress

if TYPE_CHECKING:
    import pandas as pd

_COLOURS = ("#1c1b19", "#b4611e", "#2d6a8f", "#8a857c", "#b9b5ae", "#3f7d4e", "#8a5a8f")
_COLUMNS = 3


def reading_curves(curves: "pd.DataFrame", kind: str) -> go.Figure:
    """Draw, for every part of a kind of prompts, accuracy less chance by layer under every reading.

    Args:
        curves: The table "curves" of the study's result.
        kind: A kind of prompts in it.
    """
    own: Any = curves[curves["kind"] == kind]
    parts, readings = list(own["part"].unique()), list(own["reading"].unique())
    n_rows = -(-len(parts) // _COLUMNS)
    figure = make_subplots(
        rows=n_rows, cols=min(_COLUMNS, len(parts)), subplot_titles=parts, shared_xaxes=True, shared_yaxes=True,
        vertical_spacing=0.35 / max(n_rows, 1) / 2,
    )  # fmt: skip
    told = set()
    for number, part in enumerate(parts):
        for reading in readings:
            some: Any = own[(own["part"] == part) & (own["reading"] == reading)]
            if some.empty:
                continue
            line = {"color": _COLOURS[readings.index(reading) % len(_COLOURS)]}
            line |= {"dash": "dot"} if reading.startswith("probe") else {}
            figure.add_scatter(
                x=some["layer"], y=some["accuracy"] - some["chance"], mode="lines+markers", name=html.escape(reading),
                legendgroup=reading, showlegend=reading not in told, line=line, marker={"size": 4},
                row=number // _COLUMNS + 1, col=number % _COLUMNS + 1,
            )  # fmt: skip
            told.add(reading)
    title = f"{html.escape(kind)}: accuracy less chance by layer (n = {int(own['n'].iloc[0])} prompts)"
    dress(figure, title, 980, 210 + 210 * n_rows)
    legend = {"orientation": "h", "yref": "container", "y": 0.0, "yanchor": "bottom"}
    return figure.update_layout(legend=legend, margin={"t": 90, "b": 120})
