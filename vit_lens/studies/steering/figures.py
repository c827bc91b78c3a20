"""How often targets are seen by dose, the claims, and pictures."""

__all__ = ["doses_figure", "figures_of", "strip_figure"]

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import UInt8
from PIL import Image

from vit_lens.figures import dress, picture_strips
from vit_lens.studies.findings import StudyResult
from vit_lens.studies.score_figures import score_figure
from vit_lens.studies.steering.scores import (
    DIRECTIONS,
    EDIT,
    EFFECT,
    NEGATIVE,
    PLACE,
    PROMPT,
    RELATED,
    TIME,
    WINDOWS,
)
from vit_lens.studies.steering.targets import Target

_COLOURS = ("#c4520f", "#8a8780", "#2368a6", "#4d8f4f")


def figures_of(result: StudyResult) -> dict[str, go.Figure]:
    """Return the figures of a result, by name."""
    figures = {"doses": doses_figure(result)}
    for name, measure in (("prompts", PROMPT), ("steps", WINDOWS)):
        told = {PROMPT: (RELATED, "silent and agrees, mean"), WINDOWS: (TIME, "less late steps")}[measure]
        score = result.score(told[0], told[1], "decoded")
        title = f"{told[0]}: {score.estimate} (n = {score.n} targets)"
        if told[0] == TIME:
            title = f"effect of early steps, less that of late ones: {score.estimate} (n = {score.n} targets)"
        figures[name] = score_figure(result.frame(), measure, title)
    for name, measure in (("place", PLACE), ("negative", NEGATIVE)):
        score = result.score(measure, "feature", "decoded")
        title = f"{measure}: {score.estimate} (n = {score.n} targets)"
        figures[name] = score_figure(result.frame(), measure, title)
    return figures


def doses_figure(result: StudyResult) -> go.Figure:
    """Draw how often the target is seen by dose, a line for each direction; dashed what is no scene."""
    table = result.tables["doses"]
    figure = go.Figure()
    for direction, colour in zip(DIRECTIONS, _COLOURS, strict=True):
        for measure, dash in (("seen", "solid"), ("no scene", "dot")):
            doses = result.options["doses"]
            figure.add_scatter(
                x=doses, y=[_mean(table, measure, direction, dose) for dose in doses], mode="lines+markers",
                line={"color": colour, "dash": dash},
                name=direction if measure == "seen" else f"{direction}: no scene",
            )  # fmt: skip
    for words in ("without steering", EDIT):
        level = _mean(table, "seen", words, 0.0)
        figure.add_hline(level, line={"color": "#1c1b19", "width": 1, "dash": "dash"}, annotation_text=words)
    figure.update_xaxes(title="dose, in mean token norms", type="log", tickvals=result.options["doses"])
    figure.update_yaxes(title="share of pictures", range=[-0.02, 1.02])
    score = result.score(EFFECT, "feature", "decoded")
    title = (
        f"At dose {result.options['dose']:g} a feature shows its target more often than a random direction by "
        f"{score.estimate} (n = {score.n} targets)"
    )
    return dress(figure, title, 900, 520)


def _mean(table: Sequence[Mapping[str, Any]], measure: str, direction: str, dose: float) -> float:
    """Return a share of a table of doses, mean over dictionaries."""
    return float(np.mean([row[measure] for row in table if (row["direction"], row["dose"]) == (direction, dose)]))


def strip_figure(
    rows: Mapping[str, Sequence[UInt8[np.ndarray, "height width 3"]]], doses: Sequence[float], target: Target
) -> go.Figure:
    """Draw pictures of a target by direction and dose: what the numbers are of, not chosen by eye.

    Args:
        rows: The pictures by direction, the first of each not steered.
        doses: The doses of the others.
        target: The target.
    """
    pictures = {name: [Image.fromarray(one) for one in row] for name, row in rows.items()}
    title = f"One noise steered to the {target.kind} {target.value}, which its prompt does not say"
    return picture_strips(pictures, ["not steered", *(f"dose {dose:g}" for dose in doses)], title)
