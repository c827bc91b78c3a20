"""One decode call: noise drawn once, some rows at a time denoised with it; where memory runs out, fewer."""

__all__ = ["Passes", "Run", "deliver"]

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from vit_lens.decoders.kandinsky_parts import PixelLayout, movq_output, unet_output
from vit_lens.decoders.memory import MovqChunk, guarded
from vit_lens.decoders.sampling import draw_noise, make_stepper
from vit_lens.decoders.settings import DecodeSettings
from vit_lens.errors import DecoderError

# Kinds of devices whose convolutions are faster so; on a CPU they are slower.
CHANNELS_LAST = ("cuda",)


class Run:
    """One decode call: settings checked, noise drawn once for all its batches.

    Args:
        unet: Runs the steps; compiled or not.
        movq: Its decoder turns latents into pictures.
        scheduler: That the UNet was trained with.
        settings: Of the call.
        movq_decoder: MoVQ's decoder, compiled, where the UNet is as well. Both then get one shape for each number of
            rows: what is the same for all rows is computed for each of them.
    """

    def __init__(self, unet: Any, movq: Any, scheduler: Any, settings: DecodeSettings, *, movq_decoder: Any = None):
        self.settings, self.device, self.dtypes = settings, unet.device, (unet.dtype, movq.dtype)
        self._unet, self._movq, self._scheduler = unet, movq, scheduler
        self._movq_decoder, self._one_shape = movq_decoder, movq_decoder is not None
        if self.device.type in CHANNELS_LAST:
            for part in (unet, movq):  # values stay; convolutions hand the layout of their weights on
                part.to(memory_format=torch.channels_last)
        shape = PixelLayout.of(unet, movq).latent_shape(settings.height, settings.width)
        timesteps = make_stepper(scheduler, settings).timesteps
        # On the device before the loop, which must not wait for it.
        self._timesteps = [torch.tensor(t, device=unet.device) for t in timesteps]
        dtype = torch.promote_types(unet.dtype, torch.float32)
        self._noise = draw_noise(shape, timesteps, settings, device=unet.device, dtype=dtype)

    def latents(
        self, embeds: Float[Tensor, "batch d_embed"], negative: Tensor | None, advance: Callable[[], object]
    ) -> Float[Tensor, "batch channel height width"]:
        """Denoise one batch; the host never waits for the device in here."""
        stepper = make_stepper(self._scheduler, self.settings)
        latents = self._noise.start.expand(len(embeds), -1, -1, -1)
        negative = None if negative is None else negative.to(embeds)
        finite = torch.ones((), dtype=torch.bool, device=latents.device)
        for index, guided in enumerate(self.settings.guided_steps):
            output = self._predict(latents, index, embeds, negative if guided else None)
            finite = finite & torch.isfinite(output).all()
            latents = stepper.step(output, index, latents, self._noise)
            advance()
        return torch.where(finite, latents, torch.nan)  # a sampler's clamp would make a picture of infinite values

    def pictures(
        self, latents: Float[Tensor, "batch channel height width"], chunk: int
    ) -> Float[Tensor, "batch 3 picture_height picture_width"]:
        """Turn latents into pictures, of which [-1, 1] is to be kept, ``chunk`` at a time."""
        parts = []
        for part in latents.to(self._movq.dtype).split(chunk):
            given = _pad(part, min(chunk, len(latents))) if self._one_shape else part
            parts.append(movq_output(self._movq, given, self._movq_decoder)[: len(part)].float())
        return torch.cat(parts)

    def _predict(self, latents: Tensor, index: int, embeds: Tensor, negative: Tensor | None) -> Tensor:
        timestep = self._timesteps[index]
        if negative is None:
            return unet_output(self._unet, latents, timestep, embeds)
        # At the start all rows hold the same noise, so that without an embedding they are one row.
        unguided = 1 if index == 0 and not self._one_shape else len(embeds)
        both = torch.cat([negative.expand(unguided, -1), embeds])
        output = unet_output(self._unet, torch.cat([latents[:unguided], latents]), timestep, both)
        without, given = output[:unguided], output[unguided:]
        return without + self.settings.guidance * (given - without)


