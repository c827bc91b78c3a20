"""Writing a record while the sweep goes on, so that a killed sweep loses no finished picture."""

__all__ = ["RecordWriter"]

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
from jaxtyping import UInt8
from torch import Tensor

from vit_lens.conditions import Condition
from vit_lens.errors import RecordError
from vit_lens.files import clear_temporary, make_directory, write_atomic
from vit_lens.records.answers import READOUTS_FILE, Readouts, gallery_name, readouts_bytes
from vit_lens.records.encoding import encode_png, is_whole_png, read_png
from vit_lens.records.live import LIVE_FILE, LiveNumbers, live_bytes_of
from vit_lens.records.opening import read_manifest, read_table
from vit_lens.records.row_files import StoredConditions, rows_per_part, write_conditions
from vit_lens.records.schema import (
    IDENTITY_KEYS,
    PLAN_COLUMNS,
    check_manifest,
    differing,
    input_name,
    json_bytes,
    picture_name,
    table_to_csv,
    to_table,
)

_COMPRESS_LEVEL = 1  # of pictures, most of a sweep's files: zlib's time is spent beside the decoder's
_MEDIA = {".png": "image/png", ".csv": "text/csv", ".safetensors": "application/vnd.safetensors"}
_LISTED = ("table.csv", "*.safetensors", "embeddings/*/*.safetensors", "*/*.png", "pictures/coarse/*.png")
Rows = pd.DataFrame | Sequence[Mapping[str, Any]]
Picture = PIL.Image.Image | UInt8[Tensor, "height width 3"] | UInt8[np.ndarray, "height width 3"]


