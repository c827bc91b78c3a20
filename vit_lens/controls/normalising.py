"""Coordinates in which no dimension outweighs the others: standardised dimension by dimension, or whitened.

Sun et al. 2024, "Massive activations in large language models" (arXiv 2402.17762): in trained transformers a few
dimensions hold most of a vector's length, the same for all inputs. Lengths and angles are then those of these few.
"""

__all__ = ["NORMALISATIONS", "Normaliser", "check_normalisation"]

from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.controls.spreads import MIN_SAMPLES, Spread
from vit_lens.errors import LensError, nearest

Normalisation = Literal["std", "whiten"]
NORMALISATIONS = ("std", "whiten")


def check_normalisation(kind: object) -> Normalisation | None:
    """Return the name of a normalisation; None is none.

    Raises:
        LensError: There is none of that name; the nearest are named.

    >>> vl.controls.check_normalisation("std")
    'std'
    """
    if kind is not None and kind not in NORMALISATIONS:
        raise LensError(f"no normalisation {kind!r}; nearest: {nearest(str(kind), NORMALISATIONS)}; None is none")
    return cast("Normalisation | None", kind)


@dataclass(frozen=True, eq=False, kw_only=True)
class Normaliser:
    """A linear map of each site's vectors to coordinates of equal spread, and back.

    ``std`` divides every dimension by its root mean square over samples. ``whiten`` applies the inverse square root of
    their shrunk second moments (:class:`Spread`), so that dimensions that vary together count once.

    The price: directions that the samples hardly span are blown up, up to noise; what a decoder or a read-out sees is
    another length than the one that is held equal; numbers are comparable within one bank alone. Whitening rests on
    the shrinkage wherever there are fewer samples than dimensions, and then lies between ``std`` and nothing.

    Attributes:
        kind: ``std`` or ``whiten``.
        n: The number of samples.
        scale: Root mean squares, of ``std``; a dimension that is always 0 has none, and is left out.
        spread: Of ``whiten``.

    >>> samples = torch.randn(50, 1, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([100.0, 1.0, 1.0])
    >>> normaliser = vl.controls.Normaliser.fit(samples, "std")
    >>> normaliser.forward(samples[:, :, None]).square().mean(0).flatten()
    tensor([1.0000, 1.0000, 1.0000])
    >>> normaliser.distance(samples[0], samples[0]).item()
    0.0
    """

    kind: Normalisation
    n: int
    scale: Float[Tensor, "site 1 d"] | None = None
    spread: Spread | None = None

    @classmethod
    def fit(cls, samples: Float[Tensor, "sample site d"], kind: str) -> "Normaliser":
        """Fit it to samples, about zero: take their mean away before, where it should not count.

        Args:
            samples: Vectors of each site.
            kind: ``std`` or ``whiten``.

        Raises:
            LensError: There is no such normalisation, or there are fewer than 5 samples.
        """
        known = check_normalisation(kind)
        if known is None:
            raise LensError(f"normalisation None fits nothing; expected one of {', '.join(NORMALISATIONS)}")
        if known == "whiten":
            return cls(kind=known, n=len(samples), spread=Spread.of(samples))
        if len(samples) < MIN_SAMPLES:
            raise LensError(
                f"{len(samples)} samples give no scale of a dimension: it needs {MIN_SAMPLES} or more other images"
            )
        return cls(kind=known, n=len(samples), scale=samples.double().square().mean(0).sqrt()[:, None])

    def forward(self, x: Float[Tensor, "*batch site row d"]) -> Float[Tensor, "*batch site row d"]:
        """Return vectors in normalised coordinates, in their own dtype, computed in float64."""
        return self._mapped(x, inverse=False)

    def inverse(self, x: Float[Tensor, "*batch site row d"]) -> Float[Tensor, "*batch site row d"]:
        """Return normalised vectors as they were."""
        return self._mapped(x, inverse=True)

    def cosine(
        self, a: Float[Tensor, "*#batch site d"], b: Float[Tensor, "*#batch site d"]
    ) -> Float[Tensor, "*batch site"]:
        """Return the cosine of two vectors of each site in normalised coordinates, in float64."""
        a, b = (self.forward(x.double().unsqueeze(-2)).squeeze(-2) for x in (a, b))
        return ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).clamp(-1.0, 1.0)

    def distance(
        self, a: Float[Tensor, "*#batch site d"], b: Float[Tensor, "*#batch site d"]
    ) -> Float[Tensor, "*batch site"]:
        """Return the Euclidean distance in normalised coordinates, in float64; of ``whiten`` it is Mahalanobis'."""
        return self.forward((a.double() - b.double()).unsqueeze(-2)).squeeze(-2).norm(dim=-1)

    def _mapped(self, x: Tensor, *, inverse: bool) -> Tensor:
        if self.spread is not None:
            return self.spread.power(x, 0.5 if inverse else -0.5)
        scale = cast(Tensor, self.scale)
        known = scale if inverse else torch.where(scale > 0, 1 / scale.clamp_min(1e-300), 0.0)
        return (x.double() * known.to(x.device)).to(x.dtype)
