"""Copies of modules to run, which leave the original alone and share its memory where they can."""

__all__ = ["cast_while_running", "exact_float32", "working_copy"]

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs",
)  # fmt: skip


def working_copy(
    module: Module, *dtypes: torch.dtype, device: torch.device, uncast: Iterable[nn.Module] = ()
) -> Module:
    """Return a copy in evaluation mode and without hooks, cast to each dtype in turn; the module is not touched.

    Tensors whose dtype and device need no change share their memory with the original.

    Args:
        module: To copy.
        *dtypes: To cast to, one after the other.
        device: Of the copy.
        uncast: Parts that keep their dtype; see :func:`cast_while_running`.
    """
    left = {id(tensor) for part in uncast for tensor in (*part.parameters(), *part.buffers())}
    memo: dict[int, Any] = {}  # what copy.deepcopy is to put in place of these objects
    for part in module.modules():
        for name in _HOOKS:
            memo[id(getattr(part, name))] = OrderedDict()
    for parameter in module.parameters():
        wanted = () if id(parameter) in left else dtypes
        memo[id(parameter)] = nn.Parameter(_cast(parameter.detach().to(device), wanted), requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = _cast(buffer.detach().to(device), () if id(buffer) in left else dtypes)
    return copy.deepcopy(module, memo).eval()


@contextlib.contextmanager
def cast_while_running(block: nn.Module, *dtypes: torch.dtype) -> Iterator[None]:
    """Cast a block of a working copy for the time of a ``with`` block, so that one is held in the wider dtype."""
    kept = [(tensor, tensor.data) for tensor in (*block.parameters(), *block.buffers())]
    for tensor, data in kept:
        tensor.data = _cast(data, dtypes)
    try:
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 as float32 on a GPU too: convolutions there round to 10 bits unless told not to.

    >>> with exact_float32():
    ...     torch.backends.cudnn.allow_tf32
    False
    """
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _cast(tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> Tensor:
    for dtype in dtypes if tensor.is_floating_point() else ():
        tensor = tensor.to(dtype)
    return tensor
