"""The sampling loop's arithmetic: shared noise, one step of each sampler, noise from a model's output."""

__all__ = ["PredictionType", "SharedNoise", "Stepper", "draw_noise", "make_stepper", "predicted_noise"]

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.decoders.settings import SCHEDULER_CLASSES, DecodeSettings
from vit_lens.errors import DecoderError

PredictionType = Literal["epsilon", "sample", "v_prediction"]


@dataclass(frozen=True)
class SharedNoise:
    """One row of noise for the start and for each step that adds some; every row of a batch gets the same."""

    start: Float[Tensor, "1 channel height width"]
    steps: tuple[Float[Tensor, "1 channel height width"], ...]


class Stepper:
    """One run of a deterministic sampler of diffusers, which adds no noise."""

    def __init__(self, sampler: Any, timesteps: list[int]):
        self.timesteps, self._sampler = timesteps, sampler

    def step(self, output: Tensor, index: int, latents: Tensor, noise: SharedNoise) -> Tensor:
        """Return the latents after step ``index``, given what the model predicts before it."""
        return self._sampler.step(output, self.timesteps[index], latents, return_dict=False)[0]


def draw_noise(
    shape: tuple[int, int, int],
    timesteps: list[int],
    settings: DecodeSettings,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> SharedNoise:
    """Draw the noise of one row, in the order of the published pipeline: the start, then one draw per step.

    It is drawn on the CPU in float32, so that it depends on the seed alone.
    """
    generator = torch.Generator("cpu").manual_seed(settings.seed)
    n_draws = sum(t > 0 for t in timesteps) if settings.scheduler == "ddpm" else 0
    draws = [torch.randn(1, *shape, generator=generator, dtype=torch.float32, device="cpu") for _ in range(1 + n_draws)]
    start, *steps = (draw.to(device=device, dtype=dtype) for draw in draws)
    return SharedNoise(start, tuple(steps))


def make_stepper(scheduler: Any, settings: DecodeSettings) -> Stepper:
    """Start one run of a sampler on the betas, prediction type and clamp of a decoder's own scheduler.

    Raises:
        DecoderError: The scheduler's configuration cannot be run so, or has fewer steps.
    """
    import diffusers

    config = scheduler.config
    if settings.steps > config.num_train_timesteps:
        raise DecoderError(f"steps={settings.steps}, but the decoder was trained with {config.num_train_timesteps}")
    extra: dict[str, Any] = {}
    if settings.scheduler == "dpm++" and config.get("clip_sample") and not config.get("thresholding"):
        if config.get("clip_sample_range", 1.0) != 1.0:
            raise DecoderError(
                f"dpm++ can keep a clamp to 1 only, this decoder's is {config.clip_sample_range}; use 'ddpm' or 'ddim'"
            )
        # A dynamic threshold between 1 and 1 is the clamp, which this class has under no other name.
        extra = {"thresholding": True, "sample_max_value": 1.0}
    sampler = getattr(diffusers, SCHEDULER_CLASSES[settings.scheduler]).from_config(config, **extra)
    with warnings.catch_warnings():  # diffusers hands torch tensors to numpy 2 in a way that it is leaving
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        sampler.set_timesteps(settings.steps)
    timesteps = [int(t) for t in sampler.timesteps]
    if max(timesteps) >= config.num_train_timesteps or min(timesteps) < 0:
        raise DecoderError(
            f"steps={settings.steps} with scheduler {settings.scheduler!r} runs from timestep {max(timesteps)} to "
            f"{min(timesteps)}, but the decoder has those from {config.num_train_timesteps - 1} to 0; take fewer steps"
        )
    return (_DdpmStepper if settings.scheduler == "ddpm" else Stepper)(sampler, timesteps)


def _predicted_start(kind: str, output: Tensor, latents: Tensor, alpha: float) -> Tensor:
    """Return the clean latents that a model's output implies, at cumulative alpha ``alpha``."""
    if kind == "epsilon":
        return (latents - (1 - alpha) ** 0.5 * output) / alpha**0.5
    if kind == "v_prediction":
        return alpha**0.5 * latents - (1 - alpha) ** 0.5 * output
    return output


def predicted_noise(kind: str, output: Tensor, latents: Tensor, alpha: float) -> Tensor:
    """Return the noise that a model's output implies, at cumulative alpha ``alpha``."""
    if kind == "epsilon":
        return output
    if kind == "v_prediction":
        return alpha**0.5 * output + (1 - alpha) ** 0.5 * latents
    return (latents - alpha**0.5 * output) / (1 - alpha) ** 0.5


class _DdpmStepper(Stepper):
    """Ancestral sampling, equation 7 of arXiv 2006.11239, with the clamp of diffusers.

    diffusers draws other noise for each row inside its step; all else here equals it.
    """

    def __init__(self, sampler: Any, timesteps: list[int]):
        super().__init__(sampler, timesteps)
        config = sampler.config
        if config.variance_type != "fixed_small" or config.thresholding:
            raise DecoderError(
                "'ddpm' runs with variance_type 'fixed_small' and no dynamic threshold, this decoder's scheduler has "
                f"{config.variance_type!r} and thresholding={config.thresholding}; use 'ddim' or 'dpm++'"
            )
        self._kind = config.prediction_type
        self._limit = config.clip_sample_range if config.clip_sample else None
        self._alphas = [float(sampler.alphas_cumprod[t]) for t in timesteps] + [1.0]

    def step(self, output: Tensor, index: int, latents: Tensor, noise: SharedNoise) -> Tensor:
        alpha, following = self._alphas[index], self._alphas[index + 1]
        ratio, left = alpha / following, (1 - following) / (1 - alpha)
        start = _predicted_start(self._kind, output, latents, alpha)
        if self._limit is not None:
            start = start.clamp(-self._limit, self._limit)
        mean = following**0.5 * (1 - ratio) / (1 - alpha) * start + ratio**0.5 * left * latents
        if self.timesteps[index] == 0:
            return mean
        return mean + max(left * (1 - ratio), 1e-20) ** 0.5 * noise.steps[index]
