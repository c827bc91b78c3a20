"""A finished or unfinished sweep, read back: manifest, table, embeddings and pictures."""

__all__ = ["Record"]

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex

import pandas as pd
import PIL.Image
from torch import Tensor

from vit_lens.errors import RecordError
from vit_lens.records.extras import gallery_name, load_live, load_readouts
from vit_lens.records.live import LiveNumbers
from vit_lens.records.notebook import record_html
from vit_lens.records.pictures import read_png
from vit_lens.records.reading import read_embeddings, read_manifest, read_table
from vit_lens.records.readouts import Readouts
from vit_lens.records.schema import picture_name


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Record:
    """What a sweep stored; an unfinished one has ``complete`` false and lacks some pictures and numbers."""

    path: Path
    manifest: dict[str, Any]
    table: pd.DataFrame
    embeddings: dict[str, Tensor]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Record":
        """Read the record in the directory ``path``; RecordError if it is missing, damaged or truncated."""
        path = Path(path)
        manifest = read_manifest(path)
        table = read_table(path, manifest)
        embeddings = read_embeddings(path, len(table))
        if manifest["complete"] and not embeddings:
            raise RecordError(
                f"{path} is complete but has no embeddings.safetensors; the record is damaged, sweep again"
            )
        return cls(path=path, manifest=manifest, table=table, embeddings=embeddings)

    @property
    def complete(self) -> bool:
        """Whether the sweep came to its end."""
        return bool(self.manifest["complete"])

    def picture(self, row: SupportsIndex) -> PIL.Image.Image:
        """Return the best picture of ``row`` there is, that of its numbers; RecordError if it is missing or damaged."""
        row = row.__index__()
        if self.manifest["decoder"] is None:
            raise RecordError(f"{self.path} was made without a decoder: it holds embeddings and numbers, no pictures")
        if not 0 <= row < len(self.table):
            raise RecordError(f"no row {row}; the record has {len(self.table)} rows")
        return read_png(self.path / (self.table["picture"].iloc[row] or picture_name(row)))

    def input(self, image: SupportsIndex) -> PIL.Image.Image:
        """Return what the model saw of ``image``; RecordError if it is missing or damaged."""
        return read_png(self.path / f"inputs/{image.__index__():04d}.png")

    @cached_property
    def readouts(self) -> Readouts | None:
        """Captions and nearest images of every row; None in a record without. RecordError if they are damaged."""
        found = load_readouts(self.path, len(self.table))
        if found is None and self.complete and (self.manifest.get("readouts") or {}).keys() & {"texts", "gallery"}:
            raise RecordError(f"{self.path} has lost its readouts.safetensors; the record is damaged, sweep again")
        return found

    @cached_property
    def live(self) -> LiveNumbers | None:
        """The numbers of the live page; None in a record without. RecordError if they are damaged."""
        found = load_live(self.path)
        if found is None and self.complete and (self.manifest.get("readouts") or {}).get("live"):
            raise RecordError(f"{self.path} has lost its live.safetensors; the record is damaged, sweep again")
        return found

    def neighbour(self, index: SupportsIndex) -> PIL.Image.Image:
        """Return the small copy of a gallery's picture; RecordError if there is none or it is damaged."""
        return read_png(self.path / gallery_name(index.__index__()))

    def __repr__(self) -> str:
        state = "complete" if self.complete else "unfinished"
        return f"Record({str(self.path)!r}, {len(self.table)} rows, {len(self.manifest['images'])} images, {state})"

    def _repr_html_(self) -> str:
        return record_html(self)
