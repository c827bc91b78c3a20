"""Studies: can a picture be trusted? Each holds what a lens shows against what the site does, nulls beside it.

The protocol is ``docs/protocol.md``, the results are in ``docs/trust.md``.
"""

__all__ = [
    "Judge",
    "Null",
    "Pictures",
    "Score",
    "Seen",
    "StudyImages",
    "StudyResult",
    "StudySetup",
    "load_result",
    "make_setup",
    "pool",
]

from vit_lens.studies.images import StudyImages
from vit_lens.studies.pictures import Judge, Pictures, Seen
from vit_lens.studies.pool import pool
from vit_lens.studies.results import Null, Score, StudyResult, load_result
from vit_lens.studies.setup import StudySetup, make_setup
