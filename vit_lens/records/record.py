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

from vit_lens.addresses import as_index
from vit_lens.conditions import Condition
from vit_lens.errors import RecordError, nearest
from vit_lens.files import as_path
from vit_lens.records.answers import Readouts, anchor_name, gallery_name, load_readouts
from vit_lens.records.format1 import load_format_1
from vit_lens.records.live import LiveNumbers, load_live
from vit_lens.records.named_readings import Reading
from vit_lens.records.notebook import record_html
from vit_lens.records.opening import RecordFiles, read_manifest
from vit_lens.records.row_files import StoredConditions
from vit_lens.records.schema import has_picture, input_name, picture_name
from vit_lens.records.second import JUDGED, JUDGED_FIRST, SECOND, agreement_table, remove_second


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
        return name in list(self)

    def __len__(self) -> int:
        return len(list(iter(self)))


def _number(name: str, value: object) -> int:
    if (number := as_index(value)) is None or number < 0:
        raise RecordError(f"{name}={value!r:.80}; expected a whole number from 0 on, as in record.table['row']")
    return number


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Record:
    """What a sweep stored; an unfinished one has ``complete`` false and lacks some pictures and numbers.

    A complete record lists its files with their sizes and hashes. One of whose files a size is another, or which lacks
    some, counts as unfinished, and the same sweep makes them anew; whatever is read is held against its hash.

    Attributes:
        files: The files of the directory that holds it.
        manifest: What made it, by key: model, decoder, inputs, seeds, versions; see :mod:`vit_lens.records.schema`.
        table: The rows, one for each picture, with the columns :data:`vit_lens.records.COLUMNS`; the column
            ``reading`` names one of the readings.
        readings: What rows were read with, by id.
        conditions: What was asked of the decoder (``lens``) and what its pictures are (``reencoded``), by row; what
            the inputs are (``clean``), by input; ``negative``, where guidance leads away from.

    >>> _ = vl.sweep(model, None, images, lens="diffusion", sites="resid_post", out=tmp / "record")
    >>> record = vl.Record.load(tmp / "record")
    >>> record.complete, len(record.table), record.conditions["clean"].pooled.shape
    (True, 16, torch.Size([2, 128]))
    >>> record.input(1).size
    (64, 64)
    """

    files: RecordFiles
    manifest: dict[str, Any]
    table: pd.DataFrame
    readings: dict[str, Reading]
    conditions: Mapping[str, Any]  # of Condition; beartype would read one to check it

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Record":
        """Read the record in the directory ``path``; tensors and pictures are read when they are asked for.

        Raises:
            RecordError: Its manifest or table is missing, damaged or truncated.
        """
        path = as_path(path, RecordError)
        manifest, files = read_manifest(path), RecordFiles(path)
        if manifest["format"] == 1:
            manifest, table, conditions = load_format_1(files, manifest)
        else:
            files = RecordFiles.of(path, manifest)
            table, conditions = files.table(manifest), StoredConditions(files, manifest)
            manifest |= {"complete": manifest["complete"] and not files.lost(manifest)}
        readings = {found["id"]: Reading.from_dict(found, str(path)) for found in manifest["readings"]}
        return cls(files=files, manifest=manifest, table=table, readings=readings, conditions=conditions)

    @property
    def path(self) -> Path:
        """The directory that holds it."""
        return self.files.path

    @property
    def complete(self) -> bool:
        """Whether the sweep came to its end."""
        return bool(self.manifest["complete"])

    def frame(self) -> pd.DataFrame:
        """Return the table with columns that say what each row was read with.

        ``lens``, ``control``, ``reading_label``, and every setting of the lenses under its name (``lens_NAME`` where
        there is a column of that name). A setting that a row's lens does not have is missing (None or nan).

        >>> lenses = ["dsl:alpha=10", "diffusion"]
        >>> record = vl.sweep(model, None, images[:1], lens=lenses, sites=["L7H0", "L7.resid_post"], out=tmp / "frame")
        >>> record.frame()[["site", "lens", "alpha"]].values.tolist()
        [['L7H0', 'dsl', 10.0], ['L7H0', 'diffusion', nan], ['L7.resid_post', 'diffusion', nan]]
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
        """The pooled parts of :attr:`conditions`, float32: ``lens`` and ``reencoded`` by row, ``clean`` by input."""
        return _Pooled(self.conditions)

    def picture(self, row: SupportsIndex) -> PIL.Image.Image:
        """Return the best picture of a row there is, that of its numbers.

        Raises:
            RecordError: There is no such row, it is not drawn yet or damaged, or the record has no decoder.
        """
        number = _number("row", row)
        if self.manifest["decoder"] is None:
            raise RecordError(f"{self.path} was made without a decoder: it holds embeddings and numbers, no pictures")
        if number >= len(self.table):
            raise RecordError(f"no row {number}; the record has {len(self.table)} rows")
        return self.files.picture(self.table["picture"].iloc[number] or picture_name(number))

    def entry(self, index: SupportsIndex) -> dict[str, Any]:
        """Return what the manifest says of an input, by its index over the whole sweep: kind, name, hash, text.

        Raises:
            RecordError: There is no such input.
        """
        number = _number("index", index)
        found = [entry for entry in self.manifest["inputs"] if entry["index"] == number]
        if not found:
            known = [entry["index"] for entry in self.manifest["inputs"]]
            raise RecordError(f"no input {number}; the record has {known[:8]}{' and more' if len(known) > 8 else ''}")
        return found[0]

    def input(self, index: SupportsIndex) -> PIL.Image.Image:
        """Return what the model saw of an image, by its index over the whole sweep.

        Raises:
            RecordError: The picture is missing or damaged, or the input is a text.
        """
        if not all(map(has_picture, self.manifest["inputs"])):
            raise RecordError(f"input {index} is a text, which has no picture: record.entry({index})['text'] has it")
        return self.files.picture(input_name(_number("index", index)))

    @cached_property
    def readouts(self) -> Readouts | None:
        """Captions and nearest images of every row; None in a record without.

        Raises:
            RecordError: They are damaged.
        """
        return load_readouts(self.files, len(self.table))

    @cached_property
    def live(self) -> LiveNumbers | None:
        """The numbers of the live page; None in a record without.

        Raises:
            RecordError: They are damaged.
        """
        return load_live(self.files)

    @cached_property
    def second(self) -> Any:  # of Record | None, which beartype would read to check it
        """The record of a second decoder on the same rows (``second_decoder=`` of :func:`vit_lens.sweep`); or None.

        Raises:
            RecordError: It is damaged, or its rows are others.
        """
        folder = self.path / SECOND
        if not folder.is_dir() or not any(folder.iterdir()):
            return None
        try:
            found = Record.load(folder)
        except RecordError as error:
            raise RecordError(f"{error}. The first decoder's record is whole: {remove_second(self.path)}") from error
        plans = [one.table[["input", "seed", "reading", "site"]] for one in (self, found)]
        if not plans[0].equals(plans[1]):
            raise RecordError(f"{found.path} has other rows than {self.path}: {remove_second(self.path)}")
        return found

    @property
    def agreement(self) -> pd.DataFrame | None:
        """How alike the two decoders' pictures of every row are, and how alike those of mismatched sites.

        As a judge sees them: an encoder for which neither decoder was made, or else the encoder itself
        (:func:`vit_lens.records.judge_words` says which of the two). None without a second decoder, and in a part of a
        divided sweep, whose sites are not all there to be mismatched: merge the parts first.

        Returns:
            By row: ``row``, ``agreement``, ``agreement_null``, ``agreement_mismatched``, ``agreement_p``; see
            ``docs/second_decoder.md``.

        Raises:
            RecordError: Something that it follows from is damaged.
        """
        if self.second is None or self.manifest["shard"]:
            return None
        seen = self.second.conditions
        if JUDGED_FIRST in seen:
            first, second = seen[JUDGED_FIRST].flat, seen[JUDGED].flat
        elif "reencoded" in seen:
            first, second = self.conditions["reencoded"].flat, seen["reencoded"].flat
        else:  # nothing is drawn yet
            return None
        return agreement_table(self.table, first, second, self.conditions["lens"].flat)

    def neighbour(self, index: SupportsIndex) -> PIL.Image.Image:
        """Return the small copy of a gallery's picture, by its index in the gallery.

        Raises:
            RecordError: There is none, or it is damaged.
        """
        return self.files.picture(gallery_name(_number("index", index)))

    def anchor(self, reading: str) -> PIL.Image.Image:
        """Return the picture that a reading starts from, by the reading's id.

        Raises:
            RecordError: There is no such reading, it starts from no picture, or the picture is damaged.
        """
        if reading not in self.readings:
            raise RecordError(f"no reading {reading!r}; nearest: {nearest(str(reading), self.readings)}")
        content = self.readings[reading].settings.get("anchor_content")
        if content is None:
            raise RecordError(f"reading {reading!r} starts from no other picture")
        return self.files.picture(anchor_name(content))

    def __repr__(self) -> str:
        state = "complete" if self.complete else "unfinished"
        return f"Record({str(self.path)!r}, {len(self.table)} rows, {len(self.manifest['inputs'])} inputs, {state})"

    def _repr_html_(self) -> str:
        return record_html(self)
