"""Read sizes and switches from the parts of a tower; a part that is not plain is refused by name."""

__all__ = ["activation_of", "check_fused", "check_scale", "common_eps", "patch_of", "same_for_all"]

import math
from collections.abc import Iterable
from typing import Any

from torch import nn

from vit_lens.config import ActivationName
from vit_lens.sources.refusals import kind, refuse

_ACTIVATIONS: dict[str, ActivationName] = {  # beside PyTorch's; by name, so that no library is imported
    "open_clip.QuickGELU": "quick_gelu", "timm.GELU": "gelu", "timm.GELUTanh": "gelu_pytorch_tanh",
    "timm.QuickGELU": "quick_gelu", "transformers.GELUActivation": "gelu",
    "transformers.GELUTanh": "gelu_pytorch_tanh", "transformers.PytorchGELUTanh": "gelu_pytorch_tanh",
    "transformers.QuickGELUActivation": "quick_gelu",
}  # fmt: skip


def same_for_all(what: str, values: Iterable[Any]) -> Any:
    """Return the one value that all blocks share; anything else is unsupported."""
    distinct = list(dict.fromkeys(values))
    if len(distinct) != 1:
        refuse(f"{what} that differs between blocks ({', '.join(map(str, distinct)) or 'there are no blocks'})")
    return distinct[0]


def common_eps(
    norms: dict[str, Any], layers: str, blocks: Iterable[Any], names: tuple[str, ...], *more: type[nn.Module]
) -> float:
    """Return the eps that all norms share, having checked that each is a LayerNorm with weight and bias.

    Args:
        norms: The norms outside of blocks, by name.
        layers: What the list of blocks is called, for messages.
        blocks: The blocks.
        names: The norms of each block.
        more: Classes that count as a LayerNorm beside PyTorch's.
    """
    norms = norms | {f"{layers}.{i}.{name}": getattr(block, name) for i, block in enumerate(blocks) for name in names}
    allowed = (nn.LayerNorm, *more)
    for name, norm in norms.items():
        if type(norm) not in allowed:
            refuse(f"{name} of type {kind(norm)} instead of a LayerNorm")
        if norm.weight is None or norm.bias is None:
            refuse(f"{name} without weight or bias")
    return float(same_for_all("LayerNorm eps", (norm.eps for norm in norms.values())))


def patch_of(conv: Any, name: str, image: tuple[int, int], *, bias: bool = False) -> tuple[int, int]:
    """Return the patch size (height, width), having checked that patches do not overlap and fit, and the bias."""
    if type(conv) is not nn.Conv2d:
        refuse(f"{name} of type {kind(conv)} instead of Conv2d")
    if (conv.bias is not None) != bias:
        refuse(f"{name} {'without' if bias else 'with'} a bias")
    if conv.in_channels != 3:
        refuse(f"{name} with {conv.in_channels} input channels instead of 3")
    is_padded = conv.padding not in ((0, 0), "valid")
    if conv.stride != conv.kernel_size or is_padded or conv.dilation != (1, 1) or conv.groups != 1:
        refuse(f"{name} with overlapping, padded, dilated or grouped patches")
    height, width = patch = conv.kernel_size
    if image[0] < height or image[1] < width:
        refuse(f"image size {image} that is smaller than the patch size {patch}")
    return height, width


def activation_of(act: Any) -> ActivationName:
    """Return the name of an activation module, read from its class."""
    if type(act) is nn.GELU:
        return "gelu" if act.approximate == "none" else "gelu_pytorch_tanh"
    name = _ACTIVATIONS.get(f"{type(act).__module__.split('.')[0]}.{kind(act)}")
    if name is None:
        refuse(f"activation {act!r}; expected exact GELU, tanh GELU or QuickGELU")
    return name


def check_scale(scales: Iterable[float], d_head: int) -> None:
    """Check that attention scores are divided by the root of the head's width."""
    scale = same_for_all("attention scale", scales)
    if not math.isclose(scale, d_head**-0.5):
        refuse(f"attention scale {scale} for heads of width {d_head}")


def check_fused(attn: nn.MultiheadAttention, what: str) -> None:
    """Check that attention has one projection with a bias for queries, keys and values, and no added keys."""
    if attn.in_proj_weight is None or attn.in_proj_bias is None or attn.bias_k is not None or attn.add_zero_attn:
        refuse(f"{what} without a fused biased projection, or with added keys")
