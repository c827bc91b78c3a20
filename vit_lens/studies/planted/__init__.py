"""Planted truth: does a lens find the one head that is known to tell an attribute?"""

from vit_lens.lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__, {
    "LabelledAttribute": ".labelled", "LabelledImages": ".labelled", "labelled_images": ".mini_set",
    "Plant": ".soil", "Soil": ".soil", "direct_shares": ".recovery", "planted_figure": ".figures",
    "planted_study": ".study", "write_attribute": ".planted_weights",
})  # fmt: skip
