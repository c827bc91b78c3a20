"""Files that are whole or absent: every write goes to a temporary file beside the target, then takes its name."""

__all__ = [
    "check_fields", "clear_temporary", "damaged", "exclusive", "file_tensors", "load_fields", "make_directory",
    "open_tensors", "save_fields", "save_tensors", "to_bytes", "write_atomic",
]  # fmt: skip

import contextlib
import dataclasses
import json
import os
import types
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from vit_lens.errors import OutputError, VitLensError, nearest

_TEMP_PREFIX = ".vit_lens-"


def make_directory(path: Path) -> None:
    """Create ``path`` and its parents; OutputError if that is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create the directory {path}: {error.strerror}; choose another --out") from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds either all of it or what it held before."""
    temporary = path.parent / f"{_TEMP_PREFIX}{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path} ({len(data)} bytes): {error.strerror}; "
            "free some space or choose another --out, then run the same command again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def clear_temporary(path: Path) -> None:
    """Remove what killed writers left in ``path`` and the folders directly below it."""
    for leftover in [*path.glob(f"{_TEMP_PREFIX}*.tmp"), *path.glob(f"*/{_TEMP_PREFIX}*.tmp")]:
        with contextlib.suppress(OSError):
            leftover.unlink()


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold a directory against other processes; OutputError if one of them holds it."""
    lock = FileLock(directory / ".vit_lens.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(f"another process is writing {directory}; wait for it, or choose another --out") from None
    try:
        yield
    finally:
        lock.release()


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    """Write tensors as safetensors, whole or not at all; OutputError if that is impossible."""
    make_directory(path.parent)
    write_atomic(path, to_bytes(tensors, metadata))
    return path


def to_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Return tensors as the bytes of a safetensors file; equal tensors are equal bytes."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}
    return to_safetensors(plain, metadata)


@contextlib.contextmanager
def open_tensors(
    path: Path, formats: Sequence[str], *, what: str, error: type[VitLensError], advice: str
) -> Iterator[tuple[Any, dict[str, str]]]:
    """Open what :func:`save_tensors` wrote with a ``format`` in its metadata, for a block that reads it whole.

    Args:
        path: The file.
        formats: Those that the block reads, the newest last.
        what: Of the format, in words.
        error: What to raise.
        advice: What to do if the file is not there, or is damaged.

    Yields:
        The open safetensors file, and its metadata.

    Raises:
        VitLensError: ``error``: the file is missing, truncated or of another format, or the block met a damage.
    """
    if not path.is_file():
        raise error(f"no {what.removeprefix('a ')} at {path}; {advice}")
    with damaged(error, f"{path} is not a whole safetensors file of {what}", advice), safe_open(path, "pt") as file:
        meta = file.metadata() or {}
        if meta.get("format") not in formats:
            raise error(
                f"{path} does not hold {what} (format {meta.get('format')!r}, expected {formats[-1]!r}); {advice}"
            )
        yield file, meta


@contextlib.contextmanager
def damaged(error: type[VitLensError], said: str, advice: str) -> Iterator[None]:
    """Say of whatever goes wrong in a block that reads a file that the file is damaged.

    Raises:
        VitLensError: ``error``, with what was ``said``, the reason and the advice.
    """
    try:
        yield
    except VitLensError:
        raise
    except (SafetensorError, OSError, SyntaxError, KeyError, TypeError, ValueError) as damage:
        raise error(f"{said} ({damage}); {advice}") from damage


def save_fields(held: Any, path: Path, form: str, key: str = "fields") -> Path:
    """Write a dataclass: its tensors as safetensors, everything else as JSON in the metadata, under a key.

    Raises:
        OutputError: The file cannot be written.
    """
    tensors = {name: value for name, value in vars(held).items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in vars(held).items() if name not in tensors}
    return save_tensors(tensors, path, {"format": form, key: json.dumps(plain, default=str)})


def load_fields(
    cls: type, path: Path, form: str, key: str = "fields", *, what: str, error: type[VitLensError], advice: str
) -> dict[str, Any]:
    """Read what :func:`save_fields` wrote of a dataclass: what it is made of; see :func:`open_tensors`."""
    with open_tensors(path, [form], what=what, error=error, advice=advice) as (file, meta):
        return check_fields(cls, json.loads(meta[key]) | file_tensors(file), str(path), error)


def file_tensors(file: Any) -> dict[str, Tensor]:
    """Return all tensors of an open safetensors file."""
    return {name: file.get_tensor(name) for name in file.keys()}


def check_fields(cls: type, found: Any, where: str, error: type[VitLensError]) -> dict[str, Any]:
    """Return what a file says of a dataclass, lists as tuples where it has tuples, to make one of.

    Raises:
        VitLensError: ``error``: a field is unknown or missing, or a value is of another kind. True is no number.
    """
    if not isinstance(found, dict):
        raise error(f"{where} holds a {type(found).__name__}, expected a JSON object")
    kinds = {field.name: field.type for field in dataclasses.fields(cls)}
    needed = [one.name for one in dataclasses.fields(cls) if one.default is one.default_factory is dataclasses.MISSING]
    wrong = [f"unknown key {name!r}; nearest: {nearest(str(name), kinds)}" for name in found if name not in kinds]
    wrong += [f"{name} is missing" for name in needed if name not in found]
    if wrong:
        raise error(f"{where} holds the fields {sorted(found)}: {'; '.join(wrong)}")
    made: dict[str, Any] = {}
    for name, value in found.items():
        kind, origin = kinds[name], get_origin(kinds[name])
        allowed: tuple[Any, ...] = get_args(kind) if origin is types.UnionType else (origin or kind,)
        allowed = tuple(list if one is tuple else one for one in allowed) + (int,) * (float in allowed)
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise error(f"{where}: {name} is {value!r}, which is not of the expected type")
        made[name] = tuple(found[name]) if origin is tuple else value
    return made
