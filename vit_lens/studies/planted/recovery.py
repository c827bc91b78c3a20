"""How strongly every head of a planted encoder shows the attribute: by lenses, by their controls, and by patching."""

__all__ = ["LensGaps", "Patched", "contrast", "direct_shares", "gap", "lens_gaps", "patched", "write_norms"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.errors import StudyError
from vit_lens.interventions import patch_each
from vit_lens.lenses import Lens, centred_norm, site_outputs
from vit_lens.models import HookedViT
from vit_lens.reference import ReferenceMeans
from vit_lens.studies.planted.soil import Plant
from vit_lens.studies.similarities import caches, held_caches
from vit_lens.studies.stand_ins import StandIns
from vit_lens.texts import TextBank


@dataclass(frozen=True, eq=False, kw_only=True)
class LensGaps:
    """What one lens shows of the attribute: the contrast of its captions in class 1 minus class 0, for every head.

    Attributes:
        real: Of the lens.
        placebo: Each head's output a random direction of equal norm, image by image.
        shuffled: Classes dealt to the images at random: a head's result is held against another image's class.
        stand_ins: What other controls show, by their name: another image's output, a covariance-matched direction.
    """

    real: Float[np.ndarray, " head"]
    placebo: Float[np.ndarray, "draw head"]
    shuffled: Float[np.ndarray, "shuffle head"]
    stand_ins: Mapping[str, Float[np.ndarray, "draw head"]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class Patched:
    """What patching one head from a partner image changes, as a share of what changing the whole image does.

    Attributes:
        total: Its output patched at all positions, everything later recomputed.
        direct: Its output at the class token, everything later as it was.
    """

    total: Float[np.ndarray, " head"]
    direct: Float[np.ndarray, " head"]


def contrast(
    texts: TextBank, embeds: Float[Tensor, "*batch d_embed"], captions: tuple[str, str]
) -> Float[np.ndarray, "*batch"]:
    """Return the logit of the second caption minus that of the first."""
    away, toward = (texts.index(caption) for caption in captions)
    logits = texts.logits(embeds)
    return (logits[..., toward] - logits[..., away]).double().cpu().numpy()


def gap(contrasts: Float[np.ndarray, "image *head"], label: Int[np.ndarray, " image"]) -> Float[np.ndarray, "*head"]:
    """Return the mean over images of class 1 minus that over images of class 0."""
    return np.asarray(contrasts[label == 1].mean(0) - contrasts[label == 0].mean(0))


@torch.no_grad()
def lens_gaps(
    model: HookedViT,
    pixels: Float[Tensor, "image channel height width"],
    lenses: dict[str, Lens],
    texts: TextBank,
    captions: tuple[str, str],
    label: Int[np.ndarray, " image"],
    *,
    n_draws: int,
    seed: Sequence[int],
    stand_ins: StandIns | None = None,
) -> dict[str, LensGaps]:
    """Read every head with every lens, and with its controls.

    Args:
        model: The planted encoder.
        pixels: Images of the two classes.
        lenses: By name.
        texts: The encoder's captions.
        captions: Of class 0 and of class 1.
        label: Class of each image.
        n_draws: Of each control.
        seed: Of the draws.
        stand_ins: Of the planted encoder, for controls beside the isotropic one; None for none.
    """
    heads = Site.heads(model)
    drawn = np.random.default_rng(list(seed))
    generator = torch.Generator().manual_seed(int(drawn.integers(2**62)))
    found: dict[str, list[np.ndarray]] = {name: [] for name in lenses}
    for cache in caches(model, pixels, lenses=lenses.values()):
        for name, lens in lenses.items():
            draws = [lens.placebo(cache, heads, generator=generator) for _ in range(n_draws)]
            rows = [contrast(texts, embeds, captions) for embeds in (lens.embed(cache, heads), *draws)]
            found[name].append(np.stack(rows, 1))
    others = {} if stand_ins is None else _stand_ins(model, pixels, lenses, texts, captions, label, stand_ins, n_draws)
    shuffles = [drawn.permutation(label) for _ in range(n_draws)]
    out = {}
    for name, parts in found.items():
        contrasts = np.concatenate(parts)
        out[name] = LensGaps(
            real=gap(contrasts[:, 0], label), placebo=gap(contrasts[:, 1:], label),
            shuffled=np.stack([gap(contrasts[:, 0], other) for other in shuffles]), stand_ins=others.get(name, {}),
        )  # fmt: skip
    return out


def _stand_ins(
    model: HookedViT, pixels: Float[Tensor, "image channel height width"], lenses: dict[str, Lens], texts: TextBank,
    captions: tuple[str, str], label: Int[np.ndarray, " image"], stand_ins: StandIns, n_draws: int,
) -> dict[str, dict[str, Float[np.ndarray, "draw head"]]]:  # fmt: skip
    """Return what each control beside the isotropic one shows, by lens and control."""
    heads, held = Site.heads(model), held_caches(model, pixels, lenses.values())
    out: dict[str, dict[str, np.ndarray]] = {}
    for name, lens in lenses.items():
        for kind in stand_ins.beside_random if lens.has_controls else ():
            gaps = []
            for draw in range(n_draws):
                generator = torch.Generator().manual_seed(stand_ins.seed * 1000 + draw)
                read = stand_ins.read(kind, lens, held, heads, generator=generator, turn=draw)
                pooled = [found.pooled for found in read if found.pooled is not None]
                gaps.append(gap(np.concatenate([contrast(texts, one, captions) for one in pooled]), label))
            out.setdefault(name, {})[kind] = np.stack(gaps)
    return out


@torch.no_grad()
def patched(
    plant: Plant, texts: TextBank, pixels: Float[Tensor, "image channel height width"], label: Int[np.ndarray, " image"]
) -> Patched:
    """Patch every head of images of class 0 from images of class 1, one head at a time.

    The total effect runs the model with hooks; the direct effect is its closed form.
    """
    zero, one = (torch.from_numpy(np.flatnonzero(label == value)) for value in (0, 1))
    n = min(len(zero), len(one))
    base, partner = pixels[zero[:n]], pixels[one[:n]]
    captions, heads = plant.attribute.captions, Site.heads(plant.model)

    def told(embeds: Tensor) -> Tensor:
        return torch.from_numpy(contrast(texts, embeds, captions))

    effects = patch_each(plant.model, base, partner, told, heads)
    if effects.source is None:
        raise StudyError("patching has no partner images")
    full = float((effects.source - effects.base).mean())
    return Patched(
        total=effects.effect[:, 0].mean(-1).numpy() / full, direct=direct_shares(plant, texts, pixels, label)
    )


@torch.no_grad()
def direct_shares(
    plant: Plant, texts: TextBank, pixels: Float[Tensor, "image channel height width"], label: Int[np.ndarray, " image"]
) -> Float[np.ndarray, " head"]:
    """Return what patching every head at the class token changes directly; see :class:`Patched`."""
    zero, one = (torch.from_numpy(np.flatnonzero(label == value)) for value in (0, 1))
    n = min(len(zero), len(one))
    heads, captions = Site.heads(plant.model), plant.attribute.captions
    (before, at), (after, other) = (
        plant.model.run_with_cache(pixels[some[:n]], rows="readout") for some in (zero, one)
    )
    states = plant.model.streams[0].last(at)[:, None] + site_outputs(other, heads) - site_outputs(at, heads)
    base = contrast(texts, before, captions)
    moved = contrast(texts, plant.model.embed_rows(states), captions) - base[:, None]
    return moved.mean(0) / (contrast(texts, after, captions) - base).mean()


@torch.no_grad()
def write_norms(
    model: HookedViT, pixels: Float[Tensor, "image channel height width"], means: ReferenceMeans
) -> dict[str, Float[np.ndarray, " head"]]:
    """Return what can be said of every head without a lens: the norm of its output, and of that minus its mean."""
    heads = Site.heads(model)
    mean = torch.stack([means.output(model, site) for site in heads])
    outputs = torch.cat([site_outputs(cache, heads) for cache in caches(model, pixels)])
    norms = {"norm of h": centred_norm(outputs), "norm of h - mean": centred_norm(outputs - mean)}
    return {name: value.mean(0).double().cpu().numpy() for name, value in norms.items()}
