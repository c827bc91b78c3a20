"""Find the images that paths stand for."""

__all__ = ["SUFFIXES", "find_images", "images_in"]

import os
from collections.abc import Sequence
from pathlib import Path

from vit_lens.errors import ImageError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})


def find_images(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return files, and the images in folders (not below them; hidden ones are left out), in order of name.

    Raises:
        ImageError: A path does not exist, or a folder holds no image.

    >>> [path.name for path in find_images([images[1], images[0].parent])][:2]
    ['2_heart.png', '1_star.png']
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += images_in(path, below=False)
        elif path.exists():
            found.append(path)
        else:
            raise ImageError(f"no such file or folder: {path}")
    return found


def images_in(folder: Path, *, below: bool) -> list[Path]:
    """Return the images in a folder, and with ``below`` in the folders in it, in order of path.

    Hidden ones are left out.

    Args:
        folder: The folder to look in.
        below: Whether folders in the folder are looked through as well, at any depth.

    Raises:
        ImageError: The folder holds no image.

    >>> images_in(images[0].parent, below=False)[0].name
    '1_star.png'
    """
    paths = [path for path in folder.glob("**/*" if below else "*") if path.suffix.lower() in SUFFIXES]
    found = sorted(path for path in paths if path.is_file() and not _is_hidden(path.relative_to(folder)))
    if not found:
        raise ImageError(f"the folder {folder} holds no image ({', '.join(sorted(SUFFIXES))})")
    return found


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
