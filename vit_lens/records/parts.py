"""Conditions in files of so many rows each, so that a checkpoint writes what has changed and no more."""

__all__ = ["make_folders", "read_conditions", "rows_per_part", "stored_length", "write_conditions"]

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from vit_lens.conditions import Condition
from vit_lens.errors import RecordError
from vit_lens.files import make_directory, to_bytes

_PART_BYTES, _MOST_ROWS = 2**25, 4096


def rows_per_part(shapes: Mapping[str, Sequence[int]]) -> int:
    """Return how many rows make a file of at most 32 MiB: a power of two, at most 4096."""
    size = sum(4 * torch.Size(shape).numel() for shape in shapes.values())
    return 2 ** max(0, min(_MOST_ROWS, _PART_BYTES // max(size, 1)).bit_length() - 1)


def part_name(name: str, part: int) -> str:
    """Return where a part lies, relative to the record."""
    return f"embeddings/{name}/{part:06d}.safetensors"


def write_conditions(name: str, held: Condition, rows: Iterable[int], per_part: int) -> dict[str, bytes]:
    """Return the files of all parts that hold one of the rows, by name."""
    found = {}
    for part in sorted({row // per_part for row in rows}):
        tensors = held[part * per_part : (part + 1) * per_part].parts()
        found[part_name(name, part)] = to_bytes(tensors)
    return found


def read_conditions(path: Path, name: str, n: int, per_part: int, shapes: Mapping[str, Sequence[int]]) -> Condition:
    """Read all rows of a name; those whose part is not there yet are nan.

    Raises:
        RecordError: A part is damaged, or has other rows or shapes than the manifest says.
    """
    found = []
    for start in range(0, n, per_part):
        size = min(per_part, n - start)
        file = path / part_name(name, start // per_part)
        found.append(_read(file, size, shapes) if file.exists() else Condition.empty(dict(shapes), size))
    return Condition.cat(found) if found else Condition.empty(dict(shapes), 0)


def stored_length(path: Path, name: str, n: int, per_part: int, shapes: Mapping[str, Sequence[int]]) -> int:
    """Return how many of the first rows lie in whole files, looking at their headers alone.

    Raises:
        RecordError: As for :func:`read_conditions`.
    """
    for start in range(0, n, per_part):
        file = path / part_name(name, start // per_part)
        if not file.exists():
            return start
        _open(file, min(per_part, n - start), shapes, load=False)
    return n


def _read(file: Path, n: int, shapes: Mapping[str, Sequence[int]]) -> Condition:
    return Condition(**_open(file, n, shapes, load=True))


def _open(file: Path, n: int, shapes: Mapping[str, Sequence[int]], *, load: bool) -> dict[str, Any]:
    try:
        with safe_open(file, framework="pt") as opened:
            said = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
            expected = {name: (n, *shape) for name, shape in shapes.items()}
            if said != expected:
                raise RecordError(f"{file} holds {said}, the manifest says {expected}; the record is damaged")
            return {name: opened.get_tensor(name) for name in said} if load else {}
    except (OSError, SafetensorError) as error:
        raise RecordError(f"{file} cannot be read ({error}); the record is damaged, sweep again") from error


def make_folders(path: Path, names: Iterable[str]) -> None:
    """Create the folders of conditions."""
    for name in names:
        make_directory(path / "embeddings" / name)
