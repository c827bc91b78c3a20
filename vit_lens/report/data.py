"""What the page knows: a record as plain numbers, texts and thumbnails."""

__all__ = ["beside_data", "live_data", "page_data", "texts_data"]

import base64
import json
import math
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from vit_lens.controls import CONTROLS
from vit_lens.metrics import DRAWN_THRESHOLD, NUMBERS, Number, control_columns
from vit_lens.records import (
    AGREES,
    DISAGREES,
    LEAST,
    LIVE_BUDGET,
    SECOND,
    WHOLLY,
    Found,
    Record,
    has_picture,
    judge_words,
)  # fmt: skip
from vit_lens.report.thumbs import BUDGET, inline_pictures

_NEIGHBOURS = 2_000_000  # bytes of small copies of the gallery's pictures
_TENSORS = ("contributions", "constant", "embedding", "gram", "along", "variance")
# Columns of the table by their name on the page.
_COLUMNS = {"image": "input", "type": "site_type"}
_OF_PROMPTS = {
    "cos_lens_clean": replace(
        NUMBERS["cos_lens_clean"], title="Condition vs. prompt",
        meaning="cosine of what the decoder is given with what the pipeline gives it of the whole prompt",
    ),
    "leak": replace(
        NUMBERS["leak"],
        meaning="likeness to the prompt of random directions over that of the site, what is read of the average prompt "
        "taken away; near 0 the likeness is the site's, near 1 any direction has as much; undefined where the site has "
        "none, or without reference means",
    ),
}  # fmt: skip
_AGREEMENT = Number(
    title="Agreement of decoders", unit="cosine", low=-1.0, high=1.0, signed=True,
    meaning="cosine of the pictures that two decoders drew of the same embedding",
)  # fmt: skip
_COLUMNS |= {name: name for name in ("site", "layer", "head", "seed", "label", *NUMBERS)}
_INTERVALS = [control_columns(name)[3:] for name in CONTROLS]


