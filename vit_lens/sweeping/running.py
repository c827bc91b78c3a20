"""Running a plan: inputs read once, embedded, drawn task by task, kept by the ledger."""

__all__ = ["run"]

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from vit_lens.conditions import Condition
from vit_lens.decoders import Decoder, seeded
from vit_lens.engine import Bench, Drawn, Task, make_executor, recorded_threads
from vit_lens.errors import RecordError
from vit_lens.files import exclusive
from vit_lens.records import Record, RecordWriter
from vit_lens.records.extras import load_live, load_readouts
from vit_lens.records.opening import read_manifest
from vit_lens.sweeping.beside import Collected
from vit_lens.sweeping.budget import Pace
from vit_lens.sweeping.embedding import Embedded, embed_input, read_input
from vit_lens.sweeping.ledger import Ledger, memory_notes
from vit_lens.sweeping.order import Pass, find_twins, rounds_by_information, share_of
from vit_lens.sweeping.plan import Plan

_SHOW_AFTER = 2.0  # seconds: a bar of a few files would only flicker
_LOW_MEMORY = "less memory was free than a batch takes"


@dataclass(frozen=True, eq=False)
class _Read:
    """Inputs that were read: what a record says of them, and what the model sees."""

    described: dict[int, dict[str, Any]]
    seen: dict[int, Image.Image]


def run(
    plan: Plan,
    out: str | os.PathLike[str],
    *,
    started: float | None = None,
    progress: bool = False,
    on_pass: Callable[[Record], object] | None = None,
    command: str | None = None,
    notes: Sequence[str] = (),
) -> Record:
    """Run a plan in a directory; see :func:`vit_lens.sweep`.

    Args:
        plan: What to do.
        out: Directory of the record.
        started: When the call began, by ``time.monotonic``, for a budget of time.
        progress: Show bars.
        on_pass: Called with the record now and then.
        command: How to make the record again.
        notes: Shown with the record.

    Raises:
        ImageError: An image cannot be read.
        ContractError: A decoder does not take what a lens reads.
        LensError: A lens does not read what it has to.
        RecordError: ``out`` holds something else.
        OutputError: ``out`` cannot be written.
    """
    started = time.monotonic() if started is None else started
    stored = read_manifest(Path(out)) if (Path(out) / "record.json").exists() else None
    plan = plan.continuing(stored)
    threads = _threads(plan, stored)
    negative = None
    if plan.decoder is not None:
        found = plan.decoder.negative(plan.model)
        if found is not None:
            plan.decoder.check(found, encoder=plan.model)
        negative = None if found is None else found.kept()
    with ExitStack() as stack:
        stack.enter_context(recorded_threads(threads))
        if progress and plan.budget is not None and (words := plan.estimate()):
            tqdm.write(words, file=sys.stderr)
        read, divided = _Read({}, {}), None
        if plan.execution.shard is None or plan.within is None:
            rows = plan.rows
            read = _read_inputs(plan, sorted({plan.place(row)[0] for row in rows}), progress)
        else:
            read = _read_inputs(plan, range(len(plan.inputs)), progress)
            divided = _Divided.of(plan, read, progress)
            rows = divided.rows
            kept = {plan.place(row)[0] for row in rows}
            read = _Read({i: e for i, e in read.described.items() if i in kept}, read.seen)
        embedded = divided.embedded if divided is not None else {}
        if stored is None and not embedded and rows:  # a lens that does not keep its contract leaves nothing behind
            first = plan.place(rows[0])[0]
            embedded = {first: _embed(plan, read, first)}
        more = {"command": command, "notes": list(notes)}
        writer = RecordWriter(out, plan.manifest(rows, read.described, threads, more), plan.table(rows))
        if not (writer.resumed and writer.manifest["complete"]):
            stack.enter_context(exclusive(writer.path))
            same_as = None if divided is None else divided.same_as
            _draw_all(plan, writer, rows, read, embedded, same_as, negative, started, progress, on_pass)
    record = Record.load(out)
    if on_pass is not None:
        on_pass(record)
    return record


def _threads(plan: Plan, stored: Mapping[str, Any] | None) -> int:
    if stored is None or stored.get("threads") is None:
        return plan.execution.threads or torch.get_num_threads()
    asked, begun = plan.execution.threads, stored["threads"]
    if asked is not None and asked != begun:
        raise RecordError(
            f"the record was begun with {begun} threads, and {asked} would be other bits: leave threads= (--threads) "
            "out, or choose another directory"
        )
    return begun if isinstance(begun, int) else torch.get_num_threads()  # joined of parts that differed


