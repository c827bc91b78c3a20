"""Pictures as bytes: PNG files, whether one is whole, and thumbnails as data URIs for pages and notebooks."""

__all__ = ["encode_png", "is_png", "is_whole_png", "open_png", "thumbnail_uri"]

import base64
import io
from pathlib import Path

import numpy as np
import PIL.Image
from jaxtyping import UInt8
from torch import Tensor

from vit_lens.errors import RecordError

_MOST_PIXELS = 2**26
_BROKEN = (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning)


def encode_png(
    picture: PIL.Image.Image | UInt8[Tensor, "height width 3"] | UInt8[np.ndarray, "height width 3"],
    compress_level: int = 6,
) -> bytes:
    """Return a picture as the bytes of a PNG file.

    Args:
        picture: A PIL image, or pixels 0 to 255.
        compress_level: The effort of compression, from 0 (fast, large) to 9; the picture is the same.

    Raises:
        RecordError: Pixels are not uint8 [height width 3].

    >>> vl.records.encode_png(np.zeros((4, 4, 3), np.uint8))[1:4]
    b'PNG'
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
    """Return whether a path is a PNG file that ends where it should, every checksum right.

    >>> cut = tmp / "cut.png"
    >>> _ = cut.write_bytes(images[0].read_bytes()[:100])
    >>> vl.records.is_whole_png(images[0]), vl.records.is_whole_png(cut)
    (True, False)
    """
    return path.is_file() and is_png(path.read_bytes())


def is_png(data: bytes) -> bool:
    """Whether bytes are a whole PNG file of a size that a record may hold, every checksum right."""
    try:
        _opened(data).verify()
    except _BROKEN:
        return False
    return True


def open_png(data: bytes, where: Path) -> PIL.Image.Image:
    """Return the picture in the bytes of a PNG file; RecordError if they are damaged."""
    try:
        return _opened(data).convert("RGB")
    except _BROKEN as damage:
        raise RecordError(f"{where} is damaged ({damage}); run the same sweep again") from damage


def _opened(data: bytes) -> PIL.Image.Image:
    picture = PIL.Image.open(io.BytesIO(data), formats=["PNG"])
    if picture.width * picture.height > _MOST_PIXELS:
        raise ValueError(f"{picture.width} x {picture.height} pixels are more than a record holds")
    return picture


def thumbnail_uri(picture: PIL.Image.Image, size: int = 96, quality: int = 85) -> str:
    """Return a picture as a JPEG data URI for a page.

    Args:
        picture: The picture, which stays as it is.
        size: The most pixels of the thumbnail's width and height.
        quality: The quality of the JPEG, 1 to 95.

    >>> import PIL.Image
    >>> vl.records.thumbnail_uri(PIL.Image.open(images[0]))[:23]
    'data:image/jpeg;base64,'
    """
    small = picture.convert("RGB")
    small.thumbnail((size, size), PIL.Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
