"""Resize, crop and normalise pictures exactly as open_clip's evaluation transform does."""

__all__ = ["preprocess", "to_display"]

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from vit_lens.errors import PreprocessError
from vit_lens.images.loading import ImageSource, Layout, load_image
from vit_lens.images.spec import INTERPOLATIONS, PreprocessSpec


def preprocess(
    sources: ImageSource | Sequence[ImageSource],
    spec: PreprocessSpec | None,
    *,
    layout: Layout | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Float[Tensor, "batch 3 height width"]:
    """Return the pixels that a tower sees, one row per picture.

    The arithmetic is float32 as in open_clip, whatever ``dtype`` the result is cast to.

    Args:
        sources: One picture or several; an array with a leading batch axis is several. See :func:`load_image`.
        spec: The tower's preprocessing.
        layout: Order of the axes of arrays.
        dtype: Of the result.
        device: Of the result.

    Raises:
        ImageError: A picture cannot be read.
        PreprocessError: There is no ``spec``, no picture, or an array is ambiguous.
    """
    spec = _required(spec)
    mean = torch.tensor(spec.mean, dtype=torch.float32).view(3, 1, 1)
    std = torch.tensor(spec.std, dtype=torch.float32).view(3, 1, 1)
    rows = []
    for picture in _pictures(sources, spec, layout):
        pixels = torch.from_numpy(np.array(picture, dtype=np.uint8)).permute(2, 0, 1).to(torch.float32)
        rows.append(pixels.div(255).sub(mean).div(std))
    return torch.stack(rows).to(device=device, dtype=dtype)


def to_display(
    sources: ImageSource | Sequence[ImageSource], spec: PreprocessSpec | None, *, layout: Layout | None = None
) -> list[Image.Image]:
    """Return the resized and cropped RGB pictures that the tower sees, for people to look at."""
    return _pictures(sources, _required(spec), layout)


def _required(spec: PreprocessSpec | None) -> PreprocessSpec:
    if spec is None:
        raise PreprocessError(
            "this tower carries no preprocessing; pass a PreprocessSpec (size, mean, std, interpolation, resize_mode)"
        )
    return spec


def _pictures(
    sources: ImageSource | Sequence[ImageSource], spec: PreprocessSpec, layout: Layout | None
) -> list[Image.Image]:
    if isinstance(sources, (str, Path, Image.Image)):
        several: Sequence[ImageSource] = [sources]
    elif isinstance(sources, (np.ndarray, Tensor)):
        several = list(sources) if sources.ndim == 4 else [sources]
    else:
        several = list(sources) if isinstance(sources, Sequence) else [sources]
    if not several:
        raise PreprocessError("no pictures; expected at least one")
    return [_fit(load_image(source, layout=layout), spec).convert("RGB") for source in several]


def _fit(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    height, width = spec.size
    resample = INTERPOLATIONS[spec.interpolation]
    if spec.resize_mode == "squash":
        return _resize(image, height, width, resample)
    if spec.resize_mode == "longest":
        ratio = max(image.height / height, image.width / width)
        resized = _resize(image, round(image.height / ratio), round(image.width / ratio), resample)
        return _center(resized, height, width, spec.fill_color)
    if spec.resize_edge is not None:
        resized = _resize(image, *_shortest(image, spec.resize_edge), resample)
        top, left = (resized.height - height) // 2, (resized.width - width) // 2
        return resized.crop((left, top, left + width, top + height))
    if height == width:
        return _center(_resize(image, *_shortest(image, height), resample), height, width, 0)
    # open_clip does not hand its interpolation on in this case
    ratio = min(image.height / height, image.width / width)
    size = round(image.height / ratio), round(image.width / ratio)
    return _center(_resize(image, *size, Image.Resampling.BICUBIC), height, width, 0)


def _shortest(image: Image.Image, side: int) -> tuple[int, int]:
    """Return (height, width) with the shorter side at ``side``; the longer one is truncated, not rounded."""
    if image.width <= image.height:
        return int(side * image.height / image.width), side
    return side, int(side * image.width / image.height)


def _resize(image: Image.Image, height: int, width: int, resample: Image.Resampling) -> Image.Image:
    if min(height, width) < 1:
        raise PreprocessError(
            f"a picture of {image.width} x {image.height} pixels is too narrow: resized it would be {width} x {height}"
        )
    return image if image.size == (width, height) else image.resize((width, height), resample)


def _center(image: Image.Image, height: int, width: int, fill: int) -> Image.Image:
    """Pad what is too small, then cut the middle out."""
    rows, columns = max(height - image.height, 0), max(width - image.width, 0)
    if rows or columns:
        border = (columns // 2, rows // 2, (columns + 1) // 2, (rows + 1) // 2)
        image = ImageOps.expand(image, border=border, fill=fill if image.mode == "L" else (fill, fill, fill))
    top, left = round((image.height - height) / 2.0), round((image.width - width) / 2.0)
    return image.crop((left, top, left + width, top + height))
