"""Overlay: which lens finds the heads that carry an overlay?"""

__all__ = ["Overlay", "overlay_study", "paste"]

from vit_lens.studies.overlay.pasting import Overlay, paste
from vit_lens.studies.overlay.study import overlay_study
