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
    "LabelledImages": ".planted", "NameRuns": ".knowledge", "Null": ".findings", "Overlay": ".overlay",
    "Pictures": ".seen_pictures", "Plant": ".planted", "Score": ".findings", "Seen": ".seen_pictures",
    "Soil": ".planted", "StudyImages": ".images", "StudyResult": ".findings", "StudySetup": ".study_setup",
    "across_units": ".statistics", "auc": ".statistics",
    "content_study": ".content", "decoders_study": ".decoders", "direct_shares": ".planted",
    "factors_study": ".factors", "faithfulness_study": ".faithfulness", "importance_study": ".importance",
    "lenses_of_reference": ".reference_lenses", "load_result": ".findings", "make_setup": ".study_setup",
    "overlay_study": ".overlay", "paste": ".overlay", "plant_table": ".knowledge", "planted_study": ".planted",
    "pool": ".pooling", "random_weights": ".untrained", "reach_study": ".reach", "score_figure": ".score_figures",
    "spearman": ".statistics", "study_images": ".mini_images", "this_machine": ".findings",
    "versions": ".findings", "write_attribute": ".planted",
}  # fmt: skip
__all__, __getattr__, __dir__ = lazy(__name__, _HOME | dict.fromkeys(STUDIES, __name__))
