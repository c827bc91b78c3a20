"""Embed many images in batches, so that a stopped run can go on."""

__all__ = ["Entries", "Entry", "index_folder", "index_images", "picture_hash"]

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from vit_lens.attribution import check_model, in_full
from vit_lens.errors import GalleryError, ImageError, PreprocessError
from vit_lens.images import images_in, load_image, picture_hash, to_display
from vit_lens.models import HookedViT, batch_starts

_CHECKPOINT_SECONDS = 60.0
_CHECKPOINT_SHARE = 20  # keeping takes at most a twentieth of the time, however large the gallery


@dataclass(frozen=True)
class Entry:
    """One image: the hash of what the tower sees, the file's stamp, and the embedding."""

    digest: str
    stamp: str
    embed: Float[Tensor, " d_embed"]


@dataclass
class Entries:
    """Images by name, and those that could not be read."""

    rows: dict[str, Entry] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def index_images(
    model: HookedViT, images: list[Any], names: Sequence[str] | None, *, batch_size: int, progress: bool
) -> Entries:
    """Embed images from anywhere.

    Raises:
        GalleryError: There are none, or another number of names, two names are the same, or an embedding is not finite.
        ImageError: An image cannot be read.
        VitLensError: A batch would hold no image.
    """
    check_model(model, GalleryError)
    model.refuse_hooks("a gallery")
    if not isinstance(names, (list, tuple, type(None))) or not all(isinstance(name, str) for name in names or ()):
        raise GalleryError(f"names={names!r}; expected a list with a text for each image")
    if names is None:
        names = [str(image) if isinstance(image, (str, Path)) else f"image {i}" for i, image in enumerate(images)]
    if not images or len(set(names)) != len(images) or len(names) != len(images):
        raise GalleryError(
            f"{len(images)} images and {len(set(names))} different names; give at least one, a name each"
        )
    found = Entries()
    for start in tqdm(batch_starts(len(images), batch_size), desc="gallery", disable=not progress):
        batch = images[start : start + batch_size]
        _embed(model, [load_image(image) for image in batch], list(names[start : start + batch_size]), found, {})
    return found


def index_folder(
    model: HookedViT, root: Path, known: Entries, keep: Callable[[Entries], None], *, batch_size: int, progress: bool
) -> Entries:
    """Embed the images of a folder that are not known yet; ``keep`` is called now and then.

    Raises:
        GalleryError: There is no such folder, no image in it can be read, or an embedding is not finite.
        VitLensError: A batch would hold no image.
    """
    check_model(model, GalleryError)
    model.refuse_hooks("a gallery")
    files = {str(path.relative_to(root)): path for path in _image_files(root)}
    stamps = {name: _stamp(path) for name, path in files.items()}
    rows = {name: row for name, row in known.rows.items() if stamps.get(name) == row.stamp}
    found = Entries(rows)
    due = time.monotonic() + _CHECKPOINT_SECONDS
    new = [name for name in files if name not in rows]
    for start in tqdm(batch_starts(len(new), batch_size), desc="gallery", disable=not progress):
        names, pictures = [], []
        for name in new[start : start + batch_size]:
            try:
                picture = load_image(files[name])
                to_display(picture, model.preprocess_spec)  # a picture may be too narrow to be resized
            except (ImageError, PreprocessError) as error:
                if model.preprocess_spec is None:
                    raise
                found.skipped[name] = str(error)
            else:
                names.append(name)
                pictures.append(picture)
        if names:
            _embed(model, pictures, names, found, stamps)
        if found.rows and (started := time.monotonic()) >= due:
            keep(found)
            ended = time.monotonic()
            due = ended + max(_CHECKPOINT_SECONDS, _CHECKPOINT_SHARE * (ended - started))
    if not found.rows:
        raise GalleryError(
            f"none of the {len(files)} images of {root} can be read: {next(iter(found.skipped.values()))}"
        )
    return Entries({name: found.rows[name] for name in files if name in found.rows}, found.skipped)


def _image_files(root: Path) -> list[Path]:
    if not root.is_dir():
        raise GalleryError(f"{root} is not a folder; a gallery is made from a folder of images")
    try:
        return images_in(root, below=True)
    except ImageError as error:
        raise GalleryError(str(error)) from None


def _embed(
    model: HookedViT, images: list[Image.Image], names: list[str], found: Entries, stamps: dict[str, str]
) -> None:
    with torch.no_grad(), in_full(model):
        embeds = model(model.preprocess(images))
    embeds = embeds.to(device="cpu", dtype=torch.promote_types(embeds.dtype, torch.float32))
    for name, embed in zip(names, embeds, strict=True):
        if not embed.isfinite().all():
            raise GalleryError(f"the embedding of {name} is nan or infinite: look at the weights, or use a wider dtype")
    seen = to_display(images, model.preprocess_spec)
    for name, picture, embed in zip(names, seen, embeds, strict=True):
        found.rows[name] = Entry(picture_hash(picture), stamps.get(name, ""), embed.clone())


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}"
