"""The first stage of a sweep: what every site is read as, and what is known of it before decoding, input by input."""

__all__ = ["Embedded", "embed_input"]

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.conditions import Condition
from vit_lens.controls import CONTROLS, Others
from vit_lens.errors import LensError
from vit_lens.lenses import checked_clean
from vit_lens.metrics import control_columns
from vit_lens.records import COLUMNS
from vit_lens.sweeping.beside_pictures import BesideModel
from vit_lens.sweeping.controls import Centre, ControlNumbers, Likeness, control_numbers
from vit_lens.sweeping.input_kinds import InputKind
from vit_lens.sweeping.lens_readings import LensReading
from vit_lens.sweeping.request import Controls

_CONTROL_COLUMNS = tuple(column for name in CONTROLS for column in control_columns(name) if column in COLUMNS)


@dataclass(frozen=True, eq=False)
class Embedded:
    """Sites of one input, over all readings in order: what they are read as, and their numbers.

    Attributes:
        start: How many sites of the input come before.
        read: What is asked of the decoder, by site.
        clean: What the input itself is, one row.
        numbers: By column of the table, one for each site.
        live: Numbers of the live page; None where they are not kept.
        answers: What probes answer, by their name: the best answers, and how sure they are, by site.
    """

    start: int
    read: Condition
    clean: Condition
    numbers: dict[str, list[float]]
    live: dict[str, Tensor] | None
    answers: dict[str, tuple[Tensor, Tensor]]

    @classmethod
    def join(cls, parts: Sequence["Embedded"]) -> "Embedded":
        """Return all sites of an input as one."""
        if len(parts) == 1:
            return parts[0]
        numbers = {name: [value for part in parts for value in part.numbers[name]] for name in parts[0].numbers}
        answers = {
            name: (torch.cat([part.answers[name][0] for part in parts]), torch.cat([p.answers[name][1] for p in parts]))
            for name in parts[0].answers
        }
        read = Condition.cat([part.read for part in parts])
        return replace(parts[0], read=read, numbers=numbers, answers=answers)


@torch.no_grad()
def embed_input(
    kind: InputKind, entry: dict[str, Any], seen: Image.Image | None, readings: list[LensReading], beside: BesideModel,
    controls: Controls, *, live: bool, others: Others | None = None, kinds: Sequence[str] = ("random",),
) -> Iterator[Embedded]:  # fmt: skip
    """Read all sites of one input, as many at a time as may be held; always all, so that parts of a sweep agree."""
    embeds, cache = kind.run(entry, seen, readings)
    clean, digits = checked_clean(readings[0].lens, readings[0].lens.clean(embeds, cache), 1).kept(), entry["sha256"]
    whole, start = clean.flat, 0
    likeness = Likeness.of(clean, others, controls.normalise)
    directions = {one.reading.id: one.directions(digits, controls.seed) for one in readings}
    against: dict[str, dict[Site, Mapping[str, ControlNumbers]]] = {}

    def centre(reading: LensReading) -> Centre | None:
        return kind.centre(reading, cache, beside)

    for some in kind.portions(readings, whole.shape[-1]):
        parts, numbers = [], {name: [] for name in ("cos_lens_clean", "S_lens_clean", *_CONTROL_COLUMNS)}
        for one in some:
            part, name = one.read(cache, directions[one.reading.id], others), one.reading.id
            if part.flat.shape[-1] != whole.shape[-1]:
                raise LensError(
                    f"{one.reading.label} reads {part.words()}, and the whole image is {clean.words()}: give the lens "
                    "clean(embeds, cache), and sweep lenses that read the same parts"
                )
            if name not in against:
                own = [each for each in readings if each.reading.id == name]
                portions = [each for group in kind.portions(own, whole.shape[-1]) for each in group]
                against[name] = control_numbers(
                    portions, cache, likeness, centre, digits, controls, others, kinds
                )  # fmt: skip
            parts.append(part)
            for column, values in _numbers(one, part, likeness, centre, against[name]).items():
                numbers[column] += values
        read = Condition.cat(parts)
        yield Embedded(
            start=start, read=read, clean=clean, numbers={"norm_h": kind.norms(cache, some), **numbers},
            live=kind.live(cache, embeds) if live and not start else None, answers=kind.answers(cache, some, beside),
        )  # fmt: skip
        start += len(read)


def _numbers(
    one: LensReading, part: Condition, likeness: Likeness, centre: Callable[[LensReading], Centre | None],
    against: Mapping[Site, Mapping[str, ControlNumbers]],
) -> dict[str, list[float]]:  # fmt: skip
    """Return the columns of some sites of a reading, and of what they are held against."""
    n = len(one.sites)
    taken = centre(one) if against else None
    alike = [math.nan] * n if taken is None else likeness.cosine(part.flat, taken).tolist()
    chance = [math.nan] * n if taken is None else likeness.chance(part.flat, taken).tolist()
    found = {"cos_lens_clean": likeness.cosine(part.flat).tolist(), "S_lens_clean": alike}
    for name in CONTROLS:
        held = [against.get(site, {}).get(name, ControlNumbers()) for site in one.sites]
        rows = [of.row(*known) for of, *known in zip(held, alike, chance, strict=True)]
        if control_columns(name).cosine in _CONTROL_COLUMNS:
            columns = zip(*rows, strict=True)
            found |= {column: list(of) for column, of in zip(control_columns(name), columns, strict=True)}
    return found
