"""Factors: one finding on encoders of several kinds, a chain in which each differs from the last in one factor."""

__all__ = ["STEP", "factors_study"]

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from vit_lens.errors import StudyError
from vit_lens.mini import FACTORS, TextKind
from vit_lens.studies.findings import LEAST_ENCODERS, Score, StudyResult
from vit_lens.studies.headlines import headlines
from vit_lens.studies.pooling import check_poolable, kind_of, pool
from vit_lens.studies.statistics import Estimate, across_encoders, between_encoders

STEP = "along the chain, "
"""What the measures of differences begin with, before the measure whose differences they are."""

_CHAIN: tuple[TextKind, ...] = tuple(FACTORS)
_USUAL_STEPS = 700  # of encoders that do not say it
_OF_CHAIN = ("kind", "factors")
_NOTES = (
    "Every difference is of two kinds that are neighbours in the chain. Encoders with the same seeds in both are "
    "compared pair by pair (the same names, sentences and denoiser's seed), others as two samples (Welch); intervals "
    "by Student's t over encoders, of each difference by itself.",
    "positions: T5's format brings RMS norms, no biases and undivided scores along with relative positions, so that "
    "this step is of all of these together. attention and objective are of one factor alone.",
    "A kind whose denoiser draws little has late layers, or none: see the bars in the encoders' metrics.json first.",
)
_Key = tuple[str, str, str]


def factors_study(results: Sequence[StudyResult], *, command: str | None = None) -> StudyResult:
    """Compare the headline measures of one study between kinds of text encoders, one factor at a time.

    Every measure has a score for each kind, the mean over its encoders, and for each step along the chain, the
    difference of two means (the measure's name after :data:`STEP`). The table ``each`` has every encoder's value.

    Args:
        results: Results of one study with the same settings and seeds, each of another encoder, of two kinds or more.
        command: The command that makes it again; None where there is none.

    Raises:
        StudyError: They are of different studies, settings or seeds, an encoder comes twice, is of no kind or has its
            kind's seed twice, there is one kind alone, or no two kinds are neighbours in the chain.
    """
    check_poolable(results)
    if len(seeds := sorted({str(result.setup.get("seed")) for result in results})) > 1:
        raise StudyError(
            f"these results are of different prompts (seeds {', '.join(seeds)}): run the study with one --prompt-seed"
        )
    if len(lengths := sorted({result.setup.get("text_steps") or _USUAL_STEPS for result in results})) > 1:
        raise StudyError(
            f"these encoders were trained for {' and '.join(map(str, lengths))} steps: compare kinds of one budget"
        )
    kinds = _by_kind(results)
    steps: list[tuple[TextKind, TextKind]] = [(a, b) for a, b in pairwise(_CHAIN) if a in kinds and b in kinds]
    if not steps:
        raise StudyError(
            f"encoders of {', '.join(kinds)} alone: no two of these kinds differ in one factor. The chain is "
            f"{', '.join(_CHAIN)}; add the results of a neighbour"
        )
    first, measures = results[0], headlines(results[0])
    keys = [(s.measure, s.reading, s.level) for s in first.scores if s.measure in measures]
    scores = [*_means(kinds, keys), *_steps(kinds, keys, steps)]
    shared = {k: v for k, v in first.setup.items() if all(r.setup.get(k) == v for r in results) and k not in _OF_CHAIN}
    shared["encoder"] = ", ".join(f"{len(own)} {kind}" for kind, own in kinds.items())
    return StudyResult(
        study="factors", setup=shared, scores=tuple(scores), command=command,
        options={"of": first.study, "kinds": {kind: len(own) for kind, own in kinds.items()}, **first.options},
        tables={"each": list(_each(kinds, keys))}, notes=(*_said(kinds, results), *_NOTES),
    )  # fmt: skip


