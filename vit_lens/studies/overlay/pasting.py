"""Overlays: transparent pictures laid over an image, at its corner, its centre, or over all of it."""

__all__ = ["FULL", "POSITIONS", "Overlay", "as_seen", "mean_colour", "paste", "pixels_of_seen"]

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from vit_lens.errors import StudyError, nearest
from vit_lens.files import as_path
from vit_lens.images import preprocess, to_display
from vit_lens.models import HookedViT

FULL = "full"
_SHARES = {"left": 0.0, "top": 0.0, "centre": 0.5, "right": 1.0, "bottom": 1.0}
POSITIONS = ("top left", "top right", "bottom left", "bottom right", "centre", FULL)


@dataclass(frozen=True, eq=False)
class Overlay:
    """A picture with transparency, and where on an image it goes.

    Attributes:
        name: What tables call it.
        rgba: The pixels, 0 to 255, the last channel their opacity.
        at: ``top left``, ``top right``, ``bottom left``, ``bottom right``, ``centre``, or ``full``: stretched over the
            whole image.
        scale: The overlay's width as a share of the image's, more than 0 and at most 1; None keeps its own pixels.

    Raises:
        StudyError: It is wholly transparent, the position is unknown, or the scale is no share.

    >>> red = np.zeros((4, 4, 4), np.uint8)
    >>> red[..., [0, 3]] = 255
    >>> vl.studies.Overlay("red", red, at="centre").at
    'centre'
    >>> vl.studies.Overlay("red", red, at="center")
    Traceback (most recent call last):
    vit_lens.errors.StudyError: overlay 'red': no position 'center'; nearest: 'centre'...
    """

    name: str
    rgba: UInt8[np.ndarray, "height width 4"]
    at: str = "top left"
    scale: float | int | None = None

    def __post_init__(self) -> None:
        if self.at not in POSITIONS:
            raise StudyError(f"overlay {self.name!r}: no position {self.at!r}; nearest: {nearest(self.at, POSITIONS)}")
        if self.scale is not None and not 0 < self.scale <= 1:
            raise StudyError(
                f"overlay {self.name!r}: scale={self.scale}; expected its width as a share of the image's, more than 0 "
                "and at most 1"
            )
        if self.at == FULL and self.scale is not None:
            raise StudyError(f"overlay {self.name!r}: at='full' covers the whole image, so leave scale={self.scale}")
        if not self.rgba[..., 3].any():
            raise StudyError(f"overlay {self.name!r} is transparent everywhere: nothing would be pasted")

    @classmethod
    def from_file(cls, path: Path | str, *, at: str = "top left", scale: float | int | None = None) -> "Overlay":
        """Read a picture with an alpha channel, such as a PNG.

        Raises:
            StudyError: The file cannot be read, has no alpha channel, or as for the class.
        """
        path = as_path(path, StudyError)
        try:
            with Image.open(path) as image:
                has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
                rgba = np.asarray((image.convert("LA") if image.mode == "La" else image).convert("RGBA"))
        except (OSError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
            raise StudyError(f"overlay {path} cannot be read ({error}); give a PNG with an alpha channel") from error
        if not has_alpha:
            raise StudyError(
                f"overlay {path} has no alpha channel, and would cover the image with a rectangle; give a PNG whose "
                "ground is transparent"
            )
        return cls(path.stem, rgba, at, scale)

    @property
    def content(self) -> str:
        """Digits that identify the overlay by its pixels and place."""
        said = f"{self.rgba.shape}{self.at}{self.scale}".encode()
        return hashlib.sha256(said + np.ascontiguousarray(self.rgba).tobytes()).hexdigest()[:16]


def paste(base: UInt8[np.ndarray, "height width 3"], overlay: Overlay) -> UInt8[np.ndarray, "height width 3"]:
    """Return the image with the overlay on it, as a new array.

    Raises:
        StudyError: The overlay is larger than the image.

    >>> red = np.zeros((4, 4, 4), np.uint8)
    >>> red[..., [0, 3]] = 255
    >>> pasted = vl.studies.paste(np.zeros((8, 8, 3), np.uint8), vl.studies.Overlay("red", red, at="bottom right"))
    >>> pasted[3, 3].tolist(), pasted[4, 4].tolist()
    ([0, 0, 0], [255, 0, 0])
    """
    rgba = _fitted(overlay, base.shape[:2])
    top, left = _corner(overlay, rgba.shape[:2], base.shape[:2])
    where = (slice(top, top + rgba.shape[0]), slice(left, left + rgba.shape[1]))
    out, under = base.copy(), base[where].astype(np.float64)
    cover = rgba[..., 3:] / 255.0
    out[where] = np.rint(under + cover * (rgba[..., :3] - under)).astype(np.uint8)
    return out


def as_seen(model: HookedViT, images: Sequence[Any]) -> UInt8[np.ndarray, "image height width 3"]:
    """Return images resized and cropped as the model sees them, so that no overlay is pasted on what is cut off."""
    return np.stack([np.asarray(to_display(image, model.preprocess_spec)[0]) for image in images])


def pixels_of_seen(
    model: HookedViT, seen: UInt8[np.ndarray, "image height width 3"]
) -> Float[Tensor, "image channel height width"]:
    """Return the pixels of images that have the size the model sees, without a resize or crop."""
    spec = model.preprocess_spec
    spec = None if spec is None else replace(spec, resize_edge=None)
    return preprocess(seen, spec, dtype=model.dtype, device=model.device)


def mean_colour(model: HookedViT, pixels: Float[Tensor, "image channel height width"]) -> UInt8[np.ndarray, " 3"]:
    """Return the mean colour of preprocessed images: of the blank that an overlay is pasted on."""
    mean, spec = pixels.double().mean((0, 2, 3)).cpu().numpy(), model.preprocess_spec
    if spec is not None:
        mean = mean * np.asarray(spec.std) + np.asarray(spec.mean)
    return np.rint(255 * mean.clip(0, 1)).astype(np.uint8)


def _fitted(overlay: Overlay, size: tuple[int, ...]) -> UInt8[np.ndarray, "height width 4"]:
    height, width = overlay.rgba.shape[:2]
    if overlay.at == FULL:
        height, width = size
    elif overlay.scale is not None:
        wanted = max(1, round(overlay.scale * size[1]))
        height, width = max(1, round(height * wanted / width)), wanted
    if height > size[0] or width > size[1]:
        raise StudyError(
            f"overlay {overlay.name!r} is {width} x {height} pixels, larger than the image, which is {size[1]} x "
            f"{size[0]} as the model sees it; give scale= (--scale), its width as a share of the image's"
        )
    if (height, width) == overlay.rgba.shape[:2]:
        return overlay.rgba
    # bicubic would overshoot, and give the overlay a bright rim
    rgba = np.asarray(Image.fromarray(overlay.rgba).resize((width, height), Image.Resampling.BILINEAR))
    if not rgba[..., 3].any():
        raise StudyError(f"overlay {overlay.name!r} vanishes at {width} x {height} pixels; give it a larger scale")
    return rgba


def _corner(overlay: Overlay, own: tuple[int, ...], size: tuple[int, ...]) -> tuple[int, int]:
    if overlay.at == FULL:
        return 0, 0
    words = overlay.at.split()
    top, left = (round(_SHARES[word] * (size[i] - own[i])) for i, word in enumerate((words[0], words[-1])))
    return top, left
