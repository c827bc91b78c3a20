"""Tensors on disk with a JSON description, whole or refused."""

__all__ = ["read_described", "write_described"]

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vit_lens.errors import VitLensError
from vit_lens.files import save_tensors


def write_described(path: Path, kind: str, tensors: Mapping[str, Tensor], fields: Mapping[str, Any]) -> Path:
    """Write tensors as safetensors, atomically, with fields that JSON can hold.

    Raises:
        OutputError: The file cannot be written.
    """
    return save_tensors(tensors, path, {"format": kind, "fields": json.dumps(dict(fields))})


def read_described(
    path: Path, kind: str, names: Sequence[str], error: type[VitLensError], advice: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_described` wrote.

    Args:
        path: The file.
        kind: Its format.
        names: Of the tensors.
        error: What to raise.
        advice: What to do if the file is not there, or is damaged.

    Raises:
        VitLensError: ``error``: the file is missing, truncated, or of another kind.
    """
    if not path.is_file():
        raise error(f"no such file: {path}; {advice}")
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            if meta.get("format") != kind:
                raise error(f"{path} has format {meta.get('format')!r}; expected {kind!r}; {advice}")
            tensors = {name: file.get_tensor(name) for name in names}
        return tensors, json.loads(meta["fields"])
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as damage:
        raise error(f"{path} is not whole ({damage}); {advice}") from damage
