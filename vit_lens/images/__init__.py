"""From files, pictures and arrays to the pixels that a tower sees, equal to open_clip's to the bit."""

__all__ = [
    "Interpolation",
    "PreprocessSpec",
    "ResizeMode",
    "find_images",
    "images_in",
    "load_image",
    "load_with_hash",
    "margins",
    "preprocess",
    "resized_size",
    "to_display",
]

from vit_lens.images.finding import find_images, images_in
from vit_lens.images.loading import load_image, load_with_hash
from vit_lens.images.preparing import margins, preprocess, resized_size, to_display
from vit_lens.images.spec import Interpolation, PreprocessSpec, ResizeMode
