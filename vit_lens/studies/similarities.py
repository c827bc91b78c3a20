"""Lens embeddings and their similarity to the input, for many images, sites and lenses at once."""

__all__ = [
    "caches", "centred_similarity", "held_caches", "left_out_centred", "read_conditions", "read_lens", "similarity",
]  # fmt: skip

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.conditions import Condition
from vit_lens.lenses import Lens, run_for
from vit_lens.metrics import cosine
from vit_lens.models import HookedViT
from vit_lens.towers import ViTActivationCache

_BATCH = 64
_HELD_NUMBERS = 2**28  # a GiB of float32


@torch.no_grad()
def caches(
    model: HookedViT,
    pixels: Float[Tensor, "image channel height width"],
    batch_size: int | None = None,
    lenses: Collection[Lens] = (),
) -> Iterator[ViTActivationCache]:
    """Give the caches of the images, a batch at a time: of the read-out rows, or of what lenses need.

    Args:
        model: The model.
        pixels: Images.
        batch_size: How many run together; None for 64, or as many as a GiB holds of all rows.
        lenses: That read them.
    """
    for some in pixels.split(batch_size or _batch(_numbers(model, pixels, lenses))):
        yield run_for(model, some, lenses)[1]


def held_caches(
    model: HookedViT, pixels: Float[Tensor, "image channel height width"], lenses: Collection[Lens]
) -> Iterable[ViTActivationCache]:
    """Return the caches of images that are read many times: held where they are small, else run anew each time.

    At all rows a cache is as many times larger as there are tokens: of ViT-L/14 a tenth of a GiB for each image.

    Args:
        model: The model.
        pixels: Images.
        lenses: That read them.
    """
    numbers = _numbers(model, pixels, lenses)
    again = _Again(lambda: caches(model, pixels, _batch(numbers), lenses))
    return list(again) if numbers * len(pixels) <= _HELD_NUMBERS else again


@dataclass(frozen=True)
class _Again:
    make: Callable[[], Iterator[ViTActivationCache]]

    def __iter__(self) -> Iterator[ViTActivationCache]:
        return self.make()


@torch.no_grad()
def _numbers(model: HookedViT, pixels: Float[Tensor, "image channel height width"], lenses: Collection[Lens]) -> int:
    """Return how many numbers the cache of one image holds; 0 at the read-out rows alone, which count as none."""
    if all(lens.rows == "readout" for lens in lenses) or not len(pixels):
        return 0
    return sum(value.numel() for value in run_for(model, pixels[:1], lenses)[1].values())


def _batch(numbers: int) -> int:
    return max(1, min(_BATCH, _HELD_NUMBERS // max(numbers, 1)))


@torch.no_grad()
def read_conditions(
    model: HookedViT,
    pixels: Float[Tensor, "image channel height width"],
    lens: Lens,
    read: Callable[[ViTActivationCache], Condition],
) -> Condition:
    """Return what is read of every cache, with rows [image site].

    Args:
        model: The model.
        pixels: Images.
        lens: That reads.
        read: Such as ``lambda cache: lens.read(cache, sites)``.
    """
    return Condition.cat([read(cache).kept() for cache in caches(model, pixels, lenses=[lens])])


@torch.no_grad()
def read_lens(
    model: HookedViT,
    pixels: Float[Tensor, "image channel height width"],
    lens: Lens,
    sites: list[Site],
    *,
    how: Callable[[ViTActivationCache], Tensor] | None = None,
) -> Float[Tensor, "image site d_embed"]:
    """Return the lens embedding of every site for every image.

    Args:
        model: The model.
        pixels: Images.
        lens: The lens.
        sites: On which it is defined.
        how: What to take of each cache instead, such as ``lambda cache: lens.placebo(cache, sites, generator=g)``.
    """
    take = how or (lambda cache: lens.embed(cache, sites))
    return torch.cat([take(cache).float().cpu() for cache in caches(model, pixels, lenses=[lens])])


def similarity(
    embeds: Float[Tensor, "image site d_embed"], clean: Float[Tensor, "image d_embed"]
) -> Float[Tensor, "image site"]:
    """Return the raw similarity to the input: the cosine with the input's embedding."""
    return cosine(embeds, clean[:, None].to(embeds))


def centred_similarity(
    embeds: Float[Tensor, "image site d_embed"],
    clean: Float[Tensor, "image d_embed"],
    site_means: Float[Tensor, "#image site d_embed"],
    clean_mean: Float[Tensor, "*#image d_embed"],
) -> Float[Tensor, "image site"]:
    """Return the centred similarity S: the cosine after a mean over other images is taken from both.

    What all images share, and what a site says of every image, does not count. 0 where a site says nothing of its
    own (its deviation is zero).

    Args:
        embeds: Lens embeddings.
        clean: The inputs' embeddings.
        site_means: Of lens embeddings, over other images.
        clean_mean: Of inputs' embeddings, over other images.
    """
    found = cosine(embeds - site_means.to(embeds), (clean - clean_mean.to(clean))[:, None].to(embeds))
    return found.nan_to_num(0.0)


def left_out_centred(
    embeds: Float[Tensor, "image site d_embed"], clean: Float[Tensor, "image d_embed"]
) -> Float[Tensor, "image site"]:
    """Return S with means over the other images of the same set: for pictures, of which there is no other set."""
    n = len(embeds)
    means = (embeds.sum(0, keepdim=True) - embeds) / (n - 1)
    clean_means = (clean.sum(0, keepdim=True) - clean) / (n - 1)
    return centred_similarity(embeds, clean, means, clean_means)
