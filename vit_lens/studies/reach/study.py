"""Reach: are what a lens says to be large effects the large effects, of parts that act through later layers?"""

__all__ = ["HEADLINES", "reach_study"]

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from tqdm import tqdm

from vit_lens.addresses import Site, Sites
from vit_lens.errors import StudyError
from vit_lens.lenses import Lens
from vit_lens.models import HookedViT
from vit_lens.studies.content import (
    AttributePairs,
    Changes,
    caption_changes,
    direct_effects,
    total_effects,
    what_whole_images_change,
)
from vit_lens.studies.findings import Null, Score, StudyResult
from vit_lens.studies.similarities import held_caches
from vit_lens.studies.stand_ins import NULLS
from vit_lens.studies.statistics import finite_mean, jackknife, spearman
from vit_lens.studies.study_setup import StudySetup
from vit_lens.texts import TextBank
from vit_lens.towers import ViTActivationCache

DIRECT = "direct effect (no lens)"
NORM = "norm of what changes, all rows (no lens)"
_EARLY, _ALL = "early sites", "all sites"
_OVER = {
    "over sites and attributes": "sizes of effects over sites and attributes",
    "over sites": "sizes of effects over sites, mean over attributes",
}
HEADLINES = tuple(f"{measure}, {subset}" for subset in (_EARLY, _ALL) for measure in _OVER.values())
"""The measures that the protocol decides by."""

_STUDY = 7  # of the streams of random numbers
_Sizes = Float[np.ndarray, "site attribute"]
_NOTES = (
    "A size is the root mean square, over pairs of images that differ in an attribute, of how much the contrast of "
    "their captions changes: true, where the site's output of one image is patched into the other at all rows and "
    "everything later is computed anew; of a lens, from its embedding of one image to that of the other.",
    "Early sites are those of the first half of the layers. Everything here is before decoding, read with the "
    "encoder's own captions.",
)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Found:
    """The squared changes that one reading says there are, and the same of its controls, by draw."""

    name: str
    squares: Changes
    controls: Mapping[str, Sequence[Changes]]


def reach_study(
    setup: StudySetup,
    pairs: AttributePairs,
    texts: TextBank,
    *,
    sites: Sites = ("mlp",),
    n_placebo: int = 5,
    n_shuffles: int = 200,
    command: str | None = None,
) -> StudyResult:
    """Hold how large a lens says that each site's effects are against how large they are, later layers included.

    The score is Spearman's correlation of sizes over sites and attributes, and over sites within each attribute. A lens
    of what is written at the read-out row can see direct effects alone; beside every lens stand these, what norms
    say without a lens, and controls.

    Args:
        setup: The setup, whose test images are ``pairs.images``. Every lens of it is read.
        pairs: Base images and their partners, with captions for each attribute.
        texts: Captions embedded by the encoder, those of the pairs among them.
        sites: The sites, or groups of them; at least three. All lenses must be defined on them.
        n_placebo: How many draws each control has.
        n_shuffles: How many draws the null of shuffled sites has.
        command: The command that makes this result again; None where there is none.

    Raises:
        StudyError: There are fewer than three sites, or three attributes that change what the encoder sees.
        TextError: The captions are another encoder's.
        UnknownSiteError: A site is not the model's.
        LensError: A lens is not defined on a site.
    """
    setup.accept("reach", pooled_only=True)
    texts.check(setup.model)
    resolved = Site.resolve(sites, setup.model.cfg)
    if len(resolved) < 3:
        raise StudyError(f"{len(resolved)} sites: a correlation needs three or more; give --sites mlp, or heads,mlp")
    whole = what_whole_images_change(setup, pairs, texts, None)

    def squared(changes: Float[np.ndarray, "pair site"]) -> Changes:
        return Changes.of(changes**2, pairs, whole.attributes, whole.encoder**2)

    model, pixels = setup.model, setup.pixels
    true = squared(total_effects(model, pixels, pairs, texts, resolved, progress=setup.progress))
    found = [
        _Found(name=DIRECT, squares=squared(direct_effects(model, pixels, pairs, texts, resolved)), controls={}),
        _Found(name=NORM, squares=squared(_norms(setup, pairs, resolved)), controls={}),
    ]
    for number, (spec, lens) in enumerate(
        tqdm(setup.lenses.items(), desc="lens embeddings", disable=not setup.progress)
    ):
        held = held_caches(model, pixels, [lens])
        found.append(_read(setup, spec, lens, held, pairs, texts, resolved, squared, n_placebo, number))
    half = model.cfg.n_layers / 2
    early = [i for i, site in enumerate(resolved) if (site.layer or 0) < half]
    subsets = {_ALL: list(range(len(resolved)))} | ({_EARLY: early} if 2 < len(early) < len(resolved) else {})
    scores = [
        score for one in found for subset, some in subsets.items()
        for score in _scores(one, true, subset, some, seed=setup.seed, n_shuffles=n_shuffles)
    ]  # fmt: skip
    return StudyResult(
        study="reach", setup=setup.describe(), scores=tuple(scores), command=command,
        options={
            "sites": [str(site) for site in resolved], "n_bases": len(pairs.bases), "n_pairs": len(pairs),
            "attributes": list(pairs.attributes), "n_placebo": n_placebo, "n_shuffles": n_shuffles,
        },
        tables={"sizes": _rows(resolved, whole.attributes, true, found)},
        notes=_NOTES,
    )  # fmt: skip


