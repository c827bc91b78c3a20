"""How models, lenses and images are named on the command line."""

__all__ = [
    "DEFAULT_LENSES",
    "Device",
    "Dtype",
    "parse_lens",
    "parse_shard",
    "split_list",
    "torch_device",
    "torch_dtype",
]

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vit_lens.errors import LensError, VitLensError, nearest

if TYPE_CHECKING:
    import torch

    from vit_lens.lenses import Lens
    from vit_lens.reference import ReferenceMeans

DEFAULT_LENSES = ("dsl-mean:alpha=5", "diffusion")
_LENSES = ("diffusion", "dsl", "dsl-mean")
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


def parse_lens(text: str, reference: "ReferenceMeans | None") -> "Lens":
    """Read ``diffusion``, ``dsl:alpha=10``, ``dsl:share=1`` or ``dsl-mean:alpha=5``.

    Raises:
        LensError: The text is none of these, or ``dsl-mean`` has no reference means.
    """
    from vit_lens.lenses import DiffusionLens, DiffusionSteeringLens

    name, _, rest = text.strip().partition(":")
    if name not in _LENSES:
        raise LensError(
            f"no lens {name!r}; nearest: {nearest(name, _LENSES)}. Write diffusion, dsl:alpha=10, dsl-mean:alpha=5"
        )
    if name == "diffusion":
        if rest:
            raise LensError(f"lens {text!r}: the Diffusion Lens has no settings")
        return DiffusionLens()
    key, _, value = rest.partition("=")
    if key not in ("alpha", "share"):
        raise LensError(f"lens {text!r}: give its strength as {name}:alpha=NUMBER or {name}:share=NUMBER")
    try:
        strength = float(value)
    except ValueError:
        raise LensError(f"lens {text!r}: {value!r} is not a number") from None
    if name == "dsl":
        return DiffusionSteeringLens(**{key: strength})  # pyright: ignore[reportArgumentType]
    if reference is None:
        raise LensError(
            "dsl-mean needs reference means of this model: make them once with `vit-lens reference IMAGES... --model "
            "MODEL --out means.safetensors`, then pass --reference means.safetensors"
        )
    return DiffusionSteeringLens(**{key: strength}, anchor="mean", reference=reference)  # pyright: ignore[reportArgumentType]


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