class RecordWriter:
    """A record directory that is being written: created anew, or continued if it holds the same sweep.

    :func:`vit_lens.sweep` writes with it; :meth:`finish` marks the record complete. ``manifest``, ``table`` and
    ``conditions`` are what lies on disk now; of a continued sweep they hold what the earlier run had stored.
    ``resumed`` says which of the two it is.
    """

    def __init__(self, path: str | os.PathLike[str], manifest: Mapping[str, Any], rows: Rows) -> None:
        """Open ``path`` for the sweep that ``manifest`` and the plan columns of ``rows`` describe.

        Raises:
            RecordError: The directory holds another sweep, or files that are not a record.
            OutputError: It cannot be created or written.
        """
        self.path = Path(path)
        manifest = check_manifest(json.loads(json_bytes(manifest)), "new record")
        self._columns = manifest["columns"]
        plan = to_table(rows, self._columns)
        if manifest["batch_plan"].get("n_rows") != len(plan):
            raise RecordError(
                f"the batch plan says {manifest['batch_plan'].get('n_rows')} rows, the table has {len(plan)}"
            )
        make_directory(self.path)
        self.resumed = (self.path / "record.json").exists()
        if not self.resumed and any(self.path.iterdir()):
            raise RecordError(f"{self.path} is not empty and holds no record; choose an empty or new directory")
        self.manifest, self.table = manifest, plan
        self.conditions: Mapping[str, Condition] = {}
        self._files: dict[str, tuple[int, str]] = {}
        if self.resumed:
            self._continue()
            for folder in (self.path, self.path / "pictures", self.path / "embeddings"):
                clear_temporary(folder)
        else:
            write_atomic(self.path / "record.json", json_bytes(manifest))
        for folder in ("pictures", "inputs"):
            make_directory(self.path / folder)
        if "budget" in self.manifest["batch_plan"]:
            make_directory(self.path / "pictures/coarse")
        if not (self.path / "table.csv").exists():
            self._put("table.csv", table_to_csv(self.table, self._columns))

    def _put(self, name: str, data: bytes) -> None:
        write_atomic(self.path / name, data)
        self._note(name, data)

    def _note(self, name: str, data: bytes) -> None:
        self._files[name] = (len(data), hashlib.sha256(data).hexdigest())

    def write_input(self, index: int, picture: Picture) -> None:
        """Store what the model saw of an image."""
        self._put(input_name(index), encode_png(picture))

    def write_picture(self, row: int, picture: Picture, drawn: str = "full") -> str:
        """Store the decoded picture of ``row``; returns its path relative to the record. Threads may call this."""
        if not 0 <= row < len(self.table):
            raise RecordError(f"no row {row}; the plan has {len(self.table)} rows")
        self._put(picture_name(row, drawn), encode_png(picture, _COMPRESS_LEVEL))
        return picture_name(row, drawn)

    def picture(self, row: int, drawn: str = "full") -> PIL.Image.Image:
        """Return a picture that lies on disk; RecordError if it is missing or damaged."""
        return read_png(self.path / picture_name(row, drawn))

    def write_table(self, rows: Rows) -> None:
        """Store the whole table; its plan columns must be those the record was opened with."""
        table = to_table(rows, self._columns)
        self._refuse(differing(_plan_of(self.table), _plan_of(table), "rows"))
        self._put("table.csv", table_to_csv(table, self._columns))
        self.table = table

    def begin_conditions(self, shapes: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
        """Say what one row of each kind of condition holds (``lens``, ``reencoded``, ``clean``, ``negative``).

        Raises:
            RecordError: The record was begun with others.
        """
        said = {name: {part: list(shape) for part, shape in of.items()} for name, of in shapes.items()}
        stored = self.manifest["conditions"]
        if stored is not None:
            return self._refuse(differing(stored["shapes"], said, "conditions"))
        largest = max(said.values(), key=lambda of: -rows_per_part(of))
        self._amend(conditions={"shapes": said, "rows_per_part": rows_per_part(largest)})
        self._read_conditions()

    def write_conditions(self, name: str, held: Condition, rows: Iterable[int]) -> None:
        """Store the parts in which some rows lie; ``held`` holds all rows."""
        per_part = self.manifest["conditions"]["rows_per_part"]
        for file, data in write_conditions(name, held.kept(), rows, per_part).items():
            self._put(file, data)

    def write_neighbour(self, index: int, picture: Picture) -> None:
        """Store a small copy of a gallery's picture."""
        make_directory(self.path / "gallery")
        self._put(gallery_name(index), encode_png(picture))

    def write_readouts(self, readouts: Readouts) -> None:
        """Store captions and nearest images of all rows at once."""
        self._put(READOUTS_FILE, readouts_bytes(readouts))

    def write_live(self, live: LiveNumbers) -> None:
        """Store the numbers of the live page."""
        self._put(LIVE_FILE, live_bytes_of(live))

    def add_change(self, change: Mapping[str, Any]) -> None:
        """Store that a batch was drawn otherwise than planned."""
        plan = self.manifest["batch_plan"]
        self._amend(batch_plan={**plan, "changes": [*plan.get("changes", []), dict(change)]})

    def add_budget(self, given: str) -> None:
        """Store what this run of the sweep may spend."""
        self._amend(budgets=[*self.manifest.get("budgets", []), given])

    def add_notes(self, notes: Iterable[str]) -> None:
        """Store notes that are not there yet."""
        if fresh := [note for note in notes if note not in self.manifest["notes"]]:
            self._amend(notes=[*self.manifest["notes"], *fresh])

    def finished_rows(self, drawn: str = "full") -> frozenset[int]:
        """Return the rows whose picture, drawn so, lies on disk whole."""
        return frozenset(row for row in range(len(self.table)) if is_whole_png(self.path / picture_name(row, drawn)))

    def finish(self, notes: Iterable[str] = ()) -> None:
        """List every file and mark the record complete; RecordError while a picture is missing."""
        missing = sorted(set(range(len(self.table))) - self.finished_rows()) if self.manifest["decoder"] else []
        if missing:
            raise RecordError(
                f"{len(missing)} of {len(self.table)} pictures are missing, the first is row {missing[0]}"
            )
        self.add_notes(notes)
        listed = self._list()
        write_atomic(self.path / "files.csv", listed)
        said = {"n": listed.count(b"\n") - 1, "sha256": hashlib.sha256(listed).hexdigest()}
        self._amend(files=said, complete=True)

    def _list(self) -> bytes:
        """Return path, size, hash and media type of every file, those that an earlier run wrote included."""
        lines = []
        for file in sorted({file for pattern in _LISTED for file in self.path.glob(pattern)}):
            name = file.relative_to(self.path).as_posix()
            if name not in self._files:
                self._note(name, file.read_bytes())
            lines.append((name, *self._files[name], _MEDIA[file.suffix]))
        table = pd.DataFrame(lines, columns=["path", "size", "sha256", "media_type"])
        return table.to_csv(index=False, lineterminator="\n").encode()

    def _amend(self, **changes: Any) -> None:
        manifest = {**self.manifest, **changes}
        write_atomic(self.path / "record.json", json_bytes(manifest))
        self.manifest = manifest

    def _continue(self) -> None:
        stored = read_manifest(self.path)
        if stored["format"] == 1:
            raise RecordError(
                f"{self.path} holds a record of format 1, which loads and reports but is not gone on with; choose "
                "another directory, or the version of vit_lens that wrote it"
            )
        for key in IDENTITY_KEYS:
            self._refuse(differing(_planned(stored, key), _planned(self.manifest, key), key))
        self.manifest = stored
        if (self.path / "table.csv").exists():
            table = read_table(self.path, stored)
            self._refuse(differing(_plan_of(table), _plan_of(self.table), "rows"))
            self.table = table
        if stored["conditions"] is not None:
            self._read_conditions()

    def _read_conditions(self) -> None:
        self.conditions = StoredConditions(self.path, self.manifest)
        for name in self.conditions:
            make_directory(self.path / "embeddings" / name)

    def _refuse(self, difference: str) -> None:
        if difference:
            raise RecordError(f"{self.path} holds another sweep's record: {difference}; choose another directory")


def _planned(manifest: Mapping[str, Any], key: str) -> Any:
    """Return what was decided before anything was drawn; changes of the batch plan come after."""
    if key == "batch_plan":
        return {name: value for name, value in manifest[key].items() if name != "changes"}
    return manifest.get(key)


def _plan_of(table: pd.DataFrame) -> list[dict[Any, str]]:
    return table[list(PLAN_COLUMNS)].astype("string").fillna("").to_dict("records")
