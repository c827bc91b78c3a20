"""Read tensors from safetensors and PyTorch files, and nothing else from them: no code in a file is run."""

__all__ = ["StoredTensors", "open_tensors", "read_json"]

import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vit_lens.errors import CheckpointError

_DAMAGE = (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile)
_KINDS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
# Pages of a file that were read stay in memory until the file is let go, so it is opened again after this many bytes.
_OPEN_AGAIN_AFTER = 16 * 2**20


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: The file is missing or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}; expected an object")
    return content


class StoredTensors:
    """Tensors in files: names, shapes and dtypes are known at once, values are read on access and not kept.

    Attributes:
        header: Every tensor on the meta device, which holds no values.
    """

    def __init__(self, places: Mapping[str, tuple["_File", str]]):
        self._places = dict(places)
        self.header: dict[str, Tensor] = {name: file.header[key] for name, (file, key) in places.items()}

    def __getitem__(self, name: str) -> Tensor:
        file, key = self._places[name]
        return file.read(key)

    def under(self, names: Mapping[str, str]) -> "StoredTensors":
        """Return those tensors that ``names`` maps to, under the names that it maps from."""
        return StoredTensors({name: self._places[key] for name, key in names.items()})


def open_tensors(paths: Sequence[Path]) -> StoredTensors:
    """Open the tensors of a checkpoint, which is one file or several shards; only headers are read.

    Raises:
        CheckpointError: A file is missing, truncated or not a checkpoint.
    """
    places: dict[str, tuple[_File, str]] = {}
    for path in paths:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path}: the file is empty")
        file = _File(path)
        shard = {name: (file, key) for name, key in file.names().items()}
        if twice := sorted(set(shard) & set(places)):
            raise CheckpointError(f"{path} holds tensors that another shard holds too: {', '.join(twice[:8])}")
        places |= shard
    return StoredTensors(places)


class _File:
    """A file of tensors that is opened again and again, so that what was read of it does not pile up in memory."""

    def __init__(self, path: Path):
        self.path, self._n_read = path, 0
        self._is_safe = path.suffix == ".safetensors"
        # A file in PyTorch's format before 1.6 cannot be mapped: it is read whole, once.
        self._is_mapped = self._is_safe or zipfile.is_zipfile(path)
        content = self._open()
        self._content: Any = None if self._is_mapped else content
        self.header: dict[str, Tensor] = {
            key: _described(content.get_slice(key), f"{path}: {key}") if self._is_safe else content[key].to("meta")
            for key in content.keys()
        }

    def names(self) -> dict[str, str]:
        """Return the tensors' names, each with the key under which the file has it."""
        # saved from DistributedDataParallel
        prefix = "module." if not self._is_safe and all(key.startswith("module.") for key in self.header) else ""
        return {key.removeprefix(prefix): key for key in self.header}

    def read(self, key: str) -> Tensor:
        if self._content is None or (self._is_mapped and self._n_read > _OPEN_AGAIN_AFTER):
            self._content = None  # the old mapping goes before the new one comes
            self._content, self._n_read = self._open(), 0
        tensor = self._content.get_tensor(key) if self._is_safe else self._content[key]
        self._n_read += tensor.nbytes
        return tensor

    def _open(self) -> Any:
        return _open_safetensors(self.path) if self._is_safe else _load_torch(self.path, mmap=self._is_mapped)


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); download or copy it again") from error


def _load_torch(path: Path, *, mmap: bool) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except _DAMAGE as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as a file of tensors ({reason}); if it is whole, it holds more than tensors: save "
            "the model's state_dict() alone"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} does not hold a state dict (names to tensors); save the model's state_dict()")
    return content


def _described(stored: Any, where: str) -> Tensor:
    kind = stored.get_dtype()
    if kind not in _KINDS:
        raise CheckpointError(f"{where} has dtype {kind}; expected one of {', '.join(_KINDS)}")
    return torch.empty(stored.get_shape(), dtype=_KINDS[kind], device="meta")