def _read_inputs(plan: Plan, indices: Sequence[int] | range, progress: bool) -> _Read:
    """Read the inputs once each, all of them before anything is written, so that a broken one is told now."""
    described, seen = {}, {}
    for index in tqdm(indices, desc="inputs", unit="input", disable=not progress, delay=_SHOW_AFTER):
        described[index], seen[index] = read_input(plan.model, plan.inputs, index)
    return _Read(described, seen)


def _embed(plan: Plan, read: _Read, index: int) -> Embedded:
    found = embed_input(
        plan.model, read.described[index], read.seen[index], plan.readings, plan.beside, plan.controls,
        live=plan.beside.wants_live(index),
    )  # fmt: skip
    if plan.decoder is not None:
        plan.decoder.check(found.read)
    return found


@dataclass(frozen=True, eq=False)
class _Divided:
    """A part of a sweep within a budget: twins and order are found over all rows, then the rounds are divided."""

    rows: list[int]
    same_as: dict[int, int]
    embedded: dict[int, Embedded]

    @classmethod
    def of(cls, plan: Plan, read: _Read, progress: bool) -> "_Divided":
        indices = sorted(read.described)
        embedded = {
            index: _embed(plan, read, index)
            for index in tqdm(indices, desc="embeddings", unit="input", disable=not progress)
        }
        table = plan.table(range(plan.n_rows))
        for name in ("norm_h", "cos_lens_clean", "cos_lens_control"):
            table[name] = [embedded[i].numbers[name][within] for i, _, within in map(plan.place, range(plan.n_rows))]
        held = Condition.cat([embedded[i].read for i in indices for _ in plan.seeds])
        table["same_as"] = _twins(plan, table, held)
        rounds = rounds_by_information(table, _controls_of(plan), plan.seeds, plan.size)
        own = {row for batches in share_of(rounds, plan.execution.shard) for _, rows in batches for row in rows}
        lent = {int(str(row)): int(first) for row, first in table["same_as"].dropna().items() if int(first) in own}
        return cls(sorted(own | set(lent)), lent, embedded)


def _twins(plan: Plan, table: Any, held: Condition) -> Any:
    same_above = plan.within["same_above"] if plan.within is not None else 1.0
    return find_twins(held.flat, torch.tensor(table["seed"].tolist()), same_above)


def _controls_of(plan: Plan) -> dict[str, str]:
    return {one.reading.id: one.reading.of or one.reading.id for one in plan.readings}


def _draw_all(
    plan: Plan,
    writer: RecordWriter,
    rows: list[int],
    read: _Read,
    embedded: dict[int, Embedded],
    same_as: dict[int, int] | None,
    negative: Condition | None,
    started: float,
    progress: bool,
    on_pass: Callable[[Record], object] | None,
) -> None:
    if plan.budget is not None:
        writer.add_budget(str(plan.budget))
    collected = Collected.of(
        plan.beside, len(rows), load_readouts(writer.path, len(rows)), load_live(writer.path)
    )  # fmt: skip
    ledger = Ledger(writer, collected, plan.beside.labels, on_pass)
    _embed_stage(plan, ledger, rows, read, embedded, same_as, negative, progress)
    ended = True
    if plan.decoder is not None and rows:
        passes = _passes(plan, ledger, rows)
        bench = Bench(model=plan.model, decoder=plan.decoder, negative=negative)
        ended = _draw_stage(plan, plan.decoder, bench, writer, ledger, passes, started, progress)
    if ended:
        writer.finish(memory_notes(writer.manifest))


def _embed_stage(
    plan: Plan,
    ledger: Ledger,
    rows: list[int],
    read: _Read,
    embedded: dict[int, Embedded],
    same_as: dict[int, int] | None,
    negative: Condition | None,
    progress: bool,
) -> None:
    """Embed the inputs that are not embedded yet; one at a time, so that parts of a sweep agree."""
    of_input: dict[int, dict[int, int]] = {index: {} for index in read.described}
    for number, row in enumerate(rows):
        index, _, within = plan.place(row)
        of_input[index][number] = within
    done = ledger.embedded_inputs()
    left = [index for index in sorted(of_input) if index not in done]
    for index in tqdm(left, desc="embeddings", unit="input", disable=not progress or not left):
        found = embedded.pop(index, None) or _embed(plan, read, index)
        ledger.keep_input(index, read.seen[index], found, of_input[index], negative)
    if plan.within is not None and rows and not (ledger.table["drawn"] != "").any():
        if same_as is None:
            same = _twins(plan, ledger.table, ledger.conditions(range(len(rows))))
        else:
            here = {row: number for number, row in enumerate(rows)}
            same = [here[same_as[row]] if row in same_as else None for row in rows]
        ledger.table["same_as"] = _nullable(same)
        ledger.save()
    elif left or not rows:
        ledger.save()


def _nullable(same: list[int | None]) -> Any:
    import pandas as pd

    return pd.array(same, dtype="Int64")


