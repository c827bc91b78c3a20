"""Find the images that paths stand for."""

__all__ = ["SUFFIXES", "find_images"]

import os
from collections.abc import Sequence
from pathlib import Path

from vit_lens.errors import ImageError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})


def find_images(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return files, and the images in folders (not below them), in order of name.

    Raises:
        ImageError: A path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise ImageError(f"the folder {path} holds no image ({', '.join(sorted(SUFFIXES))})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise ImageError(f"no such file or folder: {path}")
    return found
