"""What every figure starts from: a model, what draws, and the images whose means it compares with."""

__all__ = ["PaperSetup", "make_paper"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.decoders import Decoder, settings_dict
from vit_lens.errors import StudyError
from vit_lens.identity import forget_fingerprints
from vit_lens.images import source_name
from vit_lens.lenses import Lens
from vit_lens.models import HookedViT, pixel_batches
from vit_lens.reference import Jacobians, ReferenceMeans
from vit_lens.studies.images import content_of
from vit_lens.studies.reference_lenses import N_ANCHORS, lenses_of_reference
from vit_lens.studies.seen_pictures import Pictures
from vit_lens.studies.stand_ins import StandIns
from vit_lens.studies.study_setup import check_accepts

_AT_LEAST = 8


@dataclass(frozen=True, eq=False, kw_only=True)
class PaperSetup:
    """What the paper's figures start from on one pair; :func:`make_paper` makes it.

    Attributes:
        model: The encoder.
        pictures: What draws and keeps pictures.
        means: Means over the reference images, at the read-out rows: where mean-anchored lenses start.
        pixels: The reference images, preprocessed.
        centre: The mean embedding of the reference images.
        names: The names of the reference images, by content.
        first: The first of them, as images: what lenses start from that start from other images.
        seed: The seed of random directions.
        out: The folder where pictures are kept, so that none is drawn twice.
        jacobians: What the lens ``jacobian`` goes by; None where there are none.
    """

    model: HookedViT
    pictures: Pictures
    means: ReferenceMeans
    pixels: Float[Tensor, "reference channel height width"]
    centre: Float[Tensor, " d_embed"]
    names: Mapping[str, str]
    first: Sequence[Any]
    seed: int
    out: Path
    jacobians: Jacobians | None = None

    def see(self, image: Any) -> Float[Tensor, "1 channel height width"]:
        """Return the pixels of an image that is no reference image.

        Raises:
            StudyError: The image is a reference image.
            ImageError: The image cannot be read.
        """
        known = self.names.get(content_of(image))
        if known is not None:
            raise StudyError(
                f"{source_name(image)} is the same picture as the reference image {known}, and a mean would know what "
                "it is held against: take it out of --reference-images, or show another image"
            )
        return self.model.preprocess([image])

    @cached_property
    def stand_ins(self) -> StandIns:
        """What may stand in for what a site writes, made of the reference images."""
        return StandIns(model=self.model, reference=self.pixels, seed=self.seed)

    def lenses(self, given: Sequence[str | Lens]) -> list[Lens]:
        """Return lenses as they are, and read their spellings; of several anchors a lens for each.

        Args:
            given: Lenses, spellings or both.

        Raises:
            LensError: A spelling names no lens, or there are no Jacobians for ``jacobian``.
            StudyError: A lens reads patch tokens.
        """
        found = lenses_of_reference(
            given, self.model, self.pixels, self.means, first=self.first, names=list(self.names.values()),
            jacobians=self.jacobians, batch_size=self.pictures.batch_size,
            progress=self.pictures.progress,
        )  # fmt: skip
        check_accepts("the paper's figures", pooled_only=True, lenses=found)
        return [one for lens in found for one in lens.each()]

    def describe(self) -> dict[str, Any]:
        """Return what another run needs to know."""
        forget_fingerprints(self.model)
        return {
            "encoder": self.model.encoder_id, "fingerprint": self.model.fingerprint,
            "decoder": self.pictures.decoder.decoder_id, "decoder settings": settings_dict(self.pictures.settings),
            "reference images": len(self.pixels), "seed of random directions": self.seed,
        }  # fmt: skip


@torch.no_grad()
def make_paper(
    model: HookedViT,
    decoder: Decoder,
    reference: Sequence[Any],
    *,
    out: Path,
    jacobians: Jacobians | None = None,
    settings: Any = None,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = False,
) -> PaperSetup:
    """Preprocess the reference images, copies of one picture once, and make their means.

    Args:
        model: The encoder, without hooks.
        decoder: A decoder that was made for it.
        reference: Images to compare with, none of which is shown; a few hundred.
        out: The folder where pictures are kept.
        jacobians: What the lens ``jacobian`` goes by (``Jacobians.load(path)``); None where it is not drawn.
        settings: The decoder's settings, noise seed included; None takes its own.
        seed: The seed of random directions.
        batch_size: How many images run together, and how many pictures are drawn together.
        progress: Whether bars are shown.

    Raises:
        StudyError: Fewer than 8 different reference images.
        ImageError: One cannot be read.
        ContractError: The decoder was made for another encoder.
    """
    model.refuse_hooks("a figure")
    distinct = {content_of(image): image for image in reference}
    if len(distinct) < _AT_LEAST:
        raise StudyError(
            f"{len(distinct)} different reference images; what all images share is told from at least {_AT_LEAST}, "
            "better a few hundred: give more --reference-images"
        )
    images = list(distinct.values())
    batches = pixel_batches(model, images, batch_size, label="reference images", progress=progress)
    pixels = torch.cat([batch for _, batch in batches])
    pictures = Pictures(
        model=model, decoder=decoder, judge=None, settings=settings or decoder.defaults, folder=out / "seen",
        batch_size=batch_size, progress=progress,
    )  # fmt: skip
    check_accepts("the paper's figures", pooled_only=True, decoder=decoder)
    return PaperSetup(
        model=model, pictures=pictures,
        means=ReferenceMeans.from_images(model, pixels, batch_size=batch_size), pixels=pixels,
        centre=torch.cat([model(some) for some in pixels.split(batch_size)]).mean(0),
        names={key: source_name(image) for key, image in distinct.items()}, first=images[:N_ANCHORS],
        seed=seed, out=out, jacobians=jacobians,
    )  # fmt: skip
