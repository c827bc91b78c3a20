"""Results of several encoders as one: the encoder is the unit of inference."""

__all__ = ["check_poolable", "kind_of", "pool"]

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from vit_lens.attribution import whole
from vit_lens.errors import StudyError
from vit_lens.estimates import LEVEL
from vit_lens.studies.findings import Null, Score, StudyResult
from vit_lens.studies.headlines import averaged
from vit_lens.studies.statistics import across_encoders, finite_mean

_PER_ENCODER = ("encoder", "fingerprint", "decoder", "second_decoder", "seed", "encoder_seed")
_JUDGES_OF_THE_WORLD = ("exact", "second")
_SIZE_NULLS = ("equal-norm placebo", "no content")
_SAME = ("lenses", "settings", "second_settings", "noise_seeds", "n_test", "judge")
_COUNTS = ("n_anchor", "n_ablation")  # an image that is drawn twice is left out, so that seeds differ by one or two


def pool(results: Sequence[StudyResult], *, comparisons: int = 1, command: str | None = None) -> StudyResult:
    """Average the scores of one study over encoders, with 95% intervals by Student's t, and compare lenses in pairs.

    A null's mean is averaged, and its band is widest over the encoders. The table ``differences`` has the mean over
    encoders, and its interval, of the difference of every two readings of a measure and level; the table ``excess``
    that of each score minus the mean of each of its nulls. Tables that a study calls ``AVERAGED``, such as curves over
    layers, have the mean over encoders of each number.

    Args:
        results: Results of the same study with the same settings, each of another encoder; two or more. The seed of
            images and random draws may be each encoder's own.
        comparisons: How many readings were compared to choose one: differences and excesses then have a second
            interval, ``low corrected`` to ``high corrected``, by Bonferroni (98.75% of four).
        command: The command that makes it again; None where there is none.

    Raises:
        StudyError: There are fewer than two, they are of different studies or settings, or an encoder comes twice.

    >>> from vit_lens.studies.statistics import Estimate
    >>> said = {"measure": "AUC", "reading": "diffusion", "level": "embedding", "n": 50, "unit": "images"}
    >>> results = [
    ...     vl.studies.StudyResult(
    ...         study="overlay", setup={"encoder": name, "fingerprint": name}, options={},
    ...         scores=(vl.studies.Score(estimate=Estimate(value), **said),),
    ...     )
    ...     for name, value in {"first": 0.6, "second": 0.8}.items()
    ... ]
    >>> print(vl.studies.pool(results).scores[0])
    diffusion, embedding: +0.70 [-0.57, +1.97] (n = 2 encoders)
    """
    check_poolable(results)
    if len(kinds := sorted({str(kind_of(result)) for result in results})) > 1:
        raise StudyError(
            f"the encoders are of different kinds: {', '.join(kinds)}; pool those of one, or compare kinds with "
            "vit-lens study factors"
        )
    comparisons = whole("comparisons", comparisons, StudyError)
    keys = dict.fromkeys((s.measure, s.reading, s.level) for result in results for s in result.scores)
    scores = []
    for measure, reading, level in keys:
        found = [result.score(measure, reading, level) for result in results]
        estimate = across_encoders([s.estimate.value for s in found if s.estimate.value is not None])
        if len(whys := {s.estimate.why for s in found}) == 1 and estimate.value is None:
            estimate = replace(estimate, why=f"{estimate.why}: {whys.pop()}")
        shared = [name for name in found[0].nulls if all(name in s.nulls for s in found)]  # later versions have more
        nulls = {name: _pooled([s.nulls[name] for s in found]) for name in shared}
        controls = {name: finite_mean([s.controls.get(name) for s in found]) for name in found[0].controls}
        n = sum(s.estimate.value is not None for s in found)
        scores.append(
            Score(
                measure=measure, reading=reading, level=level, estimate=estimate, n=n, unit="encoders", nulls=nulls,
                controls=controls,
            )
        )  # fmt: skip
    first = results[0]
    apart = {*_PER_ENCODER, *(key for key in _COUNTS if len({result.setup.get(key) for result in results}) > 1)}
    setup = {key: value for key, value in first.setup.items() if key not in apart}
    setup |= {"encoder": f"{len(results)} encoders", "encoders": [_identity(result) for result in results]}
    return StudyResult(
        study=first.study, setup=setup, options=first.options, scores=tuple(scores),
        tables={
            "differences": _differences(results, comparisons), "each": _each(results),
            "excess": _excess(results, comparisons),
            **{name: _averaged([result.tables[name] for result in results], name) for name in averaged(first)},
        },
        notes=_notes(results, comparisons), command=command,
    )  # fmt: skip


