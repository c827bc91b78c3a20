"""Checks that the readers of all towers share."""

__all__ = [
    "activation_of",
    "common_eps",
    "grid_of",
    "kind",
    "patch_of",
    "reason_of",
    "refuse",
    "require_dtype",
    "require_own_code",
    "require_scale",
    "same_for_all",
    "size_pair",
]

import math
from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from vit_lens.config import ActivationName
from vit_lens.errors import CheckpointError, UnsupportedTowerError

_SUPPORTED = (
    "HookedViT reproduces plain ViTs: open_clip's native ones, CoCa and SigLIP, timm's VisionTransformer, and Hugging "
    "Face's CLIP, SigLIP and DINOv2; `vit-lens models` lists them"
)
_PREFIX = "unsupported: "
_LIBRARIES = ("torch", "open_clip", "timm", "transformers")
# Every class that computes one of the three activations, by module and name: the packages are not imported for this.
_ACTIVATIONS: dict[tuple[str, str], ActivationName] = {
    ("open_clip", "QuickGELU"): "quick_gelu",
    ("timm", "GELU"): "gelu",
    ("timm", "GELUTanh"): "gelu_pytorch_tanh",
    ("timm", "QuickGELU"): "quick_gelu",
    ("transformers", "GELUActivation"): "gelu",
    ("transformers", "GELUTanh"): "gelu_pytorch_tanh",
    ("transformers", "PytorchGELUTanh"): "gelu_pytorch_tanh",
    ("transformers", "QuickGELUActivation"): "quick_gelu",
}


def refuse(what: str) -> NoReturn:
    """Raise, naming exactly what is unsupported."""
    raise UnsupportedTowerError(f"{_PREFIX}{what}. {_SUPPORTED}")


def reason_of(error: UnsupportedTowerError) -> str:
    """Return what :func:`refuse` was told, without the advice around it."""
    return str(error).removeprefix(_PREFIX).removesuffix(f". {_SUPPORTED}")


def kind(thing: object) -> str:
    """Return the name of a thing's class."""
    return type(thing).__name__


def require_own_code(tower: nn.Module) -> None:
    """Check that the vision tower runs the code of its library: weights and sizes do not show what was put on top.

    That is a forward hook, a ``forward`` set on one module, or a part of a class that no library of towers made.

    Raises:
        UnsupportedTowerError: The message names the parts.
    """
    vision: Any = getattr(tower, "visual", tower)
    parts = {name: part for name, part in vision.named_modules() if not name.startswith(("text_model", "text_proj"))}
    found = [f"{name or kind(part)} ({why})" for name, part in parts.items() if (why := _foreign_code(part))]
    if found:
        more = f", and {len(found) - 3} more" if len(found) > 3 else ""
        refuse(f"code on the tower that HookedViT would not run: {', '.join(found[:3])}{more}; remove it first")


def _foreign_code(part: nn.Module) -> str:
    hooks = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
    # transformers keeps hooks of its own on models that were asked for hidden states.
    if any(getattr(hook, "__module__", "") != "transformers.utils.output_capturing" for hook in hooks):
        return "a forward hook"
    if "forward" in vars(part):
        return "a forward of its own"
    is_linear = type(part) in (nn.Linear, NonDynamicallyQuantizableLinear) or not isinstance(part, nn.Linear)
    if not is_linear or type(part).__module__.split(".")[0] not in _LIBRARIES:
        return f"of type {type(part).__module__}.{kind(part)}"
    return ""


def same_for_all(what: str, values: Iterable[Any]) -> Any:
    """Return the one value that all blocks share; anything else is unsupported."""
    distinct = list(dict.fromkeys(values))
    if len(distinct) != 1:
        refuse(f"{what} that differs between blocks ({', '.join(map(str, distinct)) or 'there are no blocks'})")
    return distinct[0]


def common_eps(norms: dict[str, Any], allowed: tuple[type[nn.Module], ...]) -> float:
    """Return the eps that all norms share, having checked that each is a LayerNorm with weight and bias."""
    for name, norm in norms.items():
        if type(norm) not in allowed:
            refuse(f"{name} of type {kind(norm)} instead of a LayerNorm")
        if norm.weight is None or norm.bias is None:
            refuse(f"{name} without weight or bias")
    return float(same_for_all("LayerNorm eps", (norm.eps for norm in norms.values())))


def patch_of(conv: Any, name: str, *, bias: bool = False) -> tuple[int, int]:
    """Return the patch size (height, width), having checked that the patches do not overlap, and the bias."""
    if type(conv) is not nn.Conv2d:
        refuse(f"{name} of type {kind(conv)} instead of Conv2d")
    if (conv.bias is not None) != bias:
        refuse(f"{name} {'without' if bias else 'with'} a bias")
    if conv.in_channels != 3:
        refuse(f"{name} with {conv.in_channels} input channels instead of 3")
    is_padded = conv.padding not in ((0, 0), "valid")
    if conv.stride != conv.kernel_size or is_padded or conv.dilation != (1, 1) or conv.groups != 1:
        refuse(f"{name} with overlapping, padded, dilated or grouped patches")
    height, width = conv.kernel_size
    return height, width


def grid_of(image: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """Return the patches as (rows, columns); what is left of whole patches is not seen."""
    rows, columns = image[0] // patch[0], image[1] // patch[1]
    if not rows or not columns:
        refuse(f"image size {image} that is smaller than the patch size {patch}")
    return rows, columns


def activation_of(act: Any) -> ActivationName:
    """Return the name of an activation module, read from its class."""
    if type(act) is nn.GELU:
        return "gelu" if act.approximate == "none" else "gelu_pytorch_tanh"
    package = type(act).__module__.split(".")[0]
    name = _ACTIVATIONS.get((package, kind(act)))
    if name is None:
        refuse(f"activation {act!r}; expected exact GELU, tanh GELU or QuickGELU")
    return name


def require_scale(scales: Iterable[float], d_head: int) -> None:
    """Check that attention scores are divided by the root of the head's width."""
    scale = same_for_all("attention scale", scales)
    if not math.isclose(scale, d_head**-0.5):
        refuse(f"attention scale {scale} for heads of width {d_head}")


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


def size_pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return a size as (height, width).

    Raises:
        CheckpointError: A side is not a positive number.
    """
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise CheckpointError(f"image_size={size}; expected a side or (height, width), in pixels")
    return pair
