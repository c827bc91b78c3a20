"""Lenses by their spelling in figures and studies, where everything that they need is made of the reference images."""

__all__ = ["N_ANCHORS", "N_FITTED", "lenses_of_reference"]

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.errors import StudyError
from vit_lens.lenses import Anchors, JacobianLens, Lens, check_spelling, is_patch_spelling, needs_anchors, parse_lens
from vit_lens.models import HookedViT
from vit_lens.readers import Gallery
from vit_lens.reference import Jacobians, ReferenceMeans
from vit_lens.towers import preprocessing_of

N_ANCHORS = 3
"""The reference images that ``counterfactual`` starts from: the first three."""
N_FITTED = 48
"""The reference images that Jacobians are fitted and measured on, where none are given: those behind the anchors."""
_AT_LEAST = 8  # of these a quarter measures the error


@torch.no_grad()
def lenses_of_reference(
    given: Sequence[str | Lens],
    model: HookedViT,
    pixels: Float[Tensor, "reference channel height width"],
    means: ReferenceMeans,
    *,
    first: Any,
    names: Sequence[str],
    jacobians: Jacobians | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> list[Lens]:
    """Return lenses as they are, and read their spellings; a lens of several anchors stays one.

    Args:
        given: Lenses, spellings or both.
        model: The model.
        pixels: The reference images, preprocessed: ``counterfactual`` and ``jacobian:share`` start from the first
            :data:`N_ANCHORS`, and ``:project`` projects on all of them.
        means: Over them, at the read-out rows; for lenses of patches those at every token are made.
        first: The first :data:`N_ANCHORS` of them, as images (or pixels, which leave nothing to look at).
        names: What each of them is called.
        jacobians: What ``jacobian`` goes by; None fits them on the :data:`N_FITTED` images behind the anchors.
        batch_size: How many images run together.
        progress: Whether bars are shown.

    Raises:
        LensError: A spelling names no lens.
        StudyError: There are too few images to fit Jacobians on.
        ReferenceMismatchError: The Jacobians are another model's.
    """
    said = [check_spelling(one) for one in given if isinstance(one, str)]
    anchors = gallery = None
    if starts := {rows for one in given if isinstance(one, str) and (rows := needs_anchors(one))}:
        called = list(names[:N_ANCHORS])
        told = called if len({*called}) == len(called) else [f"anchor {place}" for place in range(len(called))]
        anchors = Anchors.of(model, first, names=told, rows="all" if "all" in starts else "readout")
    if any("project" in settings for _, settings in said):
        embeds = torch.cat([model(some) for some in pixels.split(batch_size)])
        gallery = Gallery(
            encoder_id=model.encoder_id, fingerprint=model.fingerprint, preprocess=preprocessing_of(model),
            folder="", names=tuple(names), hashes=tuple(map(_digits, pixels)), stamps=("",) * len(names), embeds=embeds,
            weights=model.exact_fingerprint(),
        )  # fmt: skip
    of_patches = means
    if any(name == "patch-dsl-mean" for name, _ in said):
        of_patches = ReferenceMeans.from_images(model, pixels, positions="all", batch_size=batch_size)
    known = None if jacobians is None else jacobians.check(model)
    if known is None and any(name == "jacobian" for name, _ in said):
        some = pixels[N_ANCHORS : N_ANCHORS + N_FITTED]
        if len(some) < _AT_LEAST:
            raise StudyError(
                f"{len(pixels)} reference images: Jacobians are fitted on those behind the first {N_ANCHORS}, of which "
                f"at least {_AT_LEAST} are needed; give {N_ANCHORS + _AT_LEAST} or more, or Jacobians that were fitted "
                "elsewhere (jacobians=, --jacobian)"
            )
        known = JacobianLens.fit(model, some, batch_size=min(batch_size, 16), progress=progress).jacobians
    held = {"anchors": anchors, "gallery": gallery}
    found = []
    for one in given:
        own = of_patches if isinstance(one, str) and is_patch_spelling(one) else means
        found.append(parse_lens(one, own, known, **held) if isinstance(one, str) else one)
    return found


def _digits(pixels: Float[Tensor, "channel height width"]) -> str:
    return hashlib.sha256(pixels.detach().cpu().double().numpy().tobytes()).hexdigest()[:24]
