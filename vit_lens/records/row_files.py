"""Conditions in files of so many rows each, so that a checkpoint writes what has changed and no more."""

__all__ = ["StoredConditions", "rows_per_part", "write_conditions"]

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from vit_lens.conditions import Condition
from vit_lens.errors import RecordError
from vit_lens.files import to_bytes
from vit_lens.records.opening import AGAIN, RecordFiles
from vit_lens.records.schema import lengths, part_name

_NO_MASK = torch.zeros(0, dtype=torch.bool)
_PART_BYTES, _MOST_ROWS = 2**25, 4096


def rows_per_part(shapes: Mapping[str, Sequence[int]]) -> int:
    """Return how many rows make a file of at most 32 MiB: a power of two, at most 4096."""
    size = sum(4 * torch.Size(shape).numel() for shape in shapes.values())
    return 2 ** max(0, min(_MOST_ROWS, _PART_BYTES // max(size, 1)).bit_length() - 1)


def write_conditions(name: str, held: Condition, rows: Iterable[int], per_part: int) -> dict[str, bytes]:
    """Return the files of all parts that hold one of the rows, by their place in the record."""
    return {
        part_name(name, part): to_bytes(held[part * per_part : (part + 1) * per_part].parts())
        for part in sorted({row // per_part for row in rows})
    }


class StoredConditions(Mapping[str, Condition]):
    """Conditions of a record by name, read when they are asked for; rows whose file is not there yet are nan.

    Args:
        files: The files of the record.
        manifest: Its manifest.
        mend: Whether rows of a damaged file are nan as well, to be made anew.

    Raises:
        RecordError: A file is damaged, or has other rows or shapes than the manifest says.
    """

    def __init__(self, files: RecordFiles, manifest: Mapping[str, Any], *, mend: bool = False):
        said = manifest["conditions"] or {"shapes": {}, "rows_per_part": 1}
        self._lengths = lengths(manifest)
        self._files, self.shapes, self._per_part, self._mend = files, said["shapes"], said["rows_per_part"], mend
        self._read: dict[str, Condition] = {}

    def __getitem__(self, name: str) -> Condition:
        if name not in self.shapes:
            raise KeyError(f"no conditions {name!r}; there are {list(self.shapes)}")
        if name not in self._read:
            starts = range(0, self._lengths[name], self._per_part)
            found = [self._open(name, start, min(self._per_part, self._lengths[name] - start)) for start in starts]
            self._read[name] = Condition.cat([Condition.empty(self.shapes[name], 0), *found])
        return self._read[name]

    def _open(self, name: str, start: int, n: int) -> Condition:
        file = part_name(name, start // self._per_part)
        try:
            return self._part(name, file, n)
        except RecordError:
            if self._files.exists(file) and not self._mend:
                raise
            return Condition.empty(self.shapes[name], n)

    def _part(self, name: str, file: str, n: int) -> Condition:
        tensors, _ = self._files.tensors(file)
        said = {part: tuple(held.shape) for part, held in tensors.items()}
        expected = {part: (n, *shape) for part, shape in self.shapes[name].items()}
        dtypes = {held.dtype for part, held in tensors.items() if part != "mask"}
        if said != expected or dtypes != {torch.float32} or tensors.get("mask", _NO_MASK).dtype != torch.bool:
            raise RecordError(f"{self._files.path / file} holds {said}, the manifest says {expected}; {AGAIN}")
        return Condition(**tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)
