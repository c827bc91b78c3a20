"""Running a plan: inputs read once, embedded, drawn task by task, kept by the ledger."""

__all__ = ["run"]

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

from vit_lens.conditions import Condition
from vit_lens.controls import CONTROLS, Others
from vit_lens.decoders import Decoder, seeded
from vit_lens.engine import Bench, Drawn, Task, make_executor, recorded_threads
from vit_lens.errors import OutputError, RecordError
from vit_lens.files import as_path
from vit_lens.images import picture_hash
from vit_lens.metrics import control_columns
from vit_lens.records import JUDGED, SECOND, Record, RecordWriter, read_manifest, remove_second, write_agreement
from vit_lens.sweeping.budget import Pace
from vit_lens.sweeping.embedding import Embedded, embed_input
from vit_lens.sweeping.ledger import Ledger
from vit_lens.sweeping.order import Batch, Pass, find_twins, rounds_by_information, share_of
from vit_lens.sweeping.plan import Plan

_SHOW_AFTER = 2.0  # seconds: a bar of a few files would only flicker
_LOW_MEMORY = "less memory was free than a batch takes"


def run(
    plan: Plan, out: str | os.PathLike[str], *, started: float | None = None, progress: bool = False,
    on_pass: Callable[[Record], object] | None = None, command: str | None = None, notes: Sequence[str] = (),
) -> Record:  # fmt: skip
    """Run a plan in a directory; see :func:`vit_lens.sweep`.

    Args:
        plan: What to do.
        out: The directory of the record: new, empty, or this same plan's, which then goes on.
        started: When the call began, by ``time.monotonic``, for a budget of time; None for now.
        progress: Whether bars are shown.
        on_pass: A function that is called with the record as far as it is, after each pass, now and then in between,
            and at the end.
        command: The command that makes the record again, for its manifest; None leaves it out.
        notes: Sentences that are shown with the record.

    Raises:
        ImageError: An image cannot be read.
        ContractError: A decoder does not take what a lens reads.
        LensError: A lens does not read what it has to.
        RecordError: ``out`` holds something else.
        OutputError: ``out`` cannot be written.

    >>> from vit_lens.sweeping import run
    >>> record = run(vl.plan(model, None, images, lens="diffusion", sites="resid_post"), tmp / "run")
    >>> record.complete, record.embeddings["lens"].shape
    (True, torch.Size([16, 128]))
    """
    started = time.monotonic() if started is None else started
    out = as_path(out, OutputError, "out")
    how: dict[str, Any] = dict(started=started, progress=progress, command=command, notes=notes)
    record = _run(plan, out, None, on_pass=on_pass, **how)
    if plan.second is not None and record.complete:
        size = record.manifest["batch_plan"]["batch_size"]  # parts of a sweep are of the same rows
        try:
            _run(replace(plan.second, size=size), out / SECOND, record, on_pass=None, **how)
        except (OutputError, RecordError) as error:
            raise type(error)(f"{error}. The first decoder's record is whole: {remove_second(out)}") from error
        record = Record.load(out)
        write_agreement(record)
    if on_pass is not None:
        on_pass(record)
    return record


def _run(
    plan: Plan, out: Path, source: Any, *, started: float, progress: bool, on_pass: Callable[[Record], object] | None,
    command: str | None, notes: Sequence[str],
) -> Record:  # fmt: skip
    """Run a plan in a directory; of a second decoder, ``source`` is the record of the first."""
    stored = read_manifest(out) if (out / "record.json").is_file() else None
    plan = plan.continuing(stored)
    threads = _threads(plan, stored)
    with recorded_threads(threads):
        work = _Work(plan, started, progress, source)
        if progress and plan.budget is not None and (words := plan.estimate()):
            tqdm.write(words, file=sys.stderr)
        work.read_inputs(new=stored is None)
        more = {"command": command, "notes": list(notes)}
        manifest = plan.manifest(work.rows, work.described, threads, more)
        with RecordWriter.held(out, manifest, plan.table(work.rows)) as writer:
            if not writer.manifest["complete"]:
                if plan.within is not None:
                    writer.add_budget("" if plan.budget is None else str(plan.budget))
                for one in plan.readings:
                    for content, picture in one.lens.starts().items():
                        writer.write_anchor(content, picture)
                ledger = Ledger(writer, plan.beside, on_pass)
                work.embed_inputs(ledger)
                if plan.decoder is None or not work.rows or work.draw(plan.decoder, ledger):
                    work.judge_first(ledger)
                    ledger.finish()
    return Record.load(out)


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


