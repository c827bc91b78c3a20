"""Joining the shards of a divided sweep into the record that the undivided sweep would have written."""

__all__ = ["merge"]

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from vit_lens.errors import RecordError
from vit_lens.records.extras import gallery_name
from vit_lens.records.live import LiveNumbers
from vit_lens.records.readouts import Found
from vit_lens.records.record import Record
from vit_lens.records.schema import differing, picture_name
from vit_lens.records.writer import RecordWriter

SHARED_KEYS = ("format", "model", "decoder", "lenses", "versions", "seeds", "readouts", "controls")


def merge(paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Record:
    """Write the record of all shards to ``out``: rows in order of image, renumbered, pictures copied.

    Raises:
        RecordError: a shard is unfinished, missing, given twice, or of another sweep.
    """
    shards = [Record.load(path) for path in paths]
    shards = _in_order(shards)
    owners = {int(image): shard for shard in shards for image in shard.table["image"].unique()}
    known = {image["index"]: image for shard in shards for image in shard.manifest["images"]}
    images = [known[index] for index in sorted(known) if index in owners]
    frames = [shard.table.assign(shard=number) for number, shard in enumerate(shards)]
    joined = pd.concat(frames).sort_values(["image", "shard", "row"], kind="stable")
    sources = list(zip(joined["shard"], joined["row"], strict=True))
    table = joined.drop(columns="shard").assign(row=range(len(joined)))
    table["picture"] = [picture_name(row) if old else "" for row, old in enumerate(joined["picture"])]
    places = {source: row for row, source in enumerate(sources)}
    shared = zip(joined["shard"], joined["same_as"], strict=True)
    table["same_as"] = [None if pd.isna(old) else places[number, int(old)] for number, old in shared]
    writer = RecordWriter(out, _joined_manifest(shards, images, places), table)
    for image in images:
        writer.write_input(image["index"], owners[image["index"]].input(image["index"]))
    done = writer.finished_rows()
    for row, (number, old) in enumerate(sources):
        if row not in done and writer.manifest["decoder"]:
            writer.write_picture(row, shards[number].picture(int(old)))
    _write_beside(writer, shards, sources)
    writer.write_embeddings(_joined_embeddings(shards, owners, sources))
    writer.write_table(table)
    writer.finish()
    return Record.load(out)


def _in_order(shards: list[Record]) -> list[Record]:
    if not shards:
        raise RecordError("no shards were given; give the directories of all of them")
    for shard in shards:
        if not shard.manifest["shard"]:
            raise RecordError(f"{shard.path} is not a shard; give the directories that were swept with shard=(i, n)")
        if not shard.complete:
            how = " without its budget" if "budget" in shard.manifest["batch_plan"] else ""
            raise RecordError(f"{shard.path} is unfinished; run its sweep again{how} before merging")
        _refuse_difference(
            shards[0], shard, "budget", *(s.manifest["batch_plan"].get("budget") for s in (shards[0], shard))
        )
        for key in SHARED_KEYS:
            _refuse_difference(shards[0], shard, key, shards[0].manifest.get(key), shard.manifest.get(key))
    totals = sorted({shard.manifest["shard"][1] for shard in shards})
    if len(totals) > 1:
        raise RecordError(f"shards of different divisions, into {' and '.join(map(str, totals))} parts")
    _refuse_overlap(shards)
    missing = sorted(set(range(totals[0])) - {shard.manifest["shard"][0] for shard in shards})
    if missing:
        raise RecordError(
            f"shards missing: {', '.join(f'{i} of {totals[0]}' for i in missing)}; sweep and give them too"
        )
    return sorted(shards, key=lambda shard: shard.manifest["shard"][0])


def _refuse_difference(first: Record, other: Record, key: str, one: Any, two: Any) -> None:
    difference = differing(one, two, key)
    if difference:
        text = difference.replace("on disk", f"in {first.path}").replace("now", f"in {other.path}")
        raise RecordError(f"shards of different sweeps: {text}")


def _refuse_overlap(shards: list[Record]) -> None:
    parts: dict[int, Path] = {}
    rows: dict[tuple[Any, ...], Path] = {}
    for shard in shards:
        part = shard.manifest["shard"][0]
        if part in parts:
            raise RecordError(f"shard {part} was given twice: {parts[part]} and {shard.path}")
        parts[part] = shard.path
        keys = ["image", "kind", "control", "site", "lens", "definition", "alpha", "share", "anchor", "seed"]
        texts = shard.table[keys].astype("string").fillna("")
        for row in texts.itertuples(index=False, name=None):
            if rows.setdefault(row, shard.path) != shard.path:
                raise RecordError(f"{rows[row]} and {shard.path} overlap: both hold {row[3]} of image {row[0]}")


def _joined_manifest(
    shards: list[Record], images: list[dict[str, Any]], places: dict[tuple[Any, Any], int]
) -> dict[str, Any]:
    first = shards[0].manifest
    commands = [s.manifest["command"] for s in shards if s.manifest["command"]]
    notes = dict.fromkeys(note for shard in shards for note in shard.manifest["notes"])
    joined = {"complete": False, "shard": None, "images": images, "notes": list(notes)}
    changes = [
        {**change, "row": places[number, change["row"]]}
        for number, shard in enumerate(shards)
        for change in shard.manifest["batch_plan"].get("changes", [])
    ]
    plan = {**first["batch_plan"], "n_rows": len(places), **({"changes": changes} if changes else {})}
    return {**first, **joined, "batch_plan": plan, "command": "\n".join(commands) or None}


def _write_beside(writer: RecordWriter, shards: list[Record], sources: list[tuple[Any, Any]]) -> None:
    parts = [shard.readouts for shard in shards if shard.readouts is not None]
    if len(parts) == len(shards):
        names = {index: name for part in parts for index, name in part.names.items()}
        for index in sorted(names):
            owner = next(s for s, part in zip(shards, parts, strict=True) if index in part.names)
            if (owner.path / gallery_name(index)).exists():  # a gallery from memory has no pictures
                writer.write_neighbour(index, owner.neighbour(index))
        by = {
            what: {
                form: _joined_found([getattr(p, what)[form] for p in parts], sources) for form in getattr(first, what)
            }
            for first in parts[:1]
            for what in ("by_caption", "by_image")
        }
        writer.write_readouts(replace(parts[0], names=names, **by))
    live = [shard.live for shard in shards if shard.live is not None]
    if len(live) == len(shards):
        writer.write_live(_joined_live(live))


def _joined_found(parts: list[Found], sources: list[tuple[Any, Any]]) -> Found:
    index = torch.stack([parts[int(number)].index[int(row)] for number, row in sources])
    return Found(index, torch.stack([parts[int(number)].cosine[int(row)] for number, row in sources]))


def _joined_live(parts: list[LiveNumbers]) -> LiveNumbers:
    images = [image for part in parts for image in part.images]
    order = sorted(range(len(images)), key=images.__getitem__)
    tensors = {
        field.name: torch.cat([getattr(part, field.name) for part in parts])[order]
        for field in fields(LiveNumbers)
        if isinstance(getattr(parts[0], field.name), Tensor)
    }
    return replace(parts[0], images=tuple(images[i] for i in order), **tensors)


def _joined_embeddings(
    shards: list[Record], owners: dict[int, Record], sources: list[tuple[Any, Any]]
) -> dict[str, Tensor]:
    joined = {"negative": shards[0].embeddings["negative"]} if "negative" in shards[0].embeddings else {}
    for name in ("lens", "reencoded"):
        if all(name in shard.embeddings for shard in shards):
            joined[name] = torch.stack([shards[int(number)].embeddings[name][int(row)] for number, row in sources])
    if all("clean" in shard.embeddings for shard in shards):
        places = {i: [image["index"] for image in owner.manifest["images"]].index(i) for i, owner in owners.items()}
        joined["clean"] = torch.stack([owners[i].embeddings["clean"][places[i]] for i in sorted(owners)])
    return joined
