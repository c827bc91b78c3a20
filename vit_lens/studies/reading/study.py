"""Reading: units of nine kinds, explained and tested by two protocols, and what separates them."""

__all__ = ["CONTRASTS", "HEADLINES", "MEASURES", "reading_study"]

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from tqdm import tqdm

from vit_lens.errors import StudyError
from vit_lens.explaining import PROTOCOLS, Explanations, NothingToExplain, Units, difference, explain
from vit_lens.files import make_directory, read_json, write_atomic
from vit_lens.identity import forget_fingerprints
from vit_lens.mini import world
from vit_lens.studies.findings import Score, StudyResult
from vit_lens.studies.reading.kinds import KINDS, rows_of, units_of
from vit_lens.studies.reading.material import SITE, Material
from vit_lens.studies.reading.measures import causal, low_activation, matched, stability, tells

Numbers = Mapping[str, list[np.ndarray]]  # by kind, of each seed

DETECTION, PAPER = "detection, mended", "score, paper"
_OF_ROWS = {
    DETECTION: ("mended", "score"), "AUC of the activation, mended": ("mended", "auc"),
    "localisation, mended": ("mended", "localisation"), PAPER: ("paper", "score"),
}  # fmt: skip
MEASURES = {
    DETECTION: "units", "low activation": "units", "coverage": "values", "one-unit probing": "values",
    "causal": "units", "planted": "planted directions", "stability": "rows",
}  # fmt: skip
"""What may separate what was learnt from what was not, and what each is a mean over."""
CONTRASTS = {
    "(a) TopK above neurons": ("TopK", "neurons"), "(b) ITDA like TopK": ("ITDA", "TopK"),
    "(c) TopK above random directions": ("TopK", "random directions"),
    "(c) TopK above untrained": ("TopK", "untrained"),
}  # fmt: skip
"""The headlines: the first kind less the second, by both protocols."""
_SHARED = ("values", "planted directions")  # the same for every seed of dictionaries
_AGAINST = ("untrained", "random directions")
_SEPARATES = "separates: "
HEADLINES = (*CONTRASTS, *(f"{_SEPARATES}{measure}" for measure in MEASURES))
_NEXT_LAYER = 6
_NOTES = (
    "Explainer and judge are exact. Differences are of means over units, each dictionary seed counting alike; "
    "intervals of one model are bootstrap over units, and the inference is over models, by vit-lens study pool.",
    "(a) and (c) hold where the whole interval over models lies above 0, (b) where it lies within .05 of 0; a measure "
    "separates where both its intervals lie above 0. Where (c) fails, a score proves nothing here, whatever (a) and "
    "(b) say.",
    "Neurons, random directions, PCA and the supervised probe are dense, and cut where they fire as often as the "
    "median feature of TopK that fires. Data points are encoded by pursuit, as ITDA is. The world has 47 values.",
)


