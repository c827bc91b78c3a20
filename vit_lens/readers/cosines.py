"""What cosines are taken of: deviations from a mean, where there are any; and the nearest of many vectors."""

__all__ = ["deviations", "nearest_rows"]

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.attribution import check_tensor
from vit_lens.numerics import without_autocast

_ROUNDING = 64  # a deviation below this many units in the last place of its terms is noise
_CHUNK_NUMBERS = 2**26  # cosines that are held at once


def deviations(
    values: Float[Tensor, "*batch d_embed"], origins: Float[Tensor, "*#batch d_embed"]
) -> Float[Tensor, "*batch d_embed"]:
    """Return ``values - origins``; exactly zero, which has no direction, where the difference is only rounding.

    A site may hold the same for all images (the CLS token before the first block does): its deviation is noise of
    the arithmetic, and a cosine of noise would name a caption with confidence.

    Args:
        values: Lens embeddings.
        origins: The mean that each of them is measured from.

    Raises:
        LensError: They are no tensors, or of different widths.

    >>> vl.readers.deviations(torch.tensor([[3.0, 4.0], [1.0, 1.0000001]]), torch.tensor([[1.0, 1.0]]))
    tensor([[2., 3.],
            [0., 0.]])
    """
    check_tensor("values", values, "*batch d_embed")
    check_tensor("origins", origins, f"*batch {values.shape[-1]}")
    origins = origins.to(values)
    found = values - origins
    size = values.norm(dim=-1) + origins.norm(dim=-1)
    silent = found.norm(dim=-1) <= _ROUNDING * torch.finfo(values.dtype).eps * size
    return found.masked_fill(silent[..., None], 0.0)


@without_autocast()
def nearest_rows(
    queries: Float[Tensor, "query d_embed"],
    targets: Float[Tensor, "target d_embed"],
    k: int,
    banned: Sequence[int | None],
) -> tuple[Int[Tensor, "query k"], Float[Tensor, "query k"]]:
    """Return the ``k`` targets with the largest cosine to each query, best first: indices and cosines.

    Args:
        queries: A query of zeros has cosines nan.
        targets: One of zeros comes last, with cosine nan.
        k: At most the targets that are not banned.
        banned: For each query the target that is no answer.
    """
    sizes = targets.norm(dim=-1)
    targets = targets / sizes.masked_fill(sizes == 0, 1.0)[:, None]
    index, cosine = [], []
    chunk = max(1, _CHUNK_NUMBERS // len(targets))
    for start in range(0, max(1, len(queries)), chunk):
        some = queries[start : start + chunk]
        norm = some.norm(dim=-1, keepdim=True)
        silent = norm == 0
        found = (some / norm.masked_fill(silent, 1.0)) @ targets.T
        found[:, sizes == 0] = -torch.inf
        for row, target in enumerate(banned[start : start + chunk]):
            if target is not None:
                found[row, target] = -torch.inf
        best = found.topk(k, dim=-1)
        index.append(best.indices)
        cosine.append(best.values.masked_fill(silent | best.values.isneginf(), torch.nan))
    return torch.cat(index), torch.cat(cosine)