@dataclass(eq=False)
class _Work:
    """A plan at work: what was read of its inputs, and which rows of the whole sweep this record holds.

    A part of a sweep within a budget finds twins and order over all rows, and then divides the rounds: ``same_as`` is
    what it found, and ``embedded`` holds every input. Of a second decoder, ``source`` is the complete record of the
    first, where everything stands that comes before drawing.
    """

    plan: Plan
    started: float
    progress: bool
    source: Any = None  # of Record | None, which beartype would read to check it
    rows: list[int] = field(default_factory=list)
    described: dict[int, dict[str, Any]] = field(default_factory=dict)
    seen: dict[int, Image.Image | None] = field(default_factory=dict)
    others: dict[int, Others] = field(default_factory=dict)
    embedded: dict[int, Iterable[Embedded]] = field(default_factory=dict)
    same_as: dict[int, int] | None = None

    def __post_init__(self) -> None:
        decoder, self.negative = self.plan.decoder, None
        found = None if decoder is None else self.plan.kind.negative(decoder)
        if decoder is not None and found is not None:
            decoder.check(found, encoder=self.plan.model)
            self.negative = found.kept()

    def read_inputs(self, *, new: bool) -> None:
        """Read the inputs once each, all of them before anything is written, so that a broken one is told now."""
        plan = self.plan
        if self.source is not None:
            self.rows = plan.rows
            self.described = {entry["index"]: entry for entry in self.source.manifest["inputs"]}
            return
        divides = plan.execution.shard is not None and plan.within is not None
        self.rows = [] if divides else plan.rows
        inputs = range(len(plan.inputs)) if divides else sorted({plan.place(row)[0] for row in self.rows})
        for index in tqdm(inputs, desc="inputs", unit="input", disable=not self.progress, delay=_SHOW_AFTER):
            self.described[index], self.seen[index] = plan.kind.read(index)
        self._find_others()
        if divides:
            self._divide()
        elif new and self.rows:  # a lens that does not keep its contract leaves nothing behind
            self.embedded[inputs[0]] = self._embed(inputs[0])

    def _find_others(self) -> None:
        """Run the other images of which controls are made, and say of each input which of them stands in for it."""
        plan = self.plan
        wanted = self.seen and plan.others.n_others
        bank = plan.others.make(plan.model, plan.readings, self.seen) if wanted else None
        for index, seen in self.seen.items() if bank is not None else ():
            if seen is not None and bank is not None:
                self.others[index] = bank.others([picture_hash(seen)], seed=plan.controls.seed)
                if name := self.others[index].names()[0]:
                    self.described[index]["other"] = name

    def _embed(self, index: int) -> Iterable[Embedded]:
        """Return the sites of an input, the first of them read and checked, the others as they are asked for."""
        plan = self.plan
        parts = embed_input(
            plan.kind, self.described[index], self.seen[index], plan.readings, plan.beside, plan.controls,
            live=plan.beside.wants_live(index), others=self.others.get(index), kinds=plan.measured,
        )  # fmt: skip
        checked = map(self._checked, parts)
        return chain([next(checked)], checked)

    def _checked(self, found: Embedded) -> Embedded:
        if self.plan.decoder is not None:
            self.plan.decoder.check(found.read)
        return found

    def _divide(self) -> None:
        plan = self.plan
        whole = {
            index: Embedded.join(list(self._embed(index)))
            for index in tqdm(self.described, desc="embeddings", unit="input", disable=not self.progress)
        }
        self.embedded |= {index: [found] for index, found in whole.items()}
        table, places = plan.table(range(plan.n_rows)), [plan.place(row) for row in range(plan.n_rows)]
        for name in ("norm_h", "cos_lens_clean", *(control_columns(name).cosine for name in CONTROLS)):
            table[name] = [whole[index].numbers[name][within] for index, _, within in places]
        held = Condition.cat([found.read for found in whole.values() for _ in plan.seeds])
        table["same_as"] = self._twins(table, held)
        rounds = share_of(self._rounds(table), plan.execution.shard)
        own = {row for batches in rounds for _, rows in batches for row in rows}
        self.same_as = {row: first for row, first in enumerate(table["same_as"]) if not pd.isna(first) and first in own}
        self.rows = sorted(own | self.same_as.keys())
        kept = {places[row][0] for row in self.rows}
        self.described = {index: entry for index, entry in self.described.items() if index in kept}

    def _twins(self, table: pd.DataFrame, held: Condition) -> Any:
        same_above = 1.0 if self.plan.within is None else self.plan.within["same_above"]
        return pd.array(find_twins(held.flat, torch.tensor(table["seed"].tolist()), same_above), dtype="Int64")

    def _rounds(self, table: pd.DataFrame) -> list[list[Batch]]:
        of = {one.reading.id: one.reading.of or one.reading.id for one in self.plan.readings}
        return rounds_by_information(table, of, self.plan.seeds, self.plan.size)

    def embed_inputs(self, ledger: Ledger) -> None:
        """Embed the inputs that are not embedded yet; one at a time, so that parts of a sweep agree."""
        if self.source is not None:
            if self.rows:
                judge = self.plan.judge
                ledger.adopt(self.source, self.negative, None if judge is None else judge.cfg.d_embed)
            return
        of_input: dict[int, dict[int, int]] = {index: {} for index in sorted(self.described)}
        for number, row in enumerate(self.rows):
            index, _, within = self.plan.place(row)
            of_input[index][number] = within
        done = ledger.embedded_inputs()
        left = [index for index in of_input if index not in done]
        for index in tqdm(left, desc="embeddings", unit="input", disable=not self.progress or not left):
            parts = self.embedded.pop(index, None) or self._embed(index)
            ledger.keep_input(index, self.seen[index], parts, of_input[index], self.negative)
        fresh = self.plan.within is not None and self.rows and not (ledger.table["drawn"] != "").any()
        if fresh and self.same_as is None:
            ledger.table["same_as"] = self._twins(ledger.table, ledger.conditions(range(len(self.rows))))
        elif fresh and self.same_as is not None:
            here = {row: number for number, row in enumerate(self.rows)}
            same = [here[self.same_as[row]] if row in self.same_as else None for row in self.rows]
            ledger.table["same_as"] = pd.array(same, dtype="Int64")
        ledger.save()

    def _passes(self, ledger: Ledger) -> list[Pass]:
        """Return the passes, in rows of this record."""
        plan = self.plan
        if plan.within is None:
            here = {row: number for number, row in enumerate(self.rows)}
            return [Pass("full", plan.settings, [[(seed, [here[row] for row in some])] for seed, some in plan.batches])]
        rounds = self._rounds(ledger.table)
        coarse = [] if plan.coarse is None else [Pass("coarse", plan.coarse, rounds)]
        return [*coarse, Pass("full", plan.settings, rounds)]

    def draw(self, decoder: Decoder, ledger: Ledger) -> bool:
        """Draw what is not finished, pass by pass; returns whether all of it is."""
        plan, passes = self.plan, self._passes(ledger)
        readers = {} if plan.judge is None else {JUDGED: plan.judge}
        bench = Bench(model=plan.kind.looks_again, decoder=decoder, negative=self.negative, readers=readers)
        executor = make_executor(plan.execution.executor)
        pace, ended = Pace(plan.budget, self.started, ledger.ending), True
        with ledger:
            for one in passes:
                words = "pictures" if one is passes[-1] else f"{one.drawn} pictures"
                words = f"second decoder's {words}" if plan.is_second else words
                total = sum(len(rows) for batches in one.rounds for _, rows in batches)
                with tqdm(total=total, desc=words, unit="picture", disable=not self.progress) as bar:
                    tasks = _Tasks(plan, bench, ledger, one, pace, bar)
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

    def judge_first(self, ledger: Ledger) -> None:
        """Let the judge of a second decoder see the first's pictures, in the batches that they were drawn in."""
        plan, source = self.plan, self.source
        if plan.judge is None or plan.decoder is None or not self.rows:
            return
        bench = Bench(model=None, decoder=plan.decoder, negative=None, readers={JUDGED: plan.judge})
        here = {row: number for number, row in enumerate(self.rows)}
        batches = [[here[row] for row in rows] for _, rows in plan.batches]
        for rows in tqdm(batches, desc="comparison", unit="batch", disable=not self.progress, delay=_SHOW_AFTER):
            if ledger.unjudged(rows):
                pictures = torch.from_numpy(np.stack([np.asarray(source.picture(row)) for row in rows]))
                ledger.keep_judged_first(rows, bench.look(pictures, plan.size)[JUDGED])
        ledger.save()


