"""The first stage of a sweep: what every site is read as, and what is known of it before decoding, input by input."""

__all__ = ["Embedded", "embed_input", "read_input"]

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.conditions import Condition
from vit_lens.errors import LensError
from vit_lens.images import load_with_hash, to_display
from vit_lens.lenses import checked_clean, run_for, site_outputs
from vit_lens.metrics import cosine
from vit_lens.models import HookedViT
from vit_lens.sweeping.beside_pictures import BesideModel
from vit_lens.sweeping.controls import control_numbers
from vit_lens.sweeping.lens_readings import LensReading
from vit_lens.sweeping.live_parts import live_part
from vit_lens.sweeping.request import Controls, Inputs

_SITES_AT_ONCE = 64


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


def read_input(model: HookedViT, inputs: Inputs, index: int) -> tuple[dict[str, Any], Image.Image]:
    """Read one input once; return what a record says of it, and what the model sees.

    Raises:
        ImageError: It cannot be read.
        PreprocessError: The model says nothing of its preprocessing.
    """
    picture, digest = load_with_hash(inputs.images[index])
    (seen,) = to_display([picture], model.spec())
    return {"kind": "image", "index": index, "name": inputs.name(index), "sha256": digest}, seen


@torch.no_grad()
def embed_input(
    model: HookedViT, entry: dict[str, Any], seen: Image.Image, readings: list[LensReading], beside: BesideModel,
    controls: Controls, *, live: bool,
) -> Embedded:  # fmt: skip
    """Read all sites of one input; always all of them, so that parts of a sweep agree to the bit."""
    embeds, cache = run_for(model, model.preprocess([seen]), [reading.lens for reading in readings])
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
    sites = [site for reading in readings for site in reading.sites]
    norms = torch.cat([site_outputs(cache, some)[0].flatten(1).norm(dim=1) for some in _portions(sites)])
    read = Condition.cat(parts)
    return Embedded(
        read=read, clean=clean,
        numbers={
            "norm_h": norms.tolist(), "cos_lens_clean": cosine(read.flat, clean.flat).tolist(),
            "cos_lens_control": [number for some, _ in numbers for number in some],
            "leak": [number for _, some in numbers for number in some],
        },
        live=live_part(model, cache, embeds) if live else None,
    )  # fmt: skip


def _portions(sites: list[Site]) -> Iterator[list[Site]]:
    """Yield the sites in order, a few at a time; those of attention pooling have another width and go together."""
    for _, together in groupby(sites, key=lambda site: site.is_pool):
        some = list(together)
        yield from (some[start : start + _SITES_AT_ONCE] for start in range(0, len(some), _SITES_AT_ONCE))
