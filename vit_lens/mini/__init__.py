"""The embedded pair: a small CLIP with a small Kandinsky-format decoder, trained on a procedural world."""

__all__ = ["sample_images"]  # pyright: ignore[reportUnsupportedDunderAll]

from typing import Any


def __getattr__(name: str) -> Any:  # loaded on first use, so that the command line stays fast
    if name != "sample_images":
        raise AttributeError(f"module 'vit_lens.mini' has no attribute {name!r}")
    from vit_lens.mini.shipped import sample_images

    return sample_images
