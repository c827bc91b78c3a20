"""Overlay: which lens finds the heads that carry an overlay?"""

from vit_lens.lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__, {
    "Overlay": ".pasting", "as_seen": ".pasting", "mean_colour": ".pasting", "overlay_study": ".study",
    "paste": ".pasting", "pixels_of_seen": ".pasting", "study_overlays": ".mini_set", "trajectory_figure": ".figures",
})  # fmt: skip