def kind_of(result: StudyResult) -> str | None:
    """Return the kind of text encoder that a result is of; None where it is of none.

    Results of before there were kinds say none; those of the embedded world's encoders are of CLIP's.
    """
    setup = result.setup
    is_older = "kind" not in setup and setup.get("format") == "sd" and setup.get("judge") in _JUDGES_OF_THE_WORLD
    return "clip" if is_older else setup.get("kind")


def check_poolable(results: Sequence[StudyResult]) -> None:
    """Refuse results that are not of the same study with the same settings, each of another encoder.

    Raises:
        StudyError: They are not, or there are fewer than two.
    """
    if len(results) < 2:
        raise StudyError(f"{len(results)} result to pool; give those of two encoders or more")
    if len(kinds := sorted({result.study for result in results})) > 1:
        raise StudyError(f"results of {', '.join(kinds)} cannot be pooled; give one study's")
    prints = [result.setup.get("fingerprint") for result in results]
    if len(set(prints)) < len(prints):
        raise StudyError("an encoder comes twice; each counts once")
    if wholes := [one.setup.get("encoder") for one in results if "encoders" in one.setup]:
        raise StudyError(f"a result of {wholes[0]} is pooled already; give the results of single encoders")
    first, names = results[0], {(s.measure, s.reading, s.level) for s in results[0].scores}
    for other in results[1:]:
        own = {(s.measure, s.reading, s.level) for s in other.scores}
        if odd := sorted(names ^ own):
            names_of = " and ".join(str(one.setup.get("encoder")) for one in (first, other))
            raise StudyError(
                f"{names_of} hold different scores: {len(odd)} are in one alone, such as {', '.join(odd[0])}; run the "
                "study on both with the same version"
            )
        unlike = [k for k in first.options if other.options.get(k) != first.options[k]]
        unlike += [k for k in _SAME if other.setup.get(k) != first.setup.get(k)]
        unlike += [k for k in _COUNTS if not _about(other.setup.get(k), first.setup.get(k))]
        if unlike:
            raise StudyError(f"these results differ in {', '.join(unlike)}; run the study with one set of options")


def _about(a: int | None, b: int | None) -> bool:
    return a == b or (a is not None and b is not None and abs(a - b) <= max(a, b) / 100)


def _notes(results: Sequence[StudyResult], comparisons: int) -> tuple[str, ...]:
    """Return the notes that all results share, and those of single encoders by name."""
    shared = [note for note in results[0].notes if all(note in result.notes for result in results)]
    own = [f"{r.setup.get('encoder')}: {note}" for r in results for note in r.notes if note not in shared]
    first = (
        f"Pooled over {len(results)} encoders; intervals by Student's t over encoders, whatever a note says of one. A "
        "null's band is the widest of any encoder's, and not that of the mean."
    )
    if comparisons > 1:
        first += (
            f" Corrected ones are at {100 * _corrected(comparisons):g}%, for {comparisons} comparisons (Bonferroni)."
        )
    return (first, *shared, *own)


def _identity(result: StudyResult) -> dict[str, Any]:
    return {key: result.setup[key] for key in _PER_ENCODER if key in result.setup}


