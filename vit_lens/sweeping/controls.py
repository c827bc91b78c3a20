"""Controls before decoding: how much each of them resembles the input, for every site of an image."""

__all__ = ["Centre", "ControlNumbers", "Likeness", "control_numbers"]

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.conditions import Condition
from vit_lens.controls import Against, Normaliser, Others, control_named
from vit_lens.errors import LensError
from vit_lens.estimates import leak_of_draws
from vit_lens.metrics import cosine
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


@dataclass(frozen=True, eq=False, kw_only=True)
class Likeness:
    """How likeness to one input is measured, and how much of it chance gives.

    Attributes:
        whole: What the input is, flat.
        normaliser: Of embeddings, where distances are normalised.
        others: What other inputs are; None where none are known.
    """

    whole: Float[Tensor, " numbers"]
    normaliser: Normaliser | None = None
    others: Float[Tensor, "other numbers"] | None = None

    @classmethod
    def of(cls, clean: Condition, others: Others | None, normalise: str | None) -> "Likeness":
        """Return how one input is measured, of what it is and which other images stand beside it."""
        whole = clean.flat[0]
        if others is None or not others.orders[0] or others.bank.embeds.shape[-1] != whole.shape[-1]:
            return cls(whole=whole)
        embeds = others.bank.embeds[list(others.orders[0])].float().cpu()
        normaliser = None if normalise is None else Normaliser.fit((embeds - embeds.mean(0))[:, None], normalise)
        return cls(whole=whole, normaliser=normaliser, others=embeds)

    def cosine(self, read: Float[Tensor, "site numbers"], taken: Centre | None = None) -> Float[Tensor, " site"]:
        """Return the cosine of what is read with the input, after a centre is taken from both."""
        if taken is None:
            return self._cosine(read, self.whole)
        return self._cosine(read - taken.sites, self.whole - taken.clean)

    def chance(self, read: Float[Tensor, "site numbers"], taken: Centre) -> Float[Tensor, " site"]:
        """Return how much centred likeness chance gives a site: below it no share of it is anything's.

        The larger of what unrelated directions in so many dimensions reach (1.96 over the root of their number), and
        what the site reaches with other inputs (their 97.5 % quantile).
        """
        least = torch.full((len(read),), 1.96 / math.sqrt(read.shape[-1]), dtype=torch.float64)
        if self.others is None:
            return least
        others = [self._cosine(read - taken.sites, other - taken.clean) for other in self.others]
        return torch.maximum(least, torch.stack(others).nan_to_num(-1.0).quantile(0.975, dim=0))

    def _cosine(self, a: Tensor, b: Tensor) -> Tensor:
        if self.normaliser is not None:
            a, b = (self.normaliser.forward(x.double().reshape(-1, 1, 1, x.shape[-1]))[:, 0, 0] for x in (a, b))
        return cosine(a, b)


@dataclass(frozen=True, eq=False)
class ControlNumbers:
    """The cosines of a control at a site with the input, by draw, as they are and centred; none where there is none."""

    cosines: list[float] = field(default_factory=list)
    centred: list[float] = field(default_factory=list)

    def row(self, site: float, chance: float) -> tuple[float, float, float, float, float]:
        """Return cosine, S, leak index and its interval; nan for what is not known, or does not apply.

        Args:
            site: S of the site.
            chance: What chance gives it.
        """
        if not self.cosines:
            return math.nan, math.nan, math.nan, math.nan, math.nan
        found = leak_of_draws(self.centred, site, least=chance)
        leak, low, high = (math.nan if one is None else one for one in (found.value, found.low, found.high))
        return _mean(self.cosines), _mean(self.centred), leak, low, high


def control_numbers(
    portions: Sequence[LensReading], cache: Any, likeness: Likeness, centre: Callable[[LensReading], Centre | None],
    digits: str, controls: Controls, others: Others | None, kinds: Sequence[str],
) -> dict[Site, Mapping[str, ControlNumbers]]:  # fmt: skip
    """Return, for the sites of a reading that have controls, how much each control there resembles the input.

    Nothing for controls themselves, for lenses without controls, and for the residual stream of images. S is the cosine
    of site (or control) and input after the centre is taken from both. A control is centred on the site's own mean
    reading, since a sweep of one input has no other controls; studies centre it on the controls of other images.

    Args:
        portions: Lens and sites, so many at a time that what is read of them may be held.
        cache: Of one input.
        likeness: To that input.
        centre: Returns the centre of a portion; None if it is not known.
        digits: That identify the input; directions follow from them, whichever inputs are swept with it.
        controls: How many directions, and their seed.
        others: Which other images stand beside the input.
        kinds: The controls.
    """
    own = [replace(one, sites=[site for site in one.sites if one.is_controlled(site)]) for one in portions]
    own = [one for one in own if one.sites]
    if not own or own[0].reading.control or not own[0].has_control:
        return {}
    others = None if others is None else others.fresh()
    known = [centre(one) for one in own[:1]] if len(own) == 1 else None  # of many long sequences two do not fit
    found: dict[Site, dict[str, ControlNumbers]] = {site: {} for one in own for site in one.sites}
    for kind in kinds:
        if not _has(own[0], kind, controls, others):
            continue
        seed = (int(digits[12:24], 16) + controls.seed) % 2**63
        generator = torch.Generator().manual_seed(seed)
        n = min(controls.draws, others.least()) if kind == "other" and others is not None else controls.draws
        rows: list[tuple[Tensor, Tensor]] = []
        for turn in range(n):
            at = None if others is None else others.at(turn)
            parts = []
            for one in own:
                read = _read(one, cache, kind, generator, at, controls.normalise)
                taken = centre(one) if known is None else known[0]
                plain = likeness.cosine(read)
                less = torch.full_like(plain, math.nan) if taken is None else likeness.cosine(read, taken)
                parts.append((plain, less))
            rows.append((torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])))
        plain, centred = (torch.stack([row[i] for row in rows], dim=1).tolist() for i in (0, 1))
        for site, *numbers in zip(found, plain, centred, strict=True):
            found[site][kind] = ControlNumbers(*numbers)
    return dict(found)


def _has(reading: LensReading, kind: str, controls: Controls, others: Others | None) -> bool:
    if kind == "random" and controls.normalise is None:
        return True
    n_others = 0 if others is None else others.least()
    return reading.lens.has_controls and n_others > 0 and not control_named(kind).lacks(n_others)


def _read(
    one: LensReading, cache: Any, kind: str, generator: torch.Generator, others: Others | None, normalise: str | None
) -> Float[Tensor, "site numbers"]:
    """Return what is read of a control; nan at sites where the other image has nothing written."""
    if kind == "random" and normalise is None:
        return one.lens.read_control(cache, one.sites, generator=generator)[0].kept().flat
    against = Against(control=kind, generator=generator, others=others, normalise=normalise)
    try:
        return one.lens.read_against(cache, one.sites, against)[0].kept().flat
    except LensError:
        found: list[Tensor | None] = []
        for site in one.sites:
            try:
                found.append(one.lens.read_against(cache, [site], against)[0].kept().flat)
            except LensError:
                found.append(None)
        known = [each for each in found if each is not None]
        if not known:
            raise
        return torch.cat([torch.full_like(known[0], math.nan) if each is None else each for each in found])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
