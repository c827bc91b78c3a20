"""The one place that writes a sweep's record: what was embedded, what was drawn, when it is stored and shown."""

__all__ = ["Ledger"]

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from vit_lens.conditions import Condition
from vit_lens.engine import OWN, Drawn, Task
from vit_lens.errors import ContractError
from vit_lens.metrics import cosine
from vit_lens.records import (
    DRAWN,
    JUDGED,
    JUDGED_FIRST,
    PLAN_COLUMNS,
    Record,
    RecordWriter,
    has_picture,
    input_name,
    looks_again,
    picture_name,
)  # fmt: skip
from vit_lens.sweeping.beside_pictures import BesideModel, Collected
from vit_lens.sweeping.embedding import Embedded
from vit_lens.sweeping.threads import PictureThreads

_CHECKPOINT_SECONDS = 2.0
_SHOW_SECONDS = 30.0
_SHARE = 20  # a checkpoint, or showing the record, may take a twentieth of the time, however large the record
# Measured at batches of 32 against 16, 64 rows of the embedded pair's demo at its defaults.
_TOLERANCE = (
    "Batches of another size differ by rounding: on the embedded pair by at most 1 of 255 levels and 0.00001 of "
    "faithfulness in float32; in bfloat16, whose rounding can tip a picture over, re-encoded pictures have a cosine of "
    "at least 0.99 with each other."
)


