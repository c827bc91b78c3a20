"""What the page knows: a record as plain numbers, texts and thumbnails."""

__all__ = ["page_data"]

import math
from typing import Any

import pandas as pd

from vit_lens.metrics import DRAWN_THRESHOLD, NUMBERS
from vit_lens.records import Record
from vit_lens.report.panels import beside_data, live_data, strings, texts_data
from vit_lens.report.thumbs import BUDGET, inline_pictures


def page_data(record: Record, base: str) -> dict[str, Any]:
    """Return everything that the page shows; ``base`` leads from the page to the record's directory."""
    table, manifest = record.table, record.manifest
    texts, live = texts_data(record), live_data(record)
    beside = beside_data(record)
    spent = sum(len(part) for part in strings([texts, live, beside]))
    thumbs = inline_pictures(record.picture, [int(row) for row in table["row"]], max(BUDGET - spent, BUDGET // 4))
    groups, membership = _groups(record)
    budget = _budget(manifest)
    return {
        "base": base,
        "threshold": DRAWN_THRESHOLD,
        "numbers": {key: vars(number) for key, number in NUMBERS.items()},
        "images": _images(record),
        "groups": groups,
        "rows": {
            "image": _plain(table["input"]),
            "site": _plain(table["site"]),
            "type": _plain(table["site_type"]),
            "layer": _plain(table["layer"]),
            "head": _plain(table["head"]),
            "seed": _plain(table["seed"]),
            "label": _plain(table["label"]),
            "group": membership,
            "thumb": [thumbs.get(row) for row in range(len(table))],
            "drawn": _plain(table["drawn"]) if budget else None,
            "same_as": _plain(table["same_as"]) if budget else None,
            **{key: _plain(table[key]) for key in NUMBERS},
        },
        "budget": budget,
        "seeds": manifest["seeds"].get("decoder") or [],
        "drawn": manifest["decoder"] is not None,
        "texts": texts,
        "beside": beside,
        "live": live,
    }


def _budget(manifest: dict[str, Any]) -> dict[str, Any] | None:
    plan = manifest["batch_plan"].get("budget")
    return plan and {
        "coarse": plan["coarse"] and plan["coarse"]["words"], "same_above": plan["same_above"]
    }  # fmt: skip


def _images(record: Record) -> list[dict[str, Any]]:
    indices = [int(image["index"]) for image in record.manifest["inputs"]]
    thumbs = inline_pictures(record.input, indices)
    names = {int(image["index"]): str(image["name"]) for image in record.manifest["inputs"]}
    return [{"index": index, "name": names[index], "thumb": thumbs.get(index)} for index in indices]


def _groups(record: Record) -> tuple[list[dict[str, Any]], list[int]]:
    """Number the readings in the order of their rows, and say which one each row belongs to."""
    order = {name: number for number, name in enumerate(dict.fromkeys(record.table["reading"]))}
    groups = [
        {
            "id": one.id, "of": one.of, "lens": one.lens, "label": one.label, "control": one.control,
            "words": one.words,
            "settings": ", ".join(f"{name}: {value}" for name, value in one.settings.items() if value is not None),
        }
        for one in map(record.readings.__getitem__, order)
    ]  # fmt: skip
    return groups, [order[name] for name in record.table["reading"]]


def _plain(column: pd.Series) -> list[Any]:
    return [_value(value) for value in column]


def _value(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if pd.isna(value) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return round(float(value), 6) if isinstance(value, float) else int(value)
