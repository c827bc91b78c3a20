"""A measure by kind of encoder, titled by what changes along the chain."""

__all__ = ["factors_figure"]

import plotly.graph_objects as go

from vit_lens.studies.factors.study import STEP
from vit_lens.studies.findings import Score, StudyResult
from vit_lens.studies.score_figures import score_figure


def factors_figure(result: StudyResult, measure: str) -> go.Figure:
    """Draw a measure's mean for every kind, with its interval; the title says which factors change it.

    Args:
        result: A result of the study.
        measure: One of its measures; one that begins with ``STEP`` draws the differences.
    """
    of = measure.removeprefix(STEP)
    steps: dict[str, list[Score]] = {}
    for score in result.scores:
        if score.measure == f"{STEP}{of}":
            steps.setdefault(score.reading.split(" ", 1)[0], []).append(score)
    few = any("Descriptive" in note for note in result.notes)
    said = "; ".join(_said(factor, scores) for factor, scores in steps.items())
    n = ", ".join(f"{n} {kind}" for kind, n in result.options["kinds"].items())
    return score_figure(result.frame(), measure, f"{'descriptive: ' if few else ''}{said} (n = {n} encoders)")


def _said(factor: str, scores: list[Score]) -> str:
    """Return whether a factor changes a measure: where its interval lies, or in how many readings it is off 0."""
    if len(scores) > 1:
        return f"{factor} changes {sum(_sign(score) != 0 for score in scores)} of {len(scores)} readings"
    change = {-1: "lowers it", 0: "is not seen to change it", 1: "raises it"}[_sign(scores[0])]
    return f"{factor} {change}: {scores[0].estimate}"


def _sign(score: Score) -> int:
    low, high = score.estimate.low, score.estimate.high
    return 0 if low is None or high is None or low <= 0 <= high else 1 if low > 0 else -1
