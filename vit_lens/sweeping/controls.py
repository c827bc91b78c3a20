"""Controls before decoding: how much random directions of equal norm resemble the input, for every site of an image."""

__all__ = ["Centre", "control_numbers"]

import math
from dataclasses import dataclass
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
    """What is taken away before likeness to the input is measured: means over other images.

    Attributes:
        sites: Of the lens embeddings of a reading's sites.
        clean: Of the images' embeddings.
    """

    sites: Float[Tensor, "site d_embed"]
    clean: Float[Tensor, " d_embed"]


def control_numbers(
    reading: LensReading, cache: Any, clean: Condition, read: Condition, centre: Centre | None,
    digits: str, controls: Controls,
) -> tuple[list[float], list[float]]:  # fmt: skip
    """Return, for every site of a reading, the mean cosine of its controls with the input, and its leak index.

    nan where there is none: for controls themselves, for the residual stream and for lenses without controls, and for
    the leak index without a centre or where S(site) <= 0, with S the cosine of site (or control) and input after the
    centre is taken from both. A control is centred on the site's own mean reading, since a sweep of one image has no
    other controls; studies centre it on the controls of other images.

    Args:
        reading: Lens and sites.
        cache: Of one image.
        clean: What that image is.
        read: What is read at the sites.
        centre: None if it is not known.
        digits: That identify the image; directions follow from them, whichever images are swept with it.
        controls: How many directions, and their seed.
    """
    sites = [site for site in reading.sites if not reading.reading.control and reading.is_controlled(site)]
    found: dict[Site, tuple[float, float]] = {}
    if sites and reading.has_control:
        generator = torch.Generator().manual_seed((int(digits[12:24], 16) + controls.seed) % 2**63)
        drawn = (
            reading.lens.read_control(cache, sites, generator=generator)[0].kept().flat for _ in range(controls.draws)
        )
        whole, index = clean.flat, [reading.sites.index(site) for site in sites]
        leaks = [math.nan] * len(sites)
        if centre is None:  # one draw after the other: of long sequences not even two may fit
            cosines = torch.stack([cosine(draw, whole) for draw in drawn]).mean(0).tolist()
        else:
            draws, taken = torch.stack(list(drawn)), centre.sites[index]
            cosines = cosine(draws, whole).mean(0).tolist()
            leaks = _leaks(read.flat[index] - taken, draws - taken, whole - centre.clean)
        found = dict(zip(sites, zip(cosines, leaks, strict=True), strict=True))
    numbers = [found.get(site, (math.nan, math.nan)) for site in reading.sites]
    return [number for number, _ in numbers], [leak for _, leak in numbers]


def _leaks(
    sites: Float[Tensor, "site d_embed"], draws: Float[Tensor, "draw site d_embed"], clean: Float[Tensor, "1 d_embed"]
) -> list[float]:
    pairs = zip(cosine(draws, clean).mean(0).tolist(), cosine(sites, clean).tolist(), strict=True)
    return [math.nan if (leak := leak_index(control, site)) is None else leak for control, site in pairs]
