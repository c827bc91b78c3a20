"""A finished or unfinished sweep, read back: manifest, readings, table, conditions and pictures."""

__all__ = ["Record"]

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex

import pandas as pd
import PIL.Image
from torch import Tensor

from vit_lens.conditions import Condition
from vit_lens.errors import RecordError, nearest
from vit_lens.records.answers import Readouts
from vit_lens.records.extras import gallery_name, load_live, load_readouts
from vit_lens.records.format1 import load_format_1
from vit_lens.records.live import LiveNumbers
from vit_lens.records.notebook import record_html
from vit_lens.records.opening import read_manifest, read_table
from vit_lens.records.parts import read_conditions, stored_length
from vit_lens.records.pictures import read_png
from vit_lens.records.readings import Reading
from vit_lens.records.schema import input_name, picture_name


class StoredConditions(Mapping[str, Condition]):
    """Conditions of a record by name, read when they are asked for."""

    def __init__(self, path: Path, manifest: Mapping[str, Any]):
        said = manifest["conditions"] or {"shapes": {}, "rows_per_part": 1}
        n_rows, n_inputs = manifest["batch_plan"]["n_rows"], len(manifest["inputs"])
        self._lengths = {"lens": n_rows, "reencoded": n_rows, "clean": n_inputs, "negative": 1}
        self._path, self.shapes, self._per_part = path, said["shapes"], said["rows_per_part"]
        self._read: dict[str, Condition] = {}

    def __getitem__(self, name: str) -> Condition:
        if name not in self._read:
            self._read[name] = read_conditions(self._path, name, *self._where(name))
        return self._read[name]

    def _where(self, name: str) -> tuple[int, int, Mapping[str, Any]]:
        if name not in self.shapes:
            raise KeyError(f"no conditions {name!r}; there are {list(self.shapes)}")
        return self._lengths[name], self._per_part, self.shapes[name]

    def check(self, names: tuple[str, ...]) -> None:
        """Raise if a name is not there whole, or a file does not hold what the manifest says: RecordError."""
        for name in names:
            if name not in self.shapes or stored_length(self._path, name, *self._where(name)) < self._lengths[name]:
                raise RecordError(
                    f"{self._path} is complete but its {name!r} embeddings are not; the record is damaged, sweep again"
                )

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class _Pooled(Mapping[str, Tensor]):
    def __init__(self, conditions: Mapping[str, Condition]):
        self._conditions = conditions

    def __getitem__(self, name: str) -> Tensor:
        found = self._conditions[name]
        if found.pooled is None:
            raise RecordError(
                f"{name!r} of this record is {found.words()}, not pooled; read record.conditions[{name!r}]"
            )
        return found.pooled

    def __iter__(self) -> Iterator[str]:
        held = self._conditions
        parts = held.shapes if isinstance(held, StoredConditions) else {name: held[name].parts() for name in held}
        return (name for name in held if "pooled" in parts[name])

    def __contains__(self, name: object) -> bool:
        return any(name == one for one in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Record:
    """What a sweep stored; an unfinished one has ``complete`` false and lacks some pictures and numbers.

    Attributes:
        path: Its directory.
        manifest: See :mod:`vit_lens.records.schema`.
        table: The rows; the column ``reading`` names one of the readings.
        readings: What rows were read with, by id.
        conditions: What was asked of the decoder (``lens``) and what its pictures are (``reencoded``), by row; what
            the inputs are (``clean``), by input; ``negative``.
    """

    path: Path
    manifest: dict[str, Any]
    table: pd.DataFrame
    readings: dict[str, Reading]
    conditions: Mapping[str, Condition]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Record":
        """Read the record in the directory ``path``; RecordError if it is missing, damaged or truncated."""
        path = Path(path)
        manifest = read_manifest(path)
        if manifest["format"] == 1:
            manifest, table, held = load_format_1(path, manifest)
            return cls(path=path, manifest=manifest, table=table, readings=_readings(path, manifest), conditions=held)
        table, conditions = read_table(path, manifest), StoredConditions(path, manifest)
        if manifest["complete"] and len(table):
            conditions.check(("lens", "clean", *(("reencoded",) if manifest["decoder"] else ())))
        readings = _readings(path, manifest)
        return cls(path=path, manifest=manifest, table=table, readings=readings, conditions=conditions)

    @property
    def complete(self) -> bool:
        """Whether the sweep came to its end."""
        return bool(self.manifest["complete"])

    def reading(self, name: str) -> Reading:
        """Return a reading by its id.

        Raises:
            RecordError: There is none.
        """
        if name not in self.readings:
            raise RecordError(f"no reading {name!r} in this record; nearest: {nearest(name, self.readings)}")
        return self.readings[name]

    def frame(self) -> pd.DataFrame:
        """Return the table with columns that say what each row was read with.

        ``lens``, ``control``, ``reading_label``, and every setting of the lenses under its name (``lens_NAME`` where
        there is a column of that name).
        """
        taken = {*self.table.columns, "lens", "control", "reading_label"}
        said = {
            one.id: {"lens": one.lens, "control": one.control, "reading_label": one.label}
            | {f"lens_{name}" if name in taken else name: value for name, value in one.settings.items()}
            for one in self.readings.values()
        }
        columns = dict.fromkeys(name for found in said.values() for name in found)
        return self.table.assign(
            **{name: [said[one].get(name) for one in self.table["reading"]] for name in columns}
        )  # fmt: skip

    @property
    def embeddings(self) -> Mapping[str, Tensor]:
        """The pooled parts of :attr:`conditions`."""
        return _Pooled(self.conditions)

    def picture(self, row: SupportsIndex) -> PIL.Image.Image:
        """Return the best picture of ``row`` there is, that of its numbers; RecordError if it is missing or damaged."""
        row = row.__index__()
        if self.manifest["decoder"] is None:
            raise RecordError(f"{self.path} was made without a decoder: it holds embeddings and numbers, no pictures")
        if not 0 <= row < len(self.table):
            raise RecordError(f"no row {row}; the record has {len(self.table)} rows")
        return read_png(self.path / (self.table["picture"].iloc[row] or picture_name(row)))

    def input(self, index: SupportsIndex) -> PIL.Image.Image:
        """Return what the model saw of an image, by its index; RecordError if it is missing or damaged."""
        return read_png(self.path / input_name(index.__index__()))

    @cached_property
    def readouts(self) -> Readouts | None:
        """Captions and nearest images of every row; None in a record without. RecordError if they are damaged."""
        found = load_readouts(self.path, len(self.table))
        kept = (self.manifest["beside"] or {}).keys() & {"texts", "gallery"}
        if found is None and self.complete and len(self.table) and kept:
            raise RecordError(f"{self.path} has lost its readouts.safetensors; the record is damaged, sweep again")
        return found

    @cached_property
    def live(self) -> LiveNumbers | None:
        """The numbers of the live page; None in a record without. RecordError if they are damaged."""
        found = load_live(self.path)
        if found is None and self.complete and len(self.table) and (self.manifest["beside"] or {}).get("live"):
            raise RecordError(f"{self.path} has lost its live.safetensors; the record is damaged, sweep again")
        return found

    def neighbour(self, index: SupportsIndex) -> PIL.Image.Image:
        """Return the small copy of a gallery's picture; RecordError if there is none or it is damaged."""
        return read_png(self.path / gallery_name(index.__index__()))

    def __repr__(self) -> str:
        state = "complete" if self.complete else "unfinished"
        return f"Record({str(self.path)!r}, {len(self.table)} rows, {len(self.manifest['inputs'])} inputs, {state})"

    def _repr_html_(self) -> str:
        return record_html(self)


def _readings(path: Path, manifest: Mapping[str, Any]) -> dict[str, Reading]:
    return {found["id"]: Reading.from_dict(found, str(path)) for found in manifest["readings"]}
