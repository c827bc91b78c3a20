"""Writing a record while the sweep goes on, so that a killed sweep loses no finished picture."""

__all__ = ["RecordWriter"]

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

from vit_lens.errors import RecordError
from vit_lens.files import clear_temporary, make_directory, save_tensors, write_atomic
from vit_lens.records.extras import gallery_name, save_live, save_readouts
from vit_lens.records.live import LiveNumbers
from vit_lens.records.pictures import encode_png, is_whole_png, read_png
from vit_lens.records.reading import read_embeddings, read_manifest, read_table
from vit_lens.records.readouts import Readouts
from vit_lens.records.schema import (
    IDENTITY_KEYS,
    PLAN_COLUMNS,
    check_manifest,
    differing,
    manifest_bytes,
    picture_name,
    table_to_csv,
    to_table,
)

_COMPRESS_LEVEL = 1  # of pictures, most of a sweep's files: zlib's time is spent beside the decoder's
Picture = PIL.Image.Image | UInt8[Tensor, "height width 3"] | UInt8[np.ndarray, "height width 3"]


class RecordWriter:
    """A record directory that is being written: created anew, or continued if it holds the same sweep.

    ``manifest``, ``table`` and ``embeddings`` are what lies on disk now; of a continued sweep they hold
    what the earlier run had stored. ``resumed`` says which of the two it is.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        manifest: Mapping[str, Any],
        rows: pd.DataFrame | Sequence[Mapping[str, Any]],
    ) -> None:
        """Open ``path`` for the sweep that ``manifest`` and the plan columns of ``rows`` describe.

        Raises:
            RecordError: the directory holds another sweep, or files that are not a record.
            OutputError: it cannot be created or written.
        """
        self.path = Path(path)
        manifest = check_manifest(json.loads(manifest_bytes(manifest)), "new record")
        plan = to_table(rows)
        if manifest["batch_plan"].get("n_rows") != len(plan):
            raise RecordError(
                f"the batch plan says {manifest['batch_plan'].get('n_rows')} rows, the table has {len(plan)}"
            )
        make_directory(self.path)
        self.resumed = (self.path / "record.json").exists()
        if not self.resumed and any(self.path.iterdir()):
            raise RecordError(f"{self.path} is not empty and holds no record; choose an empty or new directory")
        self.manifest, self.table = manifest, plan
        self.embeddings: dict[str, Tensor] = {}
        if self.resumed:
            self._continue()
            for folder in (self.path, self.path / "pictures"):
                clear_temporary(folder)
        else:
            write_atomic(self.path / "record.json", manifest_bytes(manifest))
        for folder in ("pictures", "inputs"):
            make_directory(self.path / folder)
        if "budget" in self.manifest["batch_plan"]:
            make_directory(self.path / "pictures/coarse")
        if not (self.path / "table.csv").exists():
            write_atomic(self.path / "table.csv", table_to_csv(self.table))

    def write_input(self, image: int, picture: Picture) -> None:
        """Store what the model saw of ``image``."""
        write_atomic(self.path / f"inputs/{image:04d}.png", encode_png(picture))

    def write_picture(self, row: int, picture: Picture, drawn: str = "full") -> str:
        """Store the decoded picture of ``row``; returns its path relative to the record. Threads may call this."""
        if not 0 <= row < len(self.table):
            raise RecordError(f"no row {row}; the plan has {len(self.table)} rows")
        write_atomic(self.path / picture_name(row, drawn), encode_png(picture, _COMPRESS_LEVEL))
        return picture_name(row, drawn)

    def picture(self, row: int, drawn: str = "full") -> PIL.Image.Image:
        """Return a picture that lies on disk; RecordError if it is missing or damaged."""
        return read_png(self.path / picture_name(row, drawn))

    def write_table(self, rows: pd.DataFrame | Sequence[Mapping[str, Any]]) -> None:
        """Store the whole table; its plan columns must be those the record was opened with."""
        table = to_table(rows)
        _refuse_other_plan(self.table, table, self.path)
        write_atomic(self.path / "table.csv", table_to_csv(table))
        self.table = table

    def write_embeddings(self, embeddings: Mapping[str, Tensor]) -> None:
        """Store all embeddings at once."""
        save_tensors(embeddings, self.path / "embeddings.safetensors")
        self.embeddings = {name: value.detach().cpu().clone() for name, value in embeddings.items()}

    def write_neighbour(self, index: int, picture: Picture) -> None:
        """Store a small copy of a gallery's picture."""
        make_directory(self.path / "gallery")
        write_atomic(self.path / gallery_name(index), encode_png(picture))

    def write_readouts(self, readouts: Readouts) -> None:
        """Store captions and nearest images of all rows at once."""
        save_readouts(readouts, self.path)

    def write_live(self, live: LiveNumbers) -> None:
        """Store the numbers of the live page."""
        save_live(live, self.path)

    def add_change(self, change: Mapping[str, Any]) -> None:
        """Store that a batch was drawn otherwise than planned, before it is drawn."""
        plan = self.manifest["batch_plan"]
        self._amend(batch_plan={**plan, "changes": [*plan.get("changes", []), dict(change)]})

    def add_budget(self, given: str) -> None:
        """Store what this run of the sweep may spend."""
        self._amend(budgets=[*self.manifest.get("budgets", []), given])

    def finished_rows(self, drawn: str = "full") -> frozenset[int]:
        """Return the rows whose picture, drawn so, lies on disk whole."""
        return frozenset(row for row in range(len(self.table)) if is_whole_png(self.path / picture_name(row, drawn)))

    def finish(self, notes: Iterable[str] = ()) -> None:
        """Mark the record complete; RecordError while a picture is missing."""
        missing = sorted(set(range(len(self.table))) - self.finished_rows()) if self.manifest["decoder"] else []
        if missing:
            raise RecordError(
                f"{len(missing)} of {len(self.table)} pictures are missing, the first is row {missing[0]}"
            )
        fresh = [note for note in notes if note not in self.manifest["notes"]]
        self._amend(complete=True, notes=[*self.manifest["notes"], *fresh])

    def _amend(self, **changes: Any) -> None:
        manifest = {**self.manifest, **changes}
        write_atomic(self.path / "record.json", manifest_bytes(manifest))
        self.manifest = manifest

    def _continue(self) -> None:
        stored = read_manifest(self.path)
        for key in IDENTITY_KEYS:
            difference = differing(_planned(stored, key), _planned(self.manifest, key), key)
            if difference:
                raise RecordError(f"{self.path} holds another sweep's record: {difference}; choose another directory")
        self.manifest = stored
        if (self.path / "table.csv").exists():
            table = read_table(self.path, stored)
            _refuse_other_plan(table, self.table, self.path)
            self.table = table
        self.embeddings = read_embeddings(self.path, len(self.table))


def _planned(manifest: Mapping[str, Any], key: str) -> Any:
    """Return what was decided before anything was drawn; changes of the batch plan come after."""
    if key == "batch_plan":
        return {name: value for name, value in manifest[key].items() if name != "changes"}
    return manifest.get(key)


def _refuse_other_plan(old: pd.DataFrame, new: pd.DataFrame, path: Path) -> None:
    for name in PLAN_COLUMNS:
        if len(old) != len(new) or not old[name].equals(new[name]):
            pairs = enumerate(zip(old[name], new[name], strict=False))
            row, pair = next(
                ((r, p) for r, p in pairs if p[0] is not p[1] and str(p[0]) != str(p[1])), (0, (len(old), len(new)))
            )
            raise RecordError(
                f"{path} holds another sweep's record: row {row} has {name} {pair[0]!r} on disk, {pair[1]!r} now; "
                "choose another directory"
            )
