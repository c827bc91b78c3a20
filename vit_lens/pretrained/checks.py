"""Checks that the readers of open_clip and Hugging Face towers share."""

__all__ = ["common_eps", "kind", "patch_of", "refuse", "same_for_all"]

from collections.abc import Iterable
from typing import Any, NoReturn

from torch import nn

from vit_lens.errors import UnsupportedTowerError

_SUPPORTED = "HookedViT reproduces plain CLIP ViTs: open_clip's native VisionTransformer and Hugging Face CLIP"


def refuse(what: str) -> NoReturn:
    """Raise, naming exactly what is unsupported."""
    raise UnsupportedTowerError(f"unsupported: {what}. {_SUPPORTED}")


def kind(thing: object) -> str:
    """Return the name of a thing's class."""
    return type(thing).__name__


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


def patch_of(conv: Any, name: str) -> tuple[int, int]:
    """Return the patch size (height, width), having checked that the patches do not overlap and have no bias."""
    if type(conv) is not nn.Conv2d:
        refuse(f"{name} of type {kind(conv)} instead of Conv2d")
    if conv.bias is not None:
        refuse(f"{name} with a bias")
    if conv.in_channels != 3:
        refuse(f"{name} with {conv.in_channels} input channels instead of 3")
    plain = conv.stride == conv.kernel_size and conv.padding == (0, 0) and conv.dilation == (1, 1) and conv.groups == 1
    if not plain:
        refuse(f"{name} with overlapping, padded, dilated or grouped patches")
    height, width = conv.kernel_size
    return height, width
