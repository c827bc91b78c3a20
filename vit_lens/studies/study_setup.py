"""What every study starts from: a model, disjoint images, means, lenses, and what draws and judges pictures."""

__all__ = ["StudySetup", "check_accepts", "make_setup"]

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.decoders import Decoder, settings_dict
from vit_lens.errors import LensError, StudyError
from vit_lens.identity import forget_fingerprints
from vit_lens.lenses import Lens
from vit_lens.models import HookedViT, pixel_batches
from vit_lens.reference import Jacobians, ReferenceMeans
from vit_lens.studies.images import StudyImages
from vit_lens.studies.reference_lenses import N_ANCHORS, lenses_of_reference
from vit_lens.studies.seen_pictures import Judge, Pictures
from vit_lens.studies.stand_ins import StandIns
from vit_lens.texts import TextBank


@dataclass(frozen=True, eq=False, kw_only=True)
class StudySetup:
    """What one study on one encoder starts from; :func:`make_setup` makes it.

    Attributes:
        model: The encoder.
        images: Test, anchor and ablation images, disjoint.
        pixels: The test images, preprocessed.
        clean: The embeddings of the test images.
        anchor: Means at the read-out rows over the anchor images.
        anchor_pixels: The anchor images, preprocessed.
        centre: The mean embedding of the anchor images.
        ablation: Means at every position over the ablation images.
        lenses: The lenses by their spelling, such as ``dsl-mean:alpha=5``.
        pictures: What draws and judges; None for a study before decoding.
        noise_seeds: The seeds of the decoder's noise, all different.
        seed: The seed of everything else that is drawn at random.
        out: The folder for the study's files.
        progress: Whether bars are shown.

    >>> scenes = vl.studies.study_images(3, seed=0, n_means=8)
    >>> setup = vl.studies.make_setup(model, scenes, lenses=["diffusion"], out=tmp / "study setup")
    >>> setup.clean.shape, setup.noise_of([0, 1, 2])
    (torch.Size([3, 128]), [0, 1, 0])
    >>> setup.drawing("content")
    Traceback (most recent call last):
    vit_lens.errors.StudyError: study content reads decoded pictures and needs a decoder: pass decoder= (--decoder)
    """

    model: HookedViT
    images: StudyImages
    pixels: Float[Tensor, "image channel height width"]
    clean: Float[Tensor, "image d_embed"]
    anchor: ReferenceMeans
    anchor_pixels: Float[Tensor, "anchor channel height width"]
    centre: Float[Tensor, " d_embed"]
    ablation: ReferenceMeans
    lenses: Mapping[str, Lens]
    pictures: Pictures | None
    noise_seeds: tuple[int, ...]
    seed: int
    out: Path
    progress: bool

    def drawing(self, study: str) -> Pictures:
        """Return what draws pictures.

        Raises:
            StudyError: The setup has no decoder.
        """
        if self.pictures is None:
            raise StudyError(f"study {study} reads decoded pictures and needs a decoder: pass decoder= (--decoder)")
        return self.pictures

    def noise_of(self, images: Iterable[int], each: int = 1) -> list[int]:
        """Return a noise seed for ``each`` picture of every image: image ``i`` has seed ``i`` modulo their number."""
        return [self.noise_seeds[image % len(self.noise_seeds)] for image in images for _ in range(each)]

    def number(self, *stream: int) -> int:
        """Return a seed of the setup's seed and a stream of its own."""
        return int(np.random.default_rng([self.seed, *stream]).integers(2**31))

    def generator(self, *stream: int) -> torch.Generator:
        """Return random numbers of the setup's seed and a stream of their own."""
        return torch.Generator().manual_seed(int(np.random.default_rng([self.seed, *stream]).integers(2**62)))

    def judge(self, study: str) -> Judge:
        """Return the judge.

        Raises:
            StudyError: The setup has none.
        """
        judge = self.pictures and self.pictures.judge
        if judge is None:
            raise StudyError(
                f"study {study} reads attributes off pictures and needs a judge, an encoder that never conditioned the "
                "decoder, with its text tower: pass judge= (--judge)"
            )
        return judge

    def judge_texts(self, study: str) -> TextBank:
        """Return the judge's captions.

        Raises:
            StudyError: There is no judge, or it has none.
        """
        texts = self.judge(study).texts
        if texts is None:
            raise StudyError(
                f"study {study} reads attributes off pictures: give the judge its captions, Judge(model, texts)"
            )
        return texts

    @cached_property
    def stand_ins(self) -> StandIns:
        """What may stand in for what a site writes, made of the anchor images."""
        return StandIns(model=self.model, reference=self.anchor_pixels, seed=self.seed)

    def lenses_of(self, model: HookedViT, means: ReferenceMeans) -> dict[str, Lens]:
        """Return the same lenses of another model, such as a planted one, made of the anchor images anew.

        Args:
            model: The model.
            means: Its means over the anchor images.

        Raises:
            StudyError: One was given as it is, and not by its spelling.
        """
        try:
            found = lenses_of_reference(
                list(self.lenses), model, self.anchor_pixels, means, first=self.images.anchor[:N_ANCHORS],
                names=_anchor_names(self.anchor_pixels),
            )  # fmt: skip
        except LensError as error:
            raise StudyError(f"lenses of another model are made from their spellings: {error}") from None
        return dict(zip(self.lenses, found, strict=True))

    def accept(self, study: str, *, pooled_only: bool) -> None:
        """Refuse lenses and decoders whose conditions a study cannot read; see :func:`check_accepts`.

        Raises:
            StudyError: One reads, or takes, tokens.
        """
        decoder = self.pictures and self.pictures.decoder
        check_accepts(f"study {study}", pooled_only=pooled_only, lenses=self.lenses.values(), decoder=decoder)

    def describe(self) -> dict[str, Any]:
        """Return what a result must carry of its setup."""
        forget_fingerprints(self.model)
        found: dict[str, Any] = {
            "encoder": self.model.encoder_id, "fingerprint": self.model.fingerprint,
            "n_heads": self.model.cfg.n_layers * self.model.cfg.n_heads,
            "n_test": len(self.images.test), "n_anchor": len(self.images.anchor),
            "n_ablation": len(self.images.ablation), "lenses": list(self.lenses), "seed": self.seed,
            "noise_seeds": list(self.noise_seeds), "decoder": None, "judge": None, "settings": None,
        }  # fmt: skip
        if self.pictures is not None:
            judge = self.pictures.judge
            found |= {
                "decoder": self.pictures.decoder.decoder_id,
                "judge": judge and {"encoder": judge.model.encoder_id, "fingerprint": judge.model.fingerprint},
                "settings": settings_dict(self.pictures.settings),
            }
        return found


