"""Compare: by how many methods one can tell which words are in a state, held to words that were erased from it."""

__all__ = ["AUC", "AVERAGED", "HEADLINES", "compare_study"]

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vit_lens.errors import StudyError
from vit_lens.studies.asked import Asked
from vit_lens.studies.compare.erased import CLASSES, Erased, Scores
from vit_lens.studies.compare.methods import Method, chosen_methods
from vit_lens.studies.compare.notes import NOTES
from vit_lens.studies.compare.scoring import KINDS, OWN, areas, mean_area, shuffled_areas
from vit_lens.studies.findings import Null, Score, StudyResult
from vit_lens.studies.statistics import finite, finite_mean, jackknife
from vit_lens.studies.text_setup import TextSetup
from vit_lens.studies.whose import site_of

AUC = "AUC of words that are there against erased ones, mean over layers 1 to L"
_MEASURES = {OWN: AUC, **{kind: f"placebo, {kind}: AUC, mean over layers 1 to L" for kind in KINDS[1:]}}
BY_CLASS = "AUC within one class of words, mean over layers 1 to L"
HEADLINES = (AUC,)
AVERAGED = ("curves",)
_NULL, _STREAM, _SHOWN = "labels shuffled within each prompt", 17, 3


def compare_study(
    setup: TextSetup, asked: Sequence[Asked], *, methods: Sequence[Method] | None = None, n_fit: int = 600,
    n_draws: int = 100, command: str | None = None,
) -> StudyResult:  # fmt: skip
    """Say of every method how well it tells words that are there from erased ones, layer by layer.

    Args:
        setup: The setup, of an encoder of the embedded world.
        asked: Prompts of one object that is described in whole, two or more.
        methods: What is compared; None for all.
        n_fit: How many other sentences maps and probes are fitted on.
        n_draws: How often labels are shuffled.
        command: The command that makes this result again; None where there is none.

    Raises:
        StudyError: The encoder or a prompt is none of the embedded world's, or a method's scores are not one for each
            item, or not finite.
    """
    used = chosen_methods() if methods is None else list(methods)
    erased = Erased(setup=setup, asked=asked, n_fit=n_fit)
    scores, curves, items = [], [], []
    for method in used:
        found = _checked(method, method.score(erased), erased)
        null = shuffled_areas(found, erased.present, setup.generator(_STREAM), n_draws)
        scores += _scores(method, found, erased, Null.of(null))
        curves += _curves(method, found, erased)
        items += _items(method, found, erased)
    order = [*_MEASURES.values(), BY_CLASS]
    return StudyResult(
        study="compare", setup=setup.describe(), command=command, notes=NOTES,
        scores=tuple(sorted(scores, key=lambda one: order.index(one.measure))),
        options={
            "methods": [one.name for one in used], "n": len(asked), "erased from": list(erased.points),
            "n_fit": n_fit, "n_draws": n_draws,
        },
        tables={
            "curves": curves, "items": items,
            "methods": [{"method": one.name, "score": one.words, "cost": one.cost(erased)} for one in used],
        },
    )  # fmt: skip


def _checked(method: Method, found: Scores, erased: Erased) -> Scores:
    n_words = len(CLASSES)
    shape = (len(erased.asked), len(erased.points) + 1, n_words, 2 * n_words, erased.last + 1)
    if found.shape != shape or not np.isfinite(found).all():
        raise StudyError(
            f"method {method.name!r} gave scores of shape {found.shape}; expected {shape} [prompt, erased, word, "
            "question, layer], all finite"
        )
    return found.astype(np.float64)


def _scores(method: Method, found: Scores, erased: Erased, null: Null) -> Iterator[Score]:
    n, present = len(found), erased.present

    def score(measure: str, reading: str, kind: str, word: int | None = None, **beside: Any) -> Score:
        return Score(
            measure=measure, reading=reading, level=method.level, n=n, unit="prompts", **beside,
            estimate=jackknife(lambda rows: mean_area(found[rows], present, kind, word), n, most=1.0),
        )  # fmt: skip

    placebos = [score(_MEASURES[kind], method.name, kind) for kind in KINDS[1:]]
    beside = {kind: one.estimate.value for kind, one in zip(KINDS[1:], placebos, strict=True)}
    yield score(AUC, method.name, OWN, nulls={_NULL: null}, controls=beside)
    yield from placebos
    for word, name in enumerate(CLASSES):
        yield score(BY_CLASS, f"{method.name}: {name.split()[0]}", OWN, word)


def _curves(method: Method, found: Scores, erased: Erased) -> Iterator[dict[str, Any]]:
    by_kind = {kind: areas(found, erased.present[None], kind) for kind in KINDS}
    for layer in range(erased.last + 1):
        row = {"method": method.name, "layer": layer, "site": site_of(layer), "n": len(found)}
        row |= {kind: finite_mean(by_kind[kind][:, layer]) for kind in KINDS}
        yield row | {name.split()[0]: finite(by_kind[OWN][word, layer]) for word, name in enumerate(CLASSES)}


def _items(method: Method, found: Scores, erased: Erased) -> Iterator[dict[str, Any]]:
    """Give the first prompts' scores with the word there and erased, and above what share of erased states it lies."""
    for i, one in enumerate(erased.asked[:_SHOWN]):
        for word, name in enumerate(CLASSES):
            whole, without = found[i, -1, word, word], found[:, 0, word, word]
            for layer in range(erased.last + 1):
                rest = without[:, layer]
                above = (rest < whole[layer]).mean() + (rest == whole[layer]).mean() / 2
                yield {
                    "prompt": one.prompt, "method": method.name, "word": CLASSES[name][erased.own[i, word]],
                    "layer": layer, "there": float(whole[layer]), "erased": float(without[i, layer]),
                    "share of erased states below": float(above),
                }  # fmt: skip
