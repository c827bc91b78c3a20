"""The measures that the protocol decides by, of studies that have many: what commands print and draw."""

__all__ = ["headlines"]

from vit_lens.studies.results import StudyResult

_WITH = "with total effect, mean ablation"
_MEASURES = {
    "content": (
        "agreement within sites, total effect", "excess over shuffled sites within sites, total effect",
        "excess over shuffled sites within top sites, total effect",
    ),
    "importance": (
        f"no lens {_WITH}", f"centred similarity {_WITH}", f"centred similarity {_WITH}, given the norms",
        f"centred similarity, judge {_WITH}", f"centred similarity, judge {_WITH}, given the norms",
    ),
}  # fmt: skip


def headlines(result: StudyResult) -> list[str]:
    """Return the measures to show of a result, in its own order: the protocol's, or all where it has few."""
    found = dict.fromkeys(score.measure for score in result.scores)
    wanted = _MEASURES.get(result.study)
    return [measure for measure in found if wanted is None or measure in wanted]
