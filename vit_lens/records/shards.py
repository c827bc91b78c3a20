"""Joining the parts of a divided sweep into the record that the undivided sweep would have written."""

__all__ = ["expand", "merge", "ranges"]

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pandas as pd
import torch

from vit_lens.conditions import Condition
from vit_lens.errors import OutputError, RecordError
from vit_lens.files import as_path
from vit_lens.records.answers import Found, anchor_name, gallery_name
from vit_lens.records.record import Record
from vit_lens.records.schema import IDENTITY_KEYS, differing, has_picture, picture_name
from vit_lens.records.second import SECOND, write_agreement
from vit_lens.records.writer import RecordWriter

# What a part has of its own is its rows, and with them its inputs.
SHARED_KEYS = tuple(key for key in IDENTITY_KEYS if key not in ("inputs", "shard", "batch_plan"))


def ranges(rows: Iterable[int]) -> list[list[int]]:
    """Return increasing numbers as ranges [start, stop).

    >>> vl.records.ranges([0, 1, 2, 5, 6])
    [[0, 3], [5, 7]]
    """
    numbers = list(rows)
    if not numbers:
        return []
    cuts = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(numbers)) if b != a + 1), len(numbers)]
    return [[numbers[a], numbers[b - 1] + 1] for a, b in pairwise(cuts)]


def expand(given: Iterable[Sequence[int]]) -> list[int]:
    """Return the numbers in ranges."""
    return [row for start, stop in given for row in range(start, stop)]


