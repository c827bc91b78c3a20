"""The content study: does a lens show what a site does? Attribute by attribute, within each site."""

__all__ = ["HEADLINES", "content_study", "early_mlps", "open_study", "spellings_drawn", "what_whole_images_change"]

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from vit_lens.addresses import Site, Sites
from vit_lens.errors import StudyError
from vit_lens.studies.content.agreement import EARLY, baseline_scores, reading_scores
from vit_lens.studies.content.effects import Changes, caption_changes, direct_effects, total_effects
from vit_lens.studies.content.pair_readings import STREAM, Chosen, Study, Whole, read_embeddings, read_pictures
from vit_lens.studies.content.pairs import MIN_ATTRIBUTES, AttributePairs
from vit_lens.studies.content.site_tables import matrix_rows, notes_of, site_rows, strength
from vit_lens.studies.findings import StudyResult
from vit_lens.studies.images import content_of
from vit_lens.studies.seen_pictures import Judge
from vit_lens.studies.study_setup import StudySetup
from vit_lens.studies.usual_lenses import DECODED
from vit_lens.texts import TextBank

HEADLINES = (
    "agreement within sites, total effect", "excess over shuffled sites within sites, total effect",
    "excess over shuffled sites within top sites, total effect",
    f"excess over shuffled sites within {EARLY}, total effect",
)  # fmt: skip
"""The measures that the protocol decides by."""
_WEAK = 0.2  # of the median attribute's full change


def content_study(
    setup: StudySetup,
    pairs: AttributePairs,
    texts: TextBank,
    *,
    sites: Sites = ("heads", "mlp"),
    decoded: Sequence[str] | None = None,
    n_decoded: int = 6,
    n_largest: int = 24,
    n_random: int = 12,
    top: int = 12,
    n_placebo: int = 20,
    n_shuffles: int = 200,
    controls: Sequence[str] = ("random",),
    command: str | None = None,
) -> StudyResult:
    """Hold what a site's picture says of ten attributes, or of yours, against what the site does to them.

    Causal matrix [site attribute]: the change of the caption contrast (logit of the partner's caption minus that of
    the base's) when the site's output is patched in from the partner. Picture matrix: the change of the same contrast
    from the base's picture of the site to the partner's, with the same noise, read by the judge; before decoding, from
    lens embedding to lens embedding, read with the encoder's own captions. Both are means over pairs, as shares of
    what the whole image changes. The score is the rank correlation across attributes, within each site (so that its
    size cancels), averaged over sites.

    Args:
        setup: The setup, whose test images are ``pairs.images``; with a decoder it has a judge. Every lens is read.
        pairs: Base images and their partners, with captions for each attribute.
        texts: Captions embedded by the encoder, those of the pairs among them.
        sites: The sites that are read, or groups of them; all lenses must be defined on them.
        decoded: Spellings of the lenses that are read off pictures; None takes those of :data:`DECODED` that the setup
            has.
        n_decoded: How many bases are drawn with their partners, at most.
        n_largest: How many sites with the largest total effects are drawn.
        n_random: How many of the other sites are drawn, at random.
        top: How many sites with the largest total effects are also scored by themselves.
        n_placebo: How many draws the equal-norm placebo has before decoding.
        n_shuffles: How many draws the null of shuffled sites has.
        controls: Of which pictures are drawn, of all sites that are; the isotropic one always is, and before decoding
            all controls are read.
        command: The command that makes this result again; None where there is none.

    Raises:
        StudyError: The test images are others than the pairs', a caption is missing, there is no judge, a lens is not
            the setup's, or fewer than three attributes change what the encoder and the judge see.
        TextError: The captions are another encoder's.
        UnknownSiteError: A site is not the model's.
        LensError: A lens is not defined on a site.
    """
    setup.accept("content", pooled_only=False)
    specs = spellings_drawn(setup, decoded)
    kinds = setup.stand_ins.check(controls, [setup.lenses[spec] for spec in specs])
    study = open_study(setup, pairs, texts, sites=sites, n_largest=n_largest, n_random=n_random, top=top)
    resolved, chosen, whole = study.sites, study.chosen, study.whole
    causal = {name: whole.changes(found, pairs) for name, found in study.effects.items()}
    judge = setup.judge("content") if setup.pictures is not None else None
    readings = read_embeddings(study, texts, n_placebo=n_placebo)
    if judge is not None:
        n = min(n_decoded, len(pairs.bases))
        readings += [read_pictures(study, spec, n=n, kinds=kinds) for spec in specs]
    scores = [score for one in readings for score in reading_scores(one, seed=setup.seed, n_shuffles=n_shuffles)]
    scores += baseline_scores(causal, chosen.top, chosen.early, seed=setup.seed, n_shuffles=n_shuffles)
    return StudyResult(
        study="content", setup=setup.describe(), scores=tuple(scores), command=command,
        options={
            "sites": [str(site) for site in resolved], "decoded": specs, "n_bases": len(pairs.bases),
            "n_decoded": min(n_decoded, len(pairs.bases)), "n_pairs": len(pairs), "attributes": list(pairs.attributes),
            "n_largest": n_largest, "n_random": n_random, "top": top, "n_placebo": n_placebo, "n_shuffles": n_shuffles,
            "controls": ["random", *kinds],
        },
        tables={
            "attributes": whole.table, "sites": site_rows(resolved, causal, chosen, readings),
            "matrix": matrix_rows(resolved, whole.attributes, causal, chosen, readings),
        },
        notes=notes_of(pairs, whole, judge),
    )  # fmt: skip


