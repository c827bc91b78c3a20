"""How a text-to-image pipeline draws: steps, guidance, sampler, seed, size, and those of a second stage."""

__all__ = ["SAMPLERS", "TextSettings", "UpscaledSettings"]

import math
from dataclasses import dataclass
from typing import Any

from vit_lens.decoders.settings import MOST, settings_dict, whole
from vit_lens.errors import DecoderError, nearest

# Our word for a sampler, and the class of diffusers that runs it; "own" is the one that the pipeline comes with.
SAMPLERS: dict[str, str | None] = {"own": None, "ddim": "DDIMScheduler", "dpm++": "DPMSolverMultistepScheduler"}


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """Everything that, with the condition, decides a picture of a text-to-image pipeline.

    Attributes:
        steps: The number of denoising steps, at least 1.
        guidance: The strength of guidance: away from the negative where the format has one, which is off at 1 or below;
            a number that the denoiser reads in "flux".
        scheduler: The sampler: "own", the one that the pipeline comes with, "ddim" or "dpm++".
        seed: The seed of all noise, which every row shares.
        height: The height of the picture in pixels.
        width: The width of the picture in pixels.

    Raises:
        DecoderError: A value is out of its range.

    >>> vl.decoders.TextSettings(steps=20, guidance=7.5, height=512, width=512).scheduler
    'own'
    >>> vl.decoders.TextSettings(steps=20, guidance=7.5, height=512, width=512, scheduler="dpm")
    Traceback (most recent call last):
    vit_lens.errors.DecoderError: no scheduler 'dpm'; nearest: 'dpm++', 'ddim'
    """

    steps: int
    guidance: float | int
    scheduler: str = "own"
    seed: int = 0
    height: int
    width: int

    def __post_init__(self) -> None:
        for name, low, high in (("steps", 1, MOST), ("seed", 0, 2**63 - 1), ("height", 1, MOST), ("width", 1, MOST)):
            object.__setattr__(self, name, whole(name, getattr(self, name), low, high))
        if self.scheduler not in SAMPLERS:
            raise DecoderError(f"no scheduler {self.scheduler!r}; nearest: {nearest(str(self.scheduler), SAMPLERS)}")
        _check_guidance("guidance", self.guidance)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON record."""
        return settings_dict(self)


@dataclass(frozen=True, kw_only=True)
class UpscaledSettings(TextSettings):
    """Settings of two stages: a small picture is drawn, and a second pipeline draws it larger.

    Attributes:
        upscaled_height: The height of the final picture in pixels.
        upscaled_width: The width of the final picture in pixels.
        upscale_steps: The number of denoising steps of the second stage.
        upscale_guidance: The strength of guidance there.
        noise_level: How much noise the small picture gets before it is enlarged, as a timestep of training.

    Raises:
        DecoderError: A value is out of its range.

    >>> sizes = dict(height=64, width=64, upscaled_height=256, upscaled_width=256)
    >>> vl.decoders.UpscaledSettings(steps=100, guidance=7.0, **sizes).noise_level
    250
    """

    upscaled_height: int
    upscaled_width: int
    upscale_steps: int = 50
    upscale_guidance: float | int = 4.0
    noise_level: int = 250

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds = {"upscale_steps": 1, "upscaled_height": 1, "upscaled_width": 1, "noise_level": 0}
        for name, low in bounds.items():
            object.__setattr__(self, name, whole(name, getattr(self, name), low, MOST))
        _check_guidance("upscale_guidance", self.upscale_guidance)


def _check_guidance(name: str, value: object) -> None:
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
        raise DecoderError(f"{name} must be a finite number >= 0 (1 or below is off), got {value!r}")
