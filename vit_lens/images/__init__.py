"""From files, pictures and arrays to the pixels that a tower sees, equal to open_clip's to the bit."""

__all__ = ["Interpolation", "PreprocessSpec", "ResizeMode", "find_images", "load_image", "preprocess", "to_display"]

from vit_lens.images.finding import find_images
from vit_lens.images.loading import load_image
from vit_lens.images.preparing import preprocess, to_display
from vit_lens.images.spec import Interpolation, PreprocessSpec, ResizeMode
