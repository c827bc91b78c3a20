"""A decoder's weight files, looked into before they are loaded."""

__all__ = ["WEIGHTS", "load_weights", "read_json"]

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vit_lens.errors import CheckpointError, DecoderError
from vit_lens.files import damaged

WEIGHTS = "diffusion_pytorch_model.safetensors"


def load_weights(model: nn.Module, folder: Path, dtype: torch.dtype, device: str | torch.device) -> None:
    """Give a model on the meta device its weights, after comparing the names and shapes in a part's files with its own.

    diffusers itself fills missing tensors with random values and goes on.

    Raises:
        CheckpointError: A file is missing, truncated or of another format; tensors are missing, extra or misshapen.
    """
    with ExitStack() as stack:
        opened = _open_weights(folder, stack)
        expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        found = {name: list(file.get_slice(name).get_shape()) for name, file in opened.items()}
        problems = {
            "missing": expected.keys() - found.keys(),
            "not in the model": found.keys() - expected.keys(),
            "of another shape": {
                f"{name} {found[name]} instead of {shape}"
                for name, shape in expected.items()
                if found.get(name, shape) != shape
            },
        }
        told = [f"{len(names)} {what}: {', '.join(sorted(names)[:3])}" for what, names in problems.items() if names]
        if told:
            raise CheckpointError(f"{folder / WEIGHTS} does not fit its config.json; tensors {'; '.join(told)}")
        # Copies: what is read is mapped, and would change with the file.
        tensors = {name: file.get_tensor(name).to(device, dtype, copy=True) for name, file in opened.items()}
    model.load_state_dict(tensors, assign=True)


def _open_weights(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Open a part's weight files; return the open file of each tensor."""
    from safetensors import safe_open

    index = folder / f"{WEIGHTS}.index.json"
    names = sorted(set(read_json(index).get("weight_map", {}).values())) if index.is_file() else [WEIGHTS]
    opened: dict[str, Any] = {}
    for path in (folder / name for name in names):
        if not path.is_file():
            raise CheckpointError(
                f"{path} is missing; a decoder's weights are safetensors (pickled .bin is never read)"
            )
        with damaged(CheckpointError, f"{path} is truncated or not safetensors", "download it again"):
            file = stack.enter_context(safe_open(path, framework="pt"))
        opened |= dict.fromkeys(file.keys(), file)
    return opened


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DecoderError: The file is missing or holds something else.

    >>> path = tmp / "card.json"
    >>> path.write_text('{"encoder_id": "vit_lens/mini"}') > 0
    True
    >>> vl.decoders.read_json(path)
    {'encoder_id': 'vit_lens/mini'}
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DecoderError(
            f"{path} is missing; expected the published layout with unet/, movq/ and scheduler/"
        ) from error
    except (OSError, ValueError) as error:
        raise DecoderError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise DecoderError(f"{path} holds a {type(values).__name__}, expected a JSON object")
    return values