def _pooled(nulls: Sequence[Null]) -> Null:
    known = [null for null in nulls if null.mean is not None and null.low is not None and null.high is not None]
    if not known:
        return Null(mean=None, low=None, high=None, n_draws=0)
    mean = sum(null.mean or 0.0 for null in known) / len(known)
    lows, highs = [null.low or 0.0 for null in known], [null.high or 0.0 for null in known]
    return Null(mean=mean, low=min(lows), high=max(highs), n_draws=sum(null.n_draws for null in known))


def _differences(results: Sequence[StudyResult], comparisons: int) -> list[dict[str, Any]]:
    """Return the difference of every two readings of a measure; baselines before decoding meet decoded lenses, too."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for score in results[0].scores:
        groups.setdefault(score.measure, []).append((score.reading, score.level))
    rows = []
    for measure, readings in groups.items():
        for a, b in combinations(readings, 2):
            pairs = [tuple(r.score(measure, *one).estimate.value for one in (a, b)) for r in results]
            key = {"measure": measure, "reading": a[0], "level": a[1], "minus": b[0], "minus level": b[1]}
            rows.append(_row(key, [x - y for x, y in pairs if x is not None and y is not None], comparisons))
    return rows


def _excess(results: Sequence[StudyResult], comparisons: int) -> list[dict[str, Any]]:
    """Return each score minus the mean of each of its nulls, and of the larger of those that leave size, by encoder."""
    rows = []
    for score in results[0].scores:
        found = [result.score(score.measure, score.reading, score.level) for result in results]
        shared = [name for name in score.nulls if all(name in own.nulls for own in found)]
        size = [name for name in _SIZE_NULLS if name in shared]
        for names in [*([name] for name in shared), *([size] if len(size) > 1 else [])]:
            excess = []
            for own in found:
                means = [own.nulls[name].mean for name in names]
                known = [mean for mean in means if mean is not None]
                if own.estimate.value is not None and len(known) == len(means):
                    excess.append(own.estimate.value - max(known))
            key = {"measure": score.measure, "level": score.level, "reading": score.reading}
            key["null"] = names[0] if len(names) == 1 else f"the larger of {' and '.join(names)}"
            rows.append(_row(key, excess, comparisons))
    return rows


def _each(results: Sequence[StudyResult]) -> list[dict[str, Any]]:
    return [
        {
            "encoder": result.setup.get("encoder"), "measure": score.measure, "level": score.level,
            "reading": score.reading, "value": score.estimate.value, "low": score.estimate.low,
            "high": score.estimate.high,
        }
        for result in results
        for score in result.scores
    ]  # fmt: skip


def _averaged(tables: Sequence[list[dict[str, Any]]], name: str) -> list[dict[str, Any]]:
    """Return a table with the mean over encoders of every number; what an encoder does not know is left out of it.

    Raises:
        StudyError: The tables have other rows: words tell rows apart.
    """
    rows = list(zip(*tables, strict=False))
    alike = len({len(one) for one in tables}) == 1 and all(len({_words(one) for one in row}) == 1 for row in rows)
    if not alike:
        raise StudyError(f"table {name!r} has other rows in one result than in another; run the study anew on both")
    return [{key: _mean_of([one[key] for one in row]) for key in row[0]} for row in rows]


def _words(row: Mapping[str, Any]) -> tuple[tuple[str, str | None], ...]:
    return tuple((key, value if isinstance(value, str) else None) for key, value in row.items())


def _mean_of(values: Sequence[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else finite_mean(values)


def _row(key: Mapping[str, str], values: Sequence[float], comparisons: int) -> dict[str, Any]:
    found = across_encoders(values)
    row = {**key, "value": found.value, "low": found.low, "high": found.high, "why": found.why}
    if comparisons > 1:
        wider = across_encoders(values, level=_corrected(comparisons))
        row |= {"low corrected": wider.low, "high corrected": wider.high}
    return row


def _corrected(comparisons: int) -> float:
    return 1 - (1 - LEVEL) / comparisons
