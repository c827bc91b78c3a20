"""What is computed depends on what is said: defaults and autocast that hold around a call do not reach into it."""

__all__ = ["stated_numerics"]

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from vit_lens.numerics import without_autocast

_CPU = torch.device("cpu")


@contextmanager
def stated_numerics() -> Iterator[None]:
    """Compute with the dtypes of weights and inputs, as a ``with`` block or a decorator.

    Libraries make tensors without a dtype or a device, and autocast changes those of others. Within the block the
    default dtype is float32, the default device the CPU, and autocast is off.

    >>> torch.set_default_dtype(torch.float64)
    >>> with vl.decoders.stated_numerics():
    ...     torch.zeros(1).dtype
    torch.float32
    >>> torch.zeros(1).dtype
    torch.float64
    >>> torch.set_default_dtype(torch.float32)
    """
    before = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(without_autocast())
        if before != torch.float32:
            stack.callback(torch.set_default_dtype, before)
            torch.set_default_dtype(torch.float32)
        if torch.get_default_device() != _CPU:  # only then: it costs time in every operation
            stack.enter_context(_CPU)
        yield
