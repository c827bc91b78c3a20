"""What models are asked about pictures, and pictures in which patches are highlighted."""

__all__ = ["contact_sheet", "explaining_words", "highlighted", "judging_words", "locating_words", "shortened"]

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vit_lens.errors import ExplanationError

_PALE, _DARK = np.array((247, 251, 255.0)), np.array((8, 48, 107.0))  # the ends of the colour map Blues
_OPACITY, _GAP = 0.7, 4
_MOST_LETTERS = 500


def highlighted(image: Image.Image, map: Float[Tensor, "grid_row grid_column"]) -> Image.Image:
    """Return an image under its map, blue where the unit fires, as in arXiv 2505.24360; without its colour bar.

    Args:
        image: What the tower sees.
        map: How much the unit fires at every patch.

    >>> from vit_lens.images import to_display
    >>> (picture,) = to_display(images[:1], model.spec())
    >>> highlighted(picture, torch.eye(4)).size
    (64, 64)
    """
    values = map.detach().cpu().double().numpy()
    low, high = values.min(), values.max()
    level = (values - low) / (high - low) if high > low else np.zeros_like(values)
    plate = Image.fromarray((level * 255).round().astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
    share = np.asarray(plate, dtype=np.float64)[..., None] / 255
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    mixed = pixels + np.sqrt(share) * _OPACITY * (_PALE + share * (_DARK - _PALE) - pixels)
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def contact_sheet(images: Sequence[Image.Image]) -> Image.Image:
    """Return images side by side, for models that take one."""
    sheet = Image.new("RGB", (sum(one.width + _GAP for one in images) - _GAP, max(one.height for one in images)))
    left = 0
    for one in images:
        sheet.paste(one, (left, 0))
        left += one.width + _GAP
    return sheet


def explaining_words(n: int) -> str:
    """Return what a model is asked about images in which the unit's patches are highlighted."""
    return (
        f"A unit of a vision model fires on the regions that are highlighted in blue in these {n} pictures. "
        "What do these regions have in common that other regions of pictures do not have? Answer in a few words."
    )


def judging_words(text: str, is_highlighted: bool) -> str:
    """Return what a model is asked about one picture; an explanation is quoted, and no instruction."""
    where = "Do the regions of this picture that are highlighted in blue show" if is_highlighted else (
        "Does this picture show"
    )  # fmt: skip
    return f'{where} what these words describe: "{text}"? Be very critical.'


def locating_words(text: str, n: int) -> str:
    """Return what a model is asked about places in a picture."""
    return (
        f"Divide this picture into {n} rows and {n} columns of equal cells, counted from 0 at the top left. Which "
        f'cells show what these words describe: "{text}"?'
    )


def shortened(text: str, who: str) -> str:
    """Return an explanation in one line, of bounded length.

    Raises:
        ExplanationError: There are no words in it.
    """
    words = " ".join("".join(c for c in text if c.isprintable() or c.isspace()).split()).replace('"', "'")
    if not words:
        raise ExplanationError(f"{who} explains with {text!r:.80}, no words; take another model")
    return words[:_MOST_LETTERS]
