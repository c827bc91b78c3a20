"""Lines in panels, with intervals, for the figures of dictionaries."""

__all__ = ["Finding", "Line", "colour_of", "lines_figure", "reading", "titled"]

import html
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_lens.figures import dress

_FIXED = {
    "TopK": "#1d5b7d", "TopK, by pursuit": "#3f9c94", "ITDA": "#c4520f", "untrained": "#8a857c",
    "data points": "#a07a00", "PCA": "#7d1d5b", "neurons": "#4a4a9c", "random directions": "#5b7d1d",
}  # fmt: skip
_OTHERS = ("#1d5b7d", "#c4520f", "#5b7d1d", "#4a4a9c", "#b5446e", "#3f9c94", "#7a5a3a", "#1c1b19", "#a07a00", "#7d1d5b")
_PANEL, _ROW, _TOP = 380, 330, 30  # pixels; the last above titles of panels
_TICKS = 16  # where x has so few points, these are the ticks


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a panel.

    Attributes:
        panel: The title of the panel.
        name: The name in the legend; one name has one colour in all panels.
        x: Where, as numbers or words.
        y: The values; None where there is none.
        low: The lower ends of intervals; None for no intervals.
        high: The upper ends.
        beside: Whether it is a control, drawn with dots.
        filled: Of each point whether its marker is filled; None for all.
    """

    panel: str
    name: str
    x: Sequence[Any]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    beside: bool = False
    filled: Sequence[bool] | None = None


def lines_figure(
    lines: Sequence[Line], *, across: Sequence[str] | str, up: Sequence[str] | str, columns: int = 2,
    log_x: Sequence[bool] | bool = False, log_y: Sequence[bool] | bool = False,
) -> go.Figure:  # fmt: skip
    """Draw lines in panels; :func:`titled` gives a title.

    Args:
        lines: The lines, which say their panels.
        across: What is on the x axis, of all panels or of each.
        up: What is on the y axis.
        columns: How many panels stand side by side.
        log_x: Whether the x axis is logarithmic; its points are the ticks.
        log_y: Whether the y axis is.
    """
    panels = list(dict.fromkeys(one.panel for one in lines))
    names = list(dict.fromkeys(one.name for one in lines))
    columns = min(columns, len(panels))
    n_rows = math.ceil(len(panels) / columns)
    foot = 70 + 22 * math.ceil(sum(len(name) + 8 for name in names) / (columns * _PANEL / 8))
    height = _TOP + n_rows * _ROW + foot
    figure = make_subplots(
        rows=n_rows, cols=columns, subplot_titles=[html.escape(panel) for panel in panels],
        vertical_spacing=0.36 / n_rows if n_rows > 1 else 0, horizontal_spacing=0.13 if columns > 1 else 0,
    )  # fmt: skip
    told: set[str] = set()
    for one in lines:
        row, column = divmod(panels.index(one.panel), columns)
        figure.add_trace(_trace(one, colour_of(one.name, names), one.name not in told), row + 1, column + 1)
        told.add(one.name)
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        at: Any = {"row": row + 1, "col": column + 1}
        points = list(dict.fromkeys(x for one in lines if one.panel == panel for x in one.x))
        are_words, log = any(isinstance(x, str) for x in points), _of(log_x, index)
        kind = "category" if are_words else "log" if log else "linear"
        ticks = {"tickvals": points, "ticktext": [str(x) for x in points]}
        ticks = {} if are_words or len(points) > _TICKS else ticks
        figure.update_xaxes(title=html.escape(_of(across, index)), type=kind, showgrid=False, **ticks, **at)
        figure.update_yaxes(title=html.escape(_of(up, index)), type="log" if _of(log_y, index) else "linear", **at)
        if _of(log_y, index):
            figure.update_yaxes(**_log_ticks([y for one in lines if one.panel == panel for y in one.y if y]), **at)
        if not _of(log_y, index) and all(y is None or y >= 0 for one in lines if one.panel == panel for y in one.y):
            figure.update_yaxes(rangemode="tozero", **at)
    figure.update_annotations(font_size=12)
    dress(figure, "", 120 + columns * _PANEL, height)
    return figure.update_layout(
        legend={"orientation": "h", "yref": "container", "y": 0.0, "yanchor": "bottom", "x": 0.0},
        margin={"l": 70, "t": _TOP, "b": foot + 40},
    )


def _log_ticks(values: Sequence[float]) -> dict[str, Any]:
    """Return whole numbers as ticks, where plotly would write the digits between powers of ten alone."""
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    digits = (1,) if max(values) / min(values) > 300 else (1, 1.5, 2, 3, 5, 7)
    ticks = [float(f"{digit}e{power}") for power in range(first, last + 1) for digit in digits]
    return {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _of(value: Any, index: int) -> Any:
    return value if isinstance(value, (str, bool)) else value[index]


def _trace(one: Line, colour: str, in_legend: bool) -> go.Scatter:
    filled = [True] * len(one.x) if one.filled is None else list(one.filled)
    plain = "circle-open" if one.beside else "circle"
    symbols = [plain if is_filled else "circle-open" for is_filled in filled]
    bars = {}
    if one.low is not None and one.high is not None:
        ends = [
            [0.0 if end is None or y is None else abs(end - y) for end, y in zip(side, one.y, strict=True)]
            for side in (one.high, one.low)
        ]
        bars = {"error_y": {"type": "data", "symmetric": False, "array": ends[0], "arrayminus": ends[1],
                            "thickness": 1, "width": 2}}  # fmt: skip
    return go.Scatter(
        x=list(one.x), y=list(one.y), name=html.escape(one.name), legendgroup=one.name, showlegend=in_legend,
        mode="lines+markers" if len(one.x) < 40 else "lines",
        line={"color": colour, "width": 2, "dash": "dot" if one.beside else "solid"},
        marker={"size": [10 if is_filled and one.filled else 7 for is_filled in filled], "symbol": symbols,
                "color": colour},
        hovertemplate="%{x}: %{y:.3f}<extra>" + html.escape(one.name) + "</extra>", **bars,
    )  # fmt: skip


def reading(value: float | None, low: float | None, high: float | None, digits: int = 2) -> str:
    """Return a number with its interval: ``0.38 [0.36, 0.40]``."""
    if value is None:
        return "undefined"
    said = f"{value:.{digits}f}"
    return said if low is None or high is None else f"{said} [{low:.{digits}f}, {high:.{digits}f}]"


class Finding(NamedTuple):
    """What a figure says, and of what: model, n, intervals."""

    said: str
    of: str

    def __str__(self) -> str:
        return f"{self.said}. {self.of}"


def titled(figure: go.Figure, finding: Finding) -> go.Figure:
    """Put what was found above a figure, in as many lines as it takes, and make room for it."""
    width, height, margin = figure.layout.width, figure.layout.height, figure.layout.margin.t
    lines = [html.escape(line) for line in textwrap.wrap(finding.said, int(width / 8.3))]
    small = [html.escape(line) for line in textwrap.wrap(finding.of, int(width / 6.2))]
    text = "<br>".join([*lines, *(f"<sub>{line}</sub>" for line in small)])
    more = 24 + 21 * len(lines) + 17 * len(small)
    height += more
    return figure.update_layout(
        height=height, margin_t=margin + more,
        title={"text": text, "yref": "container", "y": 1 - 14 / height, "yanchor": "top", "x": 14 / width,
               "xanchor": "left"},
    )  # fmt: skip


def colour_of(name: str, names: Sequence[str]) -> str:
    """Return the colour of a line: the same in all figures for what has one, or by its place among other names."""
    others = [one for one in names if one not in _FIXED]
    return _FIXED[name] if name in _FIXED else _OTHERS[others.index(name) % len(_OTHERS)]
