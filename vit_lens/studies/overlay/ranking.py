"""How much each head shows, carries or does of an overlay: the scores by which heads are taken away in turn."""

__all__ = ["Scenes", "ablated_directly", "compose", "direction", "from_embeddings", "from_pictures", "norms"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.errors import StudyError
from vit_lens.lenses import Lens, site_outputs
from vit_lens.metrics import cosine
from vit_lens.models import HookedViT
from vit_lens.reference import ReferenceMeans
from vit_lens.studies.overlay.pasting import Overlay, as_seen, mean_colour, paste, pixels_of_seen
from vit_lens.studies.similarities import caches, read_lens
from vit_lens.studies.study_setup import StudySetup
from vit_lens.towers import ViTActivationCache, by_stream

_Read = Callable[[ViTActivationCache], Tensor]  # -> [image site *features]


@dataclass(frozen=True, eq=False)
class Scenes:
    """Images with and without overlays, as the model sees them.

    Attributes:
        base: The images.
        both: The images with each overlay.
        alone: Each overlay on the blank.
        blank: The mean colour of the anchor images.
    """

    base: UInt8[np.ndarray, "base height width 3"]
    both: UInt8[np.ndarray, "overlay base height width 3"]
    alone: UInt8[np.ndarray, "overlay height width 3"]
    blank: UInt8[np.ndarray, "1 height width 3"]


def compose(setup: StudySetup, images: Sequence[Any], overlays: Sequence[Overlay]) -> Scenes:
    """Paste every overlay on every image, and on the mean colour of the anchor images.

    Raises:
        StudyError: An overlay is larger than the images, or does not show on one.
    """
    base = as_seen(setup.model, images)
    blank = np.broadcast_to(mean_colour(setup.model, setup.anchor_pixels), base[:1].shape)
    both = np.stack([np.stack([paste(image, overlay) for image in base]) for overlay in overlays])
    for overlay, some in zip(overlays, both, strict=True):
        if (same := np.flatnonzero((some == base).all((1, 2, 3)))).size:
            raise StudyError(f"overlay {overlay.name!r} changes no pixel of image {same[0]}; give a less faint one")
    return Scenes(base, both, np.stack([paste(blank[0], overlay) for overlay in overlays]), blank)


@torch.no_grad()
def direction(model: HookedViT, scenes: Scenes) -> Float[Tensor, "overlay d_embed"]:
    """Return what each overlay by itself adds to the embedding of the blank."""
    return model(model.preprocess(list(scenes.alone))) - model(model.preprocess(list(scenes.blank)))


def from_embeddings(
    model: HookedViT, scenes: Scenes, lens: Lens, sites: list[Site], *, how: _Read | None = None
) -> Float[np.ndarray, "overlay site"]:
    """Return how much of each overlay a lens shows at each site, before decoding.

    That is the cosine of what changes in the lens embedding when the overlay comes on the image with what the overlay
    adds to a blank; the mean over images, 0 where nothing changes.

    Args:
        model: The model.
        scenes: Images.
        lens: The lens.
        sites: On which it is defined.
        how: As for :func:`read_lens`, for controls.
    """
    base, both = _with_and_without(model, scenes, lambda pixels: read_lens(model, pixels, lens, sites, how=how))
    return _shown(both - base, direction(model, scenes))


def from_pictures(
    setup: StudySetup,
    scenes: Scenes,
    lens: Lens,
    sites: list[Site],
    *,
    label: str,
    how: Callable[[Lens], _Read] | None = None,
) -> dict[str, Float[np.ndarray, "overlay site"]]:
    """Return the same as read off decoded pictures alone, by the ``own`` encoder and by the ``judge``, if there is one.

    Image ``i`` is drawn with noise seed ``i`` modulo their number, its pictures with and without overlays alike. Of a
    lens that starts from several anchors the mean over them.

    Args:
        setup: The setup.
        scenes: Images.
        lens: The lens.
        sites: On which it is defined.
        label: Of bars.
        how: What reads a cache in the lens's place, for controls.

    Raises:
        StudyError: The setup has no decoder.
    """
    found = [
        _from_pictures(setup, scenes, one, sites, label=label, how=None if how is None else how(one))
        for one in lens.each()
    ]
    return {reader: np.mean([one[reader] for one in found], axis=0) for reader in found[0]}


def _from_pictures(
    setup: StudySetup, scenes: Scenes, lens: Lens, sites: list[Site], *, label: str, how: _Read | None
) -> dict[str, Float[np.ndarray, "overlay site"]]:
    model, pictures = setup.model, setup.drawing("overlay")
    base, both = _with_and_without(model, scenes, lambda pixels: read_lens(model, pixels, lens, sites, how=how))
    embeds = torch.cat([base[None], both])
    readers = {"own": model} if pictures.judge is None else {"own": model, "judge": pictures.judge.model}
    noise = setup.noise_of(range(embeds.shape[1]), embeds.shape[2]) * len(embeds)
    seen = pictures.see_each(embeds.flatten(0, 2), noise, label=label)
    read = {name: seen.by(name).unflatten(0, embeds.shape[:3]) for name in readers}
    return {name: _shown(read[name][1:] - read[name][:1], direction(readers[name], scenes)) for name in readers}


def norms(setup: StudySetup, scenes: Scenes, sites: list[Site]) -> dict[str, Float[np.ndarray, "overlay site"]]:
    """Return scores that need no lens: norms of what a head writes at the read-out rows, means over images.

    Of the whole (``norm of h``), of its deviation from the mean over anchor images (``norm of h minus its mean``), and
    of what changes when the overlay comes on the image (``norm of h's change``); all after mean removal over d_model.
    """
    found: dict[str, list[np.ndarray]] = {}
    for _, group in by_stream(setup.model.streams, sites):
        means = torch.stack([setup.anchor.output(setup.model, site) for site in group])
        base, both = _with_and_without(setup.model, scenes, lambda pixels, group=group: _outputs(setup, pixels, group))
        vectors = {"norm of h": both, "norm of h minus its mean": both - means, "norm of h's change": both - base}
        for name, vector in vectors.items():
            norm = (vector - vector.mean(-1, keepdim=True)).flatten(-2).norm(dim=-1)
            found.setdefault(name, []).append(norm.mean(1).double().cpu().numpy())
    return {name: np.concatenate(parts, axis=-1) for name, parts in found.items()}


@torch.no_grad()
def ablated_directly(
    cache: ViTActivationCache, sites: list[Site], reference: ReferenceMeans
) -> Float[Tensor, "image site d_embed"]:
    """Return the embeddings when one site's output goes to its mean and nothing else changes, in closed form.

    Args:
        cache: Of the images.
        sites: Heads, attention blocks or MLPs.
        reference: Means at the read-out rows.
    """
    found = []
    for stream, group in by_stream(cache.model.streams, sites):
        means = torch.stack([reference.output(cache.model, site) for site in group])
        found.append(stream.read(stream.last(cache)[:, None] - site_outputs(cache, group) + means))
    return torch.cat(found, dim=1)


def _shown(
    change: Float[Tensor, "overlay base site d_embed"], toward: Float[Tensor, "overlay d_embed"]
) -> Float[np.ndarray, "overlay site"]:
    found = cosine(change, toward[:, None, None].to(change))
    return found.nan_to_num(0.0).mean(1).cpu().numpy()


def _with_and_without(
    model: HookedViT, scenes: Scenes, read: Callable[[Tensor], Tensor]
) -> tuple[Float[Tensor, "base site *features"], Float[Tensor, "overlay base site *features"]]:
    return read(pixels_of_seen(model, scenes.base)), torch.stack(
        [read(pixels_of_seen(model, some)) for some in scenes.both]
    )


def _outputs(
    setup: StudySetup, pixels: Float[Tensor, "image channel height width"], sites: list[Site]
) -> Float[Tensor, "image site row d_model"]:
    return torch.cat([site_outputs(cache, sites) for cache in caches(setup.model, pixels)])
