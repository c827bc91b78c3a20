"""What of a decoder's part is not as its configuration builds it: settings of its modules, processors, hooks."""

__all__ = ["edits", "unsaved_buffers"]

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


def edits(part: Any, prepare: Callable[[Any], object] | None = None) -> dict[str, str]:
    """Return what was changed of a part of diffusers since it was built, by module and attribute; weights do not count.

    Pictures follow from weights, configuration and this: the ``eps`` of a norm, a processor of attention, a module or
    method that was replaced, a hook.

    Args:
        part: A model of diffusers, whose configuration builds it again, on no device.
        prepare: What is done to it then, such as putting in an adapter of which configurations say nothing.

    >>> edits(decoder.unet)
    {}
    >>> decoder.unet.conv_norm_out.eps = 0.5
    >>> edits(decoder.unet)
    {'conv_norm_out.eps': '0.5'}
    >>> decoder.unet.conv_norm_out.eps = decoder.unet.config.norm_eps
    """
    with torch.device("meta"):
        again = type(part).from_config(part.config)
        if prepare is not None:
            prepare(again)
        built = dict(_settings(again.eval()))
    found = dict(_settings(part))
    names = sorted(name for name in built.keys() | found.keys() if built.get(name) != found.get(name))
    return {name: found.get(name, "removed") for name in names}


def unsaved_buffers(part: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that a part computes with and ``state_dict`` leaves out."""
    saved = part.state_dict()
    return {name: buffer for name, buffer in part.named_buffers() if name not in saved}


def _settings(part: nn.Module) -> Iterator[tuple[str, str]]:
    for path, module in part.named_modules():
        start = f"{path}." if path else ""
        yield f"{start}class", _name(type(module))
        for name, value in vars(module).items():
            if not name.startswith("_"):
                yield f"{start}{name}", _said(value)
        for kind in _HOOKS:
            if hooks := getattr(module, kind):
                yield f"{start}{kind.strip('_')}", _said(list(hooks.values()))


def _said(value: Any) -> str:
    """Say a setting without addresses in memory: another process says the same."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return f"[{', '.join(map(_said, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_said(each)}' for key, each in value.items())}}}"
    held = {} if callable(value) and hasattr(value, "__qualname__") else getattr(value, "__dict__", {})
    return f"{_name(value if hasattr(value, '__qualname__') else type(value))}{_said(held) if held else ''}"


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