def reading_study(
    material: Material, *, seeds: Sequence[int] = (0, 1, 2), command: str | None = None, progress: bool = False
) -> StudyResult:
    """Explain and test units of every kind, and say what separates those that were learnt.

    Args:
        material: The model, scenes and dictionaries.
        seeds: The seeds of the dictionaries, averaged within the model.
        command: The command that makes this result again; None where there is none.
        progress: Whether a progress bar is shown.

    Raises:
        StudyError: There are no seeds, or one comes twice.
        ExplanationError: No feature fires on images enough.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise StudyError(f"seeds={list(seeds)}; expected one or more, each once")
    jobs = [(kind, seed) for seed in seeds for kind in KINDS]
    found = {job: _kept(material, *job, seeds) for job in tqdm(jobs, desc="kinds", disable=not progress)}
    explained = {
        protocol: {kind: [found[kind, seed][0][protocol] for seed in seeds] for kind in KINDS} for protocol in PROTOCOLS
    }
    numbers: dict[str, Numbers] = {
        measure: {kind: [one.values(kind, column) if one.rows else np.array([]) for one in of] for kind, of in
                  explained[protocol].items()}
        for measure, (protocol, column) in _OF_ROWS.items()
    }  # fmt: skip
    for measure in MEASURES:
        if measure not in numbers:
            numbers[measure] = {kind: [found[kind, seed][1][measure] for seed in seeds] for kind in KINDS}
    scores = [*_headlines(numbers), *_separating(numbers), *_of_kinds(numbers, explained)]
    forget_fingerprints(material.model)
    return StudyResult(
        study="reading",
        setup={
            "encoder": material.model.encoder_id, "fingerprint": material.model.fingerprint, "seed": material.seed,
            "site": SITE, "explainer": material.oracle.name, "judge": material.oracle.name,
            "n_values": len(material.oracle.values),
        },
        options={**asdict(material.sizes), "dictionary_seeds": list(seeds)}, scores=tuple(scores),
        tables={"counts": _counts(explained, seeds)}, notes=_NOTES, command=command,
    )  # fmt: skip


def _kept(
    material: Material, kind: str, seed: int, seeds: Sequence[int]
) -> tuple[dict[str, Explanations], dict[str, np.ndarray]]:
    """Return the explanations of a kind by both protocols, and its measures, from files or anew."""
    folder = material.out / "kinds"
    name = f"{kind.replace(' ', '-')}-{seed}"
    paths = {protocol: folder / f"{name}-{protocol}.json" for protocol in PROTOCOLS}
    measured = folder / f"{name}-measures.json"
    make_directory(folder)
    units = None if all(path.is_file() for path in (*paths.values(), measured)) else units_of(material, kind, seed)
    found = {}
    for protocol, path in paths.items():
        if units is not None and not path.is_file():
            _explain(units, material, protocol).save(path)
        found[protocol] = Explanations.load(path)
    if units is not None and not measured.is_file():
        told = _measure(units, found["mended"], material, kind, seed)
        write_atomic(measured, json.dumps(told, allow_nan=False).encode())
    said = read_json(measured, StudyError, "remove it, and it is measured anew")
    values = {
        name: np.array([np.nan if one is None else one for one in each], dtype=float) for name, each in said.items()
    }
    return found, values | {"stability": _stability(material, kind, seed, seeds)}


def _explain(units: Units, material: Material, protocol: str) -> Explanations:
    sizes, oracle = material.sizes, material.oracle
    try:
        return explain(
            [units], material.pictures, oracle, protocol=protocol, n=sizes.units, least=sizes.least,
            seed=material.seed, grid=oracle.grid,
        )  # fmt: skip
    except NothingToExplain as nothing:
        if units.name == "TopK":
            raise
        return Explanations(
            protocol=protocol, explainer=oracle.name, judge=oracle.name, n_images=sizes.scenes, least=sizes.least,
            seed=material.seed, rows=(), skipped=nothing.skipped,
        )  # fmt: skip


def _measure(
    units: Units, explained: Explanations, material: Material, kind: str, seed: int
) -> dict[str, list[float | None]]:
    """Return what is measured of the units of one kind; None where something is undefined."""
    strengths, oracle, halves = units.strongest(), material.oracle, material.halves
    covered, probed = tells(strengths, oracle.holds, halves)
    found = {
        "low activation": low_activation(explained.rows, strengths, oracle, halves),
        "coverage": covered, "one-unit probing": probed, "causal": np.array([]), "planted": np.array([]),
    }  # fmt: skip
    if kind != "untrained model":  # whose logits mean nothing
        found["causal"] = causal(
            explained.rows, units, material.model, material.texts, material.resid, _NEXT_LAYER, oracle.values, seed=seed
        )
    if (rows := rows_of(material, kind, seed, planted=True)) is not None:
        found["planted"] = matched(rows, material.directions)
    return {name: [float(one) if np.isfinite(one) else None for one in each] for name, each in found.items()}


def _stability(material: Material, kind: str, seed: int, seeds: Sequence[int]) -> np.ndarray:
    own = rows_of(material, kind, seed, planted=False)
    if own is None:
        return np.array([])
    others = [rows_of(material, kind, other, planted=False) for other in seeds if other != seed]
    return stability(own, [rows for rows in others if rows is not None])


def _headlines(numbers: Mapping[str, Numbers]) -> list[Score]:
    return [
        _difference(headline, reading, numbers[reading], *kinds, "units")
        for headline, kinds in CONTRASTS.items()
        for reading in (DETECTION, PAPER)
    ]


def _separating(numbers: Mapping[str, Numbers]) -> list[Score]:
    return [
        _difference(f"{_SEPARATES}{measure}", f"TopK minus {other}", numbers[measure], "TopK", other, unit)
        for measure, unit in MEASURES.items()
        for other in _AGAINST
    ]


def _difference(measure: str, reading: str, of: Numbers, kind: str, other: str, unit: str) -> Score:
    some, others = (_groups(of[name], unit) for name in (kind, other))
    estimate = difference(some, others, seed=0)
    if unit in _SHARED and len(some) == len(others) == 1:  # of the same values: paired
        estimate = difference([some[0] - others[0]], [], seed=0)
    return Score(measure=measure, reading=reading, level="embedding", estimate=estimate, n=_n(some), unit=unit)


def _groups(groups: Sequence[np.ndarray], unit: str) -> list[np.ndarray]:
    """Return numbers in groups whose members are drawn apart: what every seed has alike is one group, of means."""
    if unit not in _SHARED or len({len(group) for group in groups}) > 1:
        return list(groups)
    return [np.mean(groups, axis=0)]


def _of_kinds(numbers: Mapping[str, Numbers], explained: Mapping[str, Mapping[str, list[Explanations]]]) -> list[Score]:
    scores = []
    for measure, of in numbers.items():
        for kind, groups in of.items():
            unit = MEASURES.get(measure, "units")
            own, controls = _groups(groups, unit), {}
            if measure in (DETECTION, PAPER):
                several = [one for one in explained[_OF_ROWS[measure][0]][kind] if one.rows]
                controls = {
                    name: _mean([one.values(kind, column) for one in several])
                    for name, column in (("explanations shuffled", "shuffled"), ("constant judge", "constant"))
                }
            scores.append(Score(
                measure=measure, reading=kind, level="embedding", estimate=difference(own, [], seed=0), n=_n(own),
                unit=unit, controls=controls,
            ))  # fmt: skip
    return scores


def _mean(groups: list[np.ndarray]) -> float | None:
    known = [group[np.isfinite(group)] for group in groups]
    return float(np.mean([one.mean() for one in known])) if known and all(map(len, known)) else None


def _n(groups: Sequence[np.ndarray]) -> int:
    return sum(int(np.isfinite(group).sum()) for group in groups)


def _counts(explained: Mapping[str, Mapping[str, list[Explanations]]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Give by kind and seed how many units were explained, and how many not, and why."""
    return [
        {"kind": kind, "dictionary seed": str(seed), **(one.counts()[kind] if one.kinds else {})}
        for kind, several in explained["mended"].items()
        for seed, one in zip(seeds, several, strict=True)
    ]


def captions() -> list[str]:
    """Return every value of the world as a caption, in the order of the oracle's values."""
    return [prompt for name in world.ATTRIBUTES for prompt in world.prompts(name)]
