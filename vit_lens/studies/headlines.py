"""What the face of a study says of its results: the measures it decides by, the tables that are averaged, figures."""

__all__ = ["averaged", "figures_of", "headlines"]

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vit_lens.studies import STUDIES
from vit_lens.studies.findings import StudyResult

if TYPE_CHECKING:
    import plotly.graph_objects as go


def headlines(result: StudyResult) -> list[str]:
    """Return the measures to show of a result, in its own order: ``HEADLINES`` of its study, or all if it has none."""
    found = dict.fromkeys(score.measure for score in result.scores)
    wanted = _said(result, "HEADLINES", None)
    return [measure for measure in found if wanted is None or measure in wanted]


def averaged(result: StudyResult) -> tuple[str, ...]:
    """Return the tables whose numbers are averaged over encoders: ``AVERAGED`` of its study, those that are there."""
    return tuple(name for name in _said(result, "AVERAGED", ()) if name in result.tables)


def figures_of(result: StudyResult) -> "dict[str, go.Figure]":
    """Return the figures of its study that can be drawn of one encoder as of several: ``figures_of`` of its face."""
    draw = _said(result, "figures_of", None)
    return {} if draw is None else draw(result)


def _said(result: StudyResult, name: str, otherwise: Any) -> Any:
    if result.study not in STUDIES:
        return otherwise
    return getattr(import_module(f"vit_lens.studies.{result.study}"), name, otherwise)
