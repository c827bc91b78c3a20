"""The measures that the protocol decides by, of studies that have many: what commands print and draw."""

__all__ = ["headlines"]

from importlib import import_module

from vit_lens.studies import STUDIES
from vit_lens.studies.findings import StudyResult


def headlines(result: StudyResult) -> list[str]:
    """Return the measures to show of a result, in its own order: ``HEADLINES`` of its study, or all if it has none."""
    found = dict.fromkeys(score.measure for score in result.scores)
    study = import_module(f"vit_lens.studies.{result.study}") if result.study in STUDIES else None
    wanted = getattr(study, "HEADLINES", None)
    return [measure for measure in found if wanted is None or measure in wanted]
