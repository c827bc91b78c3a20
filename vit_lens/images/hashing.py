"""What tells pictures apart: the digits of what a tower sees."""

__all__ = ["picture_hash"]

import hashlib

from PIL import Image

from vit_lens.errors import ImageError, expect


def picture_hash(picture: Image.Image) -> str:
    """Return 32 digits that identify a picture as the tower sees it (of ``vit_lens.images.to_display``).

    Raises:
        ImageError: It is no Pillow image.

    >>> from vit_lens.images import to_display
    >>> first, second = to_display(images, model.preprocess_spec)
    >>> vl.readers.picture_hash(first) == vl.readers.picture_hash(second)
    False
    """
    expect(picture, Image.Image, "picture", ImageError, "vit_lens.images.to_display(images, spec) makes them")
    return hashlib.sha256(f"{picture.mode}{picture.size}".encode() + picture.tobytes()).hexdigest()[:32]