def merge(paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Record:
    """Write the record of all parts of a divided sweep: every row in its place of the whole sweep, pictures copied.

    What a second decoder drew is joined in the same way.

    Args:
        paths: The directories of all parts, in any order.
        out: The directory of the whole: new, empty, or that of the same merge.

    Raises:
        RecordError: A part is unfinished, missing, given twice, of another sweep, or of format 1.
        OutputError: ``out`` cannot be written.

    >>> for part in (0, 1):
    ...     of_two = vl.Execution(shard=(part, 2))
    ...     _ = vl.sweep(model, None, images, lens="diffusion", sites="mlp", execution=of_two, out=tmp / f"part {part}")
    >>> whole = vl.records.merge([tmp / "part 0", tmp / "part 1"], tmp / "whole")
    >>> whole.complete, len(whole.table)
    (True, 16)
    """
    parts = [Record.load(path) for path in paths]
    places = _places(parts)
    joined = _Joined([part for part in parts if len(part.table)], places)
    with RecordWriter.held(as_path(out, OutputError, "out"), _manifest(parts, joined), joined.table()) as writer:
        for index, (owner, _) in joined.inputs.items():
            if has_picture(owner.entry(index)):
                writer.write_input(index, owner.input(index))
        done = writer.finished_rows()
        for (part, row), place in zip(joined.rows, places, strict=True):
            if place not in done and writer.manifest["decoder"]:
                writer.write_picture(place, part.picture(row))
        joined.write_beside(writer)
        joined.write_conditions(writer)
        writer.write_table(joined.table())
        writer.finish(_thread_notes(parts))
    seconds = [part.path for part in parts if (part.path / SECOND).is_dir()]
    if seconds and len(seconds) < len(parts):
        lacking = next(part.path for part in parts if part.path not in seconds)
        raise RecordError(f"{lacking} has no second decoder, and {seconds[0]} has; sweep it again with the same one")
    if seconds:
        merge([path / SECOND for path in seconds], as_path(out, OutputError, "out") / SECOND)
        write_agreement(Record.load(out))
    return Record.load(out)


class _Joined:
    """The parts that hold rows, one after the other, and the order that makes them the whole sweep's rows."""

    def __init__(self, parts: list[Record], places: list[int]):
        self.parts, self.places = parts, places
        self.order = sorted(range(len(places)), key=places.__getitem__)
        self.rows = [(part, row) for part in parts for row in range(len(part.table))]
        self._place = {(id(part), row): place for (part, row), place in zip(self.rows, places, strict=True)}
        owners: dict[int, tuple[Record, int]] = {}  # an image whose rows lie in several parts is in each
        for part in parts:
            for at, entry in enumerate(part.manifest["inputs"]):
                owners.setdefault(entry["index"], (part, at))
        self.inputs = dict(sorted(owners.items()))

    def table(self) -> pd.DataFrame:
        """Return the table of the whole."""
        table, places = pd.concat([part.table for part in self.parts], ignore_index=True), self.places
        shared = zip(self.rows, table["same_as"], strict=True)
        same = [None if pd.isna(old) else self._place[id(part), int(old)] for (part, _), old in shared]
        pictures = [picture_name(place) if old else "" for place, old in zip(places, table["picture"], strict=True)]
        table = table.assign(row=places, same_as=pd.array(same, dtype="Int64"), picture=pictures)
        return table.iloc[self.order].reset_index(drop=True)

    def changes(self) -> list[dict[str, Any]]:
        """Return what was drawn otherwise than planned, in rows of the whole."""
        return [
            {**change, "row": self._place[id(part), change["row"]]}
            for part in self.parts
            for change in part.manifest["batch_plan"].get("changes", [])
        ]

    def write_beside(self, writer: RecordWriter) -> None:
        """Write captions, neighbours, anchors and live numbers."""
        for part in self.parts:
            for reading in part.readings.values():
                content = reading.settings.get("anchor_content")
                if content is not None and part.files.exists(anchor_name(content)):  # of pixels there is no picture
                    writer.write_anchor(content, part.anchor(reading.id))
        found = [part.readouts for part in self.parts]
        if known := [one for one in found if one is not None]:  # of all parts or of none
            owners = {index: part for part, one in zip(self.parts, known, strict=True) for index in one.names}
            for index in sorted(owners):
                if (owners[index].path / gallery_name(index)).exists():  # a gallery from memory has no pictures
                    writer.write_neighbour(index, owners[index].neighbour(index))
            names = {index: name for one in known for index, name in one.names.items()}
            by: dict[str, Any] = {
                what: {
                    form: self._found([getattr(one, what)[form] for one in known]) for form in getattr(known[0], what)
                }
                for what in ("by_caption", "by_image", "by_probe")
            }
            writer.write_readouts(replace(known[0], names=names, **by))
        if live := [part.live for part in self.parts if part.live is not None]:
            writer.write_live(
                live[0].holding({i: one for part in reversed(live) for i, one in part.by_image().items()})
            )

    def _found(self, parts: list[Found]) -> Found:
        return Found(*(torch.cat([getattr(one, name) for one in parts])[self.order] for name in ("index", "cosine")))

    def write_conditions(self, writer: RecordWriter) -> None:
        """Write what the decoder was asked for, what its pictures are, and what the inputs are."""
        first = self.parts[0]
        writer.begin_conditions(first.manifest["conditions"]["shapes"])
        for name in first.manifest["conditions"]["shapes"]:
            if name == "negative":
                held = first.conditions[name]
            elif name == "clean":
                held = Condition.cat([part.conditions[name][[at]] for part, at in self.inputs.values()])
            else:
                held = Condition.cat([part.conditions[name] for part in self.parts])[self.order]
            writer.write_conditions(name, held, range(len(held)))


def _places(parts: list[Record]) -> list[int]:
    """Return which row of the whole each is, of one part after the other; RecordError if they are not all of one."""
    if not parts:
        raise RecordError("no shards were given; give the directories of all of them")
    for part in parts:
        if part.manifest["format"] == 1:
            raise RecordError(f"{part.path} is of format 1, which loads and reports but is not merged; sweep it again")
        if not part.manifest["shard"]:
            raise RecordError(f"{part.path} is not a shard; give the directories that were swept with shard=(i, n)")
        if not part.complete:
            how = " without its budget" if "budget" in part.manifest["batch_plan"] else ""
            raise RecordError(f"{part.path} is unfinished; run its sweep again{how} before merging")
        for key in SHARED_KEYS:
            _refuse_difference(parts[0], part, key, parts[0].manifest.get(key), part.manifest.get(key))
        plans = [{k: v for k, v in p.manifest["batch_plan"].items() if k not in ("n_rows", "changes")} for p in
                 (parts[0], part)]  # fmt: skip
        _refuse_difference(parts[0], part, "batch_plan", *plans)
    totals = sorted({(part.manifest["shard"]["of"], part.manifest["shard"]["n_rows"]) for part in parts})
    if len(totals) > 1:
        raise RecordError(
            f"shards of different divisions, into {' and '.join(str(of) for of, _ in totals)} parts of "
            f"{' and '.join(str(rows) for _, rows in totals)} rows"
        )
    ((n_parts, n_rows),) = totals
    owners: dict[int, Record] = {}
    for part in parts:
        index = part.manifest["shard"]["index"]
        if index in owners:
            raise RecordError(f"shard {index} was given twice: {owners[index].path} and {part.path}")
        owners[index] = part
    if missing := sorted(set(range(n_parts)) - set(owners)):
        raise RecordError(f"shards missing: {', '.join(f'{i} of {n_parts}' for i in missing)}; sweep and give them too")
    for part in parts:
        held = part.manifest["shard"]["rows"]
        if any(len(pair) != 2 for pair in held) or sum(len(range(*pair)) for pair in held) != len(part.table):
            raise RecordError(f"{part.path} does not say which of the whole's rows its {len(part.table)} rows are")
    places = [place for part in parts for place in expand(part.manifest["shard"]["rows"])]
    if len(places) != n_rows or sorted(places) != list(range(n_rows)):
        held = len(set(places))
        raise RecordError(f"these shards hold {held} different rows of {n_rows}: they overlap or leave some out")
    return places


def _refuse_difference(first: Record, other: Record, key: str, one: Any, two: Any) -> None:
    if difference := differing(one, two, key, (f"in {first.path}", f"in {other.path}")):
        raise RecordError(f"shards of different sweeps: {difference}")


def _manifest(parts: list[Record], whole: _Joined) -> dict[str, Any]:
    first = parts[0].manifest
    commands = dict.fromkeys(part.manifest["command"] for part in parts if part.manifest["command"])
    notes = dict.fromkeys(note for part in parts for note in part.manifest["notes"])
    plan = {**first["batch_plan"], "n_rows": len(whole.places)}
    plan |= {"changes": changes} if (changes := whole.changes()) else {}
    threads = _threads(parts)
    inputs = [part.manifest["inputs"][at] for part, at in whole.inputs.values()]
    joined = {"complete": False, "files": None, "shard": None, "conditions": None, "inputs": inputs}
    joined |= {"notes": list(notes), "command": "\n".join(commands) or None, "batch_plan": plan}
    return {**first, **joined, "threads": threads[0] if len(threads) == 1 else threads}


def _threads(parts: list[Record]) -> list[int]:
    return sorted({part.manifest["threads"] for part in parts})


def _thread_notes(parts: list[Record]) -> list[str]:
    threads = _threads(parts)
    said = (
        f"Its parts were drawn with {' and '.join(map(str, threads))} threads: numbers and pictures may differ by "
        "rounding from those of an undivided sweep. Give every part the same number (--threads)."
    )
    return [said] if len(threads) > 1 else []
