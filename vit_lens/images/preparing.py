"""Resize, crop and normalise pictures exactly as open_clip's evaluation transform does."""

__all__ = ["margins", "preprocess", "resized_size", "to_display"]

import os
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from vit_lens.addresses import as_indices
from vit_lens.errors import PreprocessError, expect
from vit_lens.images.load import ImageSource, Layout, load_image
from vit_lens.images.spec import INTERPOLATIONS, PreprocessSpec

_MOST_PIXELS = 2**25  # of a resized picture, which a file of a few bytes could ask for


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
        spec: The tower's preprocessing; None, as a tower has that came without, raises.
        layout: The order of the axes of arrays; None takes HWC for uint8 arrays, and float arrays must name it.
        dtype: The floating-point type that the result is cast to.
        device: Where the result goes.

    Raises:
        ImageError: A picture cannot be read.
        PreprocessError: There is no ``spec``, no picture, or an array is ambiguous.

    >>> preprocess(images, model.spec()).shape
    torch.Size([2, 3, 64, 64])
    """
    spec = _required(spec)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise PreprocessError(f"dtype={dtype!r}; expected a floating-point torch.dtype, such as torch.float32")
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
    """Return the resized and cropped RGB pictures that the tower sees, for people to look at.

    Args:
        sources: One picture or several; see :func:`load_image`.
        spec: The tower's preprocessing; None raises.
        layout: The order of the axes of arrays; see :func:`preprocess`.

    Raises:
        ImageError: A picture cannot be read.
        PreprocessError: There is no ``spec``, no picture, or an array is ambiguous.

    >>> [picture.size for picture in to_display(images, model.spec())]
    [(64, 64), (64, 64)]
    """
    return _pictures(sources, _required(spec), layout)


def _required(spec: PreprocessSpec | None) -> PreprocessSpec:
    if spec is None:
        raise PreprocessError(
            "this tower carries no preprocessing; pass a PreprocessSpec (size, mean, std, interpolation, resize_mode)"
        )
    expect(spec, PreprocessSpec, "spec", PreprocessError, "model.spec(), or one of your own")
    return spec


def _pictures(
    sources: ImageSource | Sequence[ImageSource], spec: PreprocessSpec, layout: Layout | None
) -> list[Image.Image]:
    if isinstance(sources, (str, os.PathLike, Image.Image)):
        several: Sequence[ImageSource] = [sources]
    elif isinstance(sources, (np.ndarray, Tensor)):
        several = list(sources) if sources.ndim == 4 else [sources]
    else:
        several = list(sources) if isinstance(sources, Sequence) else [sources]
    if not several:
        raise PreprocessError("no pictures; expected at least one")
    return [_fit(load_image(source, layout=layout), spec).convert("RGB") for source in several]


def resized_size(size: tuple[int, int], spec: PreprocessSpec) -> tuple[int, int]:
    """Return the (height, width) that a picture of ``size`` is resized to before it is cropped or padded.

    Args:
        size: The (height, width) of the picture in pixels.
        spec: The tower's preprocessing.

    Raises:
        PreprocessError: The picture is so narrow that a side would vanish.

    >>> resized_size((480, 640), model.spec())
    (64, 85)
    """
    spec, size = _required(spec), _pair("size", size)
    ratios = [before / after for before, after in zip(size, spec.size, strict=True)]
    edge = spec.resize_edge or (spec.size[0] if spec.size[0] == spec.size[1] else None)
    if spec.resize_mode == "squash":
        out = spec.size
    elif spec.resize_mode == "shortest" and edge is not None:
        short = min(size)  # the longer side is truncated, not rounded
        height, width = (edge if side == short else int(edge * side / short) for side in size)
        out = (height, width)
    else:
        ratio = max(ratios) if spec.resize_mode == "longest" else min(ratios)
        out = (round(size[0] / ratio), round(size[1] / ratio))
    if min(out) < 1 or out[0] * out[1] > _MOST_PIXELS:
        raise PreprocessError(
            f"a picture of {size[1]} x {size[0]} pixels is too narrow: resized it would be {out[1]} x {out[0]}"
        )
    return out


def margins(resized: tuple[int, int], spec: PreprocessSpec) -> tuple[int, int]:
    """Return how many rows and columns of a resized picture lie before what the tower sees; below zero is padding.

    Args:
        resized: The (height, width) in pixels that :func:`resized_size` gives.
        spec: The tower's preprocessing.

    >>> margins((64, 85), model.spec())
    (0, 10)
    """
    spec, resized = _required(spec), _pair("resized", resized)
    top, left = (_margin(before, after, spec) for before, after in zip(resized, spec.size, strict=True))
    return top, left


def _pair(name: str, size: object) -> tuple[int, int]:
    if isinstance(size, Sequence) and len(found := as_indices(size) or []) == 2 and min(found) > 0:
        return found[0], found[1]
    raise PreprocessError(f"{name}={size!r}; expected (height, width) in pixels")


def _margin(before: int, after: int, spec: PreprocessSpec) -> int:
    if before < after:
        return -((after - before) // 2)
    return (before - after) // 2 if spec.resize_edge is not None else round((before - after) / 2.0)


def _fit(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    resized = resized_size((image.height, image.width), spec)
    # where the target is not square, open_clip does not hand its interpolation on
    not_square = spec.resize_mode == "shortest" and spec.resize_edge is None and spec.size[0] != spec.size[1]
    resample = Image.Resampling.BICUBIC if not_square else INTERPOLATIONS[spec.interpolation]
    if (image.height, image.width) != resized:
        image = image.resize((resized[1], resized[0]), resample)
    return _crop(image, spec)


def _crop(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    """Pad what is too small, then cut the middle out."""
    (height, width), (top, left) = spec.size, margins((image.height, image.width), spec)
    rows, columns = max(height - image.height, 0), max(width - image.width, 0)
    if rows or columns:
        fill = spec.fill_color if spec.resize_mode == "longest" else 0
        border = (columns // 2, rows // 2, (columns + 1) // 2, (rows + 1) // 2)
        image = ImageOps.expand(image, border=border, fill=fill if image.mode == "L" else (fill, fill, fill))
    top, left = max(top, 0), max(left, 0)
    return image.crop((left, top, left + width, top + height))
