"""Studies: can a picture be trusted? Each holds what a lens shows against what the site does, nulls beside it.

A folder for each study, with its command, figures and images, on what they share: disjoint images, a setup, pictures
that are kept, statistics, results, and pooling over encoders. The protocol is ``docs/protocol.md``, the results are in
``docs/trust.md``.
"""

import pkgutil

from vit_lens.lazy import lazy

STUDIES = tuple(found.name for found in pkgutil.iter_modules(__path__) if found.ispkg)
"""The studies by their folders; a new one is found here."""

_HOME = {
    "AttributePairs": ".content", "Judge": ".seen_pictures", "LabelledAttribute": ".planted",
    "LabelledImages": ".planted", "Null": ".findings", "Overlay": ".overlay", "Pictures": ".seen_pictures",
    "Score": ".findings", "Seen": ".seen_pictures", "StudyImages": ".images", "StudyResult": ".findings",
    "StudySetup": ".study_setup", "content_study": ".content", "decoders_study": ".decoders",
    "factors_study": ".factors", "faithfulness_study": ".faithfulness", "importance_study": ".importance",
    "load_result": ".findings",
    "make_setup": ".study_setup", "overlay_study": ".overlay", "paste": ".overlay", "planted_study": ".planted",
    "pool": ".pooling", "reach_study": ".reach", "score_figure": ".score_figures", "study_images": ".mini_images",
}  # fmt: skip
__all__, __getattr__, __dir__ = lazy(__name__, _HOME | dict.fromkeys(STUDIES, __name__))
