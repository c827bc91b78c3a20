"""Read one picture from a file, a Pillow image or an array, whole and in RGB or L."""

__all__ = ["ImageSource", "Layout", "formats", "load_image", "load_with_hash", "source_name"]

import hashlib
import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vit_lens.errors import ImageError, PreprocessError
from vit_lens.files import as_path

ImageSource = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor
Layout = Literal["HWC", "CHW"]

# What Pillow's decoders raise on damaged data; EOFError and zlib.error are no OSErrors.
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, AssertionError, AttributeError, ArithmeticError, LookupError,
    RuntimeError, TypeError, struct.error, zlib.error,
)  # fmt: skip
# Formats that Pillow decodes itself: it hands EPS, WMF and others to programs outside. HEIF needs pillow-heif.
_FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "PSD", "QOI", "TGA", "TIFF", "WEBP"
)  # fmt: skip
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


def load_image(source: ImageSource, *, layout: Layout | None = None) -> Image.Image:
    """Return one picture in mode RGB, or L where the source is grey.

    Files and Pillow images: the EXIF rotation is applied; palette, CMYK and other modes become RGB; transparent
    parts lie over white; 16-bit grey is scaled to 8 bits; of an animation the first frame is taken (of a Pillow
    image the current one), with a warning. Arrays: uint8, or float in [0, 1], which is rounded to 8 bits.

    Args:
        source: A path, a Pillow image, an array or a tensor.
        layout: The order of an array's axes; uint8 arrays are HWC unless it says otherwise, float arrays must name it.

    Raises:
        ImageError: The file is missing, empty, truncated or not an image.
        PreprocessError: The array's type, shape, range or layout does not say what picture it is.

    >>> load_image(images[0]).size
    (64, 64)
    >>> load_image(np.zeros((2, 3)))
    Traceback (most recent call last):
    vit_lens.errors.PreprocessError: float64 array of shape (2, 3) without a layout; pass layout='HWC' or ...
    """
    if isinstance(source, (np.ndarray, Tensor)):
        return _from_array(source, layout)
    if isinstance(source, Image.Image):
        return _flatten(source, source_name(source), "was its file closed, or is it truncated? load() it first")
    if isinstance(source, (str, os.PathLike)):
        return _from_bytes(_file_bytes(source), source_name(source))
    raise ImageError(f"got {type(source).__name__}; expected a path, a Pillow image, an array or a tensor")


def load_with_hash(source: ImageSource) -> tuple[Image.Image, str]:
    """Return one picture and the SHA-256 of its file, or of its pixels where it has none; a file is read once.

    Raises:
        ImageError: The picture cannot be read, as for :func:`load_image`.
        PreprocessError: An array is ambiguous, as for :func:`load_image`.

    >>> picture, digest = load_with_hash(np.zeros((2, 3, 3), dtype=np.uint8))
    >>> picture.size, digest[:8]
    ((3, 2), '63b6417f')
    """
    if isinstance(source, (str, os.PathLike)):
        data = _file_bytes(source)
        return _from_bytes(data, source_name(source)), hashlib.sha256(data).hexdigest()
    picture = load_image(source)
    return picture, hashlib.sha256(f"{picture.mode}{picture.size}".encode() + picture.tobytes()).hexdigest()


def source_name(source: Any) -> str:
    """Return words that name a source in a message or a table.

    >>> source_name("a.png"), source_name(np.zeros((2, 3)))
    ('a.png', 'float64 array of shape (2, 3)')
    """
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source).encode(errors="backslashreplace").decode()
    if isinstance(source, (np.ndarray, Tensor)):
        return f"{source.dtype} array of shape {tuple(source.shape)}"
    name = getattr(source, "filename", "")
    return str(name) if name else f"{type(source).__name__} in memory"


