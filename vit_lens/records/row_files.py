"""Conditions in files of so many rows each, so that a checkpoint writes what has changed and no more."""

__all__ = ["StoredConditions", "rows_per_part", "write_conditions"]

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from vit_lens.conditions import Condition
from vit_lens.errors import RecordError
from vit_lens.files import damaged, file_tensors, to_bytes
from vit_lens.records.opening import DAMAGED

_PART_BYTES, _MOST_ROWS = 2**25, 4096


def rows_per_part(shapes: Mapping[str, Sequence[int]]) -> int:
    """Return how many rows make a file of at most 32 MiB: a power of two, at most 4096."""
    size = sum(4 * torch.Size(shape).numel() for shape in shapes.values())
    return 2 ** max(0, min(_MOST_ROWS, _PART_BYTES // max(size, 1)).bit_length() - 1)


def _part_name(name: str, part: int) -> str:
    return f"embeddings/{name}/{part:06d}.safetensors"


def write_conditions(name: str, held: Condition, rows: Iterable[int], per_part: int) -> dict[str, bytes]:
    """Return the files of all parts that hold one of the rows, by their place in the record."""
    return {
        _part_name(name, part): to_bytes(held[part * per_part : (part + 1) * per_part].parts())
        for part in sorted({row // per_part for row in rows})
    }


class StoredConditions(Mapping[str, Condition]):
    """Conditions of a record by name, read when they are asked for; rows whose file is not there yet are nan.

    Raises:
        RecordError: A file is damaged, or has other rows or shapes than the manifest says.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any]):
        said = manifest["conditions"] or {"shapes": {}, "rows_per_part": 1}
        n_rows, n_inputs = manifest["batch_plan"]["n_rows"], len(manifest["inputs"])
        self._lengths = {"lens": n_rows, "reencoded": n_rows, "clean": n_inputs, "negative": 1}
        self._path, self.shapes, self._per_part = path, said["shapes"], said["rows_per_part"]
        self._read: dict[str, Condition] = {}

    def __getitem__(self, name: str) -> Condition:
        if name not in self.shapes:
            raise KeyError(f"no conditions {name!r}; there are {list(self.shapes)}")
        if name not in self._read:
            empty = Condition.empty(self.shapes[name], 0)
            found = [self._open(name, file, n) for file, n in self._files(name)]
            self._read[name] = Condition.cat([empty, *found])
        return self._read[name]

    def check(self, names: tuple[str, ...]) -> None:
        """Raise if a name is not there whole, looking at the headers of its files alone: RecordError."""
        for name in names:
            if name not in self.shapes or not all(file.exists() for file, _ in self._files(name)):
                raise RecordError(
                    f"{self._path} is complete but its {name!r} embeddings are not; the record is damaged, sweep again"
                )
            for file, n in self._files(name):
                self._open(name, file, n, load=False)

    def _files(self, name: str) -> Iterator[tuple[Path, int]]:
        for start in range(0, self._lengths[name], self._per_part):
            file = self._path / _part_name(name, start // self._per_part)
            yield file, min(self._per_part, self._lengths[name] - start)

    def _open(self, name: str, file: Path, n: int, *, load: bool = True) -> Condition:
        empty = Condition.empty(self.shapes[name], n if load else 0)
        if not file.exists():
            return empty
        with damaged(RecordError, f"{file} cannot be read", DAMAGED), safe_open(file, "pt") as opened:
            said = {part: tuple(opened.get_slice(part).get_shape()) for part in opened.keys()}
            expected = {part: (n, *shape) for part, shape in self.shapes[name].items()}
            if said != expected:
                raise RecordError(f"{file} holds {said}, the manifest says {expected}; the record is damaged")
            return Condition(**file_tensors(opened)) if load else empty

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)