def page_data(record: Record, base: str) -> dict[str, Any]:
    """Return everything that the page shows; ``base`` leads from the page to the record's directory."""
    table, manifest = record.table, record.manifest
    texts, live, beside = texts_data(record), live_data(record), beside_data(record)
    spent = len(json.dumps([texts, live, beside]))
    room = max(BUDGET - spent, BUDGET // 4) // (1 if record.second is None else 2)
    thumbs = inline_pictures(record.picture, [int(row) for row in table["row"]], room)
    second = _second(record, base, room)
    groups, membership = _groups(record)
    plan = manifest["batch_plan"].get("budget")
    numbers = NUMBERS if all(map(has_picture, manifest["inputs"])) else NUMBERS | _OF_PROMPTS
    numbers = numbers | ({"agreement": _AGREEMENT} if second else {})
    budget = plan and {"coarse": plan["coarse"] and plan["coarse"]["words"], "same_above": plan["same_above"]}
    return {
        "base": base, "threshold": DRAWN_THRESHOLD, "numbers": {key: vars(number) for key, number in numbers.items()},
        "images": _images(record), "groups": groups,
        "rows": {
            "group": membership,
            "thumb": [thumbs.get(row) for row in range(len(table))],
            "drawn": _plain(table["drawn"]) if budget else None,
            "same_as": _plain(table["same_as"]) if budget else None,
            **{key: _plain(table[column]) if column in table else [None] * len(table) for key, column in _columns()},
            **({"agreement": second["agreement"]} if second else {}),
        },
        "second": second,
        "budget": budget, "seeds": manifest["seeds"].get("decoder") or [], "drawn": manifest["decoder"] is not None,
        "controls": {
            name: {"words": control.words, **control_columns(name)._asdict()} for name, control in CONTROLS.items()
        },
        "left_out": _left_out(record), "texts": texts, "beside": beside, "live": live,
    }  # fmt: skip


def _second(record: Record, base: str, room: int) -> dict[str, Any] | None:
    """Return what a second decoder drew, and how much its pictures and the first's have in common; None without one."""
    second = record.second
    if second is None:
        return None
    thumbs = inline_pictures(second.picture, [int(row) for row in second.table["row"]], room)
    found, n = record.agreement, len(second.table)
    names = {"agreement": "agreement", "null": "agreement_null", "p": "agreement_p", "n": "agreement_mismatched"}
    return {
        "base": f"{base}{SECOND}/", "thumb": [thumbs.get(row) for row in range(n)],
        "names": [str(one.manifest["decoder"]["decoder_id"]) for one in (record, second)],
        "words": str(second.manifest["decoder"]["words"]), "judge": judge_words(second.manifest),
        "agrees": AGREES, "disagrees": DISAGREES, "wholly": WHOLLY, "least": LEAST,
        "is_part": bool(record.manifest["shard"]),
        **{key: [None] * n if found is None else _plain(found[column]) for key, column in names.items()},
    }  # fmt: skip


def _left_out(record: Record) -> str:
    """Say which controls sites of images are not held against, and why; empty if there are none, and for prompts."""
    if not any(map(has_picture, record.manifest["inputs"])):
        return ""
    held = record.manifest["controls"] or {}
    if "measured" not in held:
        missing = [control.words for name, control in CONTROLS.items() if name != "random"]
        return f"This record was made before sites were held against {' and '.join(missing)}: it has no such numbers."
    return " ".join(f"{why[:1].upper()}{why[1:]}." for why in held["left_out"].values())


def _columns() -> list[tuple[str, str]]:
    """Return the columns that rows of the page have, by their name there."""
    return [*_COLUMNS.items(), ("S_lens_clean", "S_lens_clean"), *((end, end) for ends in _INTERVALS for end in ends)]


def _images(record: Record) -> list[dict[str, Any]]:
    names = {int(image["index"]): str(image["name"]) for image in record.manifest["inputs"]}
    thumbs = inline_pictures(record.input, list(names))
    other = {int(image["index"]): str(image.get("other") or "") for image in record.manifest["inputs"]}
    return [
        {"index": index, "name": name, "thumb": thumbs.get(index), "other": other[index]}
        for index, name in names.items()
    ]


def _groups(record: Record) -> tuple[list[dict[str, Any]], list[int]]:
    """Number the readings in the order of their rows, and say which one each row belongs to."""
    order = {name: number for number, name in enumerate(dict.fromkeys(record.table["reading"]))}
    readings = [record.readings[name] for name in order]
    anchored = [place for place, one in enumerate(readings) if one.settings.get("anchor_content") is not None]
    anchors = inline_pictures(lambda place: record.anchor(readings[place].id), anchored, _NEIGHBOURS)
    groups = [
        {
            "id": one.id, "of": one.of, "lens": one.lens, "label": one.label, "control": one.control,
            "words": one.words, "anchor": None if one.settings.get("anchor") is None else str(one.settings["anchor"]),
            "anchor_thumb": anchors.get(place),
            "settings": ", ".join(f"{name}: {value}" for name, value in one.settings.items() if value is not None),
        }
        for place, one in enumerate(readings)
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


def texts_data(record: Record) -> dict[str, Any] | None:
    """Return the captions; with live numbers also their embeddings, where they are small enough for a page."""
    beside = record.readouts
    if beside is None or beside.texts is None:
        return None
    unit = _encode(beside.texts) if record.live is not None else ""
    return {
        "captions": list(beside.captions), "groups": dict(beside.groups), "scale": beside.logit_scale,
        "bias": beside.logit_bias, "unit": unit if len(unit) <= LIVE_BUDGET // 2 else "",
    }  # fmt: skip


def beside_data(record: Record) -> dict[str, Any] | None:
    """Return captions, nearest images and probes' answers of every row."""
    beside = record.readouts
    if beside is None:
        return None
    indices = sorted(beside.names)
    return {
        "captions": {form: _flat(found) for form, found in beside.by_caption.items()},
        "probes": {name: _flat(found) for name, found in beside.by_probe.items()},
        "answers": {name: list(answers) for name, answers in beside.answers.items()},
        "images": {form: _flat(found) for form, found in beside.by_image.items()},
        "names": {str(index): beside.names[index] for index in indices},
        "thumbs": {str(i): uri for i, uri in inline_pictures(record.neighbour, indices, _NEIGHBOURS).items()},
        "means": beside.means,
    }


def live_data(record: Record) -> dict[str, Any] | None:
    """Return the live numbers of as many images as fit."""
    live = record.live
    if live is None:
        return None
    images: dict[str, dict[str, str]] = {}
    spent = 0
    for place, image in enumerate(live.images):
        numbers = {name: _encode(value[place]) for name in _TENSORS if (value := getattr(live, name)) is not None}
        spent += sum(map(len, numbers.values()))
        if spent > LIVE_BUDGET:
            break
        images[str(image)] = numbers
    return {"labels": list(live.labels), "recomputed": live.recomputed, "eps": live.eps, "images": images}


def _flat(found: Found) -> dict[str, Any]:
    cosines = torch.nan_to_num(found.cosine, nan=0.0).flatten().tolist()
    return {
        "k": found.index.shape[1], "index": found.index.flatten().tolist(), "cosine": [round(c, 3) for c in cosines]
    }  # fmt: skip


def _encode(values: Tensor) -> str:
    """Return float32 numbers, low byte first, as base64."""
    return base64.b64encode(values.detach().cpu().contiguous().numpy().astype("<f4").tobytes()).decode("ascii")
