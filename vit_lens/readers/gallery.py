"""A gallery: the embeddings of the user's own images, to find the nearest to a lens embedding."""

__all__ = ["Gallery", "picture_hash"]

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from vit_lens.addresses import as_index
from vit_lens.attribution import check_model, check_tensor
from vit_lens.errors import GalleryError, OutputError, expect
from vit_lens.files import as_path, load_fields, save_fields
from vit_lens.identity import MINI_ENCODER, MINI_FILES, forget_fingerprints
from vit_lens.images import load_image
from vit_lens.models import HookedViT
from vit_lens.readers.cosines import deviations, nearest_rows
from vit_lens.readers.indexing import Entries, Entry, index_folder, index_images, picture_hash
from vit_lens.towers import other_weights, preprocessing_of

_FORMAT = "vit_lens.gallery.1"
_ADVICE = "make the gallery with Gallery.from_folder(model, folder, out=path)"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Gallery:
    """Embeddings of images, by the model that reads them.

    Two images are the same if the pictures that the tower sees, after resizing and cropping, are the same to the
    bit. The first of several same ones stands for all of them.

    Attributes:
        encoder_id: The id of the model that made the embeddings.
        fingerprint: Digits that identify the model's weights by content, rounded to bfloat16.
        preprocess: How images became pixels, as plain values.
        folder: Where the images lie; empty if they were handed over one by one.
        names: The images' paths in the folder, or names.
        hashes: The hash of each picture that the tower sees (:func:`picture_hash`).
        stamps: The size and time of each file, so that only new ones are embedded again.
        skipped: The files that could not be read, and why.
        complete: Whether every file was embedded.
        embeds: The embeddings, in float32 or wider on the CPU.
        weights: What identifies the model's weights to the last bit; empty for files of an earlier version.

    Raises:
        GalleryError: There are not as many of each, or an embedding is not finite.

    >>> gallery = vl.readers.Gallery.from_folder(model, images[0].parent)
    >>> gallery.save(tmp / "gallery.safetensors").name
    'gallery.safetensors'
    >>> index, cosine = vl.readers.Gallery.load(tmp / "gallery.safetensors").nearest(model(pixels), k=1)
    >>> [gallery.names[i] for i in index.flatten().tolist()]
    ['1_star.png', '2_heart.png']
    """

    encoder_id: str
    fingerprint: str
    preprocess: dict[str, Any]
    folder: str
    names: tuple[str, ...]
    hashes: tuple[str, ...]
    stamps: tuple[str, ...]
    embeds: Float[Tensor, "image d_embed"]
    skipped: dict[str, str] = field(default_factory=dict)
    complete: bool = True
    weights: str = ""

    def __post_init__(self) -> None:
        for name in ("names", "hashes", "stamps"):
            expect(getattr(self, name), (tuple, list), name, GalleryError, "a text for each image")
        check_tensor("embeds", self.embeds, f"{len(self.names)} d_embed", GalleryError)
        if not self.embeds.isfinite().all() or not len(self.names) == len(self.hashes) == len(self.stamps):
            raise GalleryError("a gallery holds a finite embedding, a hash and a stamp for each name; make it again")

    @classmethod
    def from_images(
        cls,
        model: HookedViT,
        images: Any,
        *,
        names: Sequence[str] | None = None,
        batch_size: int = 32,
        progress: bool = False,
    ) -> "Gallery":
        """Embed images: paths, PIL images or arrays.

        Args:
            model: The model, without hooks.
            images: One image or several.
            names: A name for each image, all different; None for paths, or ``image 0``, ``image 1``, ...
            batch_size: The number of images in one run.
            progress: Whether to show a bar.

        Raises:
            GalleryError: There are no images, or another number of names.
            ImageError: An image cannot be read.
        """
        images = list(images) if isinstance(images, (list, tuple)) else [images]
        return cls._of(model, "", index_images(model, images, names, batch_size=batch_size, progress=progress))

    @classmethod
    def from_folder(
        cls,
        model: HookedViT,
        folder: str | Path,
        *,
        out: str | Path | None = None,
        batch_size: int = 32,
        progress: bool = False,
    ) -> "Gallery":
        """Embed every image in a folder and the folders in it, in order of name.

        With ``out`` the gallery is kept there, now and then while it is made: a run that was stopped goes on, and
        a later run embeds only files that are new or changed, and forgets those that are gone (all of them are embedded
        again if the weights are kept in another dtype, or the gallery is of an earlier version). A file that cannot
        be read is left out, with a warning, and named in :attr:`skipped`.

        Args:
            model: The model, without hooks.
            folder: The folder of the images.
            out: The file that the gallery is kept in; None keeps it in memory alone.
            batch_size: The number of images in one run.
            progress: Whether to show a bar.

        Raises:
            GalleryError: The folder holds no image that can be read, or ``out`` holds another model's or folder's.
            OutputError: ``out`` cannot be written.
        """
        root = as_path(folder, GalleryError, "folder").resolve()
        path = None if out is None else as_path(out, OutputError, "out")
        forget_fingerprints(model)
        known = cls._resume(model, root, path)

        def keep(entries: Entries) -> None:
            if path is not None:
                cls._of(model, str(root), entries, complete=False).save(path)

        found = index_folder(model, root, known, keep, batch_size=batch_size, progress=progress)
        if found.skipped:
            first = next(iter(found.skipped.items()))
            warnings.warn(
                f"{len(found.skipped)} files of {root} are not in the gallery, such as {first[0]} ({first[1]})",
                UserWarning,
                stacklevel=2,
            )
        gallery = cls._of(model, str(root), found)
        if path is not None:
            gallery.save(path)
        return gallery

    @classmethod
    def load(cls, path: str | Path) -> "Gallery":
        """Read a saved gallery.

        Raises:
            GalleryError: The file is missing, truncated, not one of these, or of a gallery that is not finished.
        """
        gallery = cls._load(as_path(path, GalleryError))
        if not gallery.complete:
            raise GalleryError(
                f"the gallery {path} is not finished: it holds {len(gallery)} images of {gallery.folder} so far. Run "
                "the command that made it again; it goes on where it stopped"
            )
        return gallery

    @classmethod
    def shipped(cls, model: HookedViT) -> "Gallery | None":
        """Return the gallery that ships with the package for a model, without pictures; None where there is none.

        It is what lenses with ``:project`` project on where no gallery is given.

        >>> vl.readers.Gallery.shipped(model)
        Gallery(512 images for 'vit_lens/mini')
        """
        check_model(model, GalleryError)
        return cls.load(MINI_FILES / "gallery.safetensors") if model.encoder_id == MINI_ENCODER else None

    def save(self, path: str | Path) -> Path:
        """Write the gallery as safetensors, atomically.

        Raises:
            OutputError: The file cannot be written.
        """
        return save_fields(self, as_path(path, OutputError), _FORMAT)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        where = f" of {self.folder}" if self.folder else ""
        return f"Gallery({len(self)} images{where} for {self.encoder_id!r})"

    def check(self, model: HookedViT) -> "Gallery":
        """Return the gallery if its embeddings are the model's own.

        Raises:
            GalleryError: The embeddings were made with other weights or another preprocessing.
        """
        check_model(model, GalleryError)
        if told := other_weights(self, model):
            raise GalleryError(f"this gallery was {told}. Make its own: Gallery.from_folder(model, folder)")
        if self.preprocess != preprocessing_of(model):
            raise GalleryError(
                f"this gallery was made with the preprocessing {self.preprocess}; the model has "
                f"{preprocessing_of(model)}"
            )
        return self

    @property
    def distinct(self) -> tuple[int, ...]:
        """The index of every different picture: of several same ones, that of the first."""
        first: dict[str, int] = {}
        for index, digest in enumerate(self.hashes):
            first.setdefault(digest, index)
        return tuple(first.values())

    @property
    def duplicates(self) -> list[tuple[str, ...]]:
        """The names of pictures that are the same, in groups."""
        groups: dict[str, list[str]] = {}
        for name, digest in zip(self.names, self.hashes, strict=True):
            groups.setdefault(digest, []).append(name)
        return [tuple(group) for group in groups.values() if len(group) > 1]

    @property
    def mean(self) -> Float[Tensor, " d_embed"]:
        """The mean embedding; every picture counts once."""
        return self.embeds[list(self.distinct)].mean(0)

    def path(self, index: int) -> Path:
        """Return where an image lies.

        Raises:
            GalleryError: There is no such image (nor is -1, which stands for no neighbour), it was handed over from
                memory, its file is gone, or its name leads out of the folder.
        """
        if as_index(index) not in range(len(self)):
            raise GalleryError(f"image {index!r}: the gallery has {len(self)}, counted from 0; -1 is no neighbour")
        name = Path(self.names[index])
        if self.folder and (name.is_absolute() or ".." in name.parts):
            raise GalleryError(f"{self.names[index]!r} does not lie in {self.folder}: the gallery was changed by hand")
        path = Path(self.folder) / name
        if not path.is_file():
            raise GalleryError(f"{self.names[index]!r} is no file at {path}: this gallery cannot show its picture")
        return path

    def picture(self, index: int) -> Image.Image:
        """Return an image of the gallery, in RGB.

        Raises:
            GalleryError: There is no such image, it was handed over from memory, or its file is gone.
            ImageError: The file is damaged.
        """
        return load_image(self.path(index)).convert("RGB")

    def nearest(
        self,
        queries: Float[Tensor, "query d_embed"],
        k: int,
        *,
        origins: Float[Tensor, "#query d_embed"] | None = None,
        leave_out: Sequence[str | None] | None = None,
    ) -> tuple[Int[Tensor, "query k"], Float[Tensor, "query k"]]:
        """Return the ``k`` nearest pictures to each embedding, best first: their indices and cosines.

        A query without a direction (zero, or equal to its origin but for rounding) gets -1 and nan, and so does a place
        where only pictures without one are left.

        Args:
            queries: Embeddings of any length, such as those of a lens.
            k: The number of pictures for each query, at least 1.
            origins: What to measure queries from, to compare deviations: the query's from this, the gallery's from its
                :attr:`mean`. None compares the embeddings themselves.
            leave_out: For each query the hash of a picture that is not an answer (:func:`picture_hash`), or None;
                None leaves nothing out.

        Raises:
            GalleryError: There are not ``k`` other pictures, a query or its origin is not finite or of another width,
                or ``leave_out`` does not say one for each query.
        """
        d_embed = self.embeds.shape[1]
        check_tensor("queries", queries, f"query {d_embed}", GalleryError)
        if isinstance(leave_out, str) or not isinstance(leave_out, Iterable | None):
            raise GalleryError(f"leave_out={leave_out!r}; expected a hash or None for each query, or None")
        leave_out = [None] * len(queries) if leave_out is None else list(leave_out)
        for name, rows in (("queries", queries), ("origins", queries if origins is None else origins)):
            check_tensor(name, rows, f"query {d_embed}", GalleryError)
            if not rows.isfinite().all():
                raise GalleryError(f"an embedding of {name} is not finite and has no nearest picture")
            if len(rows) not in (1, len(queries)) or len(leave_out) != len(queries):
                raise GalleryError(f"origins= and leave_out= hold one for each of the {len(queries)} queries")
        distinct = list(self.distinct)
        if origins is not None and len(distinct) < 2:
            raise GalleryError("the deviation from the gallery's mean needs at least two different pictures")
        wide = torch.promote_types(queries.dtype, self.embeds.dtype)
        queries, targets = queries.detach().to(wide), self.embeds[distinct].to(queries.device, wide)
        if origins is not None:
            queries, targets = deviations(queries, origins), deviations(targets, self.mean[None])
        place = {self.hashes[index]: i for i, index in enumerate(distinct)}
        banned = [None if digest is None else place.get(digest) for digest in leave_out]
        room = len(distinct) - any(index is not None for index in banned)
        if as_index(k) not in range(1, room + 1):
            raise GalleryError(f"k={k!r}: the gallery has {room} different pictures that can be an answer")
        index, cosine = nearest_rows(queries, targets, k, banned)
        found = torch.tensor(distinct, device=index.device)[index]
        return found.masked_fill(cosine.isnan(), -1), cosine

    @classmethod
    def _of(cls, model: HookedViT, folder: str, entries: Entries, *, complete: bool = True) -> "Gallery":
        return cls(
            encoder_id=model.encoder_id, fingerprint=model.fingerprint, preprocess=preprocessing_of(model),
            folder=folder, names=tuple(entries.rows), hashes=tuple(row.digest for row in entries.rows.values()),
            stamps=tuple(row.stamp for row in entries.rows.values()),
            embeds=torch.stack([row.embed for row in entries.rows.values()]),
            skipped=dict(entries.skipped), complete=complete, weights=model.exact_fingerprint(),
        )  # fmt: skip

    @classmethod
    def _load(cls, path: Path) -> "Gallery":
        return cls(**load_fields(cls, path, _FORMAT, what="a gallery", error=GalleryError, advice=_ADVICE))

    @classmethod
    def _resume(cls, model: HookedViT, root: Path, path: Path | None) -> Entries:
        if path is None or not path.exists():
            return Entries()
        kept = cls._load(path).check(model)
        if kept.folder != str(root):
            raise GalleryError(f"{path} is the gallery of {kept.folder}, not of {root}; choose another file")
        if kept.weights != model.exact_fingerprint():  # of an earlier version, or of a cast: embedded again
            return Entries()
        parts = zip(kept.names, kept.hashes, kept.stamps, kept.embeds, strict=True)
        return Entries({name: Entry(digest, stamp, embed) for name, digest, stamp, embed in parts})
