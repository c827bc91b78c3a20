"""Pictures as PNG files, and whether one is whole."""

__all__ = ["encode_png", "is_whole_png", "read_png"]

import io
from pathlib import Path

import numpy as np
import PIL.Image
from jaxtyping import UInt8
from torch import Tensor

from vit_lens.errors import RecordError


def encode_png(
    picture: PIL.Image.Image | UInt8[Tensor, "height width 3"] | UInt8[np.ndarray, "height width 3"],
    compress_level: int = 6,
) -> bytes:
    """Return the picture as the bytes of a PNG file.

    Args:
        picture: It.
        compress_level: From 0 (fast, large) to 9; the picture is the same.
    """
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu().numpy()
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise RecordError(f"a picture is uint8 [height width 3], not {picture.dtype} {list(picture.shape)}")
        picture = PIL.Image.fromarray(np.ascontiguousarray(picture))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=compress_level)
    return buffer.getvalue()


def is_whole_png(path: Path) -> bool:
    """Return whether ``path`` is a PNG file that ends where it should, every checksum right."""
    try:
        with PIL.Image.open(path, formats=["PNG"]) as picture:
            picture.verify()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def read_png(path: Path) -> PIL.Image.Image:
    """Return the picture in a PNG file; RecordError if it is missing or damaged."""
    try:
        with PIL.Image.open(path, formats=["PNG"]) as picture:
            return picture.convert("RGB")
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist; the sweep is unfinished, run the same command again") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise RecordError(f"{path} is damaged ({error}); run the same sweep again") from error
