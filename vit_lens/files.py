"""Files that are whole or absent: every write goes to a temporary file beside the target, then takes its name."""

__all__ = ["clear_temporary", "exclusive", "make_directory", "open_tensors", "save_tensors", "to_bytes", "write_atomic"]

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from vit_lens.errors import OutputError, VitLensError

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
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            if meta.get("format") not in formats:
                raise error(
                    f"{path} does not hold {what} (format {meta.get('format')!r}, expected {formats[-1]!r}); {advice}"
                )
            yield file, meta
    except VitLensError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as damage:
        raise error(f"{path} is not a whole safetensors file of {what} ({damage}); {advice}") from damage