def open_study(
    setup: StudySetup, pairs: AttributePairs, texts: TextBank, *, sites: Sites, n_largest: int, n_random: int, top: int
) -> Study:  # fmt: skip
    """Measure what whole images and sites change, and choose the sites that are drawn.

    Args:
        setup: The setup, whose test images are those of the pairs.
        pairs: Base images and their partners.
        texts: The encoder's captions.
        sites: The sites that are read.
        n_largest: How many sites with the largest total effects are drawn.
        n_random: How many of the others.
        top: How many of the first are also scored by themselves.

    Raises:
        StudyError: The test images are others than the pairs', a caption is missing, there is no judge, or fewer than
            three attributes change what the encoder and the judge see.
    """
    judge = judge_texts = None
    if setup.pictures is not None:
        judge, judge_texts = setup.judge("content"), setup.judge_texts("content")
    _check(setup, pairs, texts, judge_texts, top, n_largest)
    resolved = Site.resolve(sites, setup.model.cfg)
    whole = what_whole_images_change(setup, pairs, texts, judge)
    total = total_effects(setup.model, setup.pixels, pairs, texts, resolved, progress=setup.progress)
    direct = direct_effects(setup.model, setup.pixels, pairs, texts, resolved)
    early = early_mlps(resolved, setup.model.cfg.n_layers)
    chosen = _choose(setup, whole.changes(total, pairs), top, early, n_largest, n_random)
    effects = {"total effect": total, "direct effect": direct}
    return Study(setup=setup, pairs=pairs, sites=resolved, effects=effects, chosen=chosen, whole=whole)


def spellings_drawn(setup: StudySetup, decoded: Sequence[str] | None) -> list[str]:
    """Return the spellings of the lenses whose pictures are drawn; none without a decoder.

    Raises:
        StudyError: One is not the setup's, or there is no decoder for it.
    """
    if setup.pictures is None:
        if decoded:
            setup.drawing("content")
        return []
    specs = [spec for spec in DECODED if spec in setup.lenses] if decoded is None else list(decoded)
    if unknown := [spec for spec in specs if spec not in setup.lenses]:
        raise StudyError(f"{unknown[0]} cannot be decoded: the setup's lenses are {', '.join(setup.lenses)}")
    return specs


