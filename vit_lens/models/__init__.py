"""Hooked models: towers that are loaded, run, cached and edited."""

__all__ = ["HookedViT", "batch_starts", "pixel_batches", "several"]

from vit_lens.models.batches import batch_starts, pixel_batches, several
from vit_lens.models.vit import HookedViT
