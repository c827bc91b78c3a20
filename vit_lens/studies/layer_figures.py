"""Curves over the layers of a text encoder, a panel for each part: what every study of its layers draws."""

__all__ = ["curves_by_layer", "finding"]

import html
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_lens.figures import dress
from vit_lens.studies.findings import Score

if TYPE_CHECKING:
    import pandas as pd

_COLOURS = (
    "#1c1b19", "#b4611e", "#2d6a8f", "#8a857c", "#3f7d4e", "#8a5a8f", "#c08a1e", "#c25b7a", "#4a8f8a", "#5f6b2d",
    "#7a4a12", "#b9b5ae",
)  # fmt: skip
_COLUMNS = 3
_WIDTH = 980
_SAME = 0.005  # curves that lie closer to each other hide one another
_LETTERS = 118  # of a title that fits the width


def curves_by_layer(
    curves: "pd.DataFrame", *, panel: str, line: str, value: str, title: str, said: str, dotted: Sequence[str] = (),
    chance: float = 0.0,
) -> go.Figure:  # fmt: skip
    """Draw curves over layers: a panel for each value of one column, a line for each of another.

    Args:
        curves: A row for each layer, panel and line, layers in order; what is undefined leaves a gap.
        panel: The column that tells panels apart.
        line: The column that tells lines apart; a line has one colour in all panels.
        value: The column that is drawn.
        title: What was found, with its interval and n.
        said: What the values are, for the axis.
        dotted: Lines that are dotted. One that lies on another is dashed, so that both are seen.
        chance: The value that says nothing, a thin line in every panel.

    >>> import pandas as pd
    >>> from vit_lens.studies.layer_figures import curves_by_layer
    >>> rows = [{"part": "colour", "lens": "own", "right": share} for share in (0.2, 0.7, 1.0)]
    >>> figure = curves_by_layer(
    ...     pd.DataFrame(rows), panel="part", line="lens", value="right", title="Colours come early", said="share right"
    ... )
    >>> [float(y) for y in figure.data[0].y]
    [0.2, 0.7, 1.0]
    """
    panels, lines = list(curves[panel].unique()), list(curves[line].unique())
    n_rows = -(-len(panels) // _COLUMNS)
    figure = make_subplots(
        rows=n_rows, cols=min(_COLUMNS, len(panels)), subplot_titles=[html.escape(str(one)) for one in panels],
        shared_xaxes=True, vertical_spacing=0.18 / n_rows,
    )  # fmt: skip
    told = set()
    for number, one in enumerate(panels):
        row, column = number // _COLUMNS + 1, number % _COLUMNS + 1
        drawn: list[np.ndarray] = []
        for place, name in enumerate(lines):
            some: Any = curves[(curves[panel] == one) & (curves[line] == name)]
            if some.empty:
                continue
            style: dict[str, Any] = {"color": _COLOURS[place % len(_COLOURS)]}
            values = some[value].to_numpy(dtype=float)
            if name in dotted or place >= len(_COLOURS):
                style |= {"dash": "dot"}
            elif any(np.allclose(values, one, atol=_SAME, equal_nan=True) for one in drawn if len(one) == len(values)):
                style |= {"dash": "dash"}
            drawn.append(values)
            figure.add_scatter(
                x=list(range(len(some))), y=values, mode="lines+markers", name=html.escape(str(name)),
                legendgroup=str(name), showlegend=name not in told, line=style, marker={"size": 4}, row=row, col=column,
            )  # fmt: skip
            told.add(name)
        figure.update_xaxes(title="layer (0: the embeddings)", row=row, col=column) if row == n_rows else None
    figure.add_hline(y=chance, line={"color": _COLOURS[3], "width": 1})
    figure.update_yaxes(matches="y")
    figure.update_yaxes(title=html.escape(said), col=1)
    lines_of_title = textwrap.wrap(title, _LETTERS)
    dress(figure, "<br>".join(html.escape(each) for each in lines_of_title), _WIDTH, 260 + 210 * n_rows)
    legend = {"orientation": "h", "yref": "container", "y": 0.0, "yanchor": "bottom"}
    return figure.update_layout(legend=legend, margin={"t": 70 + 20 * len(lines_of_title), "b": 100})


def finding(score: Score, *, below: str, open_: str, above: str) -> str:
    """Return what a score says, by where its interval lies: below 0, around it or above; nothing without one.

    Args:
        score: The score.
        below: What it means that the whole interval lies below 0.
        open_: What it means that 0 is in it.
        above: What it means that it lies above 0.

    >>> from vit_lens.studies.layer_figures import finding
    >>> from vit_lens.studies.statistics import Estimate
    >>> score = vl.studies.Score(
    ...     measure="lead", reading="lens", level="decoded", estimate=Estimate(0.7, 0.6, 0.8), n=50, unit="prompts"
    ... )
    >>> finding(score, below="later", open_="not told apart", above="earlier")
    'earlier: +0.70 [+0.60, +0.80], n = 50 prompts'
    """
    low, high = score.estimate.low, score.estimate.high
    said = f"{score.estimate}, n = {score.n} {score.unit}"
    if low is None or high is None:
        return f"too few to say: {said}"
    return f"{open_ if low <= 0 <= high else above if low > 0 else below}: {said}"
