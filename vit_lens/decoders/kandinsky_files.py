"""From a name to the parts of a Kandinsky decoder: files found, checked against the model, then loaded."""

__all__ = [
    "Card", "Located", "default_settings", "find_decoder", "find_index", "load_part", "load_scheduler", "read_card",
]  # fmt: skip

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from vit_lens.decoders.kandinsky_parts import PixelLayout
from vit_lens.decoders.settings import DecodeSettings, override
from vit_lens.decoders.weight_files import WEIGHTS, check_weights, open_weights, read_json, weights_fingerprint
from vit_lens.errors import DecoderError
from vit_lens.files import check_fields
from vit_lens.identity import MINI_ENCODER, MINI_FILES

_PART_CLASSES = {"unet": "UNet2DConditionModel", "movq": "VQModel"}
_SCHEDULER_CLASSES = ("DDPMScheduler", "DDIMScheduler")
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


@dataclass(frozen=True)
class Located:
    """Where a decoder's files lie, and the names it goes by.

    Attributes:
        directory: The folder with unet/, movq/ and scheduler/.
        decoder_id: The decoder's name in records.
        hub_id: Its id on the Hub; None where it did not come from there.
    """

    directory: Path
    decoder_id: str
    hub_id: str | None = None


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
    """Return where the file lies that says which pipeline a decoder was saved by; no weights are looked at.

    Raises:
        DecoderError: There is no such decoder, or it cannot be fetched.
    """
    directory = Path(name).expanduser()
    if directory.is_dir() and name != "mini":
        return directory / "model_index.json"
    if not _is_hub_id(name):
        return find_decoder(name).directory / "model_index.json"
    return _fetched(str(name), lambda hub: hub.hf_hub_download(name, "model_index.json"))


def find_decoder(name: str | Path) -> Located:
    """Find a decoder: "mini", a local directory in the published layout, or a Hub id (which is fetched).

    Raises:
        DecoderError: There is no such decoder, or it cannot be fetched.

    >>> found = vl.decoders.find_decoder("mini")
    >>> found.decoder_id, sorted(folder.name for folder in found.directory.iterdir() if folder.is_dir())
    ('vit_lens/mini', ['movq', 'scheduler', 'unet'])
    """
    if name == "mini":
        directory = MINI_FILES / "decoder"
        if not directory.is_dir():
            raise DecoderError(
                "this installation of vit_lens lacks the embedded pair 'mini'; install the package again"
            )
        return Located(directory, MINI_ENCODER)
    directory = Path(name).expanduser()
    if directory.is_dir():
        return Located(directory, f"local/{directory.resolve().name}@{weights_fingerprint(directory)}")
    if not _is_hub_id(name):
        raise DecoderError(
            f"no decoder {str(name)!r}: it is not an existing directory; expected 'mini', a directory with unet/, "
            "movq/ and scheduler/, or a Hub id such as 'kandinsky-community/kandinsky-2-2-decoder'"
        )
    return Located(_fetch(str(name)), f"hf/{name}", hub_id=str(name))


def read_card(directory: Path) -> Card | None:
    """Read ``vit_lens.json``, or return None where there is none.

    Raises:
        DecoderError: It is not such a card.
    """
    path = directory / "vit_lens.json"
    if not path.is_file():
        return None
    return Card(**check_fields(Card, read_json(path), str(path), DecoderError))


def load_scheduler(directory: Path) -> Any:
    """Load the scheduler that a decoder was trained with.

    Raises:
        DecoderError: Its file is missing, broken or of another kind.
    """
    import diffusers

    path = directory / "scheduler" / "scheduler_config.json"
    config = read_json(path)
    kind = config.get("_class_name")
    if kind not in _SCHEDULER_CLASSES:
        raise DecoderError(f"{path}: scheduler {kind!r} is not supported, expected one of {_SCHEDULER_CLASSES}")
    return _from_config(getattr(diffusers, kind), config, path)


def load_part(directory: Path, part: str, *, dtype: torch.dtype) -> Any:
    """Load "unet" or "movq", after comparing its weight files' names and shapes with the model's.

    diffusers itself fills missing tensors with random values and goes on.

    Raises:
        DecoderError: The configuration is missing, broken or of another class.
        CheckpointError: Weights are missing, truncated, extra or misshapen.
    """
    import diffusers

    path = directory / part / "config.json"
    config = read_json(path)
    if config.get("_class_name") != _PART_CLASSES[part]:
        raise DecoderError(f"{path}: class {config.get('_class_name')!r}, expected {_PART_CLASSES[part]}")
    cls = getattr(diffusers, _PART_CLASSES[part])
    with torch.device("meta"):
        empty = _from_config(cls, config, path)
    with ExitStack() as stack:
        check_weights(directory / part, empty, open_weights(directory / part, stack))
    return cls.from_pretrained(
        directory / part, torch_dtype=dtype, use_safetensors=True, local_files_only=True,
        low_cpu_mem_usage=find_spec("accelerate") is not None,
    )  # fmt: skip


def _from_config(cls: Any, config: dict[str, Any], path: Path) -> Any:
    try:
        return cls.from_config(config)
    except (TypeError, ValueError, KeyError, NotImplementedError) as error:
        raise DecoderError(f"{path}: {cls.__name__} cannot be built from it: {error}") from error


def _fetch(hub_id: str) -> Path:
    wanted = ["model_index.json", "vit_lens.json", "scheduler/scheduler_config.json"]
    for part in _PART_CLASSES:
        wanted += [f"{part}/{name}" for name in ("config.json", WEIGHTS, f"{WEIGHTS}.index.json")]
        wanted.append(f"{part}/diffusion_pytorch_model-*-of-*.safetensors")
    return _fetched(hub_id, lambda hub: hub.snapshot_download(hub_id, allow_patterns=wanted))


def _is_hub_id(name: str | Path) -> bool:
    return isinstance(name, str) and _HUB_ID.fullmatch(name) is not None


def _fetched(hub_id: str, fetch: Callable[[Any], str]) -> Path:
    import huggingface_hub

    try:
        return Path(fetch(huggingface_hub))
    except (OSError, ValueError) as error:
        raise DecoderError(f"decoder {hub_id!r} cannot be fetched from the Hub: {error}") from error


def default_settings(layout: PixelLayout, card: Card | None, published: DecodeSettings | None) -> DecodeSettings:
    """Return the settings of a plain decode: those of the table, else of Kandinsky 2.2, with what the card says."""
    height, width = layout.default_size
    base = published or DecodeSettings(steps=25, guidance=4.0, scheduler="ddpm", height=height, width=width)
    if card is None:
        return base
    said = {name: getattr(card, name) for name in ("steps", "guidance", "scheduler")}
    said |= {"height": card.image_size, "width": card.image_size}
    return override(base, {name: value for name, value in said.items() if value is not None})