def deliver(
    pictures: Float[Tensor, "batch 3 height width"], target: Tensor, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """Write pictures into a result: floats in [-1, 1], or bytes made on the pictures' own device and copied once.

    Raises:
        DecoderError: A picture is not finite.
    """
    finite = torch.isfinite(pictures).all()
    made = pictures.clamp(-1, 1)
    if target.dtype == torch.uint8:
        made = _to_uint8(made)
    if made.is_cuda and not target.is_cuda:
        pinned = torch.empty(made.shape, dtype=made.dtype, pin_memory=True)
        made = pinned.copy_(made, non_blocking=True)
    if not bool(finite):  # the only read of a pass that waits for the device, and so for the copy as well
        unet, movq = dtypes
        raise DecoderError(
            f"decoded pictures hold NaN or infinite values (UNet in {unet}, MoVQ in {movq}): broken weights, or an "
            "overflow; try dtype=torch.bfloat16 or torch.float32"
        )
    target.copy_(made)


def _to_uint8(pictures: Float[Tensor, "batch 3 height width"]) -> UInt8[Tensor, "batch height width 3"]:
    scaled = ((pictures + 1) * 127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@dataclass
class Passes:
    """One decode call: which rows run together, and what happens when they are too many.

    Attributes:
        run: The call's settings and noise.
        chunk: Of MoVQ; it outlives the call.
        padded: Whether a short pass is filled up with copies of its last row.
        on_smaller: Told the rows per pass from here on, each time that memory ran out.
    """

    run: Run
    chunk: MovqChunk
    padded: bool
    on_smaller: Callable[[int], object] | None

    def decode(
        self,
        embeds: Float[Tensor, "batch d_embed"],
        negative: Float[Tensor, "1 d_embed"] | None,
        output: str,
        *,
        size: int,
        progress: bool,
    ) -> UInt8[Tensor, "batch height width 3"] | Float[Tensor, "batch 3 height width"]:
        """Decode every row; rows that are done are never decoded again.

        Raises:
            DecoderError: Memory does not suffice for one row, or a picture is not finite.
        """
        settings, done = self.run.settings, 0
        # Made outside of the block: tensors made in inference mode cannot enter autograd later.
        if output == "uint8":
            pictures = torch.empty(len(embeds), settings.height, settings.width, 3, dtype=torch.uint8, device="cpu")
        else:
            shape = len(embeds), 3, settings.height, settings.width
            pictures = torch.empty(shape, dtype=torch.float32, device=self.run.device)
        with torch.inference_mode(), tqdm(disable=not progress, desc="decoding", unit="step") as bar:
            while done < len(embeds):
                bar.total = bar.n + settings.steps * -(-(len(embeds) - done) // size)
                rows = given = embeds[done : done + size]
                if self.padded:
                    given = _pad(rows, size)
                said = self._pass(given.to(self.run.device), negative, pictures[done : done + len(rows)], bar)
                if said:
                    size = self._smaller(min(size, len(given)), said)
                else:
                    done += len(rows)
        return pictures

    def _pass(self, embeds: Tensor, negative: Tensor | None, pictures: Tensor, bar: Any) -> str:
        """Decode one pass into its rows of the result; return what was said where memory ran out, else nothing."""
        run = self.run

        def finish(latents: Tensor) -> bool:
            made = run.pictures(latents, self.chunk.rows(run.settings))
            deliver(made[: len(pictures)], pictures, run.dtypes)
            return True

        latents, said = guarded(lambda: run.latents(embeds, negative, bar.update), run.device)
        while latents is not None:
            made, said = guarded(lambda: finish(latents), run.device)
            if made or not self.chunk.halve(run.settings, len(embeds)):
                break
            self._tell(len(embeds))
        return said

    def _smaller(self, size: int, said: str) -> int:
        if size == 1:
            settings, (unet, movq) = self.run.settings, self.run.dtypes
            raise DecoderError(
                f"one picture of {settings.height} x {settings.width} does not fit into the memory of "
                f"{self.run.device} (UNet in {unet}, MoVQ in {movq}): {said}; take a smaller height and width, "
                "guidance=1, dtype=torch.bfloat16 or another device, or free memory"
            )
        self._tell(size // 2)
        return size // 2

    def _tell(self, size: int) -> None:
        if self.on_smaller is not None:
            self.on_smaller(size)


def _pad(rows: Tensor, size: int) -> Tensor:
    """Return ``size`` rows: those there are, then copies of the last."""
    return torch.cat([rows, rows[-1:].expand(size - len(rows), *rows.shape[1:])]) if len(rows) < size else rows
