"""The one door to the files of a record: whole, inside it, within bounds, and as the record says that it wrote them."""

__all__ = ["AGAIN", "RecordFiles", "check_table", "manifest_content", "noted", "read_manifest"]

import hashlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import PIL.Image
from safetensors.torch import load
from torch import Tensor

from vit_lens.errors import RecordError
from vit_lens.files import damaged, parse_json
from vit_lens.records.encoding import open_png
from vit_lens.records.named_readings import Reading
from vit_lens.records.schema import (
    DRAWN,
    LISTED,
    check_manifest,
    csv_rows,
    csv_to_table,
    expected_files,
    json_bytes,
    picture_name,
)  # fmt: skip

AGAIN = "run the same sweep again, which makes anew what was lost"
_MOST_BYTES = 2**32  # of one file


@dataclass(frozen=True, eq=False)
class RecordFiles:
    """The files in a record's folder.

    A complete record's list has a line for each file. While the record is written, a line is added before a file is:
    the files of lines above that of a table lie on disk, and each holds what one of its lines says.

    Attributes:
        path: The folder.
        listed: Sizes and SHA-256 that the record says its files have, by name; empty where it says of none.
        surely: The names of files that lie there, unless they were lost.
        closed: Whether there are no others.
    """

    path: Path
    listed: dict[str, list[tuple[int, str]]] = field(default_factory=dict, repr=False)
    surely: frozenset[str] = field(default=frozenset(), repr=False)
    closed: bool = False

    @classmethod
    def of(cls, path: Path, manifest: Mapping[str, Any]) -> "RecordFiles":
        """Return the files of a record with what its list says; without, where the list itself is lost."""
        if manifest["complete"]:
            listed, _ = _read_list(path, (manifest["files"] or {}).get("sha256"))
            return cls(path, listed, frozenset(listed), closed=bool(listed))
        return cls(path, *_read_list(path))

    @cached_property
    def _root(self) -> Path:
        return self.path.resolve()

    def exists(self, name: str) -> bool:
        """Whether there is such a file, or should be."""
        return name in self.surely or (not self.closed and (self.path / name).exists())

    def size(self, name: str) -> int | None:
        """Return the bytes of a file; None where there is none."""
        try:
            found = (self.path / name).stat()
        except (OSError, ValueError):  # a name that no file can have, too
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def lost(self, manifest: Mapping[str, Any]) -> list[str]:
        """Return the files of a complete record that are missing, or have another size than its list says."""
        names = dict.fromkeys([*expected_files(manifest), *self.listed])
        return [name for name in names if self.size(name) not in [size for size, _ in self.listed.get(name, [])]]

    def read(self, name: str) -> bytes:
        """Return a file whole.

        Raises:
            RecordError: It is missing, too large, no plain file, not in the folder, or not what the record wrote.
        """
        file = self.path / name
        try:
            if not file.resolve().is_relative_to(self._root):
                raise RecordError(f"{file} leads out of the record, to {file.resolve()}; remove the link, then {AGAIN}")
            if (size := self.size(name)) is None:
                what = "is no plain file" if file.exists() else "does not exist"
                raise RecordError(f"{file} {what}; the sweep is unfinished: {AGAIN}")
            if size > _MOST_BYTES:
                raise RecordError(f"{file} has {size} bytes, more than a record writes; remove it, then {AGAIN}")
            data = file.read_bytes()
        except (OSError, RuntimeError) as error:  # a link to itself is a RuntimeError before Python 3.13
            raise RecordError(f"{file} cannot be read ({error}); {AGAIN}") from error
        if self.listed and not self._knows(name, data):
            raise RecordError(f"{file} is not what the record wrote: it is damaged, or another file; {AGAIN}")
        return data

    def _knows(self, name: str, data: bytes) -> bool:
        said = noted(data)
        if said in self.listed.get(name, []) or self.closed:
            return said in self.listed.get(name, [])
        listed, _ = _read_list(self.path)  # another process may have written it since
        return said in listed.get(name, [])

    def picture(self, name: str) -> PIL.Image.Image:
        """Return the picture in a PNG file."""
        return open_png(self.read(name), self.path / name)

    def tensors(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return a file's tensors and what describes them."""
        data = self.read(name)
        with damaged(RecordError, f"{self.path / name} cannot be read", AGAIN):
            found = load(data)
            head = data[8 : 8 + int.from_bytes(data[:8], "little")]
            said = parse_json(head, name, RecordError, AGAIN).get("__metadata__", {}).get("described", "{}")
            return found, parse_json(said, name, RecordError, AGAIN)

    def table(self, manifest: dict[str, Any]) -> pd.DataFrame:
        """Return ``table.csv``; RecordError if it is truncated or does not fit the manifest."""
        where = str(self.path / "table.csv")
        return check_table(csv_to_table(self.read("table.csv"), where, manifest["columns"]), manifest, where)


def _read_list(path: Path, sha256: str | None = None) -> tuple[dict[str, list[tuple[int, str]]], frozenset[str]]:
    """Return what ``files.csv`` says, and the names above the last line of a table; nothing where it is lost."""
    listed: dict[str, list[tuple[int, str]]] = {}
    surely = frozenset()
    try:
        data = RecordFiles(path).read("files.csv")
        if sha256 not in (None, noted(data)[1]):
            return {}, surely
        whole = data[: data.rfind(b"\n") + 1]  # who adds a line may be killed
        for row in csv_rows(whole, str(path / "files.csv"), list(LISTED)):
            if row["path"] == "table.csv":
                surely = frozenset(listed)
            listed.setdefault(row["path"], []).append((int(row["size"]), row["sha256"]))
    except (RecordError, ValueError):
        return {}, frozenset()
    return listed, surely


def noted(data: bytes) -> tuple[int, str]:
    """Return what a record's list says of a file: its size and SHA-256."""
    return len(data), hashlib.sha256(data).hexdigest()


def manifest_content(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest, which ``record.json`` holds as ``content`` beside it."""
    return noted(json_bytes(manifest))[1]


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest ``record.json`` in a record's folder, of any format.

    Raises:
        RecordError: It is missing or damaged.

    >>> record = vl.sweep(model, None, images[:1], lens="diffusion", sites="L7.resid_post", out=tmp / "manifest")
    >>> vl.records.read_manifest(record.path)["model"]["encoder_id"]
    'vit_lens/mini'
    """
    if not (path / "record.json").is_file():
        raise RecordError(f"{path} holds no record.json; give the directory of a sweep")
    where, advice = str(path / "record.json"), "the record is damaged: remove its folder, or sweep into another"
    manifest = parse_json(RecordFiles(path).read("record.json"), where, RecordError, advice)
    content = manifest.pop("content", None)
    if manifest.get("format") == 1:
        return manifest
    if content not in (None, manifest_content(check_manifest(manifest, where))):  # None: written before there was one
        raise RecordError(f"{where} is not what the record wrote (its content has another hash); {advice}")
    return manifest


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
