"""From files, pictures and arrays to the pixels that a tower sees, equal to open_clip's to the bit."""

__all__ = [
    "Interpolation", "PreprocessSpec", "ResizeMode", "find_images", "images_in", "load_image", "load_with_hash",
    "margins", "picture_hash", "preprocess", "resized_size", "source_name", "to_display",
]  # fmt: skip

from vit_lens.images.finding import find_images, images_in
from vit_lens.images.hashing import picture_hash
from vit_lens.images.load import load_image, load_with_hash, source_name
from vit_lens.images.preparing import margins, preprocess, resized_size, to_display
from vit_lens.images.spec import Interpolation, PreprocessSpec, ResizeMode
