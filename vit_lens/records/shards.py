"""Joining the parts of a divided sweep into the record that the undivided sweep would have written."""

__all__ = ["expand", "merge", "ranges"]

import os
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from vit_lens.conditions import Condition
from vit_lens.errors import RecordError
from vit_lens.records.answers import Found, Readouts
from vit_lens.records.extras import gallery_name
from vit_lens.records.live import LiveNumbers
from vit_lens.records.record import Record
from vit_lens.records.schema import IDENTITY_KEYS, differing, picture_name
from vit_lens.records.writer import RecordWriter

# What a part has of its own is its rows, and with them its inputs.
SHARED_KEYS = tuple(key for key in IDENTITY_KEYS if key not in ("inputs", "shard", "batch_plan"))
_Sources = list[tuple[Record, int]]  # of each row of the whole: the part that holds it, and its row there


def ranges(rows: Iterable[int]) -> list[list[int]]:
    """Return increasing numbers as ranges [start, stop)."""
    numbers = list(rows)
    if not numbers:
        return []
    cuts = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(numbers)) if b != a + 1), len(numbers)]
    return [[numbers[a], numbers[b - 1] + 1] for a, b in pairwise(cuts)]


def expand(given: Iterable[Sequence[int]]) -> list[int]:
    """Return the numbers in ranges."""
    return [row for start, stop in given for row in range(start, stop)]


