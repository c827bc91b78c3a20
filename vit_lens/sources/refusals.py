"""How towers are refused, and checks of what a caller asks for."""

__all__ = [
    "kind", "reason_of", "refuse", "refuse_float16", "require_device", "require_dtype", "require_spec", "size_pair"
]  # fmt: skip

from typing import Any, NoReturn

import torch

from vit_lens.addresses import as_index
from vit_lens.config import TowerConfig
from vit_lens.errors import CheckpointError, PreprocessError, UnsupportedTowerError, expect
from vit_lens.images import PreprocessSpec

_MOST = 2**14  # pixels of a side
_PREFIX, _ADVICE = "unsupported: ", ". HookedViT reproduces plain ViTs; `vit-lens models` lists them"


def refuse(what: str) -> NoReturn:
    """Raise, naming exactly what is unsupported."""
    raise UnsupportedTowerError(f"{_PREFIX}{what}{_ADVICE}")


def reason_of(error: UnsupportedTowerError) -> str:
    """Return what :func:`refuse` was told, without the advice around it."""
    return str(error).removeprefix(_PREFIX).partition(_ADVICE)[0]


def kind(thing: object) -> str:
    """Return the name of a thing's class."""
    return type(thing).__name__


def require_dtype(dtype: Any) -> torch.dtype:
    """Return a floating-point dtype.

    Raises:
        CheckpointError: It is none; a name such as ``"float32"`` is text.
    """
    if not isinstance(dtype, torch.dtype):
        advice = f"torch.{dtype}" if isinstance(getattr(torch, str(dtype), None), torch.dtype) else "torch.float32"
        raise CheckpointError(f"dtype={dtype!r} is a {kind(dtype)}; expected a torch.dtype such as {advice}")
    if not dtype.is_floating_point:
        raise CheckpointError(f"dtype={dtype}; expected a floating-point type such as torch.float32")
    return dtype


def refuse_float16(cfg: TowerConfig, dtype: torch.dtype) -> None:
    """Raise for a T5 in float16, whose activations outgrow it; Hugging Face cuts them off and keeps weights in float32.

    Raises:
        UnsupportedTowerError: It is one.

    >>> from dataclasses import replace
    >>> refuse_float16(replace(text_model.cfg, normalization_type="RMS"), torch.float16)
    Traceback (most recent call last):
    vit_lens.errors.UnsupportedTowerError: a T5 in float16 ...; load it in torch.bfloat16 or torch.float32: dtype=
    """
    if dtype == torch.float16 and cfg.normalization_type == "RMS":
        raise UnsupportedTowerError(
            "a T5 in float16 outgrows that type's range; load it in torch.bfloat16 or torch.float32: dtype="
        )


def size_pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return a size as (height, width).

    Raises:
        CheckpointError: A side is not a positive number.
    """
    if size is None:
        return None
    pair = size if isinstance(size, (list, tuple)) else (size, size)
    sides = [side for each in pair if (side := as_index(each)) is not None and 1 <= side <= _MOST]
    if len(pair) != 2 or len(sides) != 2:
        raise CheckpointError(f"image_size={size!r}; expected a side or (height, width), in pixels, up to {_MOST}")
    return sides[0], sides[1]


def require_device(device: Any) -> str | torch.device:
    """Return a device that is here.

    Raises:
        CheckpointError: It is none, or not here.
    """
    try:
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"device={device!r} ({reason}); expected one that is here, such as 'cpu'") from error
    return device


def require_spec(spec: Any) -> None:
    """Raise unless a preprocessing is one, or None.

    Raises:
        PreprocessError: It is something else.
    """
    if spec is not None:
        expect(spec, PreprocessSpec, "preprocess_spec", PreprocessError, "how images become pixels")
