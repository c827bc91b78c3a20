"""Read sizes and switches from the parts of a tower; a part that is not plain is refused by name."""

__all__ = ["activation_of", "common_eps", "grid_of", "patch_of", "require_scale", "same_for_all"]

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from vit_lens.config import ActivationName
from vit_lens.sources.refusals import kind, refuse


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


def activation_of(act: Any, known: Mapping[str, ActivationName]) -> ActivationName:
    """Return the name of an activation module, read from its class.

    Args:
        act: The module.
        known: The classes of the tower's library beside PyTorch's, as ``package.Class``, so that none is imported.
    """
    if type(act) is nn.GELU:
        return "gelu" if act.approximate == "none" else "gelu_pytorch_tanh"
    name = known.get(f"{type(act).__module__.split('.')[0]}.{kind(act)}")
    if name is None:
        refuse(f"activation {act!r}; expected exact GELU, tanh GELU or QuickGELU")
    return name


def require_scale(scales: Iterable[float], d_head: int) -> None:
    """Check that attention scores are divided by the root of the head's width."""
    scale = same_for_all("attention scale", scales)
    if not math.isclose(scale, d_head**-0.5):
        refuse(f"attention scale {scale} for heads of width {d_head}")
