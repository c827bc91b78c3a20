"""All pictures of a call, some rows at a time; where memory runs out, the rest in smaller passes."""

__all__ = ["Passes"]

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.decoders.memory import MovqChunk, guarded
from vit_lens.decoders.running import Run, deliver, progress_bar
from vit_lens.errors import DecoderError


class Passes:
    """One decode call: which rows run together, and what happens when they are too many.

    Args:
        run: the call's settings and noise.
        chunk: of MoVQ; it outlives the call.
        padded: whether a short pass is filled up with copies of its last row.
        on_smaller: told the rows per pass from here on, each time that memory ran out.
    """

    def __init__(self, run: Run, chunk: MovqChunk, *, padded: bool, on_smaller: Callable[[int], object] | None):
        self._run, self._chunk, self._padded, self._on_smaller = run, chunk, padded, on_smaller

    def decode(
        self,
        embeds: Float[Tensor, "batch d_embed"],
        negative: Float[Tensor, "1 d_embed"] | None,
        pictures: Tensor,
        *,
        size: int,
        progress: bool,
    ) -> None:
        """Decode every row into ``pictures``; rows that are done are never decoded again.

        Raises:
            DecoderError: memory does not suffice for one row, or a picture is not finite.
        """
        steps, done = self._run.settings.steps, 0
        # The pictures come from outside: tensors made in inference mode cannot enter autograd later.
        with torch.inference_mode(), progress_bar(progress) as bar:
            while done < len(embeds):
                bar.total = bar.n + steps * -(-(len(embeds) - done) // size)
                rows = embeds[done : done + size]
                given = _pad(rows, size) if self._padded else rows
                said = self._pass(given.to(self._run.device), negative, pictures[done : done + len(rows)], bar)
                if said:
                    size = self._smaller(min(size, len(given)), said)
                else:
                    done += len(rows)

    def _pass(self, embeds: Tensor, negative: Tensor | None, pictures: Tensor, bar: Any) -> str:
        """Decode one pass into its rows of the result; return what was said where memory ran out, else nothing."""
        run = self._run
        latents, said = guarded(lambda: run.latents(embeds, negative, bar.update), run.device)
        while latents is not None:
            made, said = guarded(lambda: self._pictures(latents, pictures), run.device)
            if made or not self._chunk.halve(run.settings, len(embeds)):
                break
            self._tell(len(embeds))
        return said

    def _pictures(self, latents: Tensor, pictures: Tensor) -> bool:
        run = self._run
        made = run.pictures(latents, self._chunk.rows(run.settings))
        deliver(made[: len(pictures)], pictures, run.dtypes)
        return True

    def _smaller(self, size: int, said: str) -> int:
        if size == 1:
            settings, (unet, movq) = self._run.settings, self._run.dtypes
            raise DecoderError(
                f"one picture of {settings.height} x {settings.width} does not fit into the memory of "
                f"{self._run.device} (UNet in {unet}, MoVQ in {movq}): {said}; take a smaller height and width, "
                "guidance=1, dtype=torch.bfloat16 or another device, or free memory"
            )
        self._tell(size // 2)
        return size // 2

    def _tell(self, size: int) -> None:
        if self._on_smaller is not None:
            self._on_smaller(size)


def _pad(rows: Tensor, size: int) -> Tensor:
    return torch.cat([rows, rows[-1:].expand(size - len(rows), -1)])
