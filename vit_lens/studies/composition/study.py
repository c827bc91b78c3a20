"""Composition: is a compound right later than its parts, beyond what a conjunction is by arithmetic?"""

__all__ = ["AVERAGED", "COMPOUNDS", "HEADLINES", "composition_study"]

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vit_lens.errors import StudyError
from vit_lens.studies.asked import Asked
from vit_lens.studies.findings import Null, Score, StudyResult
from vit_lens.studies.layer_answers import LayerAnswers
from vit_lens.studies.layer_statistics import NO_RISE, earlier_right, excess, first_right, half_rise, stays_right
from vit_lens.studies.statistics import finite_mean, jackknife
from vit_lens.studies.text_setup import TextSetup

COMPOUNDS = {
    "scene": ("layout", "object 1", "object 2"),
    "object 1": ("colour 1", "texture 1", "shape 1"),
    "object 2": ("colour 2", "texture 2", "shape 2"),
}
"""What is a compound, and of which parts; a part that a kind of prompt does not have is left out."""
GAP = "observed minus product of parts, layers before the last"
HALF = "half-rise above mismatched prompts"
LAST = "accuracy above mismatched prompts, last layer"
HEADLINES = (GAP, HALF)
AVERAGED = ("curves", "compounds")

_STREAM = 11
_STATISTICS: dict[str, Callable[[np.ndarray], float | None]] = {
    "first right": first_right, "right from here on": stays_right, "right earlier, wrong at the end": earlier_right,
}  # fmt: skip
_NOTES = (
    "Accuracy: the share of pictures that show the part, as the judge sees it. Chance is no constant: it is the rate "
    "at which the part of another prompt of the kind is seen at the same layer.",
    "Observed minus product: the share of pictures with the whole compound less the product of the shares of its "
    "parts, on the same prompts, averaged over the layers between the embeddings and the last. A compound that is "
    "later only because all its parts must be right lies at 0; below 0 parts are there and not together. Null: every "
    "part's answers of another prompt, which are together by chance alone.",
    "Half-rise: the layer at which accuracy less chance first has half of its last value, between layers by a straight "
    "line. First right, right from here on: means over prompts that are right at the end.",
)


def composition_study(
    setup: TextSetup,
    asked: Sequence[Asked],
    *,
    compounds: Mapping[str, Sequence[str]] | None = None,
    n_shuffles: int = 200,
    command: str | None = None,
) -> StudyResult:
    """Hold the accuracy of compounds, layer by layer, against the product of the accuracies of their parts.

    Args:
        setup: The setup.
        asked: The prompts, two or more of each kind.
        compounds: What is a compound, and of which parts; None for those of the embedded world, :data:`COMPOUNDS`.
        n_shuffles: How many draws the null has.
        command: The command that makes this result again; None where there is none.

    Raises:
        StudyError: No prompt has a compound with two parts, or a kind has a single prompt.
    """
    known = COMPOUNDS if compounds is None else compounds
    _check(asked, known)
    answers = setup.answers("layers", asked)
    scores, rows, products = [], [], []
    for kind, found in answers.items():
        rows += _curves(kind, found)
        for part in found.parts:
            scores += _emergence(kind, part, found)
        for number, (compound, parts) in enumerate(known.items()):
            own = [part for part in parts if part in found.parts]
            if compound in found.parts and len(own) > 1:
                generator = setup.generator(_STREAM, number)
                scores.append(_gap(kind, compound, own, found, generator, n_shuffles))
                products += _products(kind, compound, own, found)
    return StudyResult(
        study="composition", setup=setup.describe(), scores=tuple(scores), command=command,
        options={
            "kinds": {kind: len(found.prompts) for kind, found in answers.items()}, "n_shuffles": n_shuffles,
            "compounds": {name: list(parts) for name, parts in known.items()},
        },
        tables={"curves": rows, "compounds": products}, notes=_NOTES,
    )  # fmt: skip


def _check(asked: Sequence[Asked], compounds: Mapping[str, Sequence[str]]) -> None:
    for one in asked:
        if any(name in one.parts and len(set(parts) & set(one.parts)) > 1 for name, parts in compounds.items()):
            return
    raise StudyError(
        f"no prompt has a compound with two parts or more ({', '.join(compounds)}): there is nothing to compose. A "
        "compound is a part of its own: a table asks for scene beside layout, object 1 and object 2"
    )


def _gap(
    kind: str, compound: str, parts: list[str], found: LayerAnswers, generator: np.random.Generator, n_shuffles: int
) -> Score:
    whole, of = found.right[..., found.parts.index(compound)], [found.right[..., found.parts.index(p)] for p in parts]

    def gap(prompts: np.ndarray, observed: np.ndarray = whole) -> float | None:
        product = np.prod([part[prompts].mean((0, 1)) for part in of], axis=0)
        return finite_mean((observed[prompts].mean((0, 1)) - product)[1:-1])

    n = len(whole)
    draws = []
    for _ in range(n_shuffles):
        together = np.prod([part[generator.permutation(n)] for part in of], axis=0)
        draws.append(gap(np.arange(n), together))
    joint = np.prod(of, axis=0)  # what the parts say together, whatever else the compound asks
    return Score(
        measure=GAP, reading=f"{kind}: {compound}", level="decoded", estimate=jackknife(gap, n, most=1.0), n=n,
        unit="prompts", nulls={"parts of other prompts": Null.of(draws)},
        controls={"all parts at once minus product": gap(np.arange(n), joint)},
    )  # fmt: skip


def _products(kind: str, compound: str, parts: list[str], found: LayerAnswers) -> Iterator[dict[str, Any]]:
    """Give each layer of a compound: the share of pictures with the whole, and the product of its parts' shares."""
    product = np.prod([found.of(part).mean((0, 1)) for part in parts], axis=0)
    whole = found.of(compound).mean((0, 1))
    for site, share, of_parts in zip(found.sites, whole, product, strict=True):
        yield {
            "kind": kind, "compound": compound, "site": site, "the whole": round(float(share), 5),
            "product of its parts": round(float(of_parts), 5),
        }  # fmt: skip


def _emergence(kind: str, part: str, found: LayerAnswers) -> Iterator[Score]:
    right, chance = found.of(part), found.chance(part)
    n, _, layers = right.shape

    def score(measure: str, of: Callable[[np.ndarray], float | None], most: float) -> Score:
        return Score(
            measure=measure, reading=f"{kind}: {part}", level="decoded", n=n, unit="prompts",
            estimate=jackknife(of, n, most=most, why=NO_RISE),
        )  # fmt: skip

    yield score(HALF, lambda rows: half_rise(excess(right[rows], chance[rows])), float(layers))
    yield score(LAST, lambda rows: float(excess(right[rows], chance[rows])[-1]), 1.0)
    for name, of in _STATISTICS.items():
        yield score(name, lambda rows, of=of: of(right[rows].reshape(-1, layers)), float(layers))


def _curves(kind: str, found: LayerAnswers) -> list[dict[str, Any]]:
    """Give each layer: accuracy and chance of every part, and how far pictures are from any scene."""
    residual: Float[np.ndarray, " site"] = found.residual.mean((0, 1))
    return [
        {
            "kind": kind, "site": site, "part": part, **found.told(part, i),
            "mismatched": round(float(found.chance(part).mean((0, 1))[i]), 5),
            "residual": None if np.isnan(residual[i]) else round(float(residual[i]), 6),
        }
        for i, site in enumerate(found.sites)
        for part in found.parts
    ]  # fmt: skip
