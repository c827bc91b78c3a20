"""How far explanations hold: scores of kinds of units, the dictionary beside what was not learnt."""

__all__ = ["explained_scores"]

import html
import textwrap
from collections.abc import Mapping

import plotly.graph_objects as go

from vit_lens.errors import LensError
from vit_lens.estimates import Estimate
from vit_lens.figures.dressing import dress

_INK, _PALE = "#1c1b19", "#8a857c"
_LETTERS = 100  # of a title that fits the width


def explained_scores(
    scores: Mapping[str, Estimate], shuffled: Mapping[str, Estimate], counts: Mapping[str, int], *, finding: str,
    said: str,
) -> go.Figure:  # fmt: skip
    """Draw the scores of explanations by kind of unit, with intervals, and what another unit's explanation scores.

    Args:
        scores: By kind, in the order in which they are shown.
        shuffled: The same with explanations shuffled.
        counts: How many units of each kind.
        finding: The title: what was found, with its n and interval.
        said: What a score is, for the axis.

    Raises:
        LensError: No score is defined.

    >>> ones = {"dictionary": Estimate(0.7, 0.6, 0.8), "untrained": Estimate(0.7, 0.65, 0.75)}
    >>> nulls = {"dictionary": Estimate(0.5, 0.45, 0.55), "untrained": Estimate(None, why="one unit")}
    >>> figure = explained_scores(ones, nulls, {"dictionary": 40, "untrained": 41}, finding="No more.", said="score")
    >>> figure.data[0].y
    ('dictionary (n = 40)', 'untrained (n = 41)')
    """
    if not any(one.value is not None for one in scores.values()):
        raise LensError("no score to draw: nothing was explained")
    figure = go.Figure()
    for name, values, colour in (("score, 95% interval", scores, _INK), ("explanations shuffled", shuffled, _PALE)):
        known = {kind: one for kind, one in values.items() if one.value is not None}
        figure.add_scatter(
            x=[one.value for one in known.values()], y=[html.escape(f"{kind} (n = {counts[kind]})") for kind in known],
            mode="markers", name=name, marker={"color": colour, "size": 9},
            error_x={
                "type": "data", "symmetric": False, "color": colour, "thickness": 1.4,
                "array": [_reach(one, one.high) for one in known.values()],
                "arrayminus": [_reach(one, one.low) for one in known.values()],
            },
        )  # fmt: skip
    figure.add_vline(x=0.5, line={"color": _PALE, "width": 1, "dash": "dot"})
    figure.update_yaxes(autorange="reversed", type="category", automargin=True)
    figure.update_xaxes(title=html.escape(said))
    title = textwrap.wrap(finding, _LETTERS)
    dress(figure, "<br>".join(map(html.escape, title)), 860, 240 + 20 * len(title) + 34 * len(scores))
    return figure.update_layout(legend={"yref": "container", "y": 0.0, "yanchor": "bottom", "x": 0.0},
                                margin={"t": 50 + 20 * len(title), "b": 120})  # fmt: skip


def _reach(one: Estimate, end: float | None) -> float:
    return 0.0 if end is None or one.value is None else abs(end - one.value)
