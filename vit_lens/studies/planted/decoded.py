"""What the pictures of a planted encoder's heads show of the attribute, as the judge reads them."""

__all__ = ["DecodedGaps", "decoded_gaps", "paired_rows"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.errors import StudyError
from vit_lens.lenses import Lens
from vit_lens.studies.planted.recovery import LensGaps, gap
from vit_lens.studies.planted.soil import Plant
from vit_lens.studies.seen_pictures import Judge, Pictures
from vit_lens.studies.similarities import read_lens
from vit_lens.studies.study_setup import StudySetup


@dataclass(frozen=True, eq=False, kw_only=True)
class DecodedGaps:
    """Of some heads of one planted encoder; the planted head comes first.

    Attributes:
        plant: The encoder.
        heads: Whose pictures were drawn.
        gaps: By lens; one placebo draw.
        clean: The gap of the pictures of the images' own embeddings: what the decoder and the judge can show.
    """

    plant: Plant
    heads: list[Site]
    gaps: dict[str, LensGaps]
    clean: float


@torch.no_grad()
def decoded_gaps(
    setup: StudySetup,
    plant: Plant,
    lenses: Mapping[str, Lens],
    *,
    n_images: int,
    n_heads: int,
    n_draws: int,
    seed: Sequence[int],
) -> DecodedGaps:
    """Draw heads of a planted encoder for images of both classes, and let the judge read the pictures.

    Pictures of the two classes come in pairs that share their noise. Of a lens that starts from several anchors, each
    has pictures of its own, and what the judge reads is averaged.

    Args:
        setup: With a decoder and a judge.
        plant: The encoder.
        lenses: By name.
        n_images: Half of each class.
        n_heads: Heads: the planted one, others at random.
        n_draws: Of shuffled classes.
        seed: Of the draws.

    Raises:
        StudyError: A class has too few images.
    """
    drawn = np.random.default_rng(list(seed))
    rows = paired_rows(plant.attribute.test, n_images // 2)
    pixels, label = setup.pixels[torch.from_numpy(rows)], plant.attribute.test[rows]
    others = [site for site in Site.heads(plant.model) if site != plant.site]
    heads = [plant.site, *(others[i] for i in sorted(drawn.permutation(len(others))[: n_heads - 1]))]
    pictures, judge = replace(setup.drawing("planted"), model=plant.model), setup.judge("planted")
    noise = setup.noise_of(range(len(rows) // 2), 2)
    shuffles = [drawn.permutation(label) for _ in range(n_draws)]

    def read(embeds: Float[Tensor, "image head d_embed"], label: str) -> Float[np.ndarray, "image head"]:
        each = [seed for seed in noise for _ in range(embeds.shape[1])]
        return _read(pictures, judge, embeds, each, plant.attribute.captions, f"{plant.site} {label}")

    found = {}
    for name, lens in lenses.items():
        generator = torch.Generator().manual_seed(int(drawn.integers(2**62)))
        state, each = generator.get_state(), []
        for one in lens.each():
            generator.set_state(state)  # every anchor's control is given the same directions
            placebo = partial(one.placebo, sites=heads, generator=generator)
            each.append(
                (
                    read(read_lens(plant.model, pixels, one, heads), name),
                    read(read_lens(plant.model, pixels, one, heads, how=placebo), f"{name}, placebo"),
                )
            )
        real, controls = (np.mean(readings, axis=0) for readings in zip(*each, strict=True))
        found[name] = LensGaps(
            real=gap(real, label), placebo=gap(controls, label)[None],
            shuffled=np.stack([gap(real, other) for other in shuffles]),
        )  # fmt: skip
    clean = read(plant.model(pixels)[:, None], "inputs")
    return DecodedGaps(plant=plant, heads=heads, gaps=found, clean=float(gap(clean, label)[0]))


def paired_rows(label: Int[np.ndarray, " image"], n: int) -> Int[np.ndarray, " row"]:
    """Return rows of class 0 and class 1 in turn, ``n`` of each.

    Raises:
        StudyError: A class has fewer.
    """
    classes = [np.flatnonzero(label == value)[:n] for value in (0, 1)]
    if min(map(len, classes)) < n:
        raise StudyError(
            f"{2 * n} decoded images need {n} test images of each class, there are "
            f"{[int((label == value).sum()) for value in (0, 1)]}; test more images (--n), or decode fewer"
        )
    return np.stack(classes, 1).reshape(-1)


def _read(
    pictures: Pictures,
    judge: Judge,
    embeds: Float[Tensor, "image head d_embed"],
    noise: Sequence[int],
    captions: tuple[str, str],
    label: str,
) -> Float[np.ndarray, "image head"]:
    seen = pictures.see_each(embeds.flatten(0, 1), noise, label=label).judge
    if seen is None:
        raise StudyError("study planted reads attributes off pictures and needs a judge: pass judge= (--judge)")
    told = judge.contrast(seen, [captions[1]] * len(seen), [captions[0]] * len(seen))
    return told.double().cpu().numpy().reshape(len(embeds), -1)
