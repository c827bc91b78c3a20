"""Deviations from a mean, where there are any."""

__all__ = ["deviations"]

import torch
from jaxtyping import Float
from torch import Tensor

_ROUNDING = 64  # a deviation below this many units in the last place of its terms is noise


def deviations(
    values: Float[Tensor, "*batch d_embed"], origins: Float[Tensor, "*#batch d_embed"]
) -> Float[Tensor, "*batch d_embed"]:
    """Return ``values - origins``; exactly zero, which has no direction, where the difference is only rounding.

    A site may hold the same for all images (the CLS token before the first block does): its deviation is noise of
    the arithmetic, and a cosine of noise would name a caption with confidence.

    Args:
        values: Lens embeddings.
        origins: The mean that each of them is measured from.

    >>> vl.readers.deviations(torch.tensor([[3.0, 4.0], [1.0, 1.0000001]]), torch.tensor([[1.0, 1.0]]))
    tensor([[2., 3.],
            [0., 0.]])
    """
    origins = origins.to(values)
    found = values - origins
    size = values.norm(dim=-1) + origins.norm(dim=-1)
    silent = found.norm(dim=-1) <= _ROUNDING * torch.finfo(values.dtype).eps * size
    return found.masked_fill(silent[..., None], 0.0)