def _by_kind(results: Sequence[StudyResult]) -> dict[TextKind, list[StudyResult]]:
    found: dict[TextKind, list[StudyResult]] = {}
    for kind in _CHAIN:
        if own := [result for result in results if kind_of(result) == kind]:
            found[kind] = own
    if odd := [result for result in results if kind_of(result) not in FACTORS]:
        raise StudyError(
            f"{odd[0].setup.get('encoder')} is of kind {kind_of(odd[0])!r}; expected one of {', '.join(_CHAIN)}, as "
            "vit-lens mini train-text --text-kind makes them"
        )
    if len(found) < 2:
        raise StudyError(f"all encoders are of kind {next(iter(found))}; pool one kind with vit-lens study pool")
    for kind, own in found.items():
        seeds = [seed for result in own if (seed := result.setup.get("encoder_seed")) is not None]
        if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
            raise StudyError(f"two encoders of kind {kind} have seed {twice[0]}; each seed counts once for a kind")
    return found


def _means(kinds: Mapping[TextKind, Sequence[StudyResult]], keys: Sequence[_Key]) -> Iterator[Score]:
    pooled = {kind: pool(own) if len(own) > 1 else None for kind, own in kinds.items()}
    for key in keys:
        for kind, own in kinds.items():
            score = (pooled[kind] or own[0]).score(*key)
            if pooled[kind] is None:
                value = score.estimate.value
                alone = across_encoders([] if value is None else [value])
                score = replace(score, estimate=alone, n=int(value is not None), unit="encoders")
            yield replace(score, reading=f"{kind}: {score.reading}")


def _steps(
    kinds: Mapping[TextKind, Sequence[StudyResult]], keys: Sequence[_Key], steps: Sequence[tuple[TextKind, TextKind]]
) -> Iterator[Score]:
    for key in keys:
        for before, after in steps:
            estimate, n = _difference(kinds[before], kinds[after], key)
            yield Score(
                measure=f"{STEP}{key[0]}", reading=f"{_factor(before, after)} ({after} - {before}): {key[1]}",
                level=key[2], estimate=estimate, n=n, unit="encoders",
            )  # fmt: skip


def _difference(before: Sequence[StudyResult], after: Sequence[StudyResult], key: _Key) -> tuple[Estimate, int]:
    """Return how much more a measure is in the second kind, and over how many encoders, or pairs of them."""
    values = [{r.setup.get("encoder_seed"): r.score(*key).estimate.value for r in own} for own in (before, after)]
    if values[0].keys() == values[1].keys() and None not in values[0]:
        both = [(values[0][seed], values[1][seed]) for seed in values[0]]
        differences = [b - a for a, b in both if a is not None and b is not None]
        return across_encoders(differences), len(differences)
    a, b = ([v for r in own if (v := r.score(*key).estimate.value) is not None] for own in (before, after))
    return between_encoders(a, b), len(a) + len(b)


def _factor(before: TextKind, after: TextKind) -> str:
    a, b = vars(FACTORS[before]), vars(FACTORS[after])
    return next(name for name in a if a[name] != b[name])


def _each(kinds: Mapping[TextKind, Sequence[StudyResult]], keys: Sequence[_Key]) -> Iterator[dict[str, Any]]:
    for kind, own in kinds.items():
        for result in own:
            for key in keys:
                named = dict(zip(("measure", "reading", "level"), key, strict=True))
                seed = result.setup.get("encoder_seed")
                value = result.score(*key).estimate.value
                yield {"kind": kind, "encoder": result.setup.get("encoder"), "seed": seed, **named, "value": value}


def _said(kinds: Mapping[TextKind, Sequence[StudyResult]], results: Sequence[StudyResult]) -> Iterator[str]:
    few = [f"{len(own)} of {kind}" for kind, own in kinds.items() if len(own) < LEAST_ENCODERS]
    if few:
        yield f"Descriptive: the encoder is the unit, and six of a kind are asked for; there are {', '.join(few)}."
    if older := sum("kind" not in result.setup for result in results):
        yield (
            f"{older} results are of before encoders had kinds, and count as {_CHAIN[0]}; they say no seed, so that "
            "nothing is compared pair by pair with them. Run the study again on the finished folder, which only reads "
            "it, to add both."
        )
