"""The activations of one run: TransformerLens' ``ActivationCache`` for an image model."""

__all__ = ["Rows", "ViTActivationCache"]

from vit_lens.towers.cache.activations import ViTActivationCache
from vit_lens.towers.cache.held import Rows
