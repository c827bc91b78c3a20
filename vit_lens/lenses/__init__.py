"""Lenses: what would be drawn if one part of a model spoke alone, or louder."""

__all__ = [
    "DEFAULT_LENSES",
    "DiffusionLens",
    "DiffusionSteeringLens",
    "Lens",
    "LensDescription",
    "parse_lens",
    "parse_lenses",
]

from vit_lens.lenses.contract import Lens, LensDescription
from vit_lens.lenses.diffusion_lens import DiffusionLens
from vit_lens.lenses.spelling import DEFAULT_LENSES, parse_lens, parse_lenses
from vit_lens.lenses.steering_lens import DiffusionSteeringLens
