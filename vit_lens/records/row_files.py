"""Conditions in files of so many rows each, so that a checkpoint writes what has changed and no more."""

__all__ = ["HeldConditions", "StoredConditions", "rows_per_part", "write_conditions"]

from collections import OrderedDict
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
_HELD_BYTES = 2**28


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

    @property
    def rows_per_part(self) -> int:
        """How many rows a file holds, but for the last of its kind."""
        return self._per_part

    def __getitem__(self, name: str) -> Condition:
        if name not in self.shapes:
            raise KeyError(f"no conditions {name!r}; there are {list(self.shapes)}")
        if name not in self._read:
            found = [self.part(name, number) for number in range(-(-self._lengths[name] // self._per_part))]
            self._read[name] = Condition.cat([Condition.empty(self.shapes[name], 0), *found])
        return self._read[name]

    def part(self, name: str, number: int) -> Condition:
        """Return the rows of one file; nan where it is not there yet.

        Raises:
            RecordError: The file is damaged, or has other rows or shapes than the manifest says.
        """
        file = part_name(name, number)
        n = min(self._per_part, self._lengths[name] - number * self._per_part)
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


class HeldConditions:
    """Conditions of a record that is being written: what has changed, and about 256 MiB of the rest, in memory.

    Args:
        stored: :class:`StoredConditions` of what lies on disk, where parts that leave memory are read again.
    """

    def __init__(self, stored: Any):  # of StoredConditions; beartype would read one to check it
        self._stored: StoredConditions = stored
        self._parts: OrderedDict[tuple[str, int], Condition] = OrderedDict()
        self._changed: set[tuple[str, int]] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._stored.shapes

    def __len__(self) -> int:
        return len(self._stored.shapes)

    @property
    def rows_per_part(self) -> int:
        """How many rows a file holds, but for the last of its kind."""
        return self._stored.rows_per_part

    @property
    def is_full(self) -> bool:
        """Whether what has changed is as much as may be held."""
        return sum(_bytes(self._parts[key]) for key in self._changed) >= _HELD_BYTES

    def put(self, name: str, rows: Sequence[int], found: Condition) -> None:
        """Set rows."""
        for number, places in self._by_part(rows).items():
            part, own = self._part(name, number), [rows[place] % self.rows_per_part for place in places]
            for kind, value in found[places].kept().parts().items():
                getattr(part, kind)[own] = value
            self._changed.add((name, number))

    def rows(self, name: str, rows: Sequence[int]) -> Condition:
        """Return rows, in the order in which they are asked for."""
        found = Condition.empty(self._stored.shapes[name], len(rows))
        for number, places in self._by_part(rows).items():
            part, own = self._part(name, number), [rows[place] % self.rows_per_part for place in places]
            for kind, value in part.parts().items():
                getattr(found, kind)[places] = value[own]
        return found

    def changed(self) -> Iterator[tuple[str, bytes]]:
        """Yield the files of what has changed since the last time, by their place in the record."""
        for name, number in sorted(self._changed):
            yield part_name(name, number), to_bytes(self._parts[name, number].parts())
            self._changed.discard((name, number))
        self._make_room()

    def _by_part(self, rows: Sequence[int]) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            found.setdefault(row // self.rows_per_part, []).append(place)
        return found

    def _part(self, name: str, number: int) -> Condition:
        key = name, number
        if key not in self._parts:
            self._parts[key] = self._stored.part(name, number)
            self._make_room()
        self._parts.move_to_end(key)
        return self._parts[key]

    def _make_room(self) -> None:
        """Let parts go that lie on disk, the longest unused first; the last one asked for stays."""
        held = sum(map(_bytes, self._parts.values()))
        for key in list(self._parts)[:-1]:
            if held > _HELD_BYTES and key not in self._changed:
                held -= _bytes(self._parts.pop(key))


def _bytes(part: Condition) -> int:
    return sum(value.nbytes for value in part.parts().values())
