"""One decode call: noise drawn once, then every batch denoised with it and turned into pictures."""

__all__ = ["Run", "progress_bar", "to_uint8"]

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vit_lens.decoders.parts import PixelLayout, unet_output
from vit_lens.decoders.sampling import draw_noise, make_stepper
from vit_lens.decoders.settings import DecodeSettings
from vit_lens.errors import DecoderError

# MoVQ needs far more memory per picture than the UNet: at most eight pictures of 512 x 512 at a time.
_MOVQ_PIXELS = 8 * 512 * 512


class Run:
    """One decode call: settings checked, noise drawn once for all its batches."""

    def __init__(self, unet: Any, movq: Any, scheduler: Any, settings: DecodeSettings):
        self._unet, self._movq, self._scheduler, self._settings = unet, movq, scheduler, settings
        shape = PixelLayout.of(unet, movq).latent_shape(settings.height, settings.width)
        timesteps = make_stepper(scheduler, settings).timesteps
        self._timesteps = torch.tensor(timesteps, device=unet.device)
        dtype = torch.promote_types(unet.dtype, torch.float32)
        self._noise = draw_noise(shape, timesteps, settings, device=unet.device, dtype=dtype)

    def empty_pictures(self, n: int, output: str) -> Tensor:
        """Allocate the result of the whole call."""
        height, width = self._settings.height, self._settings.width
        if output == "uint8":
            return torch.empty(n, height, width, 3, dtype=torch.uint8)
        return torch.empty(n, 3, height, width, dtype=torch.float32, device=self._unet.device)

    def pictures(
        self, embeds: Float[Tensor, "batch d_embed"], negative: Tensor | None, advance: Callable[[], object]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Decode one batch.

        Raises:
            DecoderError: a picture is not finite.
        """
        stepper = make_stepper(self._scheduler, self._settings)
        latents = self._noise.start.expand(len(embeds), -1, -1, -1)
        for index, guided in enumerate(self._settings.guided_steps):
            output = self._predict(latents, index, embeds, negative if guided else None)
            latents = stepper.step(output, index, latents, self._noise)
            advance()
        chunk = max(1, _MOVQ_PIXELS // (self._settings.height * self._settings.width))
        parts = [
            self._movq.decode(x, force_not_quantize=True).sample.float()
            for x in latents.to(self._movq.dtype).split(chunk)
        ]
        pictures = torch.cat(parts)
        if not bool(torch.isfinite(pictures).all()):
            raise DecoderError(
                f"decoded pictures hold NaN or infinite values (UNet in {self._unet.dtype}, MoVQ in "
                f"{self._movq.dtype}): broken weights, or an overflow; try dtype=torch.bfloat16 or torch.float32"
            )
        return pictures.clamp(-1, 1)

    def _predict(self, latents: Tensor, index: int, embeds: Tensor, negative: Tensor | None) -> Tensor:
        timestep = self._timesteps[index]
        if negative is None:
            return unet_output(self._unet, latents, timestep, embeds)
        both = torch.cat([negative.to(embeds).expand_as(embeds), embeds])
        without, given = unet_output(self._unet, torch.cat([latents, latents]), timestep, both).chunk(2)
        return without + self._settings.guidance * (given - without)


def to_uint8(pictures: Float[Tensor, "batch 3 height width"]) -> UInt8[Tensor, "batch height width 3"]:
    """Convert pictures in [-1, 1] on their own device."""
    return ((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


@contextmanager
def progress_bar(total: int, show: bool) -> Iterator[Callable[[], object]]:
    """Yield a function that advances a bar by one; the bar goes to the standard error stream."""
    from tqdm import tqdm

    with tqdm(total=total, disable=not show, desc="decoding", unit="step") as bar:
        yield bar.update
