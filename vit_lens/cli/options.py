"""How models, lenses and images are named on the command line."""

__all__ = [
    "DEFAULT_LENSES",
    "Device",
    "Dtype",
    "parse_shard",
    "split_list",
    "torch_device",
    "torch_dtype",
]

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vit_lens.errors import VitLensError, nearest

if TYPE_CHECKING:
    import torch

# docs/trust.md: in the content study these two tell what a site does, pictures with a clean anchor tell nothing of it.
DEFAULT_LENSES = ("dsl-mean:alpha=5", "diffusion")
_DTYPES = ("float32", "bfloat16", "float16", "float64")

Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1.")]
Dtype = Annotated[str, typer.Option(help=f"Of the weights: {', '.join(_DTYPES)}.")]


def torch_dtype(name: str) -> "torch.dtype":
    """Return a torch dtype by name.

    Raises:
        VitLensError: It is none of those offered.
    """
    import torch

    if name not in _DTYPES:
        raise VitLensError(f"no dtype {name!r}; nearest: {nearest(name, _DTYPES)}")
    return getattr(torch, name)


def torch_device(name: str) -> "torch.device":
    """Return a torch device by name.

    Raises:
        VitLensError: There is no such device here.
    """
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0][:100]
        raise VitLensError(f"device {name!r} cannot be used here ({reason}); take --device cpu") from None
    return torch.device(name)


def split_list(items: Sequence[str]) -> list[str]:
    """Split repeated and comma-separated values."""
    return [part.strip() for item in items for part in item.split(",") if part.strip()]


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Read ``0/4``.

    Raises:
        VitLensError: The text is not of that form.
    """
    if text is None:
        return None
    first, slash, second = text.partition("/")
    if not (slash and first.isdigit() and second.isdigit()):
        raise VitLensError(f"--shard {text!r}: write I/N, for example 0/4 for the first of four")
    return int(first), int(second)