class Ledger:
    """Keeps a record up to date, while it is embedded and while it is drawn.

    Args:
        writer: Of the record.
        beside: Captions, neighbours, live numbers, and words for the pictures.
        on_pass: Called with the record now and then.
    """

    def __init__(self, writer: RecordWriter, beside: BesideModel, on_pass: Callable[[Record], object] | None):
        self._writer, self._labels, self._on_pass = writer, beside.labels, on_pass
        self.table = writer.table.copy()
        self.folder, self.threads = writer.path.resolve(), writer.manifest["threads"]
        n_rows = len(self.table)
        self._collected = Collected.of(beside, n_rows, writer.readouts, writer.live)
        self.ending: dict[str, float] = {}
        """Seconds that storing everything, and showing it, took the last time."""
        self._held = writer.hold_conditions()
        self._embedding_changed = writer.resumed  # a picture of the gallery may be lost
        self._finished: dict[str, frozenset[int]] = {}
        self._pictures: PictureThreads | None = None
        now = time.monotonic()
        self._due = {"save": now + _CHECKPOINT_SECONDS, "show": now + _SHOW_SECONDS}
        self._place = {entry["index"]: k for k, entry in enumerate(writer.manifest["inputs"])}
        if self._held and n_rows:
            self._forget()

    # ---- embedding

    def _forget(self) -> None:
        """Forget the numbers of rows that what is on disk does not bear out: a file was lost, or damaged."""
        table, held = self.table, self._held
        for start in range(0, len(table), held.rows_per_part):
            rows = table.index[start : start + held.rows_per_part]
            lens, clean = held.rows("lens", rows.tolist()).flat, held.rows("clean", self._places(rows)).flat
            table.loc[rows[_strays(table["cos_lens_clean"][rows], lens, clean)], "norm_h"] = np.nan
            if "reencoded" in held:
                again = held.rows("reencoded", rows.tolist()).flat
                strays = _strays(table["faithfulness"][rows], again, lens)
                table.loc[rows[strays | _strays(table["cos_input"][rows], again, clean)], "drawn"] = ""
            if JUDGED in held:
                table.loc[rows[~_there(held.rows(JUDGED, rows.tolist()))], "drawn"] = ""

    def _places(self, rows: Any) -> list[int]:
        return [self._place[index] for index in self.table.loc[rows, "input"]]

    def embedded_inputs(self) -> set[int]:
        """Return the inputs of which everything is there: numbers, what the model saw, and what stands beside."""
        unknown = set(self.table.loc[self.table["norm_h"].isna(), "input"])
        known = sorted(set(self.table["input"]) - unknown)
        return {index for index in known if self._holds(index) and self._collected.has(index)}

    def _holds(self, index: int) -> bool:
        entry = self._writer.manifest["inputs"][self._place[index]]
        return not has_picture(entry) or self._writer.holds(input_name(index))

    def keep_input(
        self, index: int, seen: Image.Image | None, parts: Iterable[Embedded], places: dict[int, int],
        negative: Condition | None,
    ) -> None:  # fmt: skip
        """Keep what one input's sites are read as.

        Args:
            index: Of the input.
            seen: What the model saw; None where that is no picture.
            parts: All its sites, some at a time.
            places: For each of the record's rows of it, which of its sites that is.
            negative: Of the decoder.
        """
        for found in parts:
            self._begin(found, negative)
            self._keep_part(seen, found, places)
            if not found.start:
                self._held.put("clean", [self._place[index]], found.clean)
            if found.live is not None:
                self._collected.live[index] = found.live
            if self._held.is_full:
                self._writer.write_changed(self._held)
        if seen is not None:
            self._writer.write_input(index, seen)
        self._embedding_changed = True
        self._keep()

    def _keep_part(self, seen: Image.Image | None, found: Embedded, places: dict[int, int]) -> None:
        here = {row: place - found.start for row, place in places.items() if 0 <= place - found.start < len(found.read)}
        rows, of = list(here), list(here.values())
        if rows:
            self._held.put("lens", rows, found.read[of])
            for name, values in found.numbers.items():
                self.table.loc[rows, name] = [values[place] for place in of]
        if seen is not None:
            self._collected.add(found.read.vector, seen, rows, of)
        self._collected.add_answers(found.answers, rows, of)

    def _begin(self, found: Embedded, negative: Condition | None) -> None:
        if not self._held:
            shapes = {"lens": found.read.shapes(), "clean": found.clean.shapes()}
            shapes |= {"reencoded": found.clean.shapes()} if looks_again(self._writer.manifest) else {}
            shapes |= {} if negative is None else {"negative": negative.shapes()}
            self._writer.begin_conditions(shapes)
            self._held = self._writer.hold_conditions()
        if negative is not None and self._held.rows("negative", [0]).flat.isnan().any():
            self._held.put("negative", [0], negative)

    # ---- a second decoder

    def adopt(self, source: Record, negative: Condition | None, judged: int | None) -> None:
        """Take what was asked of a first decoder, and the numbers of it, from its record.

        Args:
            source: The complete record of the first decoder, row for row.
            negative: Of the second decoder.
            judged: How wide what the judge sees of a picture is; None where the encoder itself compares.
        """
        shapes = {name: source.conditions[name].shapes() for name in ("lens", "clean")}
        shapes |= {"reencoded": shapes["clean"]} | ({} if negative is None else {"negative": negative.shapes()})
        shapes |= {} if judged is None else {key: {"pooled": (judged,)} for key in (JUDGED, JUDGED_FIRST)}
        if not self._held:
            self._writer.begin_conditions(shapes)
            self._held = self._writer.hold_conditions()
        done = self.embedded_inputs()
        for entry in self._writer.manifest["inputs"]:
            if (index := entry["index"]) in done:
                continue
            rows = self.table.index[self.table["input"] == index].tolist()
            self._held.put("lens", rows, source.conditions["lens"][rows])
            self._held.put("clean", [self._place[index]], source.conditions["clean"][[self._place[index]]])
            for name in self.table.columns[len(PLAN_COLUMNS) : list(self.table.columns).index("faithfulness")]:
                self.table.loc[rows, name] = source.table.loc[rows, name]
            self._writer.write_input(index, source.input(index))
            if self._held.is_full:
                self._writer.write_changed(self._held)
        if negative is not None and self._held.rows("negative", [0]).flat.isnan().any():
            self._held.put("negative", [0], negative)
        self.save()

    def unjudged(self, rows: list[int]) -> bool:
        """Whether the judge has not seen the first decoder's pictures of some rows."""
        return not bool(_there(self._held.rows(JUDGED_FIRST, rows)).all())

    def keep_judged_first(self, rows: list[int], seen: Condition) -> None:
        """Keep what the judge sees in the first decoder's pictures."""
        self._held.put(JUDGED_FIRST, rows, seen)
        self._keep()

    # ---- drawing

    def __enter__(self) -> "Ledger":
        self._pictures = PictureThreads(self._writer)
        self._pictures.__enter__()
        shared = self.table["same_as"].dropna()
        self._twins: dict[int, list[int]] = {}
        for row, first in shared.items():
            self._twins.setdefault(int(first), []).append(int(str(row)))
        return self

    def __exit__(self, *error: Any) -> None:
        if self._pictures is not None:
            self._pictures.__exit__(*error)

    def conditions(self, rows: Iterable[int]) -> Condition:
        """Return what rows ask for."""
        return self._held.rows("lens", list(rows))

    def missing(self, rows: Iterable[int], drawn: str) -> list[int]:
        """Return those of some rows, and of those that share their pictures, whose picture does not lie on disk."""
        if drawn not in self._finished:
            self._finished[drawn] = self._writer.finished_rows(drawn)
        return [row for row in self._members(rows) if row not in self._finished[drawn]]

    def is_noted(self, task: Task) -> bool:
        """Whether the numbers of a task's pictures, or of better ones, stand in the table."""
        rank = DRAWN.index(task.drawn)
        return all(DRAWN.index(drawn) >= rank for drawn in self.table.loc[self._members(task.rows), "drawn"])

    def stored(self, task: Task) -> torch.Tensor:
        """Return a task's pictures from the disk."""
        return torch.from_numpy(np.stack([np.asarray(self._writer.picture(row, task.drawn)) for row in task.rows]))

    def keep(self, drawn: Drawn) -> None:
        """Keep pictures with their numbers; those that lie on disk are not written again."""
        task = drawn.task
        if drawn.change:
            self.change(drawn.rows[0], task.drawn, drawn.size, drawn.change)
        members = self._members(drawn.rows)
        place = [index for index, first in enumerate(drawn.rows) for _ in self._members([first])]
        on_disk = self._finished.get(task.drawn, frozenset())
        for row, index in zip(members, place, strict=True):
            if row not in on_disk and self._pictures is not None:
                self._pictures.write(row, drawn.pictures[index], task.drawn)
        again = drawn.seen.get(OWN)
        if (judged := drawn.seen.get(JUDGED)) is not None:
            self._held.put(JUDGED, members, judged[place])
        self._note(task, members, None if again is None else again[place])
        self._keep()

    def changes(self) -> list[dict[str, Any]]:
        """Return which batches were drawn otherwise than planned."""
        return self._writer.manifest["batch_plan"].get("changes", [])

    def change(self, row: int, drawn: str, size: int, why: str) -> None:
        """Store that from a row of a pass on batches are smaller than planned."""
        self._writer.add_change({"row": row, "pass": drawn, "batch_size": size, "why": why})

    def _members(self, rows: Iterable[int]) -> list[int]:
        return [row for first in rows for row in (first, *self._twins.get(first, []))]

    def _note(self, task: Task, rows: list[int], again: Condition | None) -> None:
        if again is not None:
            self._compare(rows, again)
        self.table.loc[rows, "picture"] = [picture_name(row, task.drawn) for row in rows]
        self.table.loc[rows, "drawn"] = task.drawn

    def _compare(self, rows: list[int], again: Condition) -> None:
        table, held = self.table, self._held
        clean = held.rows("clean", self._places(rows))
        if again.flat.shape[-1] != clean.flat.shape[-1]:
            raise ContractError(
                f"the decoder reads {again.words()} of a picture, and the lens {clean.words()} of an input; a "
                "decoder's read(model, pixels) and a lens's clean(embeds, cache) are of one kind"
            )
        held.put("reencoded", rows, again)
        table.loc[rows, "faithfulness"] = cosine(again.flat, held.rows("lens", rows).flat).tolist()
        table.loc[rows, "cos_input"] = cosine(again.flat, clean.flat).tolist()
        if self._labels is not None:
            table.loc[rows, "label"] = self._labels.label(again.vector)

    # ---- storing and showing

    def _keep(self) -> None:
        """Store the numbers so far, and show the record, where that is due."""
        if time.monotonic() >= self._due["save"]:
            self.save()
            if self._pictures is not None and time.monotonic() >= self._due["show"]:
                self.show()

    def save(self) -> None:
        """Store what has changed; the table comes last, since it says what there is."""
        started = time.monotonic()
        if self._pictures is not None:
            self._pictures.settle()
        self._writer.write_changed(self._held)
        if self._embedding_changed:
            self._collected.write(self._writer)
        self._embedding_changed = False
        self._writer.write_table(self.table)
        self._took("save", started, _CHECKPOINT_SECONDS)

    def finish(self) -> None:
        """Close the record, with a note where memory ran short."""
        self._writer.finish(_memory_notes(self._writer.manifest["batch_plan"]["batch_size"], self.changes()))

    def show(self) -> None:
        """Call whoever wants to see the record as far as it is."""
        if self._on_pass is not None:
            started = time.monotonic()
            self._on_pass(Record.load(self._writer.path))
            self._took("show", started, _SHOW_SECONDS)

    def _took(self, what: str, started: float, least: float) -> None:
        ended = time.monotonic()
        self.ending[what] = ended - started
        self._due[what] = ended + max(least, _SHARE * (ended - started))


def _strays(stored: pd.Series, a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """Return which stored cosines are not those of two lists of vectors, or are of vectors that are not there."""
    there = (a.isfinite().all(-1) & b.isfinite().all(-1)).numpy()
    return ~(there & np.isclose(stored.to_numpy(), cosine(a, b).numpy(), rtol=0, atol=1e-6, equal_nan=True))


def _there(held: Condition) -> np.ndarray:
    """Return which rows hold something."""
    return held.flat.isfinite().all(-1).numpy()


def _memory_notes(planned: int, changes: list[dict[str, Any]]) -> list[str]:
    """Say which pictures were drawn in smaller batches than planned, and what that may change."""
    last = {(change["pass"], change["row"]): change for change in changes}
    words = [
        f"{'coarse ' if drawn == 'coarse' else ''}pictures {'were drawn ' * (number == 0)}{change['batch_size']} at a "
        f"time{', through MoVQ fewer,' if 'MoVQ' in change['why'] else ''} from row {row} on"
        for number, ((drawn, row), change) in enumerate(last.items())
    ]
    return [f"Memory ran short: {', '.join(words)}, instead of {planned}. {_TOLERANCE}"] if last else []
