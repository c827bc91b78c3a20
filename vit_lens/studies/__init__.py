"""Studies: can a picture be trusted? Each holds what a lens shows against what the site does, nulls beside it.

A folder for each study, on what they share: disjoint images, a setup, pictures that are kept, statistics, results, and
pooling over encoders. The protocol is ``docs/protocol.md``, the results are in ``docs/trust.md``.
"""

__all__ = [
    "AttributePairs",
    "Judge",
    "LabelledAttribute",
    "LabelledImages",
    "Null",
    "Overlay",
    "Pictures",
    "Score",
    "Seen",
    "StudyImages",
    "StudyResult",
    "StudySetup",
    "content_study",
    "faithfulness_study",
    "importance_study",
    "load_result",
    "make_setup",
    "overlay_study",
    "paste",
    "planted_study",
    "pool",
]

from vit_lens.studies.content import AttributePairs, content_study
from vit_lens.studies.faithfulness import faithfulness_study
from vit_lens.studies.images import StudyImages
from vit_lens.studies.importance import importance_study
from vit_lens.studies.overlay import Overlay, overlay_study, paste
from vit_lens.studies.pictures import Judge, Pictures, Seen
from vit_lens.studies.planted import LabelledAttribute, LabelledImages, planted_study
from vit_lens.studies.pooling import pool
from vit_lens.studies.results import Null, Score, StudyResult, load_result
from vit_lens.studies.setup import StudySetup, make_setup