@torch.no_grad()
def _read(
    setup: StudySetup, spec: str, lens: Lens, held: Iterable[ViTActivationCache], pairs: AttributePairs,
    texts: TextBank, sites: list[Site], squared: Callable[[Float[np.ndarray, "pair site"]], Changes],
    n_placebo: int, number: int,
) -> _Found:  # fmt: skip
    def changes(parts: Iterator[torch.Tensor]) -> Changes:
        return squared(caption_changes(texts, torch.cat([part.cpu() for part in parts]), pairs))

    controls: dict[str, list[Changes]] = {}
    for draw in range(n_placebo):
        for kind in setup.stand_ins.kinds if lens.has_controls else ["random"]:
            generator = setup.generator(_STUDY, number, draw)
            read = setup.stand_ins.read(kind, lens, held, sites, generator=generator, turn=draw)
            controls.setdefault(NULLS.get(kind, kind), []).append(changes(one.vector for one in read))
    own = changes(lens.read(cache, sites).vector for cache in held)
    return _Found(name=spec, squares=own, controls=controls)


@torch.no_grad()
def _norms(setup: StudySetup, pairs: AttributePairs, sites: list[Site]) -> Float[np.ndarray, "pair site"]:
    """Return how long what changes at all rows is, from each base to its partner, without a lens."""
    names = list(dict.fromkeys(site.hook_name for site in sites))
    columns = []
    for some in torch.arange(len(pairs)).split(64):
        base, partner = (
            setup.model.run_with_cache(setup.pixels[[side[i] for i in some.tolist()]], names_filter=names)[1]
            for side in (pairs.base, pairs.partner)
        )
        columns.append(torch.stack([_length(setup.model, base, partner, site) for site in sites], dim=1))
    return torch.cat(columns).double().cpu().numpy()


def _length(
    model: HookedViT, base: ViTActivationCache, partner: ViTActivationCache, site: Site
) -> Float[torch.Tensor, " pair"]:
    change = partner[site.hook_name] - base[site.hook_name]
    if site.head is not None:
        change = change[:, :, site.head] @ model.attention_of(site).W_O[site.head]
    return (change - change.mean(-1, keepdim=True)).flatten(1).norm(dim=1)


def _scores(
    one: _Found, true: Changes, subset: str, sites: list[int], *, seed: int, n_shuffles: int
) -> Iterator[Score]:
    effects = true.take(sites)
    own = one.squares.take(sites)
    for over, measure in _OVER.items():

        def of(
            found: Changes, bases: Int[np.ndarray, " row"] | None = None, order: Any = None, over: str = over
        ) -> float | None:
            sizes, known = _sizes(found, bases), _sizes(effects, bases)
            if sizes is None or known is None:
                return None
            return _alike(sizes if order is None else sizes[order], known, over)

        generator = np.random.default_rng([seed, _STUDY, 100])
        orders = [generator.permutation(len(sites)) for _ in range(n_shuffles)]
        nulls = {"shuffled sites": Null.of([of(own, order=order) for order in orders])}
        nulls |= {name: Null.of([of(draw.take(sites)) for draw in draws]) for name, draws in one.controls.items()}
        yield Score(
            measure=f"{measure}, {subset}", reading=one.name, level="embedding",
            estimate=jackknife(lambda bases, of=of: of(own, bases), len(own.sums), most=1.0), n=len(own.sums),
            unit="bases", nulls=nulls, controls={},
        )  # fmt: skip


def _sizes(squares: Changes, bases: Int[np.ndarray, " row"] | None) -> _Sizes | None:
    shares = squares.shares(bases)
    return None if shares is None else np.sqrt(shares)


def _alike(sizes: _Sizes, known: _Sizes, over: str) -> float | None:
    if over == "over sites and attributes":
        return spearman(sizes.reshape(-1), known.reshape(-1))
    return finite_mean([spearman(a, b) for a, b in zip(sizes.T, known.T, strict=True)])


def _rows(sites: list[Site], attributes: list[str], true: Changes, found: list[_Found]) -> list[dict[str, Any]]:
    columns = {"total effect": true, **{one.name: one.squares for one in found}}
    sizes = {name: _sizes(changes, None) for name, changes in columns.items()}
    return [
        {"site": str(site), "attribute": attribute}
        | {name: None if size is None else float(size[i, k]) for name, size in sizes.items()}
        for i, site in enumerate(sites)
        for k, attribute in enumerate(attributes)
    ]
