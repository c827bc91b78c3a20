"""Figures that every study has: scores beside their intervals and nulls. They draw tables and know no study."""

__all__ = ["row_names", "score_figure"]

import html
import textwrap

import pandas as pd
import plotly.graph_objects as go

from vit_lens.errors import RecordError
from vit_lens.figures import dress

_INK = "#1c1b19"
_BANDS = ("#c9b79a", "#9db7c9", "#b9b5ae", "#c7a3b5", "#a9c29d")
_ROW, _LANE = 32, 11  # pixels of a reading, and of each null beside others
_CONTROLS = ("x", "diamond-open", "square-open", "triangle-up-open", "circle-open")


def score_figure(frame: pd.DataFrame, measure: str, title: str | None = None) -> go.Figure:
    """Draw the scores of one measure: a dot and its interval for every reading, null bands and controls beside it.

    Args:
        frame: The table that :meth:`StudyResult.frame` returns.
        measure: One of its measures.
        title: The title of the figure; None takes the measure, with what the scores are means over.

    Raises:
        RecordError: The table has no such measure, or no value in it.

    >>> from vit_lens.studies.statistics import Estimate
    >>> score = vl.studies.Score(
    ...     measure="AUC", reading="diffusion", level="embedding", estimate=Estimate(0.7, 0.6, 0.8), n=50, unit="images"
    ... )
    >>> result = vl.studies.StudyResult(study="overlay", setup={}, options={}, scores=(score,))
    >>> vl.studies.score_figure(result.frame(), "AUC").data[0].y
    ('diffusion (embedding)',)
    """
    rows = frame.loc[frame["measure"] == measure]
    known = rows.loc[rows["value"].notna()]
    if known.empty:
        raise RecordError(f"no score of {measure!r}; there are {', '.join(sorted(set(frame['measure'])))}")
    names = row_names(rows)
    figure = go.Figure()
    nulls = [name.removesuffix(": mean") for name in rows.columns if name.endswith(": mean")]
    shown = [null for null in nulls if rows[f"{null}: mean"].notna().any()]
    for lane, (colour, null) in enumerate(zip(_BANDS * len(shown), shown, strict=False)):
        _band(figure, rows, names, null, colour, (lane, len(shown)))
    figure.add_scatter(
        x=rows["value"], y=names, mode="markers", name="score, 95% interval", marker={"color": _INK, "size": 9},
        error_x={
            "type": "data", "symmetric": False, "array": rows["high"] - rows["value"],
            "arrayminus": rows["value"] - rows["low"], "color": _INK, "thickness": 1.4,
        },
    )  # fmt: skip
    fixed = {"measure", "reading", "level", "value", "low", "high", "n", "unit", "why"}
    taken = fixed | {f"{null}: {part}" for null in nulls for part in ("mean", "low", "high")}
    for symbol, control in zip(_CONTROLS * 9, (c for c in rows.columns if c not in taken), strict=False):
        if rows[control].notna().any():
            marker = {"symbol": symbol, "size": 9, "color": "#7a4a12"}
            figure.add_scatter(x=rows[control], y=names, mode="markers", name=html.escape(control), marker=marker)
    figure.add_vline(x=0, line={"color": "#8a857c", "width": 1, "dash": "dot"})
    figure.update_yaxes(
        autorange="reversed", type="category", automargin=True, categoryorder="array", categoryarray=list(names)
    )
    figure.update_xaxes(title=html.escape(measure))
    dress(
        figure,
        html.escape(title or f"{measure}{_counted(rows)}"),
        860,
        270 + max(_ROW, _LANE * len(shown)) * len(names),
    )
    figure.update_layout(
        legend={"yref": "container", "y": 0.0, "yanchor": "bottom", "x": 0.0}, margin={"t": 60, "b": 150}
    )
    return figure


def row_names(rows: pd.DataFrame) -> list[str]:
    """Return what a figure calls each score: reading and level, in lines that fit beside it."""
    pairs = zip(rows["reading"], rows["level"], strict=True)
    lines = (textwrap.wrap(f"{reading} ({level})", 44) for reading, level in pairs)
    return ["<br>".join(map(html.escape, line)) for line in lines]


def _counted(rows: pd.DataFrame) -> str:
    """Return what the scores of one measure are over, where that is the same for all."""
    over = set(zip(rows["n"], rows["unit"], strict=True))
    return " (n = {} {})".format(*over.pop()) if len(over) == 1 else ""


def _band(
    figure: go.Figure, rows: pd.DataFrame, names: list[str], null: str, colour: str, lane: tuple[int, int]
) -> None:
    """Draw a null in a lane of its own, so that none hides another."""
    place, n = lane
    width = (0.5 if n < 3 else 0.8) / n
    low, high = rows[f"{null}: low"], rows[f"{null}: high"]
    narrow = low.notna() & (low == high)  # one draw has a place and no width
    if narrow.any():
        figure.add_scatter(
            x=rows.loc[narrow, f"{null}: mean"], y=[name for name, some in zip(names, narrow, strict=True) if some],
            mode="markers", name=html.escape(f"null: {null}, one draw"),
            marker={"symbol": "line-ns-open", "size": 14, "color": colour, "line": {"width": 3}},
        )  # fmt: skip
    if (low.notna() & ~narrow).any():
        figure.add_bar(
            x=high - low, base=low, y=names, orientation="h", name=html.escape(f"null: {null}, 95%"),
            marker={"color": colour, "opacity": 0.7}, width=width, offset=(place - n / 2) * width, hoverinfo="skip",
        )  # fmt: skip
