"""Small copies of pictures as data URIs, so that a page or notebook can carry them inside."""

__all__ = ["thumbnail_uri"]

import base64
import io

import PIL.Image


def thumbnail_uri(picture: PIL.Image.Image, size: int = 96, quality: int = 85) -> str:
    """Return the picture, at most ``size`` pixels wide and high, as a JPEG data URI."""
    small = picture.convert("RGB")
    small.thumbnail((size, size), PIL.Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
