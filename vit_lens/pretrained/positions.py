"""Position embeddings of another image size, by the source's own ``interpolate_pos_encoding``."""

__all__ = ["clip_positions", "config_size", "dinov2_positions"]

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_lens.pretrained.checks import kind, refuse


def config_size(size: Any) -> tuple[int, int]:
    """Return a size of a Hugging Face config as (height, width)."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def clip_positions(
    embeddings: Any, size: tuple[int, int], n_tokens: int
) -> Callable[[Float[Tensor, "stored d_model"]], Float[Tensor, "pos d_model"]]:
    """Return a function from CLIP's or SigLIP's stored positions to those that it uses at ``size``.

    It is the source's, as called by a forward pass with ``interpolate_pos_encoding=True``.
    """
    _require_function(embeddings)

    def positions(stored: Float[Tensor, "stored d_model"]) -> Float[Tensor, "pos d_model"]:
        holder = _copy(embeddings)
        holder.position_embedding = nn.Embedding.from_pretrained(stored)
        holder.position_ids = torch.arange(len(stored), device=stored.device)[None]
        return _interpolate(holder, stored.new_empty(1, n_tokens, stored.shape[-1]), size)[0]

    return positions


def dinov2_positions(
    embeddings: Any, size: tuple[int, int], n_tokens: int
) -> Callable[[Float[Tensor, "1 stored d_model"]], Float[Tensor, "1 pos d_model"]]:
    """Return a function from DINOv2's stored positions (CLS first) to those that it uses at ``size``."""
    _require_function(embeddings)

    def positions(stored: Float[Tensor, "1 stored d_model"]) -> Float[Tensor, "1 pos d_model"]:
        holder = _copy(embeddings)
        holder.position_embeddings = nn.Parameter(stored, requires_grad=False)
        return _interpolate(holder, stored.new_empty(1, n_tokens, stored.shape[-1]), size)

    return positions


def _interpolate(holder: Any, tokens: Tensor, size: tuple[int, int]) -> Tensor:
    try:
        with torch.no_grad():
            return holder.interpolate_pos_encoding(tokens, *size)
    except RuntimeError as error:
        refuse(f"positions that {kind(holder)} cannot interpolate to {size} ({error})")


def _copy(module: nn.Module) -> Any:
    """Return a copy whose own tensors can be replaced without reaching the original."""
    holder = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        setattr(holder, name, dict(getattr(module, name)))
    return holder


def _require_function(embeddings: Any) -> None:
    if not hasattr(embeddings, "interpolate_pos_encoding"):
        refuse(f"image_size= for {kind(embeddings)}, which cannot interpolate its positions")
