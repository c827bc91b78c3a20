"""The files of a Kandinsky decoder: its folder, the card beside its weights, its parts."""

__all__ = ["Card", "default_settings", "find_decoder", "load_sampler", "load_trained", "read_card"]

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vit_lens.decoders.configs import read_config
from vit_lens.decoders.kandinsky_parts import PixelLayout
from vit_lens.decoders.part_files import OF_PART, fetch, load_part, load_scheduler
from vit_lens.decoders.settings import SCHEDULER_CLASSES, DecodeSettings, override
from vit_lens.errors import DecoderError
from vit_lens.files import check_fields

_PARTS = {"unet": "UNet2DConditionModel", "movq": "VQModel"}
_WANTED = ["vit_lens.json", "scheduler/scheduler_config.json"]
_WANTED += [f"{part}/{name}" for part in _PARTS for name in OF_PART]


@dataclass(frozen=True, kw_only=True)
class Card:
    """What ``vit_lens.json`` beside a decoder says; only the encoder is required."""

    encoder_id: str
    embed_dim: int | None = None
    image_size: int | None = None
    steps: int | None = None
    guidance: float | int | None = None
    scheduler: str | None = None


def find_decoder(name: str | Path) -> Path:
    """Return the folder of a decoder: "mini", a local directory in the published layout, or a Hub id, which is fetched.

    Raises:
        DecoderError: There is no such decoder, or it cannot be fetched.

    >>> sorted(folder.name for folder in vl.decoders.find_decoder("mini").iterdir() if folder.is_dir())
    ['movq', 'scheduler', 'unet']
    """
    return fetch(name, _WANTED)


def read_card(directory: Path) -> Card | None:
    """Read ``vit_lens.json``, or return None where there is none.

    Raises:
        DecoderError: It is not such a card.
    """
    path = directory / "vit_lens.json"
    if not path.is_file():
        return None
    return Card(**check_fields(Card, read_config(path), str(path), DecoderError))


def load_sampler(directory: Path) -> Any:
    """Load the scheduler that the UNet was trained with; another may run on it, and reads settings that it has not.

    Raises:
        DecoderError: Its file is missing, broken or of another kind.
    """
    return load_scheduler(
        directory / "scheduler", ("DDPMScheduler", "DDIMScheduler"), tuple(SCHEDULER_CLASSES.values())
    )


def load_trained(directory: Path, dtype: torch.dtype, device: str | torch.device) -> tuple[Any, Any]:
    """Load UNet and MoVQ.

    Raises:
        DecoderError: A configuration is missing, broken or of another class.
        CheckpointError: Weights are missing, truncated, extra or misshapen.
    """
    unet, movq = (load_part(directory / part, cls, dtype=dtype, device=device) for part, cls in _PARTS.items())
    return unet, movq


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