def _check(
    setup: StudySetup, pairs: AttributePairs, texts: TextBank, judge_texts: TextBank | None, top: int, n_largest: int
) -> None:
    tested = setup.images.test
    same = len(tested) == len(pairs.images)
    if not same or any(content_of(a) != content_of(b) for a, b in zip(tested, pairs.images, strict=True) if a is not b):
        raise StudyError(
            "the setup tests other images than the pairs hold: StudyImages(pairs.images, anchor, ablation)"
        )
    texts.check(setup.model)
    for name, bank in (("encoder", texts), ("judge", judge_texts)):
        if bank is not None and (missing := [text for text in pairs.captions if text not in bank.captions]):
            raise StudyError(
                f"the {name}'s captions lack {missing[0]!r} and {len(missing) - 1} more of the pairs': make them with "
                "TextBank.from_pretrained(name, pairs.captions)"
            )
    if not 1 <= top <= n_largest:
        raise StudyError(f"top={top} sites are scored by themselves and drawn: expected 1 to n_largest={n_largest}")


@torch.no_grad()
def what_whole_images_change(setup: StudySetup, pairs: AttributePairs, texts: TextBank, judge: Judge | None) -> Whole:
    """Measure what whole images change, and leave out attributes that hardly count for the encoder or the judge."""
    changes = {"encoder": caption_changes(texts, setup.clean[:, None], pairs)[:, 0]}
    if judge is not None:
        parts = [pairs.images[i : i + 64] for i in range(0, len(pairs.images), 64)]
        seen = torch.cat([judge.model(judge.model.preprocess(list(part))) for part in parts])
        changes["judge"] = caption_changes(setup.judge_texts("content"), seen[:, None], pairs)[:, 0]
    member = np.array([[name == own for own in pairs.attribute] for name in pairs.attributes])
    means = {who: (member @ found) / member.sum(1) for who, found in changes.items()}
    weak = {who: (found <= 0) | (found < _WEAK * np.median(found)) for who, found in means.items()}
    kept = ~np.any(list(weak.values()), axis=0)
    if kept.sum() < MIN_ATTRIBUTES:
        raise StudyError(
            f"{int(kept.sum())} of {len(kept)} attributes change what the encoder and the judge see by at least "
            f"{_WEAK:g} of the median ({_listed(pairs.attributes, means)}); {MIN_ATTRIBUTES} are needed: give captions "
            "that tell the images of a pair apart"
        )
    table = [
        {
            "attribute": name, "pairs": int(member[index].sum()), "kept": bool(kept[index]),
            **{f"full change, {who}": float(found[index]) for who, found in means.items()},
            "why": ", ".join(f"hardly changes what the {who} sees" for who in weak if weak[who][index]) or None,
        }
        for index, name in enumerate(pairs.attributes)
    ]  # fmt: skip
    return Whole(
        attributes=[name for name, keep in zip(pairs.attributes, kept, strict=True) if keep],
        encoder=means["encoder"][kept], judge=means["judge"][kept] if judge is not None else None, table=table,
    )  # fmt: skip


def _listed(attributes: Sequence[str], means: dict[str, Float[np.ndarray, " attribute"]]) -> str:
    parts = (
        f"{who}: {', '.join(f'{a} {x:+.2f}' for a, x in zip(attributes, v, strict=True))}" for who, v in means.items()
    )
    return "; ".join(parts)


def early_mlps(sites: Sequence[Site], n_layers: int) -> list[int]:
    """Return which sites are MLPs of the first half of the layers, by number."""
    return [i for i, site in enumerate(sites) if site.kind == "mlp" and 2 * (site.layer or 0) < n_layers]


def _choose(setup: StudySetup, total: Changes, top: int, early: list[int], n_largest: int, n_random: int) -> Chosen:
    """Choose sites by their total effects alone, and some of the others at random."""
    order = [int(site) for site in np.argsort(-strength(total), kind="stable")]
    largest, rest = order[:n_largest], order[n_largest:]
    generator = np.random.default_rng([setup.seed, STREAM])
    random = sorted(int(site) for site in generator.choice(rest, size=min(n_random, len(rest)), replace=False))
    why = {**dict.fromkeys(random, "random"), **dict.fromkeys(largest, "largest"), **dict.fromkeys(order[:top], "top")}
    return Chosen(top=sorted(order[:top]), early=early, drawn=sorted([*largest, *random]), why=why)
