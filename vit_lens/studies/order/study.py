"""Order: which of two objects appears first, the one that is named first or the one that the sentence is about?"""

__all__ = ["AT_ONE_DISTANCE", "AVERAGED", "HEADLINES", "LINEAR", "SYNTACTIC", "curve_rows", "order_study"]

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vit_lens.errors import StudyError
from vit_lens.studies.asked import Asked
from vit_lens.studies.findings import Null, Score, StudyResult
from vit_lens.studies.layer_answers import LayerAnswers
from vit_lens.studies.layer_statistics import NO_RISE, excess, half_rise
from vit_lens.studies.statistics import jackknife
from vit_lens.studies.text_setup import TextSetup

IN_ORDER, FRONTED = "pair, head first", "pair, fronted"
HEAD, OTHER = "head there", "other there"
SYNTACTIC = "how many layers the head is earlier than the other"
LINEAR = "how many layers what is named first is earlier"
_DISAGREE = "how many layers the head is earlier, where it is named last"
AT_ONE_DISTANCE = "how many layers what is named first is earlier, as far from the end"
HEADLINES = (SYNTACTIC, LINEAR, _DISAGREE, AT_ONE_DISTANCE)
AVERAGED = ("curves",)

_STREAM = 12
_NOTES = (
    "Every scene is said twice: with the head first (X left of Y) and fronted (left of Y , X). A layer is that of the "
    "half-rise of an object's accuracy above that of another prompt's object. Positive: earlier. The head's lead is "
    "the mean over both orders, so that place, and the distance to the end of the text, cancel; the lead of what is "
    "named first is the mean over both objects, so that the head cancels. In these sentences what is named first is "
    "also farther from the end: linear order and distance cannot be told apart here.",
    "Null: the names of the two objects are exchanged at random, scene by scene (the head's lead), or the two "
    "sentences of a scene are (the lead of what is named first). Intervals: jackknife over scenes.",
)
_Curves = Mapping[tuple[str, str], tuple[Float[np.ndarray, "scene noise site"], Float[np.ndarray, "scene noise site"]]]


def order_study(
    setup: TextSetup, asked: Sequence[Asked], *, n_shuffles: int = 200, command: str | None = None
) -> StudyResult:  # fmt: skip
    """Hold the layers at which two objects appear against their places in the sentence and in the syntax.

    Args:
        setup: The setup.
        asked: Prompts of the kinds "pair, head first" and "pair, fronted", as many of each and of the same scenes in
            the same order, that are asked "head there" and "other there".
        n_shuffles: How many draws the nulls have.
        command: The command that makes this result again; None where there is none.

    Raises:
        StudyError: The prompts are of other kinds, or of other scenes in the one order than in the other.
    """
    _check(asked)
    answers = setup.answers("layers", asked)
    curves: _Curves = {
        (kind, part): (answers[kind].of(part), answers[kind].chance(part))
        for kind in (IN_ORDER, FRONTED)
        for part in (HEAD, OTHER)
    }
    n = len(answers[IN_ORDER].prompts)
    scores = [
        _score(SYNTACTIC, _head_lead, curves, n, _exchanged_parts, setup, n_shuffles),
        _score(LINEAR, _first_lead, curves, n, _exchanged_orders, setup, n_shuffles),
        _score(_DISAGREE, _lead_where_they_disagree, curves, n, _exchanged_parts, setup, n_shuffles),
    ]
    return StudyResult(
        study="order", setup=setup.describe(), scores=tuple(scores), command=command,
        options={"n_scenes": n, "n_shuffles": n_shuffles}, tables={"curves": curve_rows(answers)}, notes=_NOTES,
    )  # fmt: skip


