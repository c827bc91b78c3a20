"""Reading the files of a record with their checks, and naming and choosing rows of its table."""

__all__ = ["lens_label", "read_embeddings", "read_manifest", "read_table", "select"]

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors
import safetensors.torch
from torch import Tensor

from vit_lens.errors import RecordError
from vit_lens.records.schema import DRAWN, check_manifest, csv_to_table, picture_name


def read_manifest(path: Path) -> dict[str, Any]:
    """Read ``record.json``; RecordError if it is missing, damaged or of another format."""
    file = path / "record.json"
    try:
        manifest = json.loads(file.read_bytes())
    except OSError as error:
        raise RecordError(f"{path} holds no record.json ({error.strerror}); give the directory of a sweep") from error
    except ValueError as error:
        raise RecordError(f"{file} is not readable JSON ({error}); the record is damaged, sweep again") from error
    return check_manifest(manifest, str(file))


def read_table(path: Path, manifest: dict[str, Any]) -> pd.DataFrame:
    """Read ``table.csv``; RecordError if it is missing, truncated or does not fit the manifest."""
    file = path / "table.csv"
    try:
        data = file.read_bytes()
    except OSError as error:
        raise RecordError(f"{file} cannot be read ({error.strerror}); run the same sweep again") from error
    table = csv_to_table(data, str(file))
    n_rows = manifest["batch_plan"].get("n_rows")
    if len(table) != n_rows:
        raise RecordError(
            f"{file} has {len(table)} rows, the manifest says {n_rows}; the table is truncated, sweep again"
        )
    known = {image["index"] for image in manifest["images"]}
    strangers = sorted(set(table["image"]) - known)
    if strangers:
        raise RecordError(f"{file} names image {strangers[0]}, the manifest knows only {sorted(known)}")
    for row, (name, drawn) in enumerate(zip(table["picture"], table["drawn"], strict=True)):
        if drawn not in DRAWN:
            raise RecordError(f"{file}: row {row} is drawn {drawn!r}, expected one of {DRAWN}; sweep again")
        if name not in ("", picture_name(row, drawn)):
            raise RecordError(f"{file}: row {row} names the picture {name!r}, expected {picture_name(row, drawn)!r}")
    strangers = [row for row in table["same_as"].dropna() if not 0 <= row < len(table)]
    if strangers:
        raise RecordError(f"{file}: a row shares the picture of row {strangers[0]}, the last is {len(table) - 1}")
    return table


def read_embeddings(path: Path, n_rows: int) -> dict[str, Tensor]:
    """Read ``embeddings.safetensors``; empty if there is none yet, RecordError if it is damaged."""
    file = path / "embeddings.safetensors"
    if not file.exists():
        return {}
    try:
        embeddings = safetensors.torch.load(file.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise RecordError(f"{file} cannot be read ({error}); the record is damaged, sweep again") from error
    for name in ("lens", "reencoded"):
        if name in embeddings and len(embeddings[name]) != n_rows:
            raise RecordError(f"{file}: {name!r} has {len(embeddings[name])} rows, the table {n_rows}; sweep again")
    return embeddings


def lens_label(lens: str, alpha: float | None, share: float | None, anchor: str | None) -> str:
    """Say in words which lens with which settings a row was read with."""
    if lens == "diffusion":
        return "Diffusion Lens"
    words = ["DSL" if lens == "dsl" else lens]
    if anchor:
        words.append(f"{anchor}-anchored")
    words += [f"{name} {value:g}" for name, value in (("alpha", alpha), ("share", share)) if _given(value)]
    return ", ".join(words)


def select(
    table: pd.DataFrame, *, image: int = 0, lens: str | None = None, kind: str = "site", types: tuple[str, ...] = ()
) -> pd.DataFrame:
    """Return the rows of one image read with one lens, with a column ``lens_label``.

    Args:
        table: the table of a record.
        image: index of the image.
        lens: a label of `lens_label`, or the beginning of it if only one fits, or "dsl" or "diffusion";
            None takes the first steering lens, or the first lens when nothing was steered.
        kind: "site" or "control".
        types: site types to keep; empty keeps all.
    """
    if image not in set(table["image"]):
        raise RecordError(f"no image {image} in this record; it has {sorted(set(table['image']))}")
    rows = table.loc[(table["image"] == image) & (table["kind"] == kind)]
    if types:
        rows = rows.loc[rows["site_type"].isin(types)]
    settings = zip(rows["lens"], rows["alpha"], rows["share"], rows["anchor"], strict=True)
    rows = rows.assign(lens_label=[lens_label(*setting) for setting in settings])
    labels = list(dict.fromkeys(rows["lens_label"]))
    if not labels:
        raise RecordError(f"image {image} has no {kind} rows of type {' or '.join(types) or 'any'} in this record")
    if lens is None:
        wanted = next((label for label in labels if label != "Diffusion Lens"), labels[0])
    else:
        wanted = _one_label(rows, labels, lens)
    return rows.loc[rows["lens_label"] == wanted]


def _given(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _one_label(rows: pd.DataFrame, labels: list[str], lens: str) -> str:
    if lens in labels:
        return lens
    fits = [label for label in labels if label.startswith(lens)]
    fits = fits or list(dict.fromkeys(rows["lens_label"][rows["lens"] == lens]))
    if len(fits) != 1:
        raise RecordError(f"lens {lens!r} names {len(fits)} of the readings in this record; choose one of {labels}")
    return fits[0]
