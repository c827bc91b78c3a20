"""Read tensors from safetensors and PyTorch files, and nothing else from them: no code in a file is run."""

__all__ = ["ADVICE", "StoredTensors", "open_tensors"]

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_lens.errors import CheckpointError
from vit_lens.files import open_safetensors

ADVICE = "download or copy it again"
_DAMAGE = (
    pickle.PickleError, zipfile.BadZipFile, ArithmeticError, AttributeError, EOFError, LookupError, OSError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip
_KINDS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
# How files begin that are none of tensors, in small letters, and what they are.
_STRANGERS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file that it stands for: `git lfs pull` fetches that",
    b"<": "a web page, not the file: download the file itself (on the Hub from resolve/, not blob/)",
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"\x89hdf": "an HDF5 file of Keras: convert it to PyTorch with the library that wrote it",
    b"{": "a JSON file, such as an index or a config: give the weights",
}
# What wrappers put into the names of a model's tensors: torch.compile, FSDP, checkpointing, DataParallel and its like.
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.|^module\.")
# Pages of a file that were read stay in memory until the file is let go, so it is opened again after this many bytes.
_OPEN_AGAIN_AFTER = 16 * 2**20


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
        with path.open("rb") as stream:
            start = stream.read(64)
        if stranger := next((what for sign, what in _STRANGERS.items() if start.lstrip().lower().startswith(sign)), ""):
            raise CheckpointError(f"{path} is {stranger}")
        file = _File(path, is_safe=path.suffix == ".safetensors" or start[8:9] == b"{")
        for key in file.header:
            if (name := _unwrapped(key)) in places:
                raise CheckpointError(f"{path} holds {key}, which it or another shard holds too")
            places[name] = file, key
    return StoredTensors(places)


class _File:
    """A file of tensors that is opened again and again, so that what was read of it does not pile up in memory."""

    def __init__(self, path: Path, *, is_safe: bool):
        self.path, self._n_read, self._is_safe = path, 0, is_safe
        # A file in PyTorch's format before 1.6 cannot be mapped: it is read whole, once.
        self._is_mapped = self._is_safe or zipfile.is_zipfile(path)
        content = self._open()
        self._content: Any = None if self._is_mapped else content
        self.header: dict[str, Tensor] = {
            key: _described(content.get_slice(key), f"{path}: {key}") if self._is_safe else content[key].to("meta")
            for key in content.keys()
        }

    def read(self, key: str) -> Tensor:
        if self._content is None or (self._is_mapped and self._n_read > _OPEN_AGAIN_AFTER):
            self._content = None  # the old mapping goes before the new one comes
            self._content, self._n_read = self._open(), 0
        tensor = self._content.get_tensor(key) if self._is_safe else self._content[key]
        self._n_read += tensor.nbytes
        return tensor

    def _open(self) -> Any:
        if self._is_safe:
            return open_safetensors(self.path, CheckpointError, ADVICE)
        return _load_torch(self.path, mmap=self._is_mapped)


def _unwrapped(key: str) -> str:
    while (name := _WRAPPERS.sub("", key)) != key:
        key = name
    return name


def _load_torch(path: Path, *, mmap: bool) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*TorchScript", category=UserWarning)  # which is refused below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except _DAMAGE as error:
        raise CheckpointError(f"{path} {_reason(path, str(error))}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(x, str) and isinstance(content[x], Tensor) for x in content):
        raise CheckpointError(f"{path} does not hold a state dict (names to tensors); save the model's state_dict()")
    return content


def _reason(path: Path, said: str) -> str:
    """Say why PyTorch does not read a file; its own text advises to run what is in it."""
    if "TorchScript" in said:
        return (
            "is a TorchScript archive, which holds code; where you trust it, save its weights: "
            "torch.save(torch.jit.load(path).state_dict(), 'weights.pt')"
        )
    if found := re.search(r"GLOBAL (\S+)|[Tt]ype (\S+) is not", said):
        return (
            f"holds more than tensors ({found[1] or found[2]}), as checkpoints of a training do; where you trust it, "
            "save the model's state_dict() alone: torch.save(model.state_dict(), 'weights.pt')"
        )
    return f"cannot be read as a file of tensors: it is truncated, or PyTorch did not write it; {ADVICE}"


def _described(stored: Any, where: str) -> Tensor:
    kind = stored.get_dtype()
    if kind not in _KINDS:
        raise CheckpointError(f"{where} has dtype {kind}; expected one of {', '.join(_KINDS)}")
    return torch.empty(stored.get_shape(), dtype=_KINDS[kind], device="meta")