def _check(asked: Sequence[Asked]) -> None:
    kinds = {kind: [one for one in asked if one.kind == kind] for kind in (IN_ORDER, FRONTED)}
    if {one.kind for one in asked} != set(kinds) or len({len(some) for some in kinds.values()}) > 1:
        raise StudyError(f"study order takes as many prompts of kind {IN_ORDER!r} as of {FRONTED!r}, and no others")
    for one in asked:
        if missing := {HEAD, OTHER} - set(one.parts):
            raise StudyError(
                f"{one.prompt!r} is not asked {sorted(missing)[0]!r}; it must be asked {HEAD!r} and {OTHER!r}"
            )
    for a, b in zip(*kinds.values(), strict=True):
        known = a.sentence is not None and b.sentence is not None
        if known and (a.sentence.scene, a.sentence.head) != (b.sentence.scene, b.sentence.head):  # pyright: ignore[reportOptionalMemberAccess]
            raise StudyError(f"{a.prompt!r} and {b.prompt!r} are of different scenes; say each scene in both orders")


def _layer(curves: _Curves, kind: str, part: str, rows: Int[np.ndarray, " row"]) -> float | None:
    right, chance = curves[kind, part]
    return half_rise(excess(right[rows], chance[rows]))


def _lead(parts: Sequence[tuple[float, float | None]]) -> float | None:
    return None if any(value is None for _, value in parts) else sum(sign * (value or 0.0) for sign, value in parts)


def _head_lead(curves: _Curves, rows: Int[np.ndarray, " row"]) -> float | None:
    return _lead([
        (sign / 2, _layer(curves, kind, part, rows))
        for kind in (IN_ORDER, FRONTED)
        for part, sign in ((OTHER, 1.0), (HEAD, -1.0))
    ])  # fmt: skip


def _first_lead(curves: _Curves, rows: Int[np.ndarray, " row"]) -> float | None:
    last = ((IN_ORDER, OTHER), (FRONTED, HEAD))
    first = ((IN_ORDER, HEAD), (FRONTED, OTHER))
    return _lead([(s / 2, _layer(curves, *one, rows)) for s, some in ((1.0, last), (-1.0, first)) for one in some])


def _lead_where_they_disagree(curves: _Curves, rows: Int[np.ndarray, " row"]) -> float | None:
    return _lead([(1.0, _layer(curves, FRONTED, OTHER, rows)), (-1.0, _layer(curves, FRONTED, HEAD, rows))])


def _exchanged_parts(curves: _Curves, flip: np.ndarray) -> _Curves:
    """Exchange head and other of some scenes."""
    return {
        (kind, part): _mixed(curves[kind, part], curves[kind, OTHER if part == HEAD else HEAD], flip)
        for kind, part in curves
    }


def _exchanged_orders(curves: _Curves, flip: np.ndarray) -> _Curves:
    """Exchange the two sentences of some scenes."""
    return {
        (kind, part): _mixed(curves[kind, part], curves[FRONTED if kind == IN_ORDER else IN_ORDER, part], flip)
        for kind, part in curves
    }


def _mixed(own: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...], flip: np.ndarray) -> Any:
    return tuple(np.where(flip[:, None, None], b, a) for a, b in zip(own, other, strict=True))


def _score(
    measure: str, of: Callable[[_Curves, np.ndarray], float | None], curves: _Curves, n: int,
    exchanged: Callable[[_Curves, np.ndarray], _Curves], setup: TextSetup, n_shuffles: int,
) -> Score:  # fmt: skip
    generator, every = setup.generator(_STREAM), np.arange(n)
    draws = [of(exchanged(curves, generator.random(n) < 0.5), every) for _ in range(n_shuffles)]
    layers = float(next(iter(curves.values()))[0].shape[-1])
    return Score(
        measure=measure, reading="Diffusion Lens", level="decoded", n=n, unit="scenes",
        estimate=jackknife(lambda rows: of(curves, rows), n, most=layers, why=NO_RISE),
        nulls={"exchanged": Null.of(draws)},
    )  # fmt: skip


def curve_rows(answers: Mapping[str, LayerAnswers]) -> list[dict[str, Any]]:
    """Give the accuracy and chance of head and other, by kind and site."""
    return [
        {
            "kind": kind, "site": site, "part": part, **found.told(part, i),
            "mismatched": round(float(found.chance(part)[..., i].mean()), 5),
        }
        for kind, found in answers.items()
        for i, site in enumerate(found.sites)
        for part in (HEAD, OTHER)
    ]  # fmt: skip
