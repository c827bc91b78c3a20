"""Means of activations over a reference set of images: what leak-free lenses and mean ablation start from."""

__all__ = ["ReferenceMeans", "Stability"]

from vit_lens.reference.reference_means import ReferenceMeans
from vit_lens.reference.stability import Stability
