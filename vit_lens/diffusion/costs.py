"""What caches of a denoiser will hold, before it runs: the shapes of its hook points, of a model without memory."""

__all__ = ["point_shapes"]

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vit_lens.diffusion.ports import Denoiser
from vit_lens.diffusion.wiring import attach, places


def point_shapes(denoiser: Any, row: Denoiser, inputs: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of what each hook point gives in a pass, by name.

    A denoiser of the same configuration is made and run on the meta device, where tensors have shapes alone.

    Args:
        denoiser: The denoiser.
        row: Its kind.
        inputs: The shape of each argument that it is given.
    """
    config = {key: value for key, value in denoiser.config.items() if key != "quantization_config"}
    with torch.device("meta"), torch.no_grad():
        empty = type(denoiser).from_config(config).eval()
        found: dict[str, tuple[int, ...]] = {}

        def fire(name: str, value: Tensor) -> Tensor:
            found[name] = tuple(value.shape)
            return value

        with attach(empty, places(empty, row), fire):
            empty(**_made(inputs), return_dict=False)
    return found


def _made(shapes: Any) -> Any:
    if isinstance(shapes, Mapping):
        return {name: _made(shape) for name, shape in shapes.items() if shape is not None}
    return torch.empty(shapes)
