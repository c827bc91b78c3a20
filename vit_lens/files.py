"""Files that are whole or absent, and the one door for files that anybody may have written.

Every write goes to a temporary file beside the target, then takes its name. JSON is read by :func:`parse_json` and
:func:`read_json`, tensors by :func:`open_safetensors` or :func:`open_tensors`, a dataclass by :func:`check_fields`.
"""

__all__ = [
    "append", "as_path", "check_fields", "damaged", "exclusive", "file_tensors", "load_fields", "make_directory",
    "open_safetensors", "open_tensors", "parse_json", "read_json", "read_shards",
    "save_fields", "save_tensors", "to_bytes", "write_atomic",
]  # fmt: skip

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import types
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, Literal, Union, get_args, get_origin

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from vit_lens.errors import OutputError, VitLensError, expect, nearest

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMP_PREFIX = ".vit_lens-"
_JSON_BYTES, _JSON_DEPTH, _JSON_INTEGER = 64 * 2**20, 64, 2**63
# What readers of damaged files raise, of Python, pandas, Pillow, safetensors and torch.
_DAMAGE = (
    SafetensorError, ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, SyntaxError,
    TypeError, ValueError,
)  # fmt: skip


def as_path(path: Any, error: type[VitLensError], what: str = "path") -> Path:
    """Return the path that a caller gave, ``~`` read as a home as a shell does; whether there is a file is not asked.

    Args:
        path: What was given as one: a text, or an object of ``os.PathLike``.
        error: The error to raise.
        what: The argument's name, for the message.

    Raises:
        VitLensError: ``error``: it is no path, empty, holds a NUL, or has a name that is too long for a file.

    >>> as_path("pictures/1.png", VitLensError).name
    '1.png'
    >>> as_path(None, VitLensError)
    Traceback (most recent call last):
    vit_lens.errors.VitLensError: path is of type NoneType; expected str or PathLike: where the file or folder lies
    """
    found = _checked(path, error, what)
    if not os.fspath(path):
        raise error(f"{what} is empty: no such file or folder; '.' is this folder")
    return Path(os.path.expanduser(found))  # noqa: PTH111, for Path's own raises where there is no such user


def _checked(path: Any, error: type[VitLensError], what: str = "path") -> Path:
    """Return a path that files can have, which the system is asked for."""
    expect(path, (str, os.PathLike), what, error, "where the file or folder lies")
    expect(given := os.fspath(path), str, what, error, "where the file or folder lies")
    try:
        os.lstat(given)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as reason:
        said, why = repr(given), getattr(reason, "strerror", None) or str(reason)
        said = said if len(said) <= 200 else f"{said[:80]}...{said[-80:]}"
        other = "--out" if issubclass(error, OutputError) else "name"
        raise error(f"no file can be at {said}: {why}; choose another {other}") from reason
    return Path(given)


