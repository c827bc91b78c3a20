"""Casts for the time of a run, and float32 that is float32."""

__all__ = ["cast_while_running", "exact_float32"]

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from vit_lens.towers import cast


@contextlib.contextmanager
def cast_while_running(block: nn.Module, *dtypes: torch.dtype) -> Iterator[None]:
    """Cast a block of a working copy for the time of a ``with`` block, so that one is held in the wider dtype."""
    kept = [(tensor, tensor.data) for tensor in (*block.parameters(), *block.buffers())]
    for tensor, data in kept:
        tensor.data = cast(data, dtypes)
    try:
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 as float32: on a GPU, where convolutions round to 10 bits, and under ``torch.autocast``.

    >>> with exact_float32():
    ...     torch.backends.cudnn.allow_tf32
    False
    """
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
