"""From a name to the parts of a Kandinsky decoder: files found, checked against the model, then loaded."""

__all__ = ["Card", "default_settings", "find_decoder", "find_index", "load_part", "load_scheduler", "read_card"]

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vit_lens.decoders.configs import from_config, read_config
from vit_lens.decoders.kandinsky_parts import PixelLayout
from vit_lens.decoders.settings import SCHEDULER_CLASSES, DecodeSettings, override
from vit_lens.decoders.weight_files import WEIGHTS, load_weights
from vit_lens.errors import DecoderError
from vit_lens.files import check_fields, damaged
from vit_lens.identity import MINI_FILES

_PART_CLASSES = {"unet": "UNet2DConditionModel", "movq": "VQModel"}
_SCHEDULER_CLASSES = ("DDPMScheduler", "DDIMScheduler")
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_INDEX = "model_index.json"
_EXPECTED = (
    "expected 'mini', a directory with unet/, movq/ and scheduler/, or a Hub id such as "
    "'kandinsky-community/kandinsky-2-2-decoder'"
)
_OF_PART = ("config.json", WEIGHTS, f"{WEIGHTS}.index.json", "diffusion_pytorch_model-*-of-*.safetensors")
_WANTED = [_INDEX, "vit_lens.json", "scheduler/scheduler_config.json"]
_WANTED += [f"{part}/{name}" for part in _PART_CLASSES for name in _OF_PART]


@dataclass(frozen=True, kw_only=True)
class Card:
    """What ``vit_lens.json`` beside a decoder says; only the encoder is required."""

    encoder_id: str
    embed_dim: int | None = None
    image_size: int | None = None
    steps: int | None = None
    guidance: float | int | None = None
    scheduler: str | None = None


def find_index(name: str | Path) -> Path:
    """Return where the file lies that says which pipeline a decoder was saved by; no weights are fetched.

    Raises:
        DecoderError: There is no such decoder, or it cannot be fetched.
    """
    return _found(name, [_INDEX]) / _INDEX


def find_decoder(name: str | Path) -> Path:
    """Return the folder of a decoder: "mini", a local directory in the published layout, or a Hub id, which is fetched.

    Raises:
        DecoderError: There is no such decoder, or it cannot be fetched.

    >>> sorted(folder.name for folder in vl.decoders.find_decoder("mini").iterdir() if folder.is_dir())
    ['movq', 'scheduler', 'unet']
    """
    return _found(name, _WANTED)


def _found(name: str | Path, wanted: list[str]) -> Path:
    import huggingface_hub

    if not isinstance(name, (str, Path)):
        raise DecoderError(f"a decoder's name is of type {type(name).__name__}; {_EXPECTED}")
    with damaged(DecoderError, f"no decoder {str(name)[:200]!r}", _EXPECTED):
        directory = MINI_FILES / "decoder" if name == "mini" else Path(name).expanduser()
        if name and directory.is_dir():
            return directory
    if name == "mini":
        raise DecoderError("this installation of vit_lens lacks the embedded pair 'mini'; install the package again")
    if not isinstance(name, str) or _HUB_ID.fullmatch(name) is None:
        raise DecoderError(f"no decoder {str(name)!r}: it is not an existing directory; {_EXPECTED}")
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise DecoderError(f"decoder {name!r} cannot be fetched from the Hub: {error}") from error


def read_card(directory: Path) -> Card | None:
    """Read ``vit_lens.json``, or return None where there is none.

    Raises:
        DecoderError: It is not such a card.
    """
    path = directory / "vit_lens.json"
    if not path.is_file():
        return None
    return Card(**check_fields(Card, read_config(path), str(path), DecoderError))


def load_scheduler(directory: Path) -> Any:
    """Load the scheduler that a decoder was trained with.

    Raises:
        DecoderError: Its file is missing, broken or of another kind.
    """
    import diffusers

    path = directory / "scheduler" / "scheduler_config.json"
    config = read_config(path)
    kind = config.get("_class_name")
    if kind not in _SCHEDULER_CLASSES:
        raise DecoderError(f"{path}: scheduler {kind!r} is not supported, expected one of {_SCHEDULER_CLASSES}")
    # Another sampler may run on it, and reads settings that this one has not.
    others = [getattr(diffusers, name) for name in SCHEDULER_CLASSES.values()]
    return from_config(getattr(diffusers, kind), config, path, *others)


def load_part(directory: Path, part: str, *, dtype: torch.dtype, device: str | torch.device) -> Any:
    """Load "unet" or "movq".

    Raises:
        DecoderError: The configuration is missing, broken or of another class.
        CheckpointError: Weights are missing, truncated, extra or misshapen.
    """
    import diffusers

    path = directory / part / "config.json"
    config = read_config(path)
    if config.get("_class_name") != _PART_CLASSES[part]:
        raise DecoderError(f"{path}: class {config.get('_class_name')!r}, expected {_PART_CLASSES[part]}")
    with torch.device("meta"):
        model = from_config(getattr(diffusers, _PART_CLASSES[part]), config, path)
    load_weights(model, path.parent, dtype, device)
    return model


def default_settings(layout: PixelLayout, card: Card | None) -> DecodeSettings:
    """Return the settings of a plain decode: those of Kandinsky 2.2 at the decoder's own size, but what a card says.

    The published pipeline runs 100 DDPM steps; this project sweeps with 25.
    """
    height, width = layout.default_size
    base = DecodeSettings(steps=25, guidance=4.0, scheduler="ddpm", height=height, width=width)
    if card is None:
        return base
    said = {name: getattr(card, name) for name in ("steps", "guidance", "scheduler")}
    said |= {"height": card.image_size, "width": card.image_size}
    return override(base, {name: value for name, value in said.items() if value is not None})
