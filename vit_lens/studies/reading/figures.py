"""Scores by kind, and what separates what was learnt, titled by what was found."""

__all__ = ["figures_of", "separating_figure"]

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_lens.figures import dress
from vit_lens.studies.findings import Score, StudyResult
from vit_lens.studies.reading.study import DETECTION, MEASURES, PAPER
from vit_lens.studies.score_figures import score_figure

_INK = "#1c1b19"


def figures_of(result: StudyResult) -> dict[str, go.Figure]:
    """Return the figures of a result, of one model or pooled, by name."""
    frame, found = result.frame(), {}
    for name, measure in (("detection", DETECTION), ("paper", PAPER)):
        against = [
            f"{_said(result.score(headline, measure, 'embedding'))} {other}"
            for headline, other in (
                ("(c) TopK above untrained", "untrained rows"),
                ("(c) TopK above random directions", "random directions"),
            )
        ]
        n = result.score(measure, "TopK", "embedding")
        title = f"{measure}: TopK less {', '.join(against)} (n = {n.n} {n.unit})"
        if frame.loc[frame["measure"] == measure, "value"].notna().any():
            found[name] = score_figure(frame, measure, title)
    return found | {"separates": separating_figure(result)}


def separating_figure(result: StudyResult) -> go.Figure:
    """Draw of each measure TopK less what was not learnt; it separates where both intervals lie above 0.

    Args:
        result: A result of the study.
    """
    names = list(MEASURES)
    figure = make_subplots(rows=1, cols=len(names), shared_yaxes=True, subplot_titles=[n.split(",")[0] for n in names])
    apart = []
    for column, measure in enumerate(names, 1):
        own = [score for score in result.scores if score.measure == f"separates: {measure}"]
        known = [score for score in own if score.estimate.value is not None]
        if own and all(score.estimate.low is not None and score.estimate.low > 0 for score in own):
            apart.append(measure.split(",")[0])
        figure.add_scatter(
            x=[score.estimate.value for score in known], y=[score.reading for score in known], mode="markers",
            marker={"color": _INK, "size": 9}, showlegend=False,
            error_x={
                "type": "data", "symmetric": False, "color": _INK, "thickness": 1.4,
                "array": [_reach(score, score.estimate.high) for score in known],
                "arrayminus": [_reach(score, score.estimate.low) for score in known],
            },
            row=1, col=column,
        )  # fmt: skip
        figure.add_vline(x=0, line={"color": "#8a857c", "width": 1, "dash": "dot"}, row=1, col=column)  # pyright: ignore[reportArgumentType]
    figure.update_annotations(font_size=11)
    figure.update_yaxes(automargin=True)
    over = result.scores[0]
    title = f"{len(apart)} of {len(names)} measures separate TopK from both{': ' + ', '.join(apart) if apart else ''}"
    return dress(figure, f"{title} (n = {over.n} {over.unit})", 1100, 320)


def _said(score: Score) -> str:
    return str(score.estimate)


def _reach(score: Score, end: float | None) -> float:
    return 0.0 if end is None or score.estimate.value is None else abs(end - score.estimate.value)