def _file_bytes(source: str | os.PathLike[str]) -> bytes:
    path = as_path(source, ImageError, "the path of an image")
    if not os.path.lexists(path):
        raise ImageError(f"{source_name(source)}: no such file")
    if not path.is_file():
        raise ImageError(f"{path} is {'a directory' if path.is_dir() else 'no regular file'}; expected an image file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from error
    if not data:
        raise ImageError(f"{path}: the file is empty")
    return data


def _from_bytes(data: bytes, name: str) -> Image.Image:
    with _whole(name, "is it truncated?"), Image.open(io.BytesIO(data), formats=formats()) as image:
        return _flatten(image, name)


def formats() -> list[str]:
    """Return the names of the formats that are read, as Pillow calls them, of those that it has here."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


@contextmanager
def _whole(name: str, guess: str) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not an image in a format that is read ({', '.join(formats())})") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {error} PIL.Image.MAX_IMAGE_PIXELS sets this limit") from error
    except _DAMAGE as error:
        raise ImageError(f"{name} cannot be read whole ({error}); {guess}") from error


def _flatten(image: Image.Image, name: str, guess: str = "is it truncated?") -> Image.Image:
    """Reduce any Pillow image to RGB or L; the source is left as it is."""
    _warn_of_frames(image, name)
    is_png = image.format == "PNG"
    with _whole(name, guess):
        image.load()
    upright = _upright(image, name)
    if 0 in upright.size:
        raise ImageError(f"{name} has no pixels: width {upright.width}, height {upright.height}")
    if upright.mode in ("RGB", "L") and "transparency" not in upright.info:
        return upright
    if upright.mode in _SIXTEEN_BIT or (upright.mode == "I" and is_png):
        return _from_sixteen_bits(np.asarray(upright))
    if upright.mode in ("I", "F"):
        raise ImageError(
            f"{name} has mode {upright.mode!r}, whose value range is not known; "
            "pass it as a float array in [0, 1] with layout="
        )
    if upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info:
        return _over_white(upright)
    return upright.convert("L" if upright.mode == "1" else "RGB")


def _upright(image: Image.Image, name: str) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # Pillow warns of some damages, raises at others
        try:
            return ImageOps.exif_transpose(image)
        except (UserWarning, *_DAMAGE) as error:
            damage = error
    warnings.warn(f"{name} has damaged EXIF data ({damage}); it is taken as it stands", UserWarning, stacklevel=6)
    return image.copy()


def _warn_of_frames(image: Image.Image, name: str) -> None:
    # An MPO is a photo with previews of itself, not an animation.
    n_frames = getattr(image, "n_frames", 1)
    if n_frames > 1 and image.format != "MPO":
        warnings.warn(f"{name} has {n_frames} frames; only frame {image.tell()} is used", UserWarning, stacklevel=5)


def _over_white(image: Image.Image) -> Image.Image:
    # A direct La -> RGBA conversion does not exist.
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _from_sixteen_bits(values: np.ndarray) -> Image.Image:
    # 65535 = 257 * 255, so that black and white are kept
    return Image.fromarray(np.rint(values.astype(np.float64) / 257).astype(np.uint8))


_ELSEWHERE = " (where nothing takes it, give what vit_lens.images.load_image(array, layout=...) returns)"


def _from_array(source: np.ndarray | Tensor, layout: Layout | None) -> Image.Image:
    name = source_name(source)
    array = _as_numpy(source)
    if layout not in (None, "HWC", "CHW"):
        raise PreprocessError(f"layout={layout!r}; expected 'HWC' or 'CHW'")
    is_float = np.issubdtype(array.dtype, np.floating)
    if not is_float and array.dtype != np.uint8:
        raise PreprocessError(f"{name}; expected uint8, or float in [0, 1] with layout= named")
    if is_float and layout is None:
        raise PreprocessError(f"{name} without a layout; pass layout='HWC' or layout='CHW'{_ELSEWHERE}")
    if array.ndim == 3 and layout == "CHW":
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        raise PreprocessError(
            f"{name} as {layout or 'HWC'}; expected one picture with 1 or 3 channels. Name the other layout="
            f"{_ELSEWHERE}, or pass transparent pictures as Pillow images"
        )
    if array.size == 0:
        raise PreprocessError(f"{name} has no pixels")
    if is_float:
        _check_range(array, name)
        array = np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array))


def _as_numpy(source: np.ndarray | Tensor) -> np.ndarray:
    if not isinstance(source, Tensor):
        return source
    if source.is_meta or source.is_quantized or source.layout != torch.strided:
        raise PreprocessError(
            f"{source_name(source)} is of the meta device, quantised or sparse; expected plain numbers"
        )
    tensor = source.detach().cpu().resolve_neg()
    return (tensor.float() if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor).numpy()


def _check_range(array: np.ndarray, name: str) -> None:
    if not np.isfinite(array).all():
        raise PreprocessError(f"{name} holds NaN or infinite values; expected numbers in [0, 1]")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise PreprocessError(f"{name} holds values from {low:g} to {high:g}; expected [0, 1]")
