"""What tools ask of a cache, a model and their numbers before they compute."""

__all__ = ["check_cache", "check_finite", "check_model", "check_tensor", "finite", "in_full", "whole"]

import math
import numbers
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import as_index
from vit_lens.errors import LensError, VitLensError
from vit_lens.towers import Tower, ViTActivationCache, check_model


def check_cache(cache: object, error: type[VitLensError] = LensError) -> ViTActivationCache:
    """Return a cache.

    Args:
        cache: What was given as one.
        error: The error to raise.

    Raises:
        VitLensError: ``error``: it is a plain dict, another library's cache, or something else.

    >>> vl.attribution.check_cache(dict(cache))
    Traceback (most recent call last):
    vit_lens.errors.LensError: expected the cache of HookedViT.run_with_cache, not dict; ...
    """
    if not isinstance(cache, ViTActivationCache):
        raise error(
            f"expected the cache of HookedViT.run_with_cache, not {type(cache).__name__}; a dict of activations "
            "becomes one with vit_lens.towers.ViTActivationCache(activations, model)"
        )
    return cache


def in_full(model: Tower) -> torch.autocast:
    """Return a context in which numbers are as wide as their tensors, whatever ``torch.autocast`` there is around it.

    Args:
        model: The model whose device is computed on.

    >>> with torch.autocast("cpu", torch.bfloat16), vl.attribution.in_full(model):
    ...     model(pixels).dtype
    torch.float32
    """
    kind = model.device.type
    return torch.autocast(kind if torch.amp.is_autocast_available(kind) else "cpu", enabled=False)


def check_tensor(name: str, value: object, axes: str, error: type[VitLensError] = LensError) -> None:
    """Raise unless something is a floating-point tensor with the axes that it should have.

    Args:
        name: What it is, for the message.
        value: What was given.
        axes: The axes, as jaxtyping writes them: names, sizes, and ``*names`` for any number of axes.
        error: The error to raise.

    Raises:
        VitLensError: ``error``: it is no tensor, of another shape, of whole numbers, or without numbers (on ``meta``).

    >>> vl.attribution.check_tensor("the target", torch.zeros(3, 5), "*batch 128")
    Traceback (most recent call last):
    vit_lens.errors.LensError: the target is torch.float32 of shape (3, 5) on cpu; expected a float tensor [*batch 128]
    """
    if not isinstance(value, Float[Tensor, axes]) or value.is_meta:  # pyright: ignore
        is_tensor = isinstance(value, Tensor)
        got = f"{value.dtype} of shape {tuple(value.shape)} on {value.device}" if is_tensor else type(value).__name__
        raise error(f"{name} is {'' if is_tensor else 'a '}{got}; expected a float tensor [{axes}]")


def whole(name: str, value: object, error: type[VitLensError], least: int = 1) -> int:
    """Return a whole number of Python, numpy or torch as an int.

    Args:
        name: The argument's name, for the message.
        value: What was given.
        error: The error to raise.
        least: The least that it may be.

    Raises:
        VitLensError: ``error``: it is no whole number, less than that, or needs more than 64 bits.

    >>> vl.attribution.whole("batch_size", 2.5, VitLensError)
    Traceback (most recent call last):
    vit_lens.errors.VitLensError: batch_size=2.5; expected a whole number, at least 1
    """
    if (found := as_index(value)) is None or not least <= found < 2**63:
        raise error(f"{name}={value!r}; expected a whole number, at least {least}")
    return found


def finite(name: str, value: object, error: type[VitLensError]) -> float | int:
    """Return a finite number: of Python as it is, of numpy or torch as a float.

    Args:
        name: The argument's name, for the message.
        value: What was given.
        error: The error to raise.

    Raises:
        VitLensError: ``error``: it is no number, nan, infinite, or too large for one.

    >>> vl.attribution.finite("alpha", np.float32(5), VitLensError)
    5.0
    >>> vl.attribution.finite("alpha", "5", VitLensError)
    Traceback (most recent call last):
    vit_lens.errors.VitLensError: alpha='5'; expected a finite number
    """
    is_number = isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()
    try:
        found = float(value) if is_number and not isinstance(value, bool) else math.nan  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, OverflowError, RuntimeError):  # complex, or on the meta device
        found = math.nan
    if not math.isfinite(found):
        raise error(f"{name}={value!r}; expected a finite number")
    return value if isinstance(value, int) else found


def check_finite(
    values: Float[Tensor, "batch place *axes"], places: Sequence[object], cache: ViTActivationCache
) -> None:
    """Raise if what was read of a run holds nan or infinity, which would go on as any number does.

    Args:
        values: What was read.
        places: Where, along the second axis, for the message.
        cache: The cache of the run.

    Raises:
        LensError: It does; the message names the place, the image, and where in the run it begins.

    >>> vl.attribution.check_finite(torch.tensor([[1.0, torch.inf]]), ["L3H4", "L5.mlp"], cache)
    Traceback (most recent call last):
    vit_lens.errors.LensError: L5.mlp reads as nan or infinity for image 0: the cached run is finite, so a strength...
    """
    if values.is_meta or values.isfinite().all():
        return
    image, place, *_ = (~values.isfinite()).nonzero()[0].tolist()
    held = [name for name in cache.cache_dict if not name.endswith("attn_scores")]  # what a mask hides is -inf there
    first = next((name for name in held if not cache.cache_dict[name].isfinite().all()), None)
    why = (
        "the cached run is finite, so a strength is too large or the weights of the read-out are not finite"
        if first is None
        else f"so is {first} in the cached run; look for nan in the weights up to there, or run in a wider dtype"
    )
    raise LensError(f"{places[place]} reads as nan or infinity for image {image}: {why}")
