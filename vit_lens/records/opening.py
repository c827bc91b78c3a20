"""Reading the files of a record with their checks."""

__all__ = ["DAMAGED", "check_table", "read_bytes", "read_manifest", "read_table", "read_tensors"]

import json
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import safe_open
from torch import Tensor

from vit_lens.errors import RecordError
from vit_lens.files import damaged, file_tensors
from vit_lens.records.named_readings import Reading
from vit_lens.records.schema import DRAWN, check_manifest, csv_to_table, picture_name

DAMAGED = "the record is damaged, sweep again"


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest ``record.json`` in a record's folder, of any format.

    Raises:
        RecordError: It is missing or damaged.

    >>> record = vl.sweep(model, None, images[:1], lens="diffusion", sites="L7.resid_post", out=tmp / "manifest")
    >>> vl.records.read_manifest(record.path)["model"]["encoder_id"]
    'vit_lens/mini'
    """
    file = path / "record.json"
    try:
        manifest = json.loads(file.read_bytes())
    except OSError as error:
        raise RecordError(f"{path} holds no record.json ({error.strerror}); give the directory of a sweep") from error
    except ValueError as error:
        raise RecordError(f"{file} is not readable JSON ({error}); the record is damaged, sweep again") from error
    is_old = isinstance(manifest, dict) and manifest.get("format") == 1
    return manifest if is_old else check_manifest(manifest, str(file))


def read_bytes(file: Path) -> bytes:
    """Read a file; RecordError if that is impossible."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise RecordError(f"{file} cannot be read ({error.strerror}); run the same sweep again") from error


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read a file's tensors and what describes them; None if there is none, RecordError if it is damaged."""
    if not file.exists():
        return None
    with damaged(RecordError, f"{file} cannot be read", DAMAGED), safe_open(file, "pt") as opened:
        return file_tensors(opened), json.loads(opened.metadata()["described"])


def read_table(path: Path, manifest: dict[str, Any]) -> pd.DataFrame:
    """Read ``table.csv``; RecordError if it is missing, truncated or does not fit the manifest."""
    file = path / "table.csv"
    return check_table(csv_to_table(read_bytes(file), str(file), manifest["columns"]), manifest, str(file))


def check_table(table: pd.DataFrame, manifest: dict[str, Any], where: str) -> pd.DataFrame:
    """Return a table that fits its manifest; RecordError otherwise."""
    n_rows = manifest["batch_plan"].get("n_rows")
    if len(table) != n_rows:
        raise RecordError(
            f"{where} has {len(table)} rows, the manifest says {n_rows}; the table is truncated, sweep again"
        )
    known = {entry["index"] for entry in manifest["inputs"]}
    if strangers := sorted(set(table["input"]) - known):
        raise RecordError(f"{where} names input {strangers[0]}, the manifest knows only {sorted(known)}")
    readings = {Reading.from_dict(found, where).id for found in manifest["readings"]}
    if strange := sorted(set(table["reading"]) - readings):
        raise RecordError(f"{where} names the reading {strange[0]!r}, the manifest knows only {sorted(readings)}")
    for row, (name, drawn) in enumerate(zip(table["picture"], table["drawn"], strict=True)):
        if drawn not in DRAWN:
            raise RecordError(f"{where}: row {row} is drawn {drawn!r}, expected one of {DRAWN}; sweep again")
        if name not in ("", picture_name(row, drawn)):
            raise RecordError(f"{where}: row {row} names the picture {name!r}, expected {picture_name(row, drawn)!r}")
    if strangers := [row for row in table["same_as"].dropna() if not 0 <= row < len(table)]:
        raise RecordError(f"{where}: a row shares the picture of row {strangers[0]}, the last is {len(table) - 1}")
    return table