def merge(paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Record:
    """Write the record of all parts to ``out``: every row in its place of the whole sweep, pictures copied.

    Raises:
        RecordError: a part is unfinished, missing, given twice, of another sweep, or of format 1.
    """
    parts = [Record.load(path) for path in paths]
    sources = _sources(parts)
    inputs = {entry["index"]: entry for part in parts for entry in part.manifest["inputs"]}
    joined = _manifest(parts, [inputs[index] for index in sorted(inputs)], sources)
    places = {(id(part), row): place for place, (part, row) in enumerate(sources)}
    table = _table(parts, places)
    writer = RecordWriter(out, joined, table)
    for index in sorted(inputs):
        writer.write_input(index, _owner(parts, index).input(index))
    done = writer.finished_rows()
    for place, (part, row) in enumerate(sources):
        if place not in done and writer.manifest["decoder"]:
            writer.write_picture(place, part.picture(row))
    _write_beside(writer, parts, sources)
    _write_conditions(writer, parts, sources)
    writer.write_table(table)
    writer.finish(_thread_notes(parts))
    return Record.load(out)


def _sources(parts: list[Record]) -> _Sources:
    """Return where each row of the whole lies, after looking whether these are all parts of one sweep."""
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
    held = {place: (part, row) for part in parts for row, place in enumerate(expand(part.manifest["shard"]["rows"]))}
    fits = all(len(expand(part.manifest["shard"]["rows"])) == len(part.table) for part in parts)
    if not fits or sum(len(part.table) for part in parts) != n_rows or sorted(held) != list(range(n_rows)):
        raise RecordError(f"these shards hold {len(held)} different rows of {n_rows}: they overlap or leave some out")
    return [held[place] for place in range(n_rows)]


def _refuse_difference(first: Record, other: Record, key: str, one: Any, two: Any) -> None:
    if difference := differing(one, two, key, (f"in {first.path}", f"in {other.path}")):
        raise RecordError(f"shards of different sweeps: {difference}")


def _owner(parts: list[Record], index: int) -> Record:
    return next(part for part in parts if any(entry["index"] == index for entry in part.manifest["inputs"]))


def _manifest(parts: list[Record], inputs: list[dict[str, Any]], sources: _Sources) -> dict[str, Any]:
    first = parts[0].manifest
    commands = dict.fromkeys(part.manifest["command"] for part in parts if part.manifest["command"])
    notes = dict.fromkeys(note for part in parts for note in part.manifest["notes"])
    places = {(id(part), row): place for place, (part, row) in enumerate(sources)}
    changes = [
        {**change, "row": places[id(part), change["row"]]}
        for part in parts
        for change in part.manifest["batch_plan"].get("changes", [])
    ]
    plan = {**first["batch_plan"], "n_rows": len(sources), **({"changes": changes} if changes else {})}
    threads = sorted({part.manifest["threads"] for part in parts})
    joined = {"complete": False, "files": None, "shard": None, "conditions": None, "inputs": inputs}
    joined |= {"notes": list(notes), "command": "\n".join(commands) or None, "batch_plan": plan}
    return {**first, **joined, "threads": threads[0] if len(threads) == 1 else threads}


def _thread_notes(parts: list[Record]) -> list[str]:
    threads = sorted({part.manifest["threads"] for part in parts})
    if len(threads) < 2:
        return []
    return [
        f"Its parts were drawn with {' and '.join(map(str, threads))} threads: numbers and pictures may differ by "
        "rounding from those of an undivided sweep. Give every part the same number (--threads)."
    ]


def _table(parts: list[Record], places: dict[tuple[int, int], int]) -> pd.DataFrame:
    frames = []
    for part in parts:
        rows = [places[id(part), row] for row in range(len(part.table))]
        same = [None if pd.isna(old) else places[id(part), int(old)] for old in part.table["same_as"]]
        pictures = [picture_name(row) if old else "" for row, old in zip(rows, part.table["picture"], strict=True)]
        frames.append(part.table.assign(row=rows, same_as=pd.array(same, dtype="Int64"), picture=pictures))
    return pd.concat(frames).sort_values("row", kind="stable").reset_index(drop=True)


def _write_beside(writer: RecordWriter, parts: list[Record], sources: _Sources) -> None:
    found = {id(part): part.readouts for part in parts if len(part.table)}
    known: dict[int, Readouts] = {key: readouts for key, readouts in found.items() if readouts is not None}
    if known and len(known) == len(found):
        names = {index: name for readouts in known.values() for index, name in readouts.names.items()}
        for index in sorted(names):
            owner = next(part for part in parts if id(part) in known and index in known[id(part)].names)
            if (owner.path / gallery_name(index)).exists():  # a gallery from memory has no pictures
                writer.write_neighbour(index, owner.neighbour(index))
        one = next(iter(known.values()))
        by = {
            what: {
                form: _joined_found([(getattr(known[id(part)], what)[form], row) for part, row in sources])
                for form in getattr(one, what)
            }
            for what in ("by_caption", "by_image")
        }
        writer.write_readouts(replace(one, names=names, **by))
    live = [part.live for part in parts if part.live is not None]
    if live:
        writer.write_live(_joined_live(live))


def _joined_found(rows: list[tuple[Found, int]]) -> Found:
    return Found(torch.stack([f.index[row] for f, row in rows]), torch.stack([f.cosine[row] for f, row in rows]))


def _joined_live(parts: list[LiveNumbers]) -> LiveNumbers:
    """Join live numbers; an image whose rows lie in several parts has them in each."""
    where = {image: (part, place) for part in reversed(parts) for place, image in enumerate(part.images)}
    order = sorted(where)
    tensors = {
        field.name: torch.stack([getattr(part, field.name)[place] for part, place in map(where.__getitem__, order)])
        for field in fields(LiveNumbers)
        if order and isinstance(getattr(parts[0], field.name), Tensor)
    }
    return replace(parts[0], images=tuple(order), **tensors)


def _write_conditions(writer: RecordWriter, parts: list[Record], sources: _Sources) -> None:
    said = [part.manifest["conditions"] for part in parts if part.manifest["conditions"]]
    if not said:
        return
    writer.begin_conditions(said[0]["shapes"])
    indices = [entry["index"] for entry in writer.manifest["inputs"]]
    for name in said[0]["shapes"]:
        if name == "negative":
            held = next(part for part in parts if part.manifest["conditions"]).conditions[name]
        elif name == "clean":
            owners = [_owner(parts, index) for index in indices]
            inside = [
                [entry["index"] for entry in owner.manifest["inputs"]].index(i)
                for i, owner in zip(indices, owners, strict=True)
            ]
            held = Condition.cat([owner.conditions[name][[at]] for owner, at in zip(owners, inside, strict=True)])
        else:
            held = Condition.cat([part.conditions[name][[row]] for part, row in sources])
        writer.write_conditions(name, held, range(len(held)))
