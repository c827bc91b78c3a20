"""The second stage of a sweep: every picture, pass by pass and batch by planned batch."""

__all__ = ["Drawing", "memory_notes"]

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from vit_lens.decoders import KandinskyDecoder
from vit_lens.metrics import cosine
from vit_lens.model import HookedViT
from vit_lens.records import Record, RecordWriter
from vit_lens.records.schema import DRAWN, picture_name
from vit_lens.sweeping.budget import Pace, unet_evaluations
from vit_lens.sweeping.passes import Batch, Pass
from vit_lens.sweeping.threads import PictureThreads
from vit_lens.texts import ZeroShotLabels

_CHECKPOINT_SECONDS = 10.0
_SHOW_SECONDS = 30.0
_SHARE = 20  # a checkpoint, or showing the record, may take a twentieth of the time, however large the record
# Measured at batches of 32 against 16, 64 rows of the embedded pair's demo at its defaults.
_TOLERANCE = (
    "Batches of another size differ by rounding: on the embedded pair by at most 1 of 255 levels and 0.00001 of "
    "faithfulness in float32; in bfloat16, whose rounding can tip a picture over, re-encoded pictures have a cosine of "
    "at least 0.99 with each other."
)


class _OutOfMemory(Exception):  # how decode's callback leaves the batch that has to be cut
    pass


