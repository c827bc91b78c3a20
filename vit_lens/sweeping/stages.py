"""The two stages of a sweep: every lens embedding, then every picture, batch by planned batch."""

__all__ = ["Drawing", "embed_stage"]

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from vit_lens.decoders import DecodeSettings, KandinskyDecoder
from vit_lens.images import to_display
from vit_lens.lenses.lens import site_outputs
from vit_lens.metrics import cosine
from vit_lens.model import HookedViT
from vit_lens.names import Site
from vit_lens.records import Record, RecordWriter
from vit_lens.sweeping.controls import control_numbers
from vit_lens.sweeping.live import live_part
from vit_lens.sweeping.plan import Image, Reading
from vit_lens.sweeping.readouts import Beside, Collected
from vit_lens.texts import ZeroShotLabels

_CHECKPOINT_SECONDS = 10.0
_CHECKPOINT_SHARE = 20  # a checkpoint may take a twentieth of the time, however large the record
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


@dataclass
class Drawing:
    """The decoding of a planned record, batch by batch."""

    model: HookedViT
    decoder: KandinskyDecoder
    settings: DecodeSettings
    seeds: list[int]
    batch_size: int
    labels: ZeroShotLabels | None
    writer: RecordWriter

    def run(self, progress: bool) -> None:
        """Draw every batch that is not finished, in the planned order."""
        table = self.writer.table.copy()
        tensors = dict(self.writer.embeddings)
        tensors["reencoded"] = tensors["reencoded"].clone()
        finished = self.writer.finished_rows()
        due = time.monotonic() + _CHECKPOINT_SECONDS
        with tqdm(total=len(table), desc="pictures", unit="picture", disable=not progress) as bar:
            for seed, rows in self._batches(table):
                if not (finished.issuperset(rows) and bool((table.loc[rows, "picture"] != "").all())):
                    self._draw(seed, rows, table, tensors, finished)
                    if (started := time.monotonic()) >= due:
                        self._save(table, tensors)
                        ended = time.monotonic()
                        due = ended + max(_CHECKPOINT_SECONDS, _CHECKPOINT_SHARE * (ended - started))
                bar.update(len(rows))
        self._save(table, tensors)

    def _batches(self, table: pd.DataFrame) -> list[tuple[int, list[int]]]:
        batches = []
        for seed in self.seeds:
            rows = table.loc[table["seed"] == seed, "row"].tolist()
            starts = range(0, len(rows), self.batch_size)
            batches += [(seed, rows[start : start + self.batch_size]) for start in starts]
        return batches

    def _draw(
        self, seed: int, rows: list[int], table: pd.DataFrame, tensors: dict[str, Tensor], finished: frozenset[int]
    ) -> None:
        lens = tensors["lens"][rows]
        if finished.issuperset(rows):  # drawn before an interruption, its numbers not yet kept
            kept = Record.load(self.writer.path)
            pictures = torch.from_numpy(np.stack([np.asarray(kept.picture(row)) for row in rows]))
        else:
            pictures = self.decoder.decode(
                lens.to(self.decoder.device), negative=tensors["negative"].to(self.decoder.device), encoder=self.model,
                settings=replace(self.settings, seed=seed), batch_size=self.batch_size,
            )  # fmt: skip
        again = self._reencode(pictures)
        tensors["reencoded"][rows] = again
        position = {image: k for k, image in enumerate(table["image"].unique())}
        clean = tensors["clean"][[position[image] for image in table.loc[rows, "image"]]]
        table.loc[rows, "faithfulness"] = cosine(again, lens).tolist()
        table.loc[rows, "cos_input"] = cosine(again, clean).tolist()
        if self.labels is not None:
            table.loc[rows, "label"] = self.labels.label(again)
        for row, picture in zip(rows, pictures, strict=True):
            name = f"pictures/{row:06d}.png" if row in finished else self.writer.write_picture(row, picture)
            table.loc[row, "picture"] = name

    def _reencode(self, pictures: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "batch d_embed"]:
        padding = [pictures[-1:]] * (self.batch_size - len(pictures))  # one shape for every batch: one set of bits
        arrays = [picture.numpy() for picture in torch.cat([pictures, *padding])]
        with torch.no_grad():
            return self.model(self.model.preprocess(arrays)).float().cpu()[: len(pictures)]

    def _save(self, table: pd.DataFrame, tensors: dict[str, Tensor]) -> None:
        self.writer.write_embeddings(tensors)
        self.writer.write_table(table)
