"""The first stage of a sweep: every lens embedding, and what is known of it before decoding."""

__all__ = ["embed_stage"]

import math
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vit_lens.images import to_display
from vit_lens.lenses.lens import site_outputs
from vit_lens.metrics import cosine
from vit_lens.model import HookedViT
from vit_lens.names import Site
from vit_lens.records import RecordWriter
from vit_lens.sweeping.controls import control_numbers
from vit_lens.sweeping.live import live_part
from vit_lens.sweeping.passes import find_twins
from vit_lens.sweeping.plan import Image, Reading
from vit_lens.sweeping.readouts import Beside, Collected

_SITES_AT_ONCE = 64


def embed_stage(
    model: HookedViT,
    images: list[Image],
    described: list[dict[str, Any]],
    readings: list[Reading],
    seeds: list[int],
    control_seed: int,
    negative: Float[Tensor, "1 d_embed"],
    beside: Beside,
    writer: RecordWriter,
    same_above: float | int | None,
    progress: bool,
) -> None:
    """Compute every lens embedding and its numbers; one image at a time, so that shards agree."""
    if {"lens", "clean", "negative", "reencoded"} <= writer.embeddings.keys():
        return
    embeds, cleans, norms, cosines, random, leaks = [], [], [], [], [], []
    collected, centres = Collected(beside), [beside.centre(reading) for reading in readings]
    sites = [site for reading in readings for site in reading.sites]
    pairs = list(zip(images, described, strict=True))
    for image, entry in tqdm(pairs, desc="embeddings", unit="image", disable=not progress):
        with torch.no_grad():
            clean, cache = model.run_with_cache(model.preprocess([image]), rows="readout")
            parts = [reading.embed(cache, entry["sha256"], control_seed).float().cpu() for reading in readings]
            controls = [
                control_numbers(reading, cache, clean, part, centre, entry["sha256"], control_seed)
                for reading, part, centre in zip(readings, parts, centres, strict=True)
            ]
            norm = torch.cat([site_outputs(cache, some)[0].flatten(1).norm(dim=1) for some in _portions(sites)])
            if collected.wants_live(entry["index"]):
                collected.live[entry["index"]] = live_part(model, cache, clean)
        clean = clean.float().cpu()
        found = torch.cat(parts)
        seen = to_display([image], model.preprocess_spec)[0]  # pyright: ignore[reportArgumentType]
        collected.add(found, seen, len(seeds))
        for _ in seeds:
            embeds.append(found)
            cosines += cosine(found, clean).tolist()
            norms += norm.tolist()
            random += [number for some, _ in controls for number in some]
            leaks += [number for _, some in controls for number in some]
        cleans.append(clean)
        writer.write_input(entry["index"], seen)
    collected.write(writer)  # before the embeddings, whose presence says that this stage is done
    lens = torch.cat(embeds)
    table = writer.table.assign(norm_h=norms, cos_lens_clean=cosines, cos_lens_control=random, leak=leaks)
    if same_above is not None:
        table["same_as"] = find_twins(lens, torch.tensor(table["seed"].tolist()), same_above)
    writer.write_table(table)
    unknown = torch.full_like(lens, math.nan)
    writer.write_embeddings(
        {"lens": lens, "clean": torch.cat(cleans), "negative": negative.float().cpu(), "reencoded": unknown}
    )


def _portions(sites: list[Site]) -> Iterator[list[Site]]:
    """Yield the sites in order, a few at a time; those of attention pooling have another width and go together."""
    for _, together in groupby(sites, key=lambda site: site.is_pool):
        some = list(together)
        yield from (some[start : start + _SITES_AT_ONCE] for start in range(0, len(some), _SITES_AT_ONCE))
