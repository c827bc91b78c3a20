"""How a picture is sampled: steps, guidance, scheduler, seed, size."""

__all__ = ["FAST", "MOST", "SCHEDULER_CLASSES", "DecodeSettings", "SchedulerName", "override", "settings_dict", "whole"]

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from vit_lens.addresses import as_index
from vit_lens.errors import DecoderError, nearest

_S = TypeVar("_S")
MOST = 65536  # steps, and pixels of a side: beyond, asking what a picture costs takes all memory
SchedulerName = Literal["ddpm", "ddim", "dpm++"]

# Our word for a sampler, and the class of diffusers that runs it.
SCHEDULER_CLASSES: dict[str, str] = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
}

# Seventeen UNet evaluations, where 100 guided steps take 200; see KandinskyDecoder.fast_settings.
FAST: dict[str, Any] = {"steps": 12, "scheduler": "dpm++", "guidance_interval": (0.2, 0.6)}


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """Everything that, with the embedding, decides a picture.

    Attributes:
        steps: The number of denoising steps, at least 1.
        guidance: The strength of classifier-free guidance; at 1 or below it is off, as in the published pipeline.
        guidance_interval: The part of the steps with guidance, as fractions (0 = first step, 1 = end); None means all.
        scheduler: The sampler: "ddpm", "ddim" or "dpm++".
        seed: The seed of the initial and the per-step noise, which every row of a batch shares.
        height: The height of the picture in pixels.
        width: The width of the picture in pixels.

    Raises:
        DecoderError: A value is out of its range.

    >>> settings = decoder.settings(steps=4, guidance=2.0, guidance_interval=(0.5, 1.0))
    >>> settings.guided_steps
    (False, False, True, True)
    >>> decoder.settings(step=4)
    Traceback (most recent call last):
    vit_lens.errors.DecoderError: no decoder setting 'step'; nearest: 'steps', 'seed'
    """

    steps: int
    guidance: float | int
    guidance_interval: tuple[float | int, float | int] | None = None
    scheduler: str
    seed: int = 0
    height: int
    width: int

    def __post_init__(self) -> None:
        for name, low, high in (("steps", 1, MOST), ("seed", 0, 2**63 - 1), ("height", 1, MOST), ("width", 1, MOST)):
            object.__setattr__(self, name, whole(name, getattr(self, name), low, high))
        if str(self.scheduler) not in get_args(SchedulerName):
            raise DecoderError(
                f"no scheduler {self.scheduler!r}; nearest: {nearest(str(self.scheduler), get_args(SchedulerName))}"
            )
        if not (isinstance(self.guidance, (int, float)) and math.isfinite(self.guidance) and self.guidance >= 0):
            raise DecoderError(f"guidance must be a finite number >= 0 (1 or below is off), got {self.guidance!r}")
        if self.guidance_interval is not None:
            _check_interval(self.guidance_interval)

    @property
    def guided_steps(self) -> tuple[bool, ...]:
        """Whether each step runs with guidance: those do whose middle lies in the interval."""
        start, stop = self.guidance_interval or (0.0, 1.0)
        on = self.guidance > 1
        return tuple(on and start <= (i + 0.5) / self.steps < stop for i in range(self.steps))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON record."""
        return settings_dict(self)


def settings_dict(settings: Any) -> dict[str, Any]:
    """Return settings as plain values for a record.

    Args:
        settings: A dataclass, of any decoder's own type.

    Raises:
        DecoderError: They are something else.

    >>> vl.decoders.settings_dict(decoder.settings(guidance_interval=(0.2, 0.6)))["guidance_interval"]
    [0.2, 0.6]
    """
    if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
        raise DecoderError(f"settings are of type {type(settings).__name__}; decoder.settings(...) makes them")
    found = dataclasses.asdict(settings)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def override(settings: _S, overrides: dict[str, Any]) -> _S:
    """Return the settings with some of them replaced.

    Raises:
        DecoderError: A name is not a setting, or a value is out of its range.
    """
    known = [field.name for field in dataclasses.fields(settings)]  # pyright: ignore[reportArgumentType]
    for name in overrides:
        if name not in known:
            raise DecoderError(f"no decoder setting {name!r}; nearest: {nearest(name, known)}")
    return dataclasses.replace(settings, **overrides)  # pyright: ignore[reportArgumentType]


def whole(name: str, value: object, low: int, high: int) -> int:
    """Return a setting that must be a whole number.

    Raises:
        DecoderError: It is none, or out of range.
    """
    index = as_index(value)
    if index is None or not low <= index <= high:
        most = f" and at most {high}" if index is not None and index > high else ""
        raise DecoderError(f"{name} must be a whole number >= {low}{most}, got {value!r}")
    return index


def _check_interval(interval: Any) -> None:
    is_pair = isinstance(interval, (tuple, list)) and [type(part) in (int, float) for part in interval] == [True, True]
    if not is_pair or not 0 <= interval[0] < interval[1] <= 1:
        raise DecoderError(
            f"guidance_interval must be (start, stop) with 0 <= start < stop <= 1, got {interval!r}; None is all steps"
        )
