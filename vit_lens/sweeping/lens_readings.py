"""Each lens on the sites that it reads, and its controls."""

__all__ = ["LensReading", "make_readings", "record_reading", "with_controls"]

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from vit_lens.addresses import Site
from vit_lens.conditions import Condition
from vit_lens.controls import Against, Others
from vit_lens.errors import LensError
from vit_lens.lenses import Lens, Sites, checked_read, no_control
from vit_lens.models import HookedViT
from vit_lens.readers import sites_of_each
from vit_lens.records import Reading, told_apart


@dataclass(frozen=True, eq=False)
class LensReading:
    """One lens on its sites; a control reads what stands in for what each site writes.

    Attributes:
        lens: The lens.
        sites: On which it is defined.
        reading: How records name it.
        normalise: The coordinates in which a control is made; None for those of the outputs.
    """

    lens: Lens
    sites: list[Site]
    reading: Reading
    normalise: str | None = field(default=None, kw_only=True)

    def is_controlled(self, site: Site) -> bool:
        """Whether a site has controls."""
        return not site.is_residual

    @property
    def has_control(self) -> bool:
        """Whether the lens says what its control is."""
        return self.lens.has_control

    @property
    def family(self) -> str | None:
        """What readings that differ in their anchor alone have in common; None for a lens without one."""
        said = dict(self.reading.settings)
        said.pop("anchor_content", None)
        if said.pop("anchor", None) is None:
            return None
        return json.dumps([self.reading.lens, self.reading.control, said], sort_keys=True)

    def directions(self, digits: str, seed: int) -> torch.Generator:
        """Return the source of the random directions of one input, of which each portion of the sites takes its own.

        Args:
            digits: That identify the input, hexadecimal; directions follow from them, whatever else is swept.
            seed: Of the directions.
        """
        return torch.Generator().manual_seed((int(digits[:12], 16) + seed) % 2**63)

    def read(self, cache: Any, directions: torch.Generator, others: Others | None = None) -> Condition:
        """Return what is asked of the decoder at every site of one input, on the CPU in float32.

        Args:
            cache: Of the input.
            directions: As :meth:`directions` gave them, where portions of the sites were read before.
            others: Which other images stand beside the input; None where there are none.
        """
        try:
            if not self.reading.control:
                found = self.lens.read(cache, self.sites)
            elif self.reading.control == "random" and self.normalise is None:
                found = self.lens.read_control(cache, self.sites, generator=directions)
            else:
                control = Against(
                    control=self.reading.control, generator=directions, normalise=self.normalise,
                    others=None if others is None else others.fresh(),
                )  # fmt: skip
                found = self.lens.read_against(cache, self.sites, control)
        except IndexError as error:
            if self.lens.rows == "all":
                raise
            raise LensError(
                f"{type(self.lens).__name__} reads a position that the cache does not hold ({error}): a lens has the "
                "rows that the embedding is read from; say rows = 'all' of it to have every position"
            ) from error
        return checked_read(self.lens, found, 1, len(self.sites))[0].kept()


def record_reading(lens: Lens) -> Reading:
    """Return how a record names what a lens reads."""
    said = lens.describe()
    return Reading(id=said.id, lens=said.lens, settings=dict(said.settings), label=said.label, words=said.words)


def make_readings(
    model: HookedViT, lenses: Sequence[Lens], sites: Sites, kinds: Sequence[str], normalise: str | None = None
) -> list[LensReading]:
    """Return what each lens reads; of several lenses, each reads the sites that it is defined on.

    Args:
        model: The model that the sites are of.
        lenses: One lens, or several.
        sites: Sites as ``Site.resolve`` takes them.
        kinds: The controls that are drawn.
        normalise: The coordinates in which they are made.

    Raises:
        UnknownSiteError: A site is not the model's.
        LensError: No lens is defined on some site, a lens has no control where they are asked for, or two lenses say
            the same of themselves.
    """
    pairs = sites_of_each(model, lenses[0] if len(lenses) == 1 else lenses, sites)
    made = [LensReading(lens, own, record_reading(lens)) for lens, own in pairs]
    return with_controls(made, kinds, normalise)


def with_controls(
    readings: Sequence[LensReading], kinds: Sequence[str], normalise: str | None = None
) -> list[LensReading]:
    """Return readings, each followed by its controls of some kinds.

    Raises:
        LensError: A lens has no control where they are asked for, or two lenses say the same of themselves.
    """
    found: list[LensReading] = []
    for reading in readings:
        if any(reading.reading.id == other.reading.id for other in found):
            raise LensError(
                f"two lenses say the same of themselves: {reading.reading.label}, {dict(reading.reading.settings)}. "
                "Give one of them, or let settings() tell them apart"
            )
        found.append(reading)
        free = [site for site in reading.sites if reading.is_controlled(site)]
        for kind in kinds if free else ():
            if not reading.has_control:
                raise no_control(reading.lens)
            said = reading.reading.controlled(kind, normalise=normalise)
            found.append(replace(reading, sites=free, reading=said, normalise=normalise))
    told = told_apart([one.reading for one in found])
    return [replace(one, reading=reading) for one, reading in zip(found, told, strict=True)]
