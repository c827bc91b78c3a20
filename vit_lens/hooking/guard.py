"""What a hook function may do: it works on a copy, and what it returns keeps shape, dtype and device."""

__all__ = ["Direction", "Guard", "Name", "as_device", "as_pairs", "check_hook_result", "is_hooked"]

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from vit_lens.errors import HookShapeError, UnknownHookError, VitLensError

Direction = Literal["fwd", "bwd"]
Name = str | Callable[[str], bool]


class Guard:
    """A user's hook function, which works on a copy and may not change what flows through the model but in value.

    A copy, because activations share memory with each other and with weights (``hook_resid_post`` is the next
    ``hook_resid_pre``; positions are the same for all images): an edit in place would reach what was cached before.
    """

    def __init__(self, hook: Callable, name: str, direction: Direction):
        if not callable(hook):
            raise UnknownHookError(f"the hook on {name!r} is {hook!r}; expected a function of (tensor, hook)")
        if direction not in get_args(Direction):
            raise UnknownHookError(f"dir={direction!r}; expected 'fwd' or 'bwd'")
        self.hook, self.name, self.fired = hook, name, 0
        self.direction: Direction = direction
        self.only_reads = direction == "bwd" or getattr(hook, "only_reads", False)

    def __call__(self, tensor: Tensor, hook: HookPoint) -> Any:
        self.fired += 1
        given = tensor if self.only_reads else tensor.clone()
        result = self.hook(given, hook=hook)
        value: Any = result[0] if self.direction == "bwd" and isinstance(result, tuple) and len(result) == 1 else result
        if value is None:
            return None if self.only_reads else given
        check_hook_result(value, tensor, self.name)
        if self.direction == "bwd" or value is given:
            return result
        return value.clone()  # what the caller has besides, no cache may keep

    def __repr__(self) -> str:
        # The arguments of a partial can be large tensors, and TransformerLens asks for this at every add_hook.
        return f"partial({self.hook.func!r}, ...)" if isinstance(self.hook, partial) else repr(self.hook)


def as_device(device: str | torch.device) -> torch.device:
    """Return the device that tensors can be kept on.

    Raises:
        VitLensError: This machine has none of this name.

    >>> as_device("cpu")
    device(type='cpu')
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise VitLensError(f"device={device!r}: {str(error).splitlines()[0]}") from error


def as_pairs(hooks: Any) -> list[tuple[Name, Callable]]:
    """Return hooks as pairs.

    Raises:
        UnknownHookError: They are a pair of their own, or a hook without a name.
    """
    found: list[Any] = [hooks] if isinstance(hooks, str) or not isinstance(hooks, Iterable) else list(hooks)
    for item in found:
        if not (isinstance(item, (tuple, list)) and len(item) == 2 and callable(item[1])):
            raise UnknownHookError(f"hooks are a list of (name, function) pairs; {item!r} is none")
    return [(name, hook) for name, hook in found]


def check_hook_result(value: Any, tensor: Tensor, name: str) -> None:
    """Raise unless what a hook returned can stand in the place of what it was given.

    Args:
        value: What the hook returned.
        tensor: What the hook was given.
        name: The name of the hook point, for the message.

    Raises:
        HookShapeError: The value is no tensor, or of another shape, dtype or device.

    >>> check_hook_result(torch.zeros(2, 4), torch.zeros(2, 3), "hook_pooled")
    Traceback (most recent call last):
    vit_lens.errors.HookShapeError: the hook on 'hook_pooled' returned (2, 4) float32 on cpu for (2, 3) float32 ...
    """
    if not isinstance(value, Tensor):
        raise HookShapeError(f"the hook on {name!r} returned {type(value).__name__}; return a tensor or None")
    if value.shape != tensor.shape or value.dtype != tensor.dtype or value.device != tensor.device:
        raise HookShapeError(
            f"the hook on {name!r} returned {_describe(value)} for {_describe(tensor)}; "
            "a hook must keep shape, dtype and device"
        )


def is_hooked(module: nn.Module) -> bool:
    """Whether any hook, TransformerLens' or plain PyTorch's, sits on a hook point, or on another module.

    Hooks on all modules at once (``register_module_forward_hook``; counters of FLOPs use them) do not count: they
    see what runs, and points that no hook of their own sits on may rest.

    >>> is_hooked(model.hook_pooled)
    False
    >>> with model.hooks([("hook_pooled", lambda pooled, hook: 2 * pooled)]):
    ...     is_hooked(model.hook_pooled), model(pixels).shape
    (True, torch.Size([2, 128]))
    """
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks or getattr(module, "fwd_hooks", None) or getattr(module, "bwd_hooks", None))  # a compiler watches


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {torch.device(tensor.device)}"
