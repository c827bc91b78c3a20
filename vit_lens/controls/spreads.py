"""How vectors spread: their second moments, shrunk towards a round one, kept in as few directions as there are samples.

Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices".
"""

__all__ = ["MIN_SAMPLES", "Spread"]

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.errors import LensError

MIN_SAMPLES = 5
"""Fewer other images than this give no covariance."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Spread:
    """Second moments about zero, ``(1 - shrinkage) X^T X / n + shrinkage * mean_variance * I``, in float64.

    The shrinkage is Ledoit and Wolf's, which needs no choice: it lies near 0 for many more samples than dimensions, and
    grows as they get fewer. Without it there would be no spread at all in the dimensions that no sample spans.
    Powers are exact: outside the span of the samples the matrix is a multiple of the identity.

    Attributes:
        basis: Unit vectors that span the samples.
        variances: The unshrunk second moment along each of them.
        shrinkage: Weight of the round part, in [0, 1].
        mean_variance: Mean of all second moments: that of the round part.
        n: The number of samples.

    >>> spread = vl.controls.Spread.of(torch.tensor([[[2.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]] * 2))
    >>> spread.n, round(spread.matrix().diagonal(dim1=-2, dim2=-1).sum().item(), 6)
    (6, 2.0)
    """

    basis: Float[Tensor, "site k d"]
    variances: Float[Tensor, "site k"]
    shrinkage: Float[Tensor, " site"]
    mean_variance: Float[Tensor, " site"]
    n: int

    @classmethod
    def of(cls, samples: Float[Tensor, "sample site d"]) -> "Spread":
        """Estimate it from samples, about zero: take a mean away before, where it should not count.

        Raises:
            LensError: There are fewer than :data:`MIN_SAMPLES`.
        """
        n, _, d = samples.shape
        if n < MIN_SAMPLES:
            raise LensError(
                f"a covariance of {n} samples says nothing of a spread: it needs {MIN_SAMPLES} or more; give more "
                "images, or leave the control 'covariance' and normalisation out"
            )
        x = samples.double().transpose(0, 1)
        gram = x @ x.transpose(1, 2) / n  # [site sample sample]: the matrix itself would be d x d
        mean_variance = gram.diagonal(dim1=1, dim2=2).sum(-1) / d
        # of S = X^T X / n: |S - mI|^2 = |S|^2 - d m^2, and the mean of |x x^T - S|^2 is mean |x|^4 - |S|^2
        squared = gram.square().sum((1, 2))
        distance = squared - d * mean_variance.square()
        error = ((n * gram.diagonal(dim1=1, dim2=2)).square().mean(-1) - squared) / n
        shrinkage = torch.where(distance > 0, (error / distance.clamp_min(1e-300)).clamp(0.0, 1.0), 1.0)
        values, vectors = torch.linalg.eigh(gram)
        values = values.clamp_min(0.0)
        known = values > n * torch.finfo(values.dtype).eps * values.amax(-1, keepdim=True)
        values = values.where(known, 0.0)
        scale = torch.where(known, (n * values).rsqrt(), 0.0)
        basis = scale[..., None] * (vectors.transpose(1, 2) @ x)
        return cls(basis=basis, variances=values, shrinkage=shrinkage, mean_variance=mean_variance, n=n)

    def power(self, x: Float[Tensor, "*batch site row d"], exponent: float) -> Float[Tensor, "*batch site row d"]:
        """Return the matrix to a power, times vectors; in their dtype, computed in float64.

        ``0.5`` makes of standard normal numbers such with this spread, ``-0.5`` whitens.
        """
        floor = self.shrinkage * self.mean_variance
        within = ((1 - self.shrinkage)[:, None] * self.variances + floor[:, None]).clamp_min(0.0)
        outside = _power(floor, exponent)
        gain = _power(within, exponent) - outside[:, None]
        wide = x.double()
        along = wide @ self.basis.transpose(1, 2)
        return (outside[:, None, None] * wide + (along * gain[:, None]) @ self.basis).to(x.dtype)

    def matrix(self) -> Float[Tensor, "site d d"]:
        """Return the whole matrix: for looking at, since it is large."""
        d = self.basis.shape[-1]
        return self.power(torch.eye(d, dtype=torch.float64).to(self.basis).expand(len(self.basis), d, d), 1.0)


def _power(x: Tensor, exponent: float) -> Tensor:
    """Return a power; of what has no spread it is 0, also where the exponent is negative."""
    return torch.where(x > 0, x.clamp_min(1e-300) ** exponent, 0.0)