def _passes(plan: Plan, ledger: Ledger, rows: list[int]) -> list[Pass]:
    """Return the passes, in rows of this record."""
    if plan.within is None:
        here = {row: number for number, row in enumerate(rows)}
        batches = [[(seed, [here[row] for row in some])] for seed, some in plan.batches]
        return [Pass("full", plan.settings, batches)]
    rounds = rounds_by_information(ledger.table, _controls_of(plan), plan.seeds, plan.size)
    coarse = [] if plan.coarse is None else [Pass("coarse", plan.coarse, rounds)]
    return [*coarse, Pass("full", plan.settings, rounds)]


def _draw_stage(
    plan: Plan,
    decoder: Decoder,
    bench: Bench,
    writer: RecordWriter,
    ledger: Ledger,
    passes: list[Pass],
    started: float,
    progress: bool,
) -> bool:
    """Draw what is not finished, pass by pass; returns whether all of it is."""
    executor = make_executor(plan.execution.executor)
    pace, ended = Pace(plan.budget, started, ledger.ending), True
    with ledger:
        for one in passes:
            words = "pictures" if one is passes[-1] else f"{one.drawn} pictures"
            total = sum(len(rows) for batches in one.rounds for _, rows in batches)
            with tqdm(total=total, desc=words, unit="picture", disable=not progress) as bar:
                tasks = _Tasks(plan, decoder, bench, writer, ledger, one, pace, bar)
                for drawn in executor.run(bench, iter(tasks), ledger.conditions):
                    ledger.keep(drawn)
                    bar.update(len(drawn.rows))
                ended = tasks.ended
            if not ended:
                break
            if one is not passes[-1]:
                ledger.save()
                ledger.show()
        ledger.save()
    return ended


class _Tasks:
    """The tasks of a pass that are left, as long as the budget lasts; what lies on disk is only noted."""

    def __init__(
        self, plan: Plan, decoder: Decoder, bench: Bench, writer: RecordWriter, ledger: Ledger, one: Pass, pace: Pace,
        bar: Any,
    ):  # fmt: skip
        self._plan, self._decoder, self._bench, self._writer = plan, decoder, bench, writer
        self._ledger, self._pass, self._pace, self._bar = ledger, one, pace, bar
        self._size = plan.size
        changes = writer.manifest["batch_plan"].get("changes", [])
        self._changes = {change["row"]: change["batch_size"] for change in changes if change["pass"] == one.drawn}
        # A size that was asked for is tried as it is; running out ends a process on a CPU.
        self._room = plan.size if plan.drawing.batch_size else decoder.batch_size_for(one.settings)
        self.ended = True

    def __iter__(self) -> Iterator[Task]:
        work = self._decoder.work(self._pass.settings)
        for batches in self._pass.rounds:
            tasks = [task for seed, rows in batches for task in self._cut(seed, rows)]
            left = [task for task in tasks if self._ledger.missing(task)]
            rows = sum(task.size for task in left)
            if left and not self._pace.fits(self._pass.drawn, work * rows):
                self.ended = False
                return
            started = time.monotonic()
            for task in tasks:
                if task in left:
                    yield task
                else:
                    self._note(task)
                    self._bar.update(len(task.rows))
            if left:
                pictures = sum(len(self._ledger.missing(task)) for task in left)
                self._pace.spent(self._pass.drawn, work * rows, pictures, time.monotonic() - started)

    def _cut(self, seed: int, rows: list[int]) -> Iterator[Task]:
        """Yield a batch as it was drawn before, or as it is planned."""
        settings, left = seeded(self._pass.settings, seed), rows
        while left:
            self._size = self._changes.get(left[0], self._size)
            if self._size > self._room and self._ledger.missing_rows(left[: self._size], self._pass.drawn):
                self._shrink(left[0])
            yield Task(
                rows=tuple(left[: self._size]), settings=settings, size=self._size, drawn=self._pass.drawn,
                folder=self._writer.path.resolve(), threads=self._writer.manifest["threads"], recipe=self._bench.recipe,
            )  # fmt: skip
            left = left[self._size :]

    def _shrink(self, row: int) -> None:
        self._size = self._changes[row] = self._room
        self._writer.add_change(
            {"row": row, "pass": self._pass.drawn, "batch_size": self._room, "why": _LOW_MEMORY}
        )  # fmt: skip

    def _note(self, task: Task) -> None:
        """Note the numbers of pictures that were drawn before an interruption and not noted."""
        if not self._ledger.is_noted(task):
            pictures = self._ledger.stored(task)
            seen = self._bench.look(pictures, task.size)
            self._ledger.keep(Drawn(task=task, rows=task.rows, pictures=pictures, seen=seen, size=task.size))
