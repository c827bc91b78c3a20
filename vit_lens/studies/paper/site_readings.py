"""Every site of one image through several lenses, each beside what may stand in for what it writes."""

__all__ = ["N_DRAWS", "ControlReading", "SiteReading", "read_sites"]

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.errors import StudyError
from vit_lens.lenses import Lens, OwnPictureWarning, centred_norm, run_for, site_outputs
from vit_lens.metrics import cosine
from vit_lens.studies.paper.paper_setup import PaperSetup
from vit_lens.studies.similarities import caches, centred_similarity
from vit_lens.towers import ViTActivationCache

N_DRAWS = 20
"""Random directions of equal norm for each site."""
_IMAGE, _REFERENCE, _STAND_INS = 1, 2, 3  # streams of random directions
_ROUNDING = 128  # a deviation below this many units in the last place is noise


@dataclass(frozen=True, eq=False, kw_only=True)
class SiteReading:
    """One lens on one image.

    Attributes:
        lens: The lens.
        sites: What it read.
        clean: The input's embedding.
        embeds: Lens embeddings.
        controls: Those of random directions of equal norm; the first is drawn.
        cos: Raw similarity of ``embeds`` to the input.
        S: Centred similarity: each side without its mean over the reference images; nan where a site says the same of
            every image.
        chance: How much centred similarity chance gives each site: more than with 97.5 % of the reference images.
        control_draws_S: Centred similarity of the controls, by draw.
        others: The further controls by name, another image's output first: their embeddings and similarities.
        control_cos: Raw similarity of controls, mean over the draws.
        control_S: Centred similarity of controls, mean over the draws; their mean is that of controls, too.
        size: Norm of what the lens adds (after mean removal): ``h``, less what it measures that from; of a Jacobian
            lens what of it arrives.
    """

    lens: Lens
    sites: tuple[Site, ...]
    clean: Float[Tensor, " d_embed"]
    embeds: Float[Tensor, "site d_embed"]
    controls: Float[Tensor, "draw site d_embed"]
    cos: Float[Tensor, " site"]
    S: Float[Tensor, " site"]
    chance: Float[Tensor, " site"]
    control_draws_S: Float[Tensor, "draw site"]
    control_cos: Float[Tensor, " site"]
    control_S: Float[Tensor, " site"]
    size: Float[Tensor, " site"]
    others: "Mapping[str, ControlReading]" = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class ControlReading:
    """A control of every site of one image, by draw: embeddings, raw and centred similarity to the input."""

    embeds: Float[Tensor, "draw site d_embed"]
    cos: Float[Tensor, "draw site"]
    S: Float[Tensor, "draw site"]


@torch.no_grad()
def read_sites(
    setup: PaperSetup,
    pixels: Float[Tensor, "image channel height width"],
    lenses: Mapping[str, Lens],
    sites: list[Site],
) -> dict[str, list[SiteReading]]:
    """Read the sites of each image through every lens; the reference images are run once.

    Random directions differ between sites, images and draws; all lenses are given the same.

    Raises:
        LensError: A lens is not defined on a site.
    """
    clean, cache = run_for(setup.model, pixels, lenses.values())
    means = _means(setup, lenses, sites)
    return {name: _read(setup, cache, clean, lens, sites, *means[name]) for name, lens in lenses.items()}


def _read(
    setup: PaperSetup,
    cache: ViTActivationCache,
    clean: Float[Tensor, "image d_embed"],
    lens: Lens,
    sites: list[Site],
    mean: Float[Tensor, "site d_embed"],
    control_mean: Float[Tensor, "site d_embed"],
) -> list[SiteReading]:
    embeds = lens.embed(cache, sites)
    generator = _generator(setup, _IMAGE)
    controls = torch.stack([lens.placebo(cache, sites, generator=generator) for _ in range(N_DRAWS)])
    own_S = centred_similarity(embeds, clean, mean[None], setup.centre)
    control_S = torch.stack([centred_similarity(draw, clean, control_mean[None], setup.centre) for draw in controls])
    said = (embeds - mean).norm(dim=-1) > _ROUNDING * torch.finfo(embeds.dtype).eps * embeds.norm(dim=-1)
    sizes, chance = _sizes(cache, lens, sites), _chance(setup, embeds, mean)
    others = _others(setup, cache, clean, lens, sites, mean)
    return [
        SiteReading(
            lens=lens, sites=tuple(sites), clean=clean[i].float().cpu(), embeds=embeds[i].float().cpu(),
            controls=controls[:, i].float().cpu(), cos=cosine(embeds[i], clean[i]).cpu(),
            S=own_S[i].where(said[i], torch.nan).cpu(), control_cos=cosine(controls[:, i], clean[i]).mean(0).cpu(),
            control_S=control_S[:, i].mean(0).cpu(), size=sizes[i], chance=chance[i],
            control_draws_S=control_S[:, i].cpu(), others={kind: found[i] for kind, found in others.items()},
        )
        for i in range(len(clean))
    ]  # fmt: skip


