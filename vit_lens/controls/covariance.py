"""The control that keeps a site's geometry: a random direction with its covariance."""

__all__ = ["CovarianceMatched", "samples_of"]

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.controls.contract import Control, Material, control
from vit_lens.controls.spreads import MIN_SAMPLES, Spread
from vit_lens.errors import LensError

_MOST = 1024  # tokens, evenly spread: the spread of a sample of them is that of all


@control("covariance")
class CovarianceMatched(Control):
    """Normal numbers with the second moments of what the site writes for other images, over images and tokens.

    Moments are about what the lens measures outputs from: 0, or for ``anchor="mean"`` the reference mean, where this is
    the covariance. About their own mean they would lose what a site writes for every image alike, and a massive
    activation is just that, so that the control would be fooled as the isotropic one is. They are shrunk by Ledoit and
    Wolf's rule (:class:`vit_lens.controls.Spread`).
    """

    words = "a random direction with the site's covariance"
    meaning = "how much of it comes with the dimensions that the site writes to"
    needs = MIN_SAMPLES

    def directions(self, material: Material) -> Float[Tensor, "site row d_model"]:
        if lacks := self.lacks(0 if material.others is None else len(material.others)):
            raise LensError(lacks)
        spread = material.remembered("spread", lambda others: Spread.of(samples_of(others)))
        return spread.power(material.noise(), 0.5)


def samples_of(others: Float[Tensor, "other site row d_model"]) -> Float[Tensor, "sample site d_model"]:
    """Return the tokens of images as samples, at most 1024 of them, evenly spread.

    >>> vl.controls.samples_of(torch.zeros(64, 3, 50, 8)).shape  # images, sites, tokens, width
    torch.Size([800, 3, 8])
    """
    samples = others.transpose(1, 2).flatten(0, 1)
    step = -(-len(samples) // _MOST)
    return samples[::step] if step > 1 else torch.as_tensor(samples)