@dataclass
class Drawing:
    """The decoding of a planned record.

    Args:
        model: Reads the pictures again.
        decoder: Draws them.
        labels: Words for the pictures.
        writer: Of the record, whose lens embeddings are known.
        passes: What is drawn.
        batch_size: Rows that are drawn together, unless memory forced a change.
        pace: Says when to stop.
        on_pass: Called with the record after each pass but the last, and now and then.
    """

    model: HookedViT
    decoder: KandinskyDecoder
    labels: ZeroShotLabels | None
    writer: RecordWriter
    passes: list[Pass]
    batch_size: int
    pace: Pace
    on_pass: Callable[[Record], object] | None
    _due: dict[str, float] = field(default_factory=dict)

    def run(self, progress: bool) -> bool:
        """Draw what is not finished, in the planned order; returns whether all of it is."""
        self._table = self.writer.table.copy()
        self._tensors = {name: tensor.clone() for name, tensor in self.writer.embeddings.items()}
        shared = self._table["same_as"].dropna()
        self._twins: dict[int, list[int]] = {}
        for row, first in shared.items():
            self._twins.setdefault(int(first), []).append(int(str(row)))
        now = time.monotonic()
        self._due = {"save": now + _CHECKPOINT_SECONDS, "show": now + _SHOW_SECONDS}
        ended = True
        with PictureThreads(self.writer) as self._threads:
            for one in self.passes:
                ended = ended and self._run_pass(one, progress)
                if one is not self.passes[-1]:
                    self._save()
                    self._show()
            self._save()
        return ended

    def _run_pass(self, one: Pass, progress: bool) -> bool:
        sizes = self._changed_sizes(one)
        finished = self.writer.finished_rows(one.drawn)
        size, words = self.batch_size, "pictures" if one is self.passes[-1] else "coarse pictures"
        total = sum(len(rows) for batches in one.rounds for _, rows in batches)
        with tqdm(total=total, desc=words, unit="picture", disable=not progress) as bar:
            for batches in one.rounds:
                rows = [row for _, some in batches for row in some]
                missing = len(set(rows) - finished)
                padded = sum(-(-len(some) // size) * size for _, some in batches)
                if missing and not self.pace.fits(one.drawn, unet_evaluations(one.settings) * padded):
                    return False
                started = time.monotonic()
                size, evaluations = self._draw_round(one, batches, finished, sizes, size)
                if evaluations:
                    self.pace.spent(one.drawn, evaluations, missing, time.monotonic() - started)
                bar.update(len(rows))
                self._keep()
        return True

    def _changed_sizes(self, one: Pass) -> dict[int, int]:
        """Return the batch sizes that memory forced, by the first row that was drawn so."""
        changes = self.writer.manifest["batch_plan"].get("changes", [])
        return {change["row"]: change["batch_size"] for change in changes if change["pass"] == one.drawn}

    def _draw_round(
        self, one: Pass, batches: list[Batch], finished: frozenset[int], sizes: dict[int, int], size: int
    ) -> tuple[int, int]:
        """Draw some batches, each in one piece as long as memory allows; returns that size, and the UNet's rows."""
        evaluations = 0
        for seed, left in batches:
            while left:
                size = sizes.get(left[0], size)
                rows = left[:size]
                try:
                    evaluations += self._draw(one, seed, rows, size, finished)
                except _OutOfMemory as smaller:
                    (sizes[left[0]],) = smaller.args
                    self._change(one, left[0], sizes[left[0]], "out of memory")
                else:
                    left = left[size:]
        return size, evaluations

    def _draw(self, one: Pass, seed: int, rows: list[int], size: int, finished: frozenset[int]) -> int:
        members = [row for first in rows for row in (first, *self._twins.get(first, []))]
        rank = DRAWN.index(one.drawn)
        on_disk = finished.issuperset(members)
        if on_disk and all(DRAWN.index(drawn) >= rank for drawn in self._table.loc[members, "drawn"]):
            return 0
        if drawn := not finished.issuperset(rows):
            pictures = self._decode(one, seed, rows, size)
        else:  # drawn before an interruption, its numbers not yet kept
            kept = [np.asarray(self.writer.picture(row, one.drawn)) for row in rows]
            pictures = torch.from_numpy(np.stack(kept))
        # Before the pictures are handed over to the same threads: the device waits for these pixels.
        pixels = torch.cat(self._threads.map(lambda picture: self.model.preprocess([picture.numpy()]), pictures))
        place = [index for index, first in enumerate(rows) for _ in (first, *self._twins.get(first, []))]
        for row, index in zip(members, place, strict=True):
            if row not in finished:
                self._threads.write(row, pictures[index], one.drawn)
        self._note(one, members, self._reencode(pixels, size)[place])
        return drawn * size * unet_evaluations(one.settings)

    def _decode(self, one: Pass, seed: int, rows: list[int], size: int) -> UInt8[Tensor, "batch height width 3"]:
        def smaller(new_size: int) -> None:
            if new_size < size:
                raise _OutOfMemory(new_size)
            self._change(one, rows[0], size, "out of memory: MoVQ takes fewer pictures at a time")

        device = self.decoder.device
        return self.decoder.decode(
            self._tensors["lens"][rows].to(device), negative=self._tensors["negative"].to(device), encoder=self.model,
            settings=replace(one.settings, seed=seed), batch_size=size, on_smaller=smaller,
        )  # fmt: skip

    def _change(self, one: Pass, row: int, size: int, why: str) -> None:
        self.writer.add_change({"row": row, "pass": one.drawn, "batch_size": size, "why": why})

    def _reencode(
        self, pixels: Float[Tensor, "batch channel height width"], size: int
    ) -> Float[Tensor, "batch d_embed"]:
        padding = pixels[-1:].expand(size - len(pixels), -1, -1, -1)  # one shape for every batch: one set of bits
        with torch.no_grad():
            return self.model(torch.cat([pixels, padding])).float().cpu()[: len(pixels)]

    def _note(self, one: Pass, rows: list[int], again: Float[Tensor, "row d_embed"]) -> None:
        table, tensors = self._table, self._tensors
        tensors["reencoded"][rows] = again
        position = {image: k for k, image in enumerate(table["image"].unique())}
        clean = tensors["clean"][[position[image] for image in table.loc[rows, "image"]]]
        table.loc[rows, "faithfulness"] = cosine(again, tensors["lens"][rows]).tolist()
        table.loc[rows, "cos_input"] = cosine(again, clean).tolist()
        if self.labels is not None:
            table.loc[rows, "label"] = self.labels.label(again)
        table.loc[rows, "picture"] = [picture_name(row, one.drawn) for row in rows]
        table.loc[rows, "drawn"] = one.drawn

    def _keep(self) -> None:
        """Store the numbers so far, and show the record, where that is due."""
        if time.monotonic() >= self._due["save"]:
            self._save()
            if time.monotonic() >= self._due["show"]:
                self._show()

    def _save(self) -> None:
        """Store the numbers of all pictures, once these lie on disk."""
        started = time.monotonic()
        self._threads.settle()
        self.writer.write_embeddings(self._tensors)
        self.writer.write_table(self._table)
        self._took("save", started, _CHECKPOINT_SECONDS)

    def _show(self) -> None:
        if self.on_pass is not None:
            started = time.monotonic()
            self.on_pass(Record.load(self.writer.path))
            self._took("show", started, _SHOW_SECONDS)

    def _took(self, what: str, started: float, least: float) -> None:
        ended = time.monotonic()
        self.pace.ending[what] = ended - started
        self._due[what] = ended + max(least, _SHARE * (ended - started))


def memory_notes(manifest: dict[str, Any]) -> list[str]:
    """Say which pictures were drawn in smaller batches than planned, and what that may change."""
    plan = manifest["batch_plan"]
    last = {(change["pass"], change["row"]): change for change in plan.get("changes", [])}
    if not last:
        return []
    words = [
        f"{'coarse ' if drawn == 'coarse' else ''}pictures {'were drawn ' * (number == 0)}{change['batch_size']} at a "
        f"time{', through MoVQ fewer,' if 'MoVQ' in change['why'] else ''} from row {row} on"
        for number, ((drawn, row), change) in enumerate(last.items())
    ]
    return [f"Memory ran short: {', '.join(words)}, instead of {plan['batch_size']}. {_TOLERANCE}"]
