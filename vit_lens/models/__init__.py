"""Hooked models: towers that are loaded, run, cached and edited."""

__all__ = ["HookedViT"]

from vit_lens.models.vit import HookedViT
