"""Find the images that paths stand for."""

__all__ = ["find_images", "images_in"]

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from vit_lens.errors import ImageError
from vit_lens.files import as_path
from vit_lens.images.load import formats

# Of pictures that are not read, or with a plugin for Pillow alone.
_OTHER_SUFFIXES = frozenset(
    (".arw", ".cr2", ".dng", ".eps", ".exr", ".heic", ".heif", ".jxl", ".nef", ".orf", ".pdf", ".pfm", ".svg", ".wmf")
)


def find_images(paths: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> list[Path]:
    """Return files, and the images in folders (not below them; hidden ones are left out), in order of name.

    Raises:
        ImageError: A path does not exist, or a folder holds no image.

    >>> [path.name for path in find_images([images[1], images[0].parent])][:2]
    ['2_heart.png', '1_star.png']
    """
    found: list[Path] = []
    if isinstance(paths, (str, bytes, os.PathLike)) or not isinstance(paths, Iterable):
        paths = [paths]
    for path in (as_path(one, ImageError, "a path") for one in paths):
        if path.is_dir():
            found += images_in(path, below=False)
        elif path.exists():
            found.append(path)
        else:
            raise ImageError(f"no such file or folder: {path}")
    return found


def images_in(folder: str | Path, *, below: bool) -> list[Path]:
    """Return the images in a folder, and with ``below`` in the folders in it, in order of path.

    Hidden ones are left out, those in folders that hold the record of a sweep, which drew them, and with a warning
    those of formats that are not read.

    Args:
        folder: The folder to look in.
        below: Whether folders in the folder are looked through as well, at any depth.

    Raises:
        ImageError: The folder holds no image.

    >>> images_in(images[0].parent, below=False)[0].name
    '1_star.png'
    """
    folder = as_path(folder, ImageError, "folder")
    paths = sorted(path for path in folder.glob("**/*" if below else "*") if not _is_hidden(path.relative_to(folder)))
    records = {file.parent for file in folder.glob("*/**/record.json")} if below else set[Path]()
    files = [path for path in paths if path.is_file() and records.isdisjoint(path.parents)]
    suffixes = _suffixes()
    if left := [path.name for path in files if path.suffix.lower() in _OTHER_SUFFIXES - suffixes]:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        warnings.warn(
            f"{folder}: {', '.join(left[:3])}{more} are left out: such formats are not read; convert them to PNG",
            UserWarning,
            stacklevel=3,
        )
    found = [path for path in files if path.suffix.lower() in suffixes]
    if not found:
        raise ImageError(f"the folder {folder} holds no image ({', '.join(sorted(suffixes))})")
    return found


def _suffixes() -> set[str]:
    read = (*formats(), "MPO")  # a JPEG with previews of itself
    return {suffix for suffix, name in Image.EXTENSION.items() if name in read} - {".pfm"}  # which holds depths


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
