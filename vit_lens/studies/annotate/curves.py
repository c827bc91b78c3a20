"""Curves over layers, a panel for each table or question, with the intervals behind them."""

__all__ = ["Curve", "curves_figure", "means_figure"]

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_lens.errors import StudyError
from vit_lens.figures import dress

_COLOURS = (
    "#1d5b7d", "#c4520f", "#5b7d1d", "#7d1d5b", "#a07a00", "#4a4a9c", "#1c1b19", "#3f9c94", "#b5446e", "#7a5a3a",
)  # fmt: skip
_SYMBOLS = ("circle", "square", "diamond", "triangle-up")
_PANEL, _ROW, _SPACE = 430, 250, 70


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a panel: shares by layer, None where there is none.

    Attributes:
        panel: The title of the panel.
        name: The name in the legend; one name has one colour and symbol in all panels.
        layers: The layers, as they are spelled on the axis; or as numbers, and the axis is one of numbers.
        mean: The shares.
        low: The lower ends of the intervals.
        high: The upper ends.
        beside: Whether it is a control, drawn with dashes.
    """

    panel: str
    name: str
    layers: Sequence[str] | Sequence[float]
    mean: Sequence[float | None]
    low: Sequence[float | None]
    high: Sequence[float | None]
    beside: bool = False


def curves_figure(curves: Sequence[Curve], title: str, *, columns: int = 2, across: str = "layer") -> go.Figure:
    """Draw curves in panels, shares from 0 to 1, with their intervals as bars.

    Raises:
        StudyError: There is no curve.
    """
    if not curves:
        raise StudyError("there is nothing to draw: no table has an answer")
    panels = list(dict.fromkeys(one.panel for one in curves))
    names = list(dict.fromkeys(one.name for one in curves))
    n_rows, columns = math.ceil(len(panels) / columns), min(columns, len(panels))
    height = 170 + n_rows * (_ROW + _SPACE)
    figure = make_subplots(
        rows=n_rows, cols=columns, subplot_titles=[html.escape(panel) for panel in panels], shared_yaxes=True,
        vertical_spacing=_SPACE / height, horizontal_spacing=0.05,
    )  # fmt: skip
    told: set[str] = set()
    for one in curves:
        row, column = divmod(panels.index(one.panel), columns)
        figure.add_trace(_line(one, names.index(one.name), one.name not in told), row + 1, column + 1)
        told.add(one.name)
    figure.update_yaxes(range=[-0.03, 1.03], tickformat=".0%")
    are_words = any(isinstance(layer, str) for one in curves for layer in one.layers)
    figure.update_xaxes(type="category" if are_words else "linear", showgrid=False)
    for column in range(1, columns + 1):
        figure.update_xaxes(title=html.escape(across), row=n_rows, col=column)
    figure.update_annotations(font_size=12)
    dress(figure, title, 150 + columns * _PANEL, height)
    legend = {"orientation": "h", "yref": "container", "y": 0.0, "yanchor": "bottom", "x": 0.0}
    return figure.update_layout(
        legend=legend, margin={"t": 100, "b": 110}, title={"yref": "container", "y": 1 - 28 / height, "yanchor": "top"}
    )


def _line(one: Curve, number: int, in_legend: bool) -> go.Scatter:
    colour, symbol = _COLOURS[number % len(_COLOURS)], _SYMBOLS[number // len(_COLOURS) % len(_SYMBOLS)]

    def reach(ends: Sequence[float | None]) -> list[float]:
        return [
            0.0 if end is None or mean is None else abs(end - mean) for end, mean in zip(ends, one.mean, strict=True)
        ]

    return go.Scatter(
        x=list(one.layers), y=list(one.mean), name=html.escape(one.name), legendgroup=one.name, showlegend=in_legend,
        mode="lines+markers", line={"color": colour, "width": 2, "dash": "dot" if one.beside else "solid"},
        marker={"size": 6, "symbol": f"{symbol}-open" if one.beside else symbol},
        error_y={
            "type": "data", "symmetric": False, "array": reach(one.high), "arrayminus": reach(one.low),
            "thickness": 1, "width": 2,
        },
        hovertemplate="%{x}: %{y:.2f}<extra>" + html.escape(one.name) + "</extra>",
    )  # fmt: skip


def means_figure(frame: pd.DataFrame, title: str) -> go.Figure:
    """Draw what :func:`vit_lens.studies.annotate.means` returned: a panel for each question, encoder and lens.

    Args:
        frame: The table.
        title: The title of the figure.

    Raises:
        StudyError: The table is empty.
    """
    keys = ["question", "encoder", "lens"]
    several = [key for key in keys if frame[key].nunique() > 1 or key == "question"] if len(frame) else []
    controls = [name.removesuffix(": mean") for name in frame.columns if name.endswith(": mean")]
    curves = []
    groups: Any = frame.groupby([*keys, "annotator"], sort=False) if len(frame) else ()
    for place, part in groups:
        panel = ", ".join(str(word) for key, word in zip(keys, place, strict=False) if key in several)
        for control in ["", *controls]:
            before = f"{control}: " if control else ""
            ends = [[None if pd.isna(x) else float(x) for x in part[before + end]] for end in ("mean", "low", "high")]
            if any(value is not None for value in ends[0]):
                name = f"{place[3]}, control: {control}" if control else str(place[3])
                curves.append(
                    Curve(panel=panel, name=name, layers=list(part["site"]), mean=ends[0], low=ends[1], high=ends[2],
                          beside=bool(control))
                )  # fmt: skip
    return curves_figure(curves, title, across="site")