def make_directory(path: Path) -> None:
    """Create a directory and its parents, where they are not there; remove from it what killed writers left.

    What is being written there by others stays.

    Raises:
        OutputError: That is impossible, as where a file is in the way.

    >>> make_directory(tmp / "made" / "below")
    >>> (tmp / "made" / "below").is_dir()
    True
    """
    path = _checked(path, OutputError)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create the directory {path}: {error.strerror}; choose another --out") from error
    for leftover in path.glob(f"{_TEMP_PREFIX}*.tmp"):
        with contextlib.suppress(OSError), leftover.open("rb") as file:
            _lock(file, wait=False)
            leftover.unlink()


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds either all of it or what it held before.

    Raises:
        OutputError: The file cannot be written.

    >>> write_atomic(tmp / "note.txt", b"whole")
    >>> (tmp / "note.txt").read_bytes()
    b'whole'
    """
    path, temporary = _checked(path, OutputError), None
    expect(data, bytes, "data", OutputError, "what the file is to hold")
    try:
        temporary, file = _open_temporary(path.parent)
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is not None:
                temporary.replace(path)  # while it is locked
        if fcntl is None:
            temporary.replace(path)
        temporary = None
        if os.name == "posix":  # so that the name outlasts a power cut as well
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise OutputError(
            f"cannot write {path} ({len(data)} bytes): {error.strerror}; {_way_out(error)}, then run the same command "
            "again"
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _way_out(error: OSError) -> str:
    return "free some space or choose another --out" if error.errno in _FULL else "choose another --out"


def _open_temporary(folder: Path) -> tuple[Path, BinaryIO]:
    """Open a file that :func:`make_directory` leaves alone as long as it is open."""
    while True:
        temporary = folder / f"{_TEMP_PREFIX}{uuid.uuid4().hex}.tmp"
        file = temporary.open("xb")
        with contextlib.suppress(OSError):  # some network disks have no locks
            _lock(file)
        if temporary.exists():  # nobody cleared it away before it was locked
            return temporary, file
        file.close()


def _lock(file: BinaryIO, *, wait: bool = True) -> None:
    if fcntl is not None:  # Windows does not remove open files anyway
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def append(path: Path, data: bytes) -> None:
    r"""Add ``data`` to the end of a file; a kill may leave a part of it.

    Raises:
        OutputError: The file cannot be written.

    >>> append(tmp / "lines.txt", b"one\n")
    >>> append(tmp / "lines.txt", b"two\n")
    >>> (tmp / "lines.txt").read_bytes()
    b'one\ntwo\n'
    """
    path = _checked(path, OutputError)
    try:
        with path.open("ab", buffering=0) as file:
            file.write(data)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; {_way_out(error)}, then run the same command again"
        ) from error


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold a directory against other processes for the time of a ``with`` block.

    Raises:
        OutputError: Another process holds it, or it cannot be written.

    >>> with exclusive(tmp):
    ...     write_atomic(tmp / "mine.txt", b"")
    """
    lock = FileLock(_checked(directory, OutputError) / ".vit_lens.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(f"another process is writing {directory}; wait for it, or choose another --out") from None
    except OSError as error:
        raise OutputError(f"cannot write in {directory}: {error.strerror}; choose another --out") from error
    try:
        yield
    finally:
        lock.release()


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write tensors as safetensors, whole or not at all, with a hash of all that is in the file.

    Args:
        tensors: The tensors by name; they may lie on any device and share memory.
        path: The file; its directory is made where it is not there.
        metadata: Texts to keep beside them, such as their ``format``; None for none.

    Returns:
        The path.

    Raises:
        OutputError: The file cannot be written.

    >>> save_tensors({"x": torch.zeros(2)}, tmp / "x.safetensors", {"format": "example.1"}).name
    'x.safetensors'
    """
    path = _checked(path, OutputError)
    for what, given in (("tensors", tensors), ("metadata", {} if metadata is None else metadata)):
        expect(given, Mapping, what, OutputError, "tensors, and texts, by name")
    for name, tensor in tensors.items():
        expect(tensor, Tensor, repr(name), OutputError, "tensors by name")
    make_directory(path.parent)
    said = dict(metadata or {})
    write_atomic(path, to_bytes(tensors, {**said, "content": _content(tensors, said)}))
    return path


def _content(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def to_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Return tensors as the bytes of a safetensors file; equal tensors are equal bytes.

    Args:
        tensors: The tensors by name.
        metadata: Texts to keep beside them; None for none.

    >>> a, b, said = torch.ones(2), torch.zeros(2), {"format": "example.1", "n": "2"}
    >>> to_bytes({"a": a, "b": b}, said) == to_bytes({"b": b, "a": a}, said)
    True
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}
    written = memoryview(to_safetensors(plain, metadata))
    end = 8 + int.from_bytes(written[:8], "little")
    # safetensors writes metadata in the order of a hash table, which differs from call to call.
    header = json.dumps(json.loads(bytes(written[8:end])), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return b"".join((len(header).to_bytes(8, "little"), header, written[end:]))


@contextlib.contextmanager
def open_tensors(
    path: Path, formats: Sequence[str], *, what: str, error: type[VitLensError], advice: str
) -> Iterator[tuple[Any, dict[str, str]]]:
    """Open what :func:`save_tensors` wrote with a ``format`` in its metadata, for a block that reads it whole.

    Args:
        path: The file.
        formats: The formats that the block reads, the newest last; older ones may lack a hash of their content.
        what: What the file should hold, in words such as ``a text bank``.
        error: The error to raise.
        advice: What to do if the file is not there, or is damaged, for the message.

    Yields:
        The open safetensors file, and its metadata.

    Raises:
        VitLensError: ``error``: the file is missing, truncated, changed since it was written or of another format, or
            the block met a damage.

    >>> path = save_tensors({"x": torch.zeros(2)}, tmp / "x.safetensors", {"format": "example.1"})
    >>> with open_tensors(path, ["example.1"], what="an example", error=VitLensError, advice="make it") as (file, meta):
    ...     file_tensors(file)
    {'x': tensor([0., 0.])}
    """
    path = _checked(path, error)
    if not path.is_file():
        raise error(f"no {what.removeprefix('a ')} at {path}; {advice}")
    with (
        damaged(error, f"{path} is not a whole safetensors file of {what}", advice),
        open_safetensors(path, error, advice) as file,
    ):
        meta = file.metadata() or {}
        if meta.get("format") not in formats:
            raise error(
                f"{path} does not hold {what} (format {meta.get('format')!r}, expected {formats[-1]!r}); {advice}"
            )
        if "content" in meta or meta["format"] == formats[-1]:
            said = {name: value for name, value in meta.items() if name != "content"}
            if _content(file_tensors(file), said) != meta.get("content"):
                raise error(f"{path} is not what was written there (its content has another hash); {advice}")
        yield file, meta


def open_safetensors(path: Path, error: type[VitLensError], advice: str) -> Any:
    """Open a safetensors file, which may also be done in a ``with`` block.

    Args:
        path: The file.
        error: The error to raise.
        advice: What to do if the file is not there, or is damaged, for the message.

    Raises:
        VitLensError: ``error``: there is no such file, or it is truncated or none of safetensors.

    >>> path = save_tensors({"x": torch.zeros(2)}, tmp / "x.safetensors")
    >>> open_safetensors(path, VitLensError, "make it").keys()
    ['x']
    """
    path = _checked(path, error)
    if not path.is_file():
        raise error(f"{path}: no such file; {advice}")
    with damaged(error, f"{path} is not a whole safetensors file", advice):
        return safe_open(path, "pt")


def parse_json(
    data: str | bytes, where: str, error: type[VitLensError], advice: str, *, most: int = _JSON_BYTES
) -> dict[str, Any]:
    """Read a JSON object that anybody may have written: what the standard leaves open, or no one means, is refused.

    Args:
        data: The text, or its bytes, which may begin with a byte order mark.
        where: Where it was found, for the message.
        error: The error to raise.
        advice: What to do if it is damaged, for the message.
        most: How many bytes it may have; 64 MiB by default.

    Raises:
        VitLensError: ``error``: it is no JSON or no object, a key occurs twice, a number is not finite or an integer
            beyond 64 bits, a text holds half a character, or it is longer than ``most`` or nested deeper than 64.

    >>> parse_json('{"a": [1, 2.5]}', "a file", VitLensError, "write it again")
    {'a': [1, 2.5]}
    >>> parse_json('{"a": NaN}', "a file", VitLensError, "write it again")
    Traceback (most recent call last):
    vit_lens.errors.VitLensError: a file cannot be read as JSON (the number NaN is not finite); write it again
    """
    with damaged(error, f"{where} cannot be read as JSON", advice):
        if len(data) > most:
            raise ValueError(f"it is longer than {most} bytes")
        level: list[Any] = [json.loads(
            data, object_pairs_hook=_object, parse_float=_number, parse_constant=_number, parse_int=_integer
        )]  # fmt: skip
        found, depth = level[0], 0
        while level := [child for one in level for child in _children(one)]:
            if (depth := depth + 1) > _JSON_DEPTH:
                raise ValueError(f"it is nested deeper than {_JSON_DEPTH}")
    if not isinstance(found, dict):
        raise error(f"{where} holds a JSON {type(found).__name__}; expected an object; {advice}")
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(made := dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in made if names.count(name) > 1)!r} occurs twice")
    return made


def _number(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"the number {text} is not finite")
    return number


def _integer(text: str) -> int:
    if len(text) > 20 or not -_JSON_INTEGER <= int(text) < _JSON_INTEGER:
        raise ValueError(f"the number {text:.20} is beyond 64 bits")
    return int(text)


def _children(value: Any) -> list[Any]:
    if isinstance(value, str):
        value.encode()  # half a character, which JSON can escape, is no text
    return [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []


def read_json(path: Path, error: type[VitLensError], advice: str, *, most: int = _JSON_BYTES) -> dict[str, Any]:
    """Read a file by the rules of :func:`parse_json`.

    Args:
        path: The file.
        error: The error to raise.
        advice: What to do if it is not there, or is damaged, for the message.
        most: How many bytes it may have; 64 MiB by default.

    Raises:
        VitLensError: ``error``: there is no such file, or it cannot be read as a JSON object.

    >>> write_atomic(tmp / "a.json", b'{"a": 1, "a": 2}')
    >>> read_json(tmp / "a.json", VitLensError, "write it again")
    Traceback (most recent call last):
    vit_lens.errors.VitLensError: ...a.json cannot be read as JSON (the key 'a' occurs twice); write it again
    """
    path = _checked(path, error)
    if not path.is_file():
        raise error(f"{path}: no such file; {advice}")
    with damaged(error, f"{path} cannot be read as JSON", advice), path.open("rb") as file:
        data = file.read(most + 1)
    return parse_json(data, str(path), error, advice, most=most)


def read_shards(index: Path, error: type[VitLensError], advice: str) -> list[str]:
    """Return the files that the index of a sharded checkpoint names, in order of name.

    Args:
        index: The path of the index.
        error: The error to raise.
        advice: What to do if it is damaged, for the message.

    Raises:
        VitLensError: ``error``: the index cannot be read, names no files, or one outside of its folder.

    >>> write_atomic(tmp / "index.json", b'{"weight_map": {"w": "1.safetensors", "b": "1.safetensors"}}')
    >>> read_shards(tmp / "index.json", VitLensError, "download it again")
    ['1.safetensors']
    """
    held = read_json(index, error, advice).get("weight_map")
    if not isinstance(held, dict) or not held or not all(isinstance(name, str) for name in held.values()):
        raise error(f"{index}: weight_map is no table from tensors to files; {advice}")
    names = sorted(set(held.values()))
    for path in (flavour(name) for name in names for flavour in (PurePosixPath, PureWindowsPath)):
        if path.anchor or ".." in path.parts:
            raise error(f"{index} names {str(path)!r}, which lies outside of its directory; {advice}")
    return names


@contextlib.contextmanager
def damaged(error: type[VitLensError], said: str, advice: str) -> Iterator[None]:
    """Say of whatever goes wrong in a block that reads a file that the file is damaged.

    Args:
        error: The error to raise.
        said: What is wrong then, for the message.
        advice: What to do about it, for the message.

    Raises:
        VitLensError: ``error``, with what was ``said``, the reason and the advice.

    >>> with damaged(VitLensError, "the file is damaged", "make it again"):
    ...     json.loads("{")
    Traceback (most recent call last):
    vit_lens.errors.VitLensError: the file is damaged (...); make it again
    """
    try:
        yield
    except VitLensError:
        raise
    except _DAMAGE as damage:
        raise error(f"{said} ({damage}); {advice}") from damage


def save_fields(held: Any, path: Path, form: str, key: str = "fields") -> Path:
    """Write a dataclass: its tensors as safetensors, everything else as JSON in the metadata, under a key.

    Args:
        held: The dataclass.
        path: The file; its directory is made where it is not there.
        form: The name of the format, which :func:`load_fields` asks for.
        key: The key of the metadata that the JSON is under.

    Returns:
        The path.

    Raises:
        OutputError: The file cannot be written.

    >>> save_fields(bank, tmp / "fields.safetensors", "example.1").name
    'fields.safetensors'
    """
    tensors = {name: value for name, value in vars(held).items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in vars(held).items() if name not in tensors}
    return save_tensors(tensors, path, {"format": form, key: json.dumps(plain, default=str)})


def load_fields(
    cls: type, path: Path, form: str, key: str = "fields", *, what: str, error: type[VitLensError], advice: str
) -> dict[str, Any]:
    """Read what :func:`save_fields` wrote of a dataclass: what it is made of, by name.

    Args:
        cls: The dataclass.
        path: The file.
        form: The name of the format that it was written with.
        key: The key of the metadata that the JSON is under.
        what: What the file should hold, in words such as ``a text bank``.
        error: The error to raise.
        advice: What to do if the file is not there, or is damaged, for the message.

    Raises:
        VitLensError: ``error``: the file is missing, damaged or of another format, or its fields are not those of the
            dataclass.

    >>> path = save_fields(bank, tmp / "fields.safetensors", "example.1")
    >>> fields = load_fields(vl.TextBank, path, "example.1", what="a bank", error=VitLensError, advice="make it")
    >>> fields["captions"][0]
    'a red star'
    """
    with open_tensors(path, [form], what=what, error=error, advice=advice) as (file, meta):
        plain = parse_json(meta[key], f"the metadata of {path}", error, advice)
        return check_fields(cls, plain | file_tensors(file), str(path), error)


def file_tensors(file: Any) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file that :func:`open_tensors` has opened, by name."""
    return {name: file.get_tensor(name) for name in file.keys()}


def check_fields(cls: type, found: Any, where: str, error: type[VitLensError]) -> dict[str, Any]:
    """Return what a file says of a dataclass, lists as tuples where it has tuples, to make one of.

    Args:
        cls: The dataclass.
        found: What the file says: a dict, or something else, which raises.
        where: Where it was found, for the message.
        error: The error to raise.

    Raises:
        VitLensError: ``error``: a field is unknown or missing, or a value is of another kind. True is no number.

    >>> from vit_lens.config import RelativeBiasConfig
    >>> check_fields(RelativeBiasConfig, {"n_buckets": 32}, "a file", VitLensError)
    Traceback (most recent call last):
    vit_lens.errors.VitLensError: a file holds the fields ['n_buckets']: max_distance is missing
    """
    if not isinstance(found, dict):
        raise error(f"{where} holds a {type(found).__name__}, expected a JSON object")
    kinds = {field.name: field.type for field in dataclasses.fields(cls)}
    needed = [one.name for one in dataclasses.fields(cls) if one.default is one.default_factory is dataclasses.MISSING]
    wrong = [f"unknown key {name!r}; nearest: {nearest(str(name), kinds)}" for name in found if name not in kinds]
    wrong += [f"{name} is missing" for name in needed if name not in found]
    if wrong:
        raise error(f"{where} holds the fields {sorted(found)}: {'; '.join(wrong)}")
    for name, kind in kinds.items():
        if name in found and not _fits(value := found[name], kind):
            told = str(kind) if (origin := get_origin(kind)) else getattr(kind, "__name__", kind)
            told = f"one of {', '.join(map(repr, get_args(kind)))}" if origin is Literal else told
            raise error(f"{where}: {name} is {value!r}; expected {told}")
    return {name: tuple(value) if _is_tuple(value, kinds[name]) else value for name, value in found.items()}


def _is_tuple(value: Any, kind: Any) -> bool:
    """Whether a list of a file stands for a tuple, which JSON has not."""
    return isinstance(value, list) and any(get_origin(one) is tuple for one in (kind, *get_args(kind)))


def _fits(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any or origin in (types.UnionType, Union):
        return kind is Any or any(_fits(value, one) for one in parts)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in parts)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            return False
        kinds = parts[:1] * len(value) if parts[1:] == (...,) else parts
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if isinstance(value, bool):
        return kind is bool
    allowed: Any = (int, float) if kind is float else origin or kind
    return isinstance(value, str if dataclasses.is_dataclass(kind) else allowed)  # as save_fields writes them
