"""Other images: what controls that are not isotropic are made of, and which of them stands in for an image."""

__all__ = ["ControlBank", "Others"]

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import as_index
from vit_lens.attribution import Brief, check_cache, check_model
from vit_lens.errors import LensError, ReferenceMismatchError, expect
from vit_lens.identity import forget_fingerprints
from vit_lens.images import picture_hash, to_display
from vit_lens.models import HookedViT, pixel_batches, several
from vit_lens.towers import Tower, ViTActivationCache, other_preprocessing, other_weights, preprocessing_of

_MOST = 64  # images: more are another draw of the same kind
_NUMBERS = 2**28  # a GiB of float32
_REMEMBERED = 8


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ControlBank(Brief):
    """Runs of other images through one model, which controls are made of.

    Attributes:
        encoder_id: The id of the model.
        fingerprint: Digits that identify the model's weights by content.
        weights: What identifies them to the last bit.
        preprocess: How images became pixels.
        names: What the images are called.
        hashes: Of the pictures that the tower saw (:func:`vit_lens.images.picture_hash`), by which an image is never
            held against itself; empty texts for preprocessed pixels, of which that is not known.
        embeds: The images' embeddings.
        cache: Of the run, at the positions that lenses read.

    >>> bank = vl.controls.ControlBank.from_images(model, images)
    >>> bank
    ControlBank('vit_lens/mini', 2 images)
    >>> [bank.names[place] for place in bank.but(bank.hashes[0])]
    ['2_heart.png']
    """

    encoder_id: str
    fingerprint: str
    weights: str
    preprocess: dict[str, Any]
    names: tuple[str, ...]
    hashes: tuple[str, ...]
    embeds: Float[Tensor, "image d_embed"]
    cache: ViTActivationCache

    @classmethod
    def from_images(
        cls, model: HookedViT, images: Any, *, names: Sequence[str] | None = None, rows: str = "readout",
        most: int = _MOST, seed: int = 0, batch_size: int = 16, progress: bool = False,
    ) -> "ControlBank":  # fmt: skip
        """Run the model over images and keep what lenses read.

        Args:
            model: The model, without hooks.
            images: Paths, PIL images or arrays, best none that are looked at; or preprocessed pixels. Of more than
                ``most`` as many are drawn.
            names: What each is called; None for the names of files, or numbers.
            rows: ``readout``, or ``all`` for lenses that say ``rows = "all"``.
            most: How many images are kept; fewer, where a GiB of numbers holds fewer.
            seed: Of the draw.
            batch_size: The number of images in one run.
            progress: Whether to show a bar.

        Raises:
            ImageError: An image cannot be read.
            LensError: There are no images, another number of names, or ``rows`` or ``most`` are out of range.
        """
        check_model(model)
        images = several(images)
        names = [_named(image, number) for number, image in enumerate(images)] if names is None else list(names)
        if not len(images) or len(names) != len(images):
            raise LensError(
                f"{len(images)} images with {len(names)} names; a bank holds at least one image, each named"
            )
        if rows not in ("readout", "all") or (as_index(most) or 0) < 1:
            raise LensError(f"rows={rows!r}, most={most!r}; expected 'readout' or 'all', and 1 or more")
        model.refuse_hooks("a bank of controls")
        forget_fingerprints(model)
        chosen = _drawn(len(images), most, seed)
        preprocess = preprocessing_of(model, images)
        caches: list[ViTActivationCache] = []
        embeds: list[Tensor] = []
        hashes: list[str] = []
        at_once = min(batch_size, most)
        for start in range(0, len(chosen), at_once):
            places = chosen[start : start + at_once]
            some = images[places] if isinstance(images, Tensor) else [images[place] for place in places]
            if isinstance(some, Tensor):
                hashes += [""] * len(some)
            else:
                some = to_display(some, model.spec())
                hashes += map(picture_hash, some)
            for _, pixels in pixel_batches(model, some, at_once, label="bank of controls", progress=progress):
                with torch.no_grad():
                    if rows == "readout":
                        found, cache = model.run_with_cache(pixels, rows="readout")
                    else:
                        found, cache = model.run_with_cache(pixels, names_filter=model.is_readout_part)
                embeds.append(found)
                caches.append(cache)
            per_image = sum(value.numel() for value in caches[0].values()) // len(embeds[0])
            if (len(hashes) + at_once) * per_image > _NUMBERS:
                break
        return cls(
            encoder_id=model.encoder_id, fingerprint=model.fingerprint, weights=model.exact_fingerprint(),
            preprocess=preprocess, names=tuple(names[place] for place in chosen[: len(hashes)]), hashes=tuple(hashes),
            embeds=torch.cat(embeds), cache=_joined(caches),
        )  # fmt: skip

    @classmethod
    def of_cache(cls, cache: ViTActivationCache, *, names: Sequence[str] | None = None) -> "ControlBank":
        """Take the images of a cache as each other's: the bank of what is at hand. Its places stand for hashes.

        Args:
            cache: The cache of the images.
            names: What each is called; None for numbers.

        Raises:
            LensError: The cache is none.

        >>> bank = vl.controls.ControlBank.of_cache(cache)
        >>> bank.beside_itself().names()
        ['image 1', 'image 0']
        """
        model = check_cache(cache).model
        last = model.streams[0].last(cache)
        with torch.no_grad():
            embeds = model.embed_rows(last)
        called = [f"image {place}" for place in range(len(last))] if names is None else list(names)
        return cls(
            encoder_id=model.encoder_id, fingerprint=model.fingerprint, weights=model.exact_fingerprint(),
            preprocess={}, names=tuple(called), hashes=tuple(f"place {place}" for place in range(len(last))),
            embeds=embeds, cache=cache,
        )  # fmt: skip

    def beside_itself(self) -> "Others":
        """Return what stands beside each image of the bank itself: first the next one, and so on."""
        n = len(self)
        orders = tuple(tuple((place + step) % n for step in range(1, n)) for place in range(n))
        return Others(bank=self, orders=orders)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"ControlBank({self.encoder_id!r}, {len(self)} image{'s' * (len(self) != 1)})"

    @property
    def content(self) -> str:
        """Sixteen digits that identify the images and what the model made of them."""
        said = "\n".join([self.weights, self.cache.rows, *self.hashes])
        data = self.embeds.detach().cpu().double().numpy().tobytes()
        return hashlib.sha256(said.encode() + data).hexdigest()[:16]

    def check(self, model: Tower) -> "ControlBank":
        """Return the bank if it is the model's own.

        Raises:
            ReferenceMismatchError: It was made with other weights, or another preprocessing.
        """
        check_model(model)
        told = other_weights(self, model) or other_preprocessing(self.preprocess, model)
        if told:
            raise ReferenceMismatchError(
                f"this bank of controls ({len(self)} images) was {told}. Make the model's own: "
                "ControlBank.from_images(model, images)"
            )
        return self

    def but(self, picture: str) -> list[int]:
        """Return the places of the images that are not a picture, each picture once.

        Args:
            picture: Its hash; empty for one that is not known, of which all are taken to be others.
        """
        first = {digest or str(place): place for place, digest in reversed(list(enumerate(self.hashes)))}
        return sorted(place for digest, place in first.items() if not picture or digest != picture)

    def others(self, pictures: Iterable[str], *, seed: int = 0, turn: int = 0) -> "Others":
        """Return the images that stand beside each image of a cache.

        Which one stands in for an image follows from the image, the seed and the turn alone: turn after turn all of
        them come, each once, in an order drawn by seed.

        Args:
            pictures: The hash of each image in the cache, in order; an empty text for one that is not known.
            seed: Of the draw.
            turn: The number of the draw.

        >>> bank = vl.controls.ControlBank.from_images(model, images)
        >>> bank.others(bank.hashes).names()
        ['2_heart.png', '1_star.png']
        """
        expect(pictures, Iterable, "pictures", LensError, "a hash for each image of the cache")
        orders = []
        for place, picture in enumerate(pictures):
            known = self.but(picture)
            digits = hashlib.sha256(f"{picture or place} {seed}".encode()).hexdigest()[:12]
            order = torch.randperm(len(known), generator=torch.Generator().manual_seed(int(digits, 16)))
            orders.append(tuple(known[i] for i in order.tolist()))
        return Others(bank=self, orders=tuple(orders), turn=turn)


