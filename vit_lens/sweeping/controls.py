"""Controls before decoding: how much random directions of equal norm resemble the input, for every site of an image."""

__all__ = ["Centre", "ControlNumbers", "control_numbers"]

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.conditions import Condition
from vit_lens.metrics import cosine, leak_index
from vit_lens.sweeping.lens_readings import LensReading
from vit_lens.sweeping.request import Controls


@dataclass(frozen=True, eq=False)
class Centre:
    """What is taken away before likeness to the input is measured: means over other inputs, as flat conditions.

    Attributes:
        sites: Of what a reading reads at its sites.
        clean: Of what whole inputs are.
    """

    sites: Float[Tensor, "site numbers"]
    clean: Float[Tensor, " numbers"]


@dataclass(frozen=True)
class ControlNumbers:
    """The mean cosine of random directions at a site with the input, as it is and centred; nan where there is none."""

    cosine: float = math.nan
    centred: float = math.nan

    def leak(self, site: float) -> float:
        """Return the leak index of a site with the centred cosine ``site``; nan where it is undefined."""
        found = None if math.isnan(self.centred + site) else leak_index(self.centred, site)
        return math.nan if found is None else found


def control_numbers(
    portions: Sequence[LensReading], cache: Any, clean: Condition, centre: Callable[[LensReading], Centre | None],
    digits: str, controls: Controls,
) -> dict[Site, ControlNumbers]:  # fmt: skip
    """Return, for the sites of a reading that have controls, how much random directions there resemble the input.

    Nothing for controls themselves, for lenses without controls, and for the residual stream of images. S is the cosine
    of site (or control) and input after the centre is taken from both. A control is centred on the site's own mean
    reading, since a sweep of one input has no other controls; studies centre it on the controls of other images.

    Args:
        portions: Lens and sites, so many at a time that what is read of them may be held.
        cache: Of one input.
        clean: What that input is.
        centre: Returns the centre of a portion; None if it is not known.
        digits: That identify the input; directions follow from them, whichever inputs are swept with it.
        controls: How many directions, and their seed.
    """
    own = [replace(one, sites=[site for site in one.sites if one.is_controlled(site)]) for one in portions]
    own = [one for one in own if one.sites]
    if not own or own[0].reading.control or not own[0].has_control:
        return {}
    generator = torch.Generator().manual_seed((int(digits[12:24], 16) + controls.seed) % 2**63)
    known = [centre(one) for one in own[:1]] if len(own) == 1 else None  # of many long sequences two do not fit
    plain, centred, whole = [], [], clean.flat
    for _ in range(controls.draws):
        rows, less = [], []
        for one in own:
            read = one.lens.read_control(cache, one.sites, generator=generator)[0].kept().flat
            taken = centre(one) if known is None else known[0]
            rows.append(cosine(read, whole))
            less.append(
                torch.full_like(rows[-1], math.nan)
                if taken is None
                else cosine(read - taken.sites, whole - taken.clean)
            )
        plain.append(torch.cat(rows))
        centred.append(torch.cat(less))
    means = [torch.stack(some).mean(0).tolist() for some in (plain, centred)]
    sites = [site for one in own for site in one.sites]
    return {site: ControlNumbers(*pair) for site, pair in zip(sites, zip(*means, strict=True), strict=True)}
