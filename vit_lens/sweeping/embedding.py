"""The first stage of a sweep: what every site is read as, and what is known of it before decoding, input by input."""

__all__ = ["Embedded", "embed_input"]

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vit_lens.conditions import Condition
from vit_lens.errors import LensError
from vit_lens.lenses import checked_clean
from vit_lens.metrics import cosine
from vit_lens.sweeping.beside_pictures import BesideModel
from vit_lens.sweeping.controls import control_numbers
from vit_lens.sweeping.input_kinds import InputKind
from vit_lens.sweeping.lens_readings import LensReading
from vit_lens.sweeping.request import Controls


@dataclass(frozen=True, eq=False)
class Embedded:
    """One input: what its sites are read as, over all readings in order, and their numbers.

    Attributes:
        read: What is asked of the decoder, by site.
        clean: What the input itself is, one row.
        numbers: By column of the table, one for each site.
        live: Numbers of the live page; None where they are not kept.
    """

    read: Condition
    clean: Condition
    numbers: dict[str, list[float]]
    live: dict[str, Tensor] | None


@torch.no_grad()
def embed_input(
    kind: InputKind, entry: dict[str, Any], seen: Image.Image | None, readings: list[LensReading], beside: BesideModel,
    controls: Controls, *, live: bool,
) -> Embedded:  # fmt: skip
    """Read all sites of one input; always all of them, so that parts of a sweep agree to the bit."""
    embeds, cache = kind.run(entry, seen, readings)
    clean = checked_clean(readings[0].lens, readings[0].lens.clean(embeds, cache), 1).kept()
    parts = [reading.read(cache, entry["sha256"], controls.seed) for reading in readings]
    for reading, part in zip(readings, parts, strict=True):
        if part.flat.shape[-1] != clean.flat.shape[-1]:
            raise LensError(
                f"{reading.reading.label} reads {part.words()}, and the whole image is {clean.words()}: give the lens "
                "clean(embeds, cache), and sweep lenses that read the same parts"
            )
    numbers = [
        control_numbers(reading, cache, clean, part, beside.centre(reading), entry["sha256"], controls)
        for reading, part in zip(readings, parts, strict=True)
    ]
    read = Condition.cat(parts)
    return Embedded(
        read=read, clean=clean,
        numbers={
            "norm_h": kind.norms(cache, readings), "cos_lens_clean": cosine(read.flat, clean.flat).tolist(),
            "cos_lens_control": [number for some, _ in numbers for number in some],
            "leak": [number for _, some in numbers for number in some],
        },
        live=kind.live(cache, embeds) if live else None,
    )  # fmt: skip
