"""The overlays of studies on the embedded pair: four symbols of its world, each in a corner of its own."""

__all__ = ["MINI_OVERLAYS", "study_overlays"]

import numpy as np

from vit_lens.mini import painting, shapes
from vit_lens.studies.overlay.study import Overlay

MINI_OVERLAYS = (("dot", "top left"), ("plus", "top right"), ("wedge", "bottom left"), ("bar", "bottom right"))


def study_overlays(*, size: int = shapes.CANVAS) -> list[Overlay]:
    """Return the symbols as they are painted on the world's scenes, to within one grey level."""
    return [_overlay(symbol, corner, size) for symbol, corner in MINI_OVERLAYS]


def _overlay(symbol: str, corner: str, size: int) -> Overlay:
    cover, ink = shapes.symbol_plate(symbol, corner, *shapes.pixel_centres(size))
    colour = painting.PAPER + ink[..., None] * (painting.INK - painting.PAPER)
    rgba = np.concatenate([colour, 255 * cover[..., None]], axis=-1)
    return Overlay(f"{symbol} {corner}", np.rint(rgba).astype(np.uint8), "full")