@torch.no_grad()
def make_setup(
    model: HookedViT,
    images: StudyImages,
    *,
    lenses: Sequence[str | Lens],
    out: Path,
    decoder: Decoder | None = None,
    judge: Judge | None = None,
    settings: Any = None,
    noise_seeds: Sequence[int] = (0, 1),
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
    jacobians: Jacobians | None = None,
) -> StudySetup:
    """Preprocess the images, make both means, and bind the lenses to the anchor's.

    Args:
        model: The encoder, without hooks.
        images: Disjoint test, anchor and ablation images.
        lenses: Spellings (``diffusion``, ``dsl:alpha=10``, ``dsl:share=1``, ``dsl-mean:alpha=5``,
            ``counterfactual``, ``jacobian:alpha=5``, each with ``:project``), or lenses. What they need is made of the
            anchor images (:mod:`vit_lens.studies.reference_lenses`).
        out: The folder for the study's files.
        decoder: What draws pictures; None for a study before decoding.
        judge: What reads pictures beside the encoder; goes with a decoder. None for no judge.
        settings: The decoder's settings; None takes its own.
        noise_seeds: The seeds of the decoder's noise, all different.
        seed: The seed of everything else that is drawn at random.
        batch_size: How many images run together, and how many pictures are drawn together.
        progress: Whether bars are shown.
        jacobians: The Jacobians that ``jacobian`` goes by, fitted on none of the test images; None fits them on anchor
            images.

    Raises:
        StudyError: A judge without a decoder, or equal noise seeds.
        LensError: A spelling names no lens.
        ContractError: The decoder was made for another encoder.

    >>> scenes = vl.studies.study_images(2, seed=0, n_means=8)
    >>> setup = vl.studies.make_setup(
    ...     model, scenes, lenses=["diffusion", "dsl-mean:alpha=5"], decoder=decoder, out=tmp / "make setup"
    ... )
    >>> list(setup.lenses), setup.describe()["n_anchor"]
    (['diffusion', 'dsl-mean:alpha=5'], 8)
    """
    if decoder is None and (judge is not None or settings is not None):
        raise StudyError("without a decoder there are no pictures, so judge= and settings= would have no effect")
    if not noise_seeds or len(set(noise_seeds)) < len(noise_seeds):
        raise StudyError(f"noise_seeds={list(noise_seeds)}: give different seeds, at least one")
    model.refuse_hooks("a study")
    pixels, anchor_pixels = (
        torch.cat([p for _, p in pixel_batches(model, list(some), batch_size, label=label, progress=progress)])
        for label, some in (("test images", images.test), ("anchor images", images.anchor))
    )
    anchor = ReferenceMeans.from_images(model, anchor_pixels, batch_size=batch_size)
    ablation = ReferenceMeans.from_images(
        model, list(images.ablation), positions="all", batch_size=batch_size, progress=progress
    )
    pictures = None
    if decoder is not None:
        pictures = Pictures(
            model=model, decoder=decoder, judge=judge, settings=settings or decoder.defaults, folder=out / "seen",
            batch_size=batch_size, progress=progress,
        )  # fmt: skip
    named = lenses_of_reference(
        lenses, model, anchor_pixels, anchor, first=images.anchor[:N_ANCHORS], names=_anchor_names(anchor_pixels),
        jacobians=jacobians, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    return StudySetup(
        model=model, images=images, pixels=pixels, clean=_embed(model, pixels, batch_size), anchor=anchor,
        anchor_pixels=anchor_pixels, centre=_embed(model, anchor_pixels, batch_size).mean(0), ablation=ablation,
        lenses={_name(own): lens for own, lens in zip(lenses, named, strict=True)}, pictures=pictures,
        noise_seeds=tuple(noise_seeds), seed=seed, out=out, progress=progress,
    )  # fmt: skip


def check_accepts(
    study: str, *, pooled_only: bool, lenses: Iterable[Lens] = (), decoder: Decoder | None = None
) -> None:
    """Refuse lenses and decoders whose conditions a study cannot read.

    Args:
        study: Who reads.
        pooled_only: Whether it reads pooled embeddings alone; else tokens too.
        lenses: Of the study.
        decoder: Of the study.

    Raises:
        StudyError: One reads, or takes, tokens.
    """
    if not pooled_only:
        return
    named = [(f"lens {lens.describe().label} reads", lens.parts) for lens in lenses]
    named += [] if decoder is None else [(f"decoder {decoder.decoder_id} takes", tuple(decoder.takes))]
    for what, parts in named:
        if set(parts) != {"pooled"}:
            raise StudyError(
                f"{study}: pooled embeddings alone are read, and {what} {' and '.join(parts)}; the studies content and "
                "faithfulness accept tokens, too"
            )


def _anchor_names(pixels: Float[Tensor, "anchor channel height width"]) -> list[str]:
    return [f"anchor image {number}" for number in range(len(pixels))]


def _name(lens: str | Lens) -> str:
    return lens if isinstance(lens, str) else lens.describe().label


def _embed(
    model: HookedViT, pixels: Float[Tensor, "image channel height width"], batch: int
) -> Float[Tensor, "image d_embed"]:
    return torch.cat([model(some) for some in pixels.split(batch)])
