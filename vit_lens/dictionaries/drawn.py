"""What is shown of a draw: its picture, its prompt's tokens, and a feature's codes at the step where it is largest."""

__all__ = ["at_strongest", "grid_of", "pictures_of", "texts_of"]

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from vit_lens.dictionaries.denoiser_tokens import DenoiserTokens
from vit_lens.dictionaries.denoisers import cells_of, run_of, step_and_position


def at_strongest(
    codes: Float[Tensor, " token"], places: Int[Tensor, " token"], n_positions: int
) -> tuple[int, int, Float[Tensor, " pos"]]:
    """Return the step and the position at which a feature is largest in a draw, and its codes at that step.

    Args:
        codes: The feature's codes of the tokens of one input.
        places: Their places.
        n_positions: How many positions there are; those that were not read are NaN.
    """
    step, position = step_and_position(int(places[int(codes.abs().argmax())]))
    said = [step_and_position(place) for place in places.tolist()]
    map_ = torch.full((n_positions,), torch.nan)
    for code, (other, at) in zip(codes.tolist(), said, strict=True):
        if other == step:
            map_[at] = code
    return step, position, map_


def grid_of(reader: DenoiserTokens) -> tuple[int, int] | None:
    """Return rows and columns of the image's cells; None of text, or where they are not halvings of the picture."""
    run, name = reader.provenance.run or {}, str(reader.provenance.site)
    if reader.denoiser.is_text(name):
        return None
    return cells_of(run["height"], run["width"], reader.n_positions)


def pictures_of(reader: DenoiserTokens, inputs: Sequence[int], side: int) -> dict[int, Image.Image]:
    """Return the pictures that inputs are drawn to, at most ``side`` pixels wide."""
    found: dict[int, Image.Image] = {}
    for start in range(0, len(inputs), reader.batch_size):
        part = list(inputs[start : start + reader.batch_size])
        drawn = reader.denoiser(
            reader.prompts(part), seed=reader.seeds(part), output_type="pil", **run_of(reader.provenance)
        )
        for index, picture in zip(part, drawn, strict=True):
            picture.thumbnail((side, side))
            found[index] = picture
    return found


def texts_of(reader: DenoiserTokens, inputs: Sequence[int]) -> dict[int, list[str]]:
    """Return the tokens of prompts at the positions of the text stream; nothing for a site of the image."""
    if not reader.denoiser.is_text(str(reader.provenance.site)):
        return {}
    run = {name: value for name, value in run_of(reader.provenance).items() if name != "steps"}
    pieces = reader.denoiser.text_tokens(reader.prompts(inputs), **run)
    return dict(zip(inputs, pieces, strict=True))
