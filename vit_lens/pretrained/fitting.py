"""Turn the tensors of a file into the weights of a tower."""

__all__ = ["fitted"]

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vit_lens.config import HookedViTConfig
from vit_lens.errors import CheckpointError


def fitted(
    convert: Callable[..., dict[str, Tensor]],
    tensors: dict[str, Tensor],
    cfg: HookedViTConfig,
    paths: Sequence[Path],
    device: str | torch.device,
) -> dict[str, Tensor]:
    """Convert what was read, name the file in errors, and give every tensor memory of its own.

    ``tensors`` is emptied on the way, so that little more than one copy of the weights is held.
    """
    try:
        out = convert(tensors, cfg, copy=False)
    except CheckpointError as error:
        raise CheckpointError(f"{', '.join(map(str, paths))}: {error}") from None
    tensors.clear()
    for name in out:
        out[name] = out[name].clone(memory_format=torch.contiguous_format).to(device)
    return out
