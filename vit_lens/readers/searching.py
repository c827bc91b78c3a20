"""The nearest of many vectors, by cosine."""

__all__ = ["nearest_rows"]

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

_CHUNK_NUMBERS = 2**26  # cosines that are held at once


def nearest_rows(
    queries: Float[Tensor, "query d_embed"],
    targets: Float[Tensor, "target d_embed"],
    k: int,
    banned: Sequence[int | None],
) -> tuple[Int[Tensor, "query k"], Float[Tensor, "query k"]]:
    """Return the ``k`` targets with the largest cosine to each query, best first: indices and cosines.

    Args:
        queries: A query of zeros has cosines nan.
        targets: None is zero.
        k: At most the targets that are not banned.
        banned: For each query the target that is no answer.
    """
    targets = targets / targets.norm(dim=-1, keepdim=True)
    index, cosine = [], []
    chunk = max(1, _CHUNK_NUMBERS // len(targets))
    for start in range(0, len(queries), chunk):
        some = queries[start : start + chunk]
        norm = some.norm(dim=-1, keepdim=True)
        silent = norm == 0
        found = (some / norm.masked_fill(silent, 1.0)) @ targets.T
        for row, target in enumerate(banned[start : start + chunk]):
            if target is not None:
                found[row, target] = -torch.inf
        best = found.topk(k, dim=-1)
        index.append(best.indices)
        cosine.append(best.values.masked_fill(silent, torch.nan))
    return torch.cat(index), torch.cat(cosine)