@dataclass(eq=False)
class _Tasks:
    """The tasks of a pass that are left, as long as the budget lasts; what lies on disk is only noted."""

    plan: Plan
    bench: Bench
    ledger: Ledger
    of: Pass
    pace: Pace
    bar: Any
    ended: bool = True

    def __post_init__(self) -> None:
        self._size, decoder, drawn = self.plan.size, self.bench.decoder, self.of.drawn
        self._changes = {one["row"]: one["batch_size"] for one in self.ledger.changes() if one["pass"] == drawn}
        # A size that was asked for is tried as it is; running out ends a process on a CPU.
        self._room = self._size if self.plan.drawing.batch_size else decoder.batch_size_for(self.of.settings)

    def __iter__(self) -> Iterator[Task]:
        work, drawn = self.bench.decoder.work(self.of.settings), self.of.drawn
        for batches in self.of.rounds:
            tasks = [task for seed, rows in batches for task in self._cut(seed, rows)]
            left = [task for task in tasks if self.ledger.missing(task.rows, drawn)]
            rows = sum(task.size for task in left)
            if left and not self.pace.fits(drawn, work * rows):
                self.ended = False
                return
            started = time.monotonic()
            for task in tasks:
                if task in left:
                    yield task
                else:
                    self._note(task)
                    self.bar.update(len(task.rows))
            if left:
                pictures = sum(len(self.ledger.missing(task.rows, drawn)) for task in left)
                self.pace.spent(drawn, work * rows, pictures, time.monotonic() - started)

    def _cut(self, seed: int, rows: list[int]) -> Iterator[Task]:
        """Yield a batch as it was drawn before, or as it is planned."""
        settings, drawn, left = seeded(self.of.settings, seed), self.of.drawn, rows
        if self.plan.drawing.noise == "legacy":
            yield self._task(rows, settings, self.plan.size)
            return
        while left:
            self._size = self._changes.get(left[0], self._size)
            if self._size > self._room and self.ledger.missing(left[: self._size], drawn):
                self._size = self._changes[left[0]] = self._room
                self.ledger.change(left[0], drawn, self._room, _LOW_MEMORY)
            yield self._task(left[: self._size], settings, self._size)
            left = left[self._size :]

    def _task(self, rows: list[int], settings: Any, size: int) -> Task:
        return Task(
            rows=tuple(rows), settings=settings, size=size, drawn=self.of.drawn, noise=self.plan.drawing.noise,
            folder=self.ledger.folder, threads=self.ledger.threads, recipe=self.bench.recipe,
        )  # fmt: skip

    def _note(self, task: Task) -> None:
        """Note the numbers of pictures that were drawn before an interruption and not noted."""
        if not self.ledger.is_noted(task):
            pictures = self.ledger.stored(task)
            seen = self.bench.look(pictures, task.size)
            self.ledger.keep(Drawn(task=task, rows=task.rows, pictures=pictures, seen=seen, size=task.size))
