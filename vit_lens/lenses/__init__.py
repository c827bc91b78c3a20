"""Lenses: what embedding would the model output if one part of it spoke alone, or louder."""

__all__ = ["DiffusionLens", "DiffusionSteeringLens", "Lens", "parse_lens"]

from vit_lens.lenses.diffusion_lens import DiffusionLens
from vit_lens.lenses.lens import Lens
from vit_lens.lenses.spelling import parse_lens
from vit_lens.lenses.steering_lens import DiffusionSteeringLens
