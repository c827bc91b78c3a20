"""Copies of modules to run, which leave the original alone and share its memory where they can."""

__all__ = ["cast", "working_copy"]

import copy
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

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
        module: What is copied.
        *dtypes: What the copy is cast to, one after the other.
        device: The device of the copy.
        uncast: The parts that keep their dtype.

    >>> bare = working_copy(model, torch.float64, device=model.device)
    >>> bare.dtype, model.dtype
    (torch.float64, torch.float32)
    """
    left = {id(tensor) for part in uncast for tensor in (*part.parameters(), *part.buffers())}
    memo: dict[int, Any] = {}  # what copy.deepcopy is to put in place of these objects
    for part in module.modules():
        for name in _HOOKS:
            memo[id(getattr(part, name))] = OrderedDict()
        if isinstance(part, HookPoint):  # which lists them as well
            memo[id(part.fwd_hooks)], memo[id(part.bwd_hooks)] = [], []
    for parameter in module.parameters():
        wanted = () if id(parameter) in left else dtypes
        memo[id(parameter)] = nn.Parameter(cast(parameter.detach().to(device), wanted), requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = cast(buffer.detach().to(device), () if id(buffer) in left else dtypes)
    return copy.deepcopy(module, memo).eval()


def cast(tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> Tensor:
    """Return a floating-point tensor cast to each dtype in turn; any other as it is.

    >>> cast(torch.zeros(2), (torch.float16, torch.float64)).dtype
    torch.float64
    """
    for dtype in dtypes if tensor.is_floating_point() else ():
        tensor = tensor.to(dtype)
    return tensor
