"""Writing a record while the sweep goes on, so that a killed sweep loses no finished picture."""

__all__ = ["RecordWriter"]

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
from jaxtyping import UInt8
from torch import Tensor

from vit_lens.conditions import Condition
from vit_lens.errors import OutputError, RecordError
from vit_lens.files import append, as_path, exclusive, make_directory, write_atomic
from vit_lens.records import schema
from vit_lens.records.answers import Readouts, anchor_name, gallery_name, load_readouts, readouts_bytes
from vit_lens.records.encoding import encode_png, is_png
from vit_lens.records.live import LiveNumbers, live_bytes_of, load_live
from vit_lens.records.opening import RecordFiles, manifest_content, noted, read_manifest
from vit_lens.records.row_files import HeldConditions, StoredConditions, rows_per_part, write_conditions

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

        Whoever opens it holds it (:func:`vit_lens.files.exclusive`), since what killed writers left is cleared away.

        Raises:
            RecordError: The directory holds another sweep, or files that are not a record.
            OutputError: It cannot be created or written.
        """
        self.path = as_path(path, OutputError)
        manifest = schema.check_manifest(json.loads(schema.json_bytes(manifest)), "new record")
        self._columns = manifest["columns"]
        self.manifest, self.table = manifest, schema.to_table(rows, self._columns)
        if manifest["batch_plan"]["n_rows"] != len(self.table):
            raise RecordError(
                f"the batch plan says {manifest['batch_plan']['n_rows']} rows, the table has {len(self.table)}"
            )
        self.files, self._listing = RecordFiles(self.path), threading.Lock()
        self._noted: dict[str, tuple[int, str]] = {}
        make_directory(self.path)
        self.resumed = (self.path / "record.json").exists()
        planned = schema.table_to_csv(self.table, self._columns)
        if self.resumed:
            self._continue()
        elif strangers := [file for file in self.path.iterdir() if not _is_own(file, planned)]:
            raise RecordError(
                f"{self.path} is not empty and holds no record ({strangers[0].name}); choose an empty or new directory"
            )
        else:
            self._begin_list()
            self._put("table.csv", planned)  # before the manifest, so that there is never one without a table
            self._amend()
        coarse = ["pictures/coarse"] if "budget" in self.manifest["batch_plan"] else []
        gallery = ["gallery"] if (self.path / "gallery").exists() else []
        for folder in ("pictures", "inputs", *coarse, *gallery):
            make_directory(self.path / folder)
        self._open_conditions()

    @classmethod
    @contextmanager
    def held(cls, path: Path, manifest: Mapping[str, Any], rows: Rows) -> Iterator["RecordWriter"]:
        """Open ``path`` against other processes, for the time of a ``with`` block.

        Raises:
            OutputError: Another process writes it.
        """
        make_directory(path)
        with exclusive(path):
            try:
                writer = cls(path, manifest, rows)
            except RecordError:
                if not (path / "record.json").exists():
                    (path / ".vit_lens.lock").unlink()  # somebody else's files stay as they are
                raise
            yield writer

    def _put(self, name: str, data: bytes) -> None:
        said = noted(data)
        with self._listing:
            held = self.files.listed.setdefault(name, [])
            if said not in held:  # listed before it is written: of a kill in between, no file is left unknown
                held.append(said)
                if self.manifest["complete"]:
                    self._amend(complete=False)
                append(self.path / "files.csv", _line(name, *said))
        write_atomic(self.path / name, data)
        self._noted[name] = said

    def _begin_list(self) -> None:
        """Begin the list, or go on with what it says of files that are there; what a lost one said, they say now."""
        known = self.files.listed or {name: [self._noted[name]] for name in self._found() if self.holds(name)}
        there = sorted((name for name in known if self.files.size(name) is not None), key="table.csv".__eq__)
        write_atomic(self.path / "files.csv", _lines((name, *said) for name in there for said in known[name]))
        self.files = RecordFiles.of(self.path, self.manifest)

    def write_input(self, index: int, picture: Picture) -> None:
        """Store what the model saw of an image."""
        self._put(schema.input_name(index), encode_png(picture))

    def write_picture(self, row: int, picture: Picture, drawn: str = "full") -> str:
        """Store the decoded picture of ``row``; returns its path relative to the record. Threads may call this."""
        if not 0 <= row < len(self.table):
            raise RecordError(f"no row {row}; the plan has {len(self.table)} rows")
        self._put(schema.picture_name(row, drawn), encode_png(picture, _COMPRESS_LEVEL))
        return schema.picture_name(row, drawn)

    def picture(self, row: int, drawn: str = "full") -> PIL.Image.Image:
        """Return a picture that lies on disk; RecordError if it is missing or damaged."""
        return self.files.picture(schema.picture_name(row, drawn))

    def write_table(self, rows: Rows) -> None:
        """Store the whole table; its plan columns must be those the record was opened with."""
        table = schema.to_table(rows, self._columns)
        self._refuse(_other_plan(self.table, table))
        self._put("table.csv", schema.table_to_csv(table, self._columns))
        self.table = table

    def begin_conditions(self, shapes: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
        """Say what one row of each kind of condition holds (``lens``, ``reencoded``, ``clean``, ``negative``).

        Raises:
            RecordError: The record was begun with others.
        """
        said = {name: {part: list(shape) for part, shape in of.items()} for name, of in shapes.items()}
        stored = self.manifest["conditions"]
        if stored is not None:
            return self._refuse(schema.differing(stored["shapes"], said, "conditions"))
        largest = max(said.values(), key=lambda of: -rows_per_part(of))
        self._amend(conditions={"shapes": said, "rows_per_part": rows_per_part(largest)})
        self._open_conditions()

    def write_conditions(self, name: str, held: Condition, rows: Iterable[int]) -> None:
        """Store the parts in which some rows lie; ``held`` holds all rows."""
        per_part = self.manifest["conditions"]["rows_per_part"]
        for file, data in write_conditions(name, held.kept(), rows, per_part).items():
            self._put(file, data)

    def hold_conditions(self) -> HeldConditions:
        """Return the conditions to read and change row by row; see :meth:`write_changed`."""
        return HeldConditions(self.conditions)

    def write_changed(self, held: HeldConditions) -> None:
        """Store the parts of conditions that have changed."""
        for file, data in held.changed():
            self._put(file, data)

    def write_neighbour(self, index: int, picture: Picture) -> None:
        """Store a small copy of a gallery's picture."""
        make_directory(self.path / "gallery")
        self._put(gallery_name(index), encode_png(picture))

    def write_anchor(self, content: str, picture: Picture) -> None:
        """Store the picture that a reading starts from."""
        if not self.holds(name := anchor_name(content)):
            make_directory(self.path / "anchors")
            self._put(name, encode_png(picture))

    def write_readouts(self, readouts: Readouts) -> None:
        """Store captions and nearest images of all rows at once."""
        self._put(schema.READOUTS_FILE, readouts_bytes(readouts))

    def write_live(self, live: LiveNumbers) -> None:
        """Store the numbers of the live page."""
        self._put(schema.LIVE_FILE, live_bytes_of(live))

    def add_change(self, change: Mapping[str, Any]) -> None:
        """Store that a batch was drawn otherwise than planned."""
        plan = self.manifest["batch_plan"]
        self._amend(batch_plan={**plan, "changes": [*plan.get("changes", []), dict(change)]})

    def add_budget(self, given: str) -> None:
        """Store what this run of the sweep may spend; empty for all there is."""
        self._amend(budgets=[*self.manifest.get("budgets", []), given])

    def add_notes(self, notes: Iterable[str]) -> None:
        """Store notes that are not there yet."""
        if fresh := [note for note in notes if note not in self.manifest["notes"]]:
            self._amend(notes=[*self.manifest["notes"], *fresh])

    @property
    def readouts(self) -> Readouts | None:
        """The captions and neighbours on disk; None where there are none, or they are damaged."""
        with suppress(RecordError):
            return load_readouts(self.files, len(self.table))

    @property
    def live(self) -> LiveNumbers | None:
        """The live numbers on disk; None where there are none, or they are damaged."""
        with suppress(RecordError):
            return load_live(self.files)

    def holds(self, name: str) -> bool:
        """Whether a file is there whole: as it was written, and a picture with every checksum right."""
        try:
            data = self.files.read(name)
        except RecordError:
            return False
        if name.endswith(".png") and not is_png(data):
            return False
        self._noted[name] = noted(data)
        return True

    def finished_rows(self, drawn: str = "full") -> frozenset[int]:
        """Return the rows whose picture, drawn so, lies on disk whole."""
        return frozenset(row for row in range(len(self.table)) if self.holds(schema.picture_name(row, drawn)))

    def finish(self, notes: Iterable[str] = ()) -> None:
        """List every file and mark the record complete; RecordError while one is missing."""
        expected = list(dict.fromkeys([*schema.expected_files(self.manifest), *self._noted]))
        kept = {name: self._noted[name] for name in sorted({*expected, *self._found()}) if self._is_still(name)}
        if lost := [name for name in expected if name not in kept]:
            raise RecordError(
                f"{len(lost)} of {len(expected)} files of {self.path} are missing or damaged, the first is {lost[0]}; "
                "run the same sweep again"
            )
        self.add_notes(notes)
        listed = _lines((name, *said) for name, said in kept.items())
        write_atomic(self.path / "files.csv", listed)
        self._amend(files={"n": len(kept), "sha256": noted(listed)[1]}, complete=True)

    def _found(self) -> set[str]:
        return {file.relative_to(self.path).as_posix() for pattern in _LISTED for file in self.path.glob(pattern)}

    def _is_still(self, name: str) -> bool:
        return (name in self._noted or self.holds(name)) and self.files.size(name) == self._noted[name][0]

    def _amend(self, **changes: Any) -> None:
        manifest = {**self.manifest, **changes}
        said = schema.json_bytes({**manifest, "content": manifest_content(manifest)})
        write_atomic(self.path / "record.json", said)
        self.manifest = manifest

    def _continue(self) -> None:
        stored = read_manifest(self.path)
        if stored["format"] == 1:
            raise RecordError(
                f"{self.path} holds a record of format 1, which loads and reports but is not gone on with; choose "
                "another directory, or the version of vit_lens that wrote it"
            )
        for key in schema.IDENTITY_KEYS:
            self._refuse(schema.differing(_planned(stored, key), _planned(self.manifest, key), key))
        self.manifest, self.files = stored, RecordFiles.of(self.path, stored)
        names = [*schema.expected_files(stored), *self.files.listed]
        if stored["complete"] and not all(name in self.files.listed and self.holds(name) for name in names):
            self._amend(complete=False)
        if not self.manifest["complete"]:
            self._begin_list()
        try:
            table = self.files.table(stored)
        except RecordError:  # lost or damaged, and made anew
            self._put("table.csv", schema.table_to_csv(self.table, self._columns))
        else:
            self._refuse(_other_plan(table, self.table))
            self.table = table

    def _open_conditions(self) -> None:
        self.conditions = StoredConditions(self.files, self.manifest, mend=True)
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


def _other_plan(old: pd.DataFrame, new: pd.DataFrame) -> str:
    """Say where the plan of two tables differs; empty if it does not."""
    plans = [table[list(schema.PLAN_COLUMNS)] for table in (old, new)]
    if plans[0].equals(plans[1]):
        return ""
    return schema.differing(*(plan.astype("string").fillna("").to_dict("records") for plan in plans), key="rows")


def _is_own(file: Path, table: bytes) -> bool:
    """Whether a file of a directory without a record is what a killed writer of this one left there."""
    known = {"table.csv": table, "files.csv": _lines([])}
    return file.name.startswith(".vit_lens") or (file.name in known and file.read_bytes().startswith(known[file.name]))


def _lines(files: Iterable[tuple[str, int, str]]) -> bytes:
    """Return ``files.csv``."""
    head = f"{','.join(schema.LISTED)}\n".encode()
    return head + b"".join(_line(*file) for file in files)


def _line(name: str, size: int, sha256: str) -> bytes:
    return f"{name},{size},{sha256},{_MEDIA[Path(name).suffix]}\n".encode()
