"""Records of format 1: loaded and shown as they are, never resumed or merged."""

__all__ = ["load_format_1"]

import hashlib
import json
from typing import Any

import pandas as pd

from vit_lens.conditions import Condition
from vit_lens.errors import RecordError
from vit_lens.files import damaged
from vit_lens.records.named_readings import Reading, told_apart
from vit_lens.records.opening import RecordFiles, check_table
from vit_lens.records.schema import COLUMNS, FORMAT, READOUTS_FILE, check_manifest, csv_rows, to_table

_DAMAGED = "the record is damaged: remove its folder, or sweep into another"

_COLUMNS = (
    *("row", "image", "image_name", "kind", "control", "site", "site_type", "layer", "head", "lens", "definition"),
    *("alpha", "share", "anchor", "seed", "norm_h", "cos_lens_clean", "cos_lens_control", "leak", "faithfulness"),
    *("cos_input", "label", "picture", "drawn", "same_as"),
)
# Earlier versions lack drawn and same_as, the first of them cos_lens_control and leak as well.
_EARLIER = tuple(name for name in _COLUMNS if name not in ("drawn", "same_as"))
_VERSIONS = (_COLUMNS, _EARLIER, tuple(name for name in _EARLIER if name not in ("cos_lens_control", "leak")))
_KEYS = (
    *("model", "decoder", "lenses", "images", "versions", "batch_plan", "seeds", "command", "complete", "shard"),
    "notes",
)
_LENS = ("lens", "definition", "alpha", "share", "anchor")
_READ = ("image", "seed", "site", "control", *_LENS)


def load_format_1(files: RecordFiles, old: dict[str, Any]) -> tuple[dict[str, Any], pd.DataFrame, dict[str, Condition]]:
    """Return manifest, table and conditions of a record of format 1 in the form of today; its format stays 1.

    A row of format 1 does not say which reference means it was read with. Where one lens of the manifest fits, it is
    that one's; where several do, the order in which a site was read tells them apart; else it is unknown, and equals
    no reference of another record.

    Raises:
        RecordError: The record is damaged.
    """
    if missing := [key for key in _KEYS if key not in old]:
        raise RecordError(f"{files.path / 'record.json'}: the manifest lacks {', '.join(missing)}; {_DAMAGED}")
    with damaged(RecordError, f"{files.path} cannot be read", _DAMAGED):
        return _loaded(files, old)


def _loaded(files: RecordFiles, old: dict[str, Any]) -> tuple[dict[str, Any], pd.DataFrame, dict[str, Condition]]:
    where, data = str(files.path / "table.csv"), files.read("table.csv")
    head = data.split(b"\n", 1)[0].decode(errors="replace").strip("\r").split(",")
    columns = next((list(known) for known in _VERSIONS if list(known) == head), list(_COLUMNS))
    rows = csv_rows(data, where, columns)
    readings, named = _readings(rows, old["lenses"], hashlib.sha256(json.dumps(old).encode()).hexdigest()[:8])
    table = to_table(
        [
            {"input": row["image"], "input_name": row["image_name"], "reading": reading}
            | {name: value for name, value in row.items() if name in COLUMNS}
            for row, reading in zip(rows, named, strict=True)
        ]
    )  # fmt: skip
    manifest = old | {
        "readings": [reading.to_dict() for reading in readings], "columns": dict(COLUMNS), "threads": None,
        "inputs": [{"kind": "image", **entry} for entry in old["images"]], "machine": None, "conditions": None,
        "beside": old.get("readouts"), "controls": old.get("controls"), "files": None,
        "decoder": old["decoder"] and old["decoder"] | {"words": _words(old["decoder"].get("settings") or {})},
    }  # fmt: skip
    budget = old["batch_plan"].get("budget")
    if budget and budget["coarse"]:
        coarse = budget["coarse"] | {"words": _words(budget["coarse"])}
        manifest["batch_plan"] = old["batch_plan"] | {"budget": budget | {"coarse": coarse}}
    check_manifest(manifest | {"format": FORMAT, "shard": None}, where)
    needed = [
        "embeddings.safetensors",
        *([READOUTS_FILE] if {"texts", "gallery"} & {*(manifest["beside"] or ())} else []),
    ]
    if lost := [name for name in needed if old["complete"] and not files.exists(name)]:
        raise RecordError(f"{files.path} is complete but has no {lost[0]}; {_DAMAGED}")
    return manifest, check_table(table, manifest, where), _embeddings(files, needed[0], len(table))


def _readings(
    rows: list[dict[str, str]], lenses: list[dict[str, Any]], unknown: str
) -> tuple[list[Reading], list[str]]:
    """Return the readings in order of appearance, and the id of each row's."""
    seen: dict[tuple[str, ...], int] = {}
    found: dict[str, Reading] = {}
    named = []
    for row in rows:
        key = tuple(row[name] for name in _READ)
        turn = seen[key] = seen.get(key, -1) + 1
        fits = [lens for lens in lenses if all(_text(lens.get(name)) == row[name] for name in _LENS)]
        settings = {name: _number(row[name]) for name in _LENS[1:] if row[name]}
        if row["anchor"] == "mean":
            known = fits[turn].get("reference_content") if turn < len(fits) else None
            settings["reference"] = known or f"unknown, of the record {unknown} (reading {turn})"
        lens, digits = row["lens"], hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        reading = Reading(id=f"{lens}-{digits}", lens=lens, settings=settings, label=_label(lens, settings))
        if row["control"] or row["kind"] == "control":
            reading = reading.controlled(row["control"] or "control")
        found.setdefault(reading.id, reading)
        named.append(reading.id)
    return told_apart(list(found.values())), named


def _words(settings: dict[str, Any]) -> str:
    guidance = settings.get("guidance", 1)
    return f"{settings.get('steps')} steps, {f'guidance {guidance:g}' if guidance > 1 else 'no guidance'}"


def _text(value: Any) -> str:
    return "" if value is None else repr(float(value)) if isinstance(value, (int, float)) else str(value)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _label(lens: str, settings: dict[str, Any]) -> str:
    if lens == "diffusion":
        return "Diffusion Lens"
    words = ["DSL" if lens == "dsl" else lens]
    words += [f"{settings['anchor']}-anchored"] if "anchor" in settings else []
    return ", ".join(words + [f"{name} {settings[name]:g}" for name in ("alpha", "share") if name in settings])


def _embeddings(files: RecordFiles, file: str, n_rows: int) -> dict[str, Condition]:
    found = files.tensors(file)[0] if files.exists(file) else {}
    for name in ("lens", "reencoded"):
        if name in found and len(found[name]) != n_rows:
            raise RecordError(f"{file}: {name!r} has {len(found[name])} rows, the table {n_rows}; {_DAMAGED}")
    return {name: Condition(pooled=value) for name, value in found.items()}