@dataclass(frozen=True, eq=False, kw_only=True)
class Others:
    """The other images beside each image of a cache, in the order in which they stand in for it.

    Attributes:
        bank: Of which they are.
        orders: Their places in the bank, for each image of the cache.
        turn: Which of them stands in: the first, the second, ..., and from the first again.

    >>> others = vl.controls.ControlBank.from_images(model, images).others(["not known"])
    >>> others.least(), others.names() != others.at(1).names()
    (2, True)
    """

    bank: ControlBank
    orders: tuple[tuple[int, ...], ...]
    turn: int = 0
    _held: dict[Any, dict[str, Any]] = field(default_factory=dict, repr=False)

    def at(self, turn: int) -> "Others":
        """Return the same at another turn."""
        return replace(self, turn=turn)

    def fresh(self) -> "Others":
        """Return the same without memory: for another lens, which may read other outputs of the same sites."""
        return replace(self, _held={})

    def least(self) -> int:
        """Return how many other images there are for the image that has fewest."""
        return min(map(len, self.orders), default=0)

    def names(self) -> list[str]:
        """Return what is called the image that stands in for each image of the cache."""
        return [self.bank.names[order[self.turn % len(order)]] if order else "" for order in self.orders]

    def memory(self, key: Any) -> dict[str, Any]:
        """Return what was made for an image, some sites and an origin before; the last few are kept."""
        if key not in self._held:
            while len(self._held) >= _REMEMBERED:
                self._held.pop(next(iter(self._held)))
            self._held[key] = {}
        return self._held[key]


def _drawn(n: int, most: int, seed: int) -> list[int]:
    if n <= most:
        return list(range(n))
    return sorted(torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:most].tolist())


def _named(image: Any, number: int) -> str:
    name = getattr(image, "name", image)
    text = str(name) if isinstance(name, str) or hasattr(image, "__fspath__") else f"image {number}"
    return text.replace("\\", "/").rpartition("/")[2] or text


def _joined(caches: list[ViTActivationCache]) -> ViTActivationCache:
    first = check_cache(caches[0])
    held = {name: torch.cat([cache[name] for cache in caches]) for name in first}
    return ViTActivationCache(held, first.model, rows=first.rows, read_out=first.read_out)