def _chance(
    setup: PaperSetup, embeds: Float[Tensor, "image site d_embed"], mean: Float[Tensor, "site d_embed"]
) -> Float[Tensor, "image site"]:
    """Return what chance gives: of reference images, and of unrelated directions in so many dimensions."""
    deviations = embeds - mean
    others = [cosine(deviations, whole - setup.centre).nan_to_num(-1.0) for whole in setup.stand_ins.bank().embeds]
    return torch.stack(others).quantile(0.975, dim=0).clamp_min(1.96 / math.sqrt(embeds.shape[-1])).cpu()


def _others(
    setup: PaperSetup, cache: ViTActivationCache, clean: Float[Tensor, "image d_embed"], lens: Lens, sites: list[Site],
    mean: Float[Tensor, "site d_embed"],
) -> dict[str, list[ControlReading]]:  # fmt: skip
    """Read every control but the isotropic one, all draws of each; S is less the site's own mean reading."""
    found: dict[str, list[ControlReading]] = {}
    for kind in setup.stand_ins.beside_random if lens.has_controls else ():
        generator = _generator(setup, _STAND_INS)
        draws = [
            lens.pooled_against(
                cache, sites, setup.stand_ins.against(kind, lens, range(len(clean)), generator=generator, turn=turn)
            )
            for turn in range(N_DRAWS)
        ]
        S = [centred_similarity(draw, clean, mean[None], setup.centre) for draw in draws]
        found[kind] = [
            ControlReading(
                embeds=torch.stack([draw[i] for draw in draws]).float().cpu(),
                cos=torch.stack([cosine(draw[i], clean[i]) for draw in draws]).cpu(),
                S=torch.stack([one[i] for one in S]).cpu(),
            )
            for i in range(len(clean))
        ]
    return found


def _means(
    setup: PaperSetup, lenses: Mapping[str, Lens], sites: list[Site]
) -> dict[str, tuple[Float[Tensor, "site d_embed"], Float[Tensor, "site d_embed"]]]:
    """Return what each lens reads of every site, and of its controls, on average over the reference images."""
    generators = {name: _generator(setup, _REFERENCE) for name in lenses}
    sums: dict[str, list[Tensor]] = {name: [] for name in lenses}
    counts = dict.fromkeys(lenses, 0)
    for cache in caches(setup.model, setup.pixels, setup.pictures.batch_size, lenses.values()):
        for name, lens in lenses.items():
            known = lens.knows(cache)
            kept = [index for index, own in enumerate(known) if not own]
            if not kept:
                continue
            some = cache.apply_slice_to_batch_dim(kept) if any(known) else cache
            counts[name] += len(kept)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", OwnPictureWarning)  # each is projected on the others
                placebo = lens.placebo(some, sites, generator=generators[name])
                found = [lens.embed(some, sites).sum(0), placebo.sum(0)]
            sums[name] = [a + b for a, b in zip(sums[name], found, strict=True)] if sums[name] else found
    if unread := [name for name, n in counts.items() if not n]:
        raise StudyError(f"every reference image is an anchor of {unread[0]}: give more")
    return {name: (own / counts[name], control / counts[name]) for name, (own, control) in sums.items()}


def _sizes(cache: ViTActivationCache, lens: Lens, sites: list[Site]) -> Float[Tensor, "image site"]:
    """Return how long what the lens adds is: outputs, less what it measures them from, where it says these."""
    if not lens.has_controls:
        return torch.cat([centred_norm(site_outputs(cache, [site])) for site in sites], dim=1).float().cpu()
    found: dict[Site, Tensor] = {}

    def note(outputs: Tensor, origin: Tensor | None, some: list[Site], outputs_of: object) -> Tensor:
        norms = centred_norm(outputs if origin is None else outputs - origin)
        found.update(zip(some, norms.unbind(1), strict=True))
        return outputs

    lens.read_changed(cache, sites, note)
    return torch.stack([found[site] for site in sites], dim=1).float().cpu()


def _generator(setup: PaperSetup, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(setup.seed * 10 + stream)
