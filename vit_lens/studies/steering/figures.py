"""How often targets are seen by dose, the claims, and pictures."""

__all__ = ["doses_figure", "figures_of", "strip_figure"]

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import UInt8
from PIL import Image

from vit_lens.errors import StudyError
from vit_lens.figures import dress, picture_strips
from vit_lens.studies.findings import Score, StudyResult
from vit_lens.studies.score_figures import score_figure
from vit_lens.studies.steering.scores import (
    DIRECTIONS,
    EFFECT,
    NEGATIVE,
    PATCHES,
    PLACE,
    PROMPT,
    RELATED,
    TIME,
    WINDOWS,
)
from vit_lens.studies.steering.targets import Target

_COLOURS = ("#c4520f", "#8a8780", "#2368a6", "#4d8f4f")
_TOLD = {
    "prompts": (PROMPT, RELATED), "steps": (WINDOWS, TIME), "place": (PLACE, PLACE), "patches": (PATCHES, PATCHES),
    "negative": (NEGATIVE, NEGATIVE),
}  # fmt: skip
_WORDS = {TIME: "effect of early steps, less that of late ones"}


def figures_of(result: StudyResult) -> dict[str, go.Figure]:
    """Return the figures of a result, by name; those of measures that it has."""
    figures = {"doses": doses_figure(result)}
    for name, (measure, told) in _TOLD.items():
        if _first(result, measure) is None:
            continue
        score = _first(result, told)
        words = _WORDS.get(told, told)
        if score is None:  # nothing sums it up: the first reading is told
            score = _known(result, measure)
            words = f"effect where the input {score.reading}" if measure == PROMPT else measure
        title = f"{words}: {score.estimate} (n = {score.n} {score.unit})"
        figures[name] = score_figure(result.frame(), measure, title)
    return figures


def _first(result: StudyResult, measure: str) -> Score | None:
    return next((score for score in result.scores if score.measure == measure), None)


def _known(result: StudyResult, measure: str) -> Score:
    if (found := _first(result, measure)) is None:
        raise StudyError(f"the result has no score of {measure!r}; make it again with this version")
    return found


def doses_figure(result: StudyResult) -> go.Figure:
    """Draw how often the target is seen by dose, a line for each direction; dotted what is no scene."""
    table, doses = result.tables["doses"], result.options["doses"]
    figure = go.Figure()
    for direction, colour in zip(DIRECTIONS, _COLOURS, strict=True):
        for measure, dash in (("seen", "solid"), ("no scene", "dot")):
            if measure not in table[0]:
                continue
            figure.add_scatter(
                x=doses, y=[_mean(table, measure, direction, dose) for dose in doses], mode="lines+markers",
                line={"color": colour, "dash": dash},
                name=direction if measure == "seen" else f"{direction}: no scene",
            )  # fmt: skip
    for words in dict.fromkeys(row["direction"] for row in table if row["dose"] == 0):
        level = _mean(table, "seen", words, 0.0)
        figure.add_hline(level, line={"color": "#1c1b19", "width": 1, "dash": "dash"}, annotation_text=words)
    score = _known(result, EFFECT)
    share = "share of pictures" if score.level == "decoded" else "share of embeddings"
    figure.update_xaxes(title="dose, in mean token norms", type="log", tickvals=doses)
    figure.update_yaxes(title=share, range=[-0.02, 1.02])
    title = (
        f"At dose {result.options['dose']:g} a {score.reading} shows its target more often than a random direction by "
        f"{score.estimate} (n = {score.n} {score.unit})"
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
    title = f"One input steered to the {target.kind} {target.value}, which it does not have"
    return picture_strips(pictures, ["not steered", *(f"dose {dose:g}" for dose in doses)], title)
