"""Hooked models: towers that are loaded, run, cached and edited."""

__all__ = [
    "BridgedTextConfig", "BridgedTextEncoder", "HookedTextEncoder", "HookedViT", "TextStates", "batch_starts",
    "pixel_batches", "several",
]  # fmt: skip

from vit_lens.models.batches import batch_starts, pixel_batches, several
from vit_lens.models.bridged import BridgedTextConfig, BridgedTextEncoder
from vit_lens.models.text import HookedTextEncoder, TextStates
from vit_lens.models.vit import HookedViT
