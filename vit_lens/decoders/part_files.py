"""Folders that pipelines of diffusers were saved in: found or fetched, their parts checked, then loaded."""

__all__ = ["OF_PART", "fetch", "find_index", "index_of", "load_part", "load_scheduler", "usable"]

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vit_lens.decoders.configs import from_config, read_config
from vit_lens.decoders.weight_files import WEIGHTS, load_weights
from vit_lens.errors import DecoderError
from vit_lens.files import damaged, parse_json
from vit_lens.identity import EMBEDDED_PIPELINES, MINI_FILES, MINI_IP_FILES, MINI_RAE_FILES
from vit_lens.sources import fetch_snapshot

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_CLIPS_NOTHING = re.compile(r'"lambda_min_clipped":\s*-Infinity\s*,')
_INDEX = "model_index.json"
_EXPECTED = (
    "expected 'mini', 'mini-ip', a directory that a pipeline of diffusers was saved in, such as one with unet/, movq/ "
    "and scheduler/, 'mini-sd' or 'mini-flux' to draw from text, 'mini-rae' to draw patch tokens, or a Hub id such as "
    "'kandinsky-community/kandinsky-2-2-decoder'"
)
_WRITTEN_BESIDE = {"AutoencoderTiny": ("block_out_channels",)}  # diffusers writes it, ignores it, and has it of others
_EMBEDDED = {"mini": MINI_FILES / "decoder", "mini-ip": MINI_IP_FILES, "mini-rae": MINI_RAE_FILES, **EMBEDDED_PIPELINES}
OF_PART = ("config.json", WEIGHTS, f"{WEIGHTS}.index.json", "diffusion_pytorch_model-*-of-*.safetensors")
"""What a part that draws is in, besides ``scheduler_config.json`` for a scheduler."""


def find_index(name: str | Path) -> Path:
    """Return where the file lies that says which pipeline a decoder was saved by; no weights are fetched.

    Beside it lies ``config.json`` of a decoder that is one part.

    Raises:
        DecoderError: There is no such decoder, or it cannot be fetched.
    """
    return fetch(name, ["config.json"]) / _INDEX


def fetch(name: str | Path, wanted: Sequence[str]) -> Path:
    """Return the folder of a decoder: embedded, a local directory, or a Hub id, of which what is wanted is fetched.

    Raises:
        DecoderError: There is no such decoder, or it cannot be fetched.
    """
    if not isinstance(name, (str, Path)):
        raise DecoderError(f"a decoder's name is of type {type(name).__name__}; {_EXPECTED}")
    with damaged(DecoderError, f"no decoder {str(name)[:200]!r}", _EXPECTED):
        directory = _EMBEDDED.get(name) if isinstance(name, str) else None
        directory = directory or Path(name).expanduser()
        if name and directory.is_dir():
            return directory
    if name in _EMBEDDED:
        raise DecoderError(f"this installation of vit_lens lacks the embedded {name!r}; install the package again")
    if not isinstance(name, str) or _HUB_ID.fullmatch(name) is None:
        raise DecoderError(f"no decoder {str(name)!r}: it is not an existing directory; {_EXPECTED}")
    return fetch_snapshot(name, [_INDEX, *wanted], "decoder", DecoderError)


def index_of(directory: Path, known: Sequence[str]) -> dict[str, Any]:
    """Read a folder's ``model_index.json``, whose components are those that its pipeline has.

    Args:
        directory: The folder.
        known: What the pipeline is made from.

    Raises:
        DecoderError: It is missing or broken, or has other components, of which it is not known what they change.
    """
    path = directory / _INDEX
    index = read_config(path)
    if extra := sorted(name for name in index if name[0] != "_" and name not in known):
        raise DecoderError(
            f"{path} names {extra[0]!r}, which {index.get('_class_name')} has not; expected some of "
            f"{', '.join(sorted(known))}; download it again, or install a newer diffusers"
        )
    return index


def load_scheduler(folder: Path, classes: Sequence[str], others: Sequence[str] = ()) -> Any:
    """Load the scheduler that a decoder was trained with.

    Args:
        folder: Where its ``scheduler_config.json`` lies.
        classes: The classes of diffusers that it may be of.
        others: Classes that may run on it too, and read settings that its own does not have.

    Raises:
        DecoderError: Its file is missing, broken or of another kind.
    """
    import diffusers

    path = folder / "scheduler_config.json"
    config = _scheduler_config(path)
    kind = str(config.get("_class_name"))
    if kind not in classes:
        raise DecoderError(f"{path}: scheduler {kind!r} is not supported, expected one of {tuple(classes)}")
    return from_config(getattr(diffusers, kind), config, path, *(getattr(diffusers, name) for name in others))


def _scheduler_config(path: Path) -> dict[str, Any]:
    """Read a scheduler's file, in which diffusers writes a default that is no JSON."""
    if not path.is_file():
        return read_config(path)
    with damaged(DecoderError, f"{path} cannot be read", "download the decoder again"):
        text = path.read_text()
    advice = "download the decoder again"
    return parse_json(_CLIPS_NOTHING.sub("", text), str(path), DecoderError, advice)


def load_part(
    folder: Path, *classes: str, dtype: torch.dtype, device: str | torch.device, older: str | None = None
) -> Any:
    """Load one trained part.

    Args:
        folder: Where its configuration and weights lie.
        *classes: The classes of diffusers that it may be of, the usual one first.
        older: The class that older configurations of it name, with settings of its own; None for no other.
        dtype: The dtype of its weights.
        device: The device of its weights.

    Raises:
        DecoderError: The configuration is missing, broken or of another class.
        CheckpointError: Weights are missing, truncated, extra or misshapen.
    """
    import diffusers

    path = folder / "config.json"
    config = read_config(path)
    said = config.get("_class_name")
    if said not in (*classes, older):
        raise DecoderError(f"{path}: class {said!r}, expected {' or '.join(classes)}")
    cls = next((one for one in classes if one == said), classes[0])
    with torch.device("meta"):
        others = [] if older is None else [getattr(diffusers, older)]
        written = _WRITTEN_BESIDE.get(cls, ())
        config = {name: value for name, value in config.items() if name not in written}
        model = from_config(getattr(diffusers, cls), config, path, *others)
    load_weights(model, folder, dtype, device)
    return model


def usable(dtype: torch.dtype, device: str | torch.device) -> None:
    """Refuse a dtype that is none of weights, or that a device cannot hold.

    Raises:
        DecoderError: It cannot be had.
    """
    try:
        is_usable = torch.empty(0, dtype=dtype, device=device).is_floating_point() and dtype.itemsize > 1
    except (RuntimeError, AssertionError, AttributeError, TypeError) as error:
        reason = str(error).splitlines()[0][:100]
        raise DecoderError(f"weights of {dtype} cannot be had on {device!r} here ({reason})") from None
    if not is_usable:
        raise DecoderError(f"dtype is {dtype}; expected torch.float32, bfloat16, float16 or float64")
