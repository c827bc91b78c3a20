"""Rows drawn by a stock pipeline, some at a time; where memory runs out, fewer."""

__all__ = ["delivered", "draw_in_passes"]

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vit_lens.conditions import Condition
from vit_lens.decoders.memory import guarded
from vit_lens.errors import DecoderError


def draw_in_passes(
    rows: Condition,
    draw: Callable[[Condition], Float[Tensor, "row 3 height width"]],
    size: int,
    *,
    smaller: Callable[[int, str], int],
    padded: bool,
    output: Literal["uint8", "float"],
    progress: bool,
) -> Tensor:
    """Draw every row; rows that are drawn are never drawn again.

    Args:
        rows: What to draw, on the device that it is drawn on.
        draw: From the rows of one pass to pictures whose white is 1 and black 0.
        size: The rows of a pass.
        smaller: Called where memory ran out, with the rows of that pass and with what was said; returns how many run
            together from here on, or raises.
        padded: Whether a short pass is filled up.
        output: The form of the pictures, as :func:`delivered` has it.
        progress: Whether to show a bar of rows.

    Raises:
        DecoderError: A picture is not finite.
    """
    pictures, done = [], 0
    with torch.inference_mode(), tqdm(disable=not progress, desc="decoding", unit="row", total=len(rows)) as bar:
        while done < len(rows):
            given = rows[done : done + size]
            n = len(given)
            if padded:
                given = given.padded(size)
            made, said = guarded(partial(draw, given), rows.device)
            if made is None:
                size = smaller(len(given), said)
                continue
            pictures.append(delivered(made[:n], output))
            bar.update(n)
            done += n
    return torch.cat(pictures)  # outside of the block: what was made in it cannot enter autograd later


def delivered(made: Float[Tensor, "row 3 height width"], output: str) -> Tensor:
    """Return pictures, cut to [0, 1], as bytes on the CPU ("uint8"), or in [-1, 1] on their own device ("float").

    Raises:
        DecoderError: One is not finite.
    """
    if not bool(torch.isfinite(made).all()):
        raise DecoderError(
            "decoded pictures hold NaN or infinite values: broken weights, or an overflow; try "
            "dtype=torch.bfloat16 or torch.float32"
        )
    made = made.clamp(0, 1)
    if output == "float":
        return made * 2 - 1
    return (made.permute(0, 2, 3, 1) * 255).round().to("cpu", torch.uint8).contiguous()
