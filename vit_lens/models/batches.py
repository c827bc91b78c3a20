"""Many images through a model, a batch at a time."""

__all__ = ["batch_starts", "pixel_batches", "several"]

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vit_lens.addresses import as_index
from vit_lens.errors import VitLensError
from vit_lens.models.vit import HookedViT


def several(images: Any) -> Any:
    """Return images as something with a length: a list, a tuple or pixels with a batch axis; one alone in a list.

    >>> len(several(images[0])), len(several(images)), len(several(pixels))
    (1, 2, 2)
    """
    if not isinstance(images, (list, tuple)) and getattr(images, "ndim", 0) != 4:
        return [images]
    return images


def batch_starts(n: int, batch_size: int) -> range:
    """Return where batches of ``n`` images start.

    Args:
        n: The number of images.
        batch_size: The number of images in one batch, at least 1.

    Raises:
        VitLensError: A batch would hold no image, or part of one.

    >>> list(batch_starts(5, 2))
    [0, 2, 4]
    """
    if (size := as_index(batch_size)) is None or size < 1:
        raise VitLensError(f"batch_size={batch_size!r}; a batch holds at least one image, and a whole number of them")
    return range(0, n, size)


def pixel_batches(
    model: HookedViT, images: Any, batch_size: int, *, label: str, progress: bool, ends: Sequence[int] = ()
) -> Iterator[tuple[int, Float[Tensor, "batch channel height width"]]]:
    """Give preprocessed pixels, and the index of the first image of each batch.

    Args:
        model: The model, which preprocesses what is no tensor.
        images: What :func:`several` returns.
        batch_size: The number of images in one batch, at least 1.
        label: The words before the progress bar.
        progress: Whether a progress bar is shown.
        ends: The numbers of images after which a batch ends early, so that none reaches over them.

    Yields:
        The index of a batch's first image, and the batch's pixels.

    Raises:
        ImageError: An image cannot be read.
        VitLensError: A batch would hold no image.

    >>> [(start, len(part)) for start, part in pixel_batches(model, images * 2, 3, label="", progress=False)]
    [(0, 3), (3, 1)]
    """
    n = len(images)
    parts = [
        (first + start, min(first + start + batch_size, stop))
        for first, stop in pairwise([0, *sorted(ends), n])
        for start in batch_starts(stop - first, batch_size)
    ]
    for start, stop in tqdm(parts, desc=label, disable=not progress):
        batch = images[start:stop]
        yield start, batch if isinstance(batch, Tensor) else model.preprocess(batch)
