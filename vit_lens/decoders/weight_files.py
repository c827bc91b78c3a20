"""A decoder's weight files, looked into before they are loaded."""

__all__ = ["PARTS", "WEIGHTS", "check_weights", "open_weights", "read_json", "weights_fingerprint"]

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vit_lens.errors import CheckpointError, DecoderError
from vit_lens.files import damaged
from vit_lens.identity import fingerprint

WEIGHTS = "diffusion_pytorch_model.safetensors"
PARTS = ("unet", "movq")


def weights_fingerprint(directory: Path) -> str:
    """Return the fingerprint of a decoder's weight files."""
    with ExitStack() as stack:
        parts = {part: open_weights(directory / part, stack) for part in PARTS}
        return fingerprint(
            _FileTensors({f"{part}.{k}": (v, k) for part, keys in parts.items() for k, v in keys.items()})
        )


class _FileTensors(Mapping[str, Tensor]):
    """Tensors read one at a time, so that files larger than the memory pass."""

    def __init__(self, sources: dict[str, tuple[Any, str]]):
        self._sources = sources

    def __getitem__(self, name: str) -> Tensor:
        source, key = self._sources[name]
        return source.get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def open_weights(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Open a part's weight files; return the open file of each tensor.

    Raises:
        CheckpointError: A file is missing, truncated or of another format.
    """
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


def check_weights(folder: Path, model: nn.Module, opened: dict[str, Any]) -> None:
    """Compare names and shapes of a part's files with those of its model.

    Raises:
        CheckpointError: Tensors are missing, extra or misshapen.
    """
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: list(file.get_slice(name).get_shape()) for name, file in opened.items()}
    problems = {
        "missing": [name for name in expected if name not in found],
        "not in the model": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {found[name]} instead of {shape}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ],
    }
    told = [f"{len(names)} {what}: {', '.join(names[:3])}" for what, names in problems.items() if names]
    if told:
        raise CheckpointError(f"{folder / WEIGHTS} does not fit {folder / 'config.json'}; tensors {'; '.join(told)}")


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
