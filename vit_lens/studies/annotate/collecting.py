"""From records to a sheet: which pictures are shown, under which names, in which order."""

__all__ = ["drawn_rows", "make_sheet", "pictures_of"]

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image

from vit_lens.errors import StudyError
from vit_lens.records import Record, has_picture
from vit_lens.studies.annotate.questions import ask
from vit_lens.studies.annotate.sheet import Item, Sheet, SheetRecord

_MADE_BY = ("model", "decoder", "readings", "inputs", "seeds", "shard", "versions")  # what makes the pictures of rows


def make_sheet(
    records: Sequence[Record], *, questions: str | os.PathLike[str] | None = None, n: int | None = None, seed: int = 0,
    layers: Sequence[int] | None = None,
) -> Sheet:  # fmt: skip
    """Choose pictures of records and put them in an order that says nothing of where they come from.

    The same records, questions and options make the same sheet.

    Args:
        records: Records of sweeps; pictures that are not drawn with the sweep's own settings are left out.
        questions: A table of questions, see :func:`vit_lens.studies.annotate.ask`.
        n: How many pictures are shown at most, as evenly as can be over lenses, controls and sites; None shows all.
        seed: Decides which, and the order.
        layers: The layers whose pictures are shown, as in the column ``layer``; None takes all.

    Raises:
        StudyError: No picture is left, a record is given twice, or images have no questions.
        RecordError: A record holds no pictures, or one is damaged.
    """
    told = tuple(_described(record) for record in records)
    if len({one.digest for one in told}) < len(told):
        raise StudyError("two of the records hold the same sweep; give each once")
    if questions is None and any(has_picture(entry) for record in records for entry in record.manifest["inputs"]):
        raise StudyError(
            "a record of images has no prompts to ask about: give --questions, a prompt being a file's name"
        )
    every = [item for index, record in enumerate(records) for item in _items(record, index, layers)]
    if not every:
        raise StudyError(
            f"no picture is drawn{f' of the layers {list(layers)}' if layers else ''}; nothing can be asked"
        )
    generator = np.random.default_rng(seed)
    chosen = _evenly(every, len(every) if n is None else n, generator)
    named = [replace(item, item=_name(told[item.record], item, _pixels(records, item))) for item in chosen]
    asked = ask(list(dict.fromkeys(item.prompt for item in sorted(named, key=_place))), questions)
    content = [[one.digest for one in told], [asdict(one) for one in asked], [item.item for item in named]]
    page = "p" + _digest(content)
    return Sheet(page=page, seed=seed, records=told, questions=asked, items=tuple(named))


def pictures_of(sheet: Sheet, records: Sequence[Record]) -> Iterator[PIL.Image.Image]:
    """Yield the picture of every item, in order.

    Raises:
        StudyError: The records are not those of the sheet, or a picture is another than was shown.
        RecordError: A picture is damaged.
    """
    given = {_described(record).digest: record for record in records}
    if missing := [one.path for one in sheet.records if one.digest not in given]:
        raise StudyError(f"the key names a record that was not given, or has changed: {missing[0]}")
    ordered = [given[one.digest] for one in sheet.records]
    for item in sheet.items:
        picture = _pixels(ordered, item)
        if _name(sheet.records[item.record], item, picture) != item.item:
            raise StudyError(f"{sheet.records[item.record].path}: row {item.row} holds another picture than was shown")
        yield picture


def drawn_rows(record: Record) -> pd.Series:
    """Return of which rows the pictures are drawn with the sweep's own settings; whole older records do not say."""
    drawn = record.table["drawn"]
    return (drawn == "full") | ((drawn == "") & record.complete)


def _described(record: Record) -> SheetRecord:
    manifest = record.manifest
    decoder = manifest["decoder"] or {"decoder_id": "none"}
    made = _digest([{name: manifest[name] for name in _MADE_BY}, len(record.table)])
    return SheetRecord(
        path=str(record.path), digest="r" + made, encoder=str(manifest["model"]["encoder_id"]),
        decoder=str(decoder["decoder_id"]),
    )  # fmt: skip


def _items(record: Record, index: int, layers: Sequence[int] | None) -> Iterator[Item]:
    prompts = {entry["index"]: str(entry.get("text", entry["name"])) for entry in record.manifest["inputs"]}
    table = record.table.loc[drawn_rows(record)]
    names = ("row", "input", "site", "layer", "reading", "seed")
    for row, entry, site, layer, reading, seed in zip(*(table[name] for name in names), strict=True):
        number = _number(layer)
        if layers is None or number in layers:
            read = record.readings[reading]
            yield Item(
                item="", record=index, row=int(row), prompt=prompts[entry], site=str(site), layer=number,
                lens=read.label, control=read.control, seed=_number(seed),
            )  # fmt: skip


def _number(cell: Any) -> int:
    return -1 if cell is None or cell != cell or not isinstance(cell, (int, np.integer)) else int(cell)


def _evenly(items: list[Item], n: int, generator: np.random.Generator) -> list[Item]:
    """Return ``n`` items in random order: one of every lens, control and site before a second of any."""
    turns: dict[tuple[int, str, str, str], int] = {}
    ranked = []
    for place in generator.permutation(len(items)):
        item = items[place]
        group = (item.record, item.lens, item.control, item.site)
        turns[group] = turns.get(group, -1) + 1
        ranked.append((turns[group], item))
    kept = [item for _, item in sorted(ranked, key=lambda one: one[0])[:n]]
    return [kept[place] for place in generator.permutation(len(kept))]


def _pixels(records: Sequence[Record], item: Item) -> PIL.Image.Image:
    return records[item.record].picture(item.row).convert("RGB")


def _name(record: SheetRecord, item: Item, picture: PIL.Image.Image) -> str:
    """Return a name that no spreadsheet takes for a number."""
    seen = hashlib.sha256(picture.tobytes()).hexdigest()
    return "i" + _digest([record.digest, item.row, picture.size, seen])


def _place(item: Item) -> tuple[int, int]:
    return item.record, item.row


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
