"""Turn the tensors of a file into the weights of a tower."""

__all__ = ["Blueprint", "fitted"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vit_lens.config import HookedViTConfig
from vit_lens.convert import Recipe, build
from vit_lens.errors import CheckpointError
from vit_lens.pretrained.tensors import StoredTensors


@dataclass(frozen=True)
class Blueprint:
    """What a reader learns from a tower without looking at its values.

    Attributes:
        cfg: Its sizes and switches.
        recipe: From the source's tensors (of which it reads names and shapes) to how they are converted.
    """

    cfg: HookedViTConfig
    recipe: Callable[[Mapping[str, Tensor]], Recipe]


def fitted(
    blueprint: Blueprint,
    tensors: StoredTensors,
    paths: Sequence[Path],
    *,
    dtype: torch.dtype,
    device: str | torch.device,
) -> dict[str, Tensor]:
    """Check names and shapes from the headers, then read, cast and place one tensor at a time.

    On the meta device no value is read.

    Raises:
        CheckpointError: The tensors do not fit; the message names the file.
    """
    try:
        recipe = blueprint.recipe(tensors.header)
        recipe.check(tensors.header)
    except CheckpointError as error:
        raise CheckpointError(f"{', '.join(map(str, paths))}: {error}") from None
    is_meta = torch.device(device).type == "meta"
    return build(recipe, tensors.header if is_meta else tensors, dtype=dtype, device=device)
