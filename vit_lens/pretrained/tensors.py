"""Read tensors from safetensors and PyTorch files, and nothing else from them: no code in a file is run."""

__all__ = ["read_json", "read_tower", "without_prefix"]

import json
import pickle
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vit_lens.errors import CheckpointError

_DAMAGE = (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile)


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


def read_tower(
    paths: Sequence[Path], *, dtype: torch.dtype, drop: tuple[str, ...], only_if: str = ""
) -> dict[str, Tensor]:
    """Read every tensor except those of the text side, cast to ``dtype``.

    Integer tensors are left as they are.

    Args:
        paths: One file, or the shards of one checkpoint.
        dtype: Of the result.
        drop: Prefixes of names that belong to the text side.
        only_if: Prefix that must occur for anything to be dropped; a file without it holds the vision tower alone.

    Raises:
        CheckpointError: A file is missing, truncated or not a checkpoint.
    """
    tensors: dict[str, Tensor] = {}
    for path in paths:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path}: the file is empty")
        read = _read_safetensors if path.suffix == ".safetensors" else _read_torch
        shard = read(path, dtype, drop, only_if)
        twice = sorted(set(shard) & set(tensors))
        if twice:
            raise CheckpointError(f"{path} holds tensors that another shard holds too: {', '.join(twice[:8])}")
        tensors |= shard
    return tensors


def without_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors with a prefix removed from the names that have it.

    Raises:
        CheckpointError: Two names become one.
    """
    out = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if len(out) != len(tensors):
        raise CheckpointError(f"tensors occur twice, with and without the prefix {prefix!r}")
    return out


def _kept(names: Iterable[str], drop: tuple[str, ...], only_if: str) -> list[str]:
    names = list(names)
    if not any(name.startswith(only_if) for name in names):
        return names
    return [name for name in names if not name.startswith(drop)]


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _read_safetensors(path: Path, dtype: torch.dtype, drop: tuple[str, ...], only_if: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: _cast(file.get_tensor(name), dtype) for name in _kept(file.keys(), drop, only_if)}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); download or copy it again") from error


def _read_torch(path: Path, dtype: torch.dtype, drop: tuple[str, ...], only_if: str) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as a file of tensors ({reason}); if it is whole, it holds more than tensors: "
            "save the model's state_dict() alone"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} does not hold a state dict (names to tensors); save the model's state_dict()")
    if all(name.startswith("module.") for name in content):  # saved from DistributedDataParallel
        content = {name.removeprefix("module."): tensor for name, tensor in content.items()}
    return {name: _cast(content[name], dtype) for name in _kept(content, drop, only_if)}
