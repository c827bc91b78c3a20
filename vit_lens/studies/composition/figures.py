"""Compounds beside the product of their parts, over layers."""

__all__ = ["composition_figure", "figures_of"]

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from vit_lens.studies.composition.study import GAP
from vit_lens.studies.findings import StudyResult
from vit_lens.studies.layer_figures import curves_by_layer, finding

_WHOLE, _PRODUCT, _CHANCE = "the whole", "product of its parts", "the whole, of another prompt"


def figures_of(result: StudyResult) -> dict[str, go.Figure]:
    """Return the figures of a result, of one encoder or pooled, by name."""
    composed = [s.reading for s in result.scores if s.measure == GAP]
    kinds = [kind for kind in result.options["kinds"] if any(one.startswith(f"{kind}: ") for one in composed)]
    return {f"layers-{k}": composition_figure(result, kind) for k, kind in enumerate(kinds)}


def composition_figure(result: StudyResult, kind: str) -> go.Figure:
    """Draw, for every compound of a kind of prompts, how often the whole is right, its parts, and their product.

    Args:
        result: A result of the study.
        kind: A kind of prompts in it.
    """
    curves = result.frame("curves")
    own = curves[curves["kind"] == kind]
    compounds: Mapping[str, Sequence[str]] = result.options["compounds"]
    scores = [s for s in result.scores if s.measure == GAP and s.reading.startswith(f"{kind}: ")]
    products = result.frame("compounds")
    rows = []
    for score in scores:
        compound = score.reading.removeprefix(f"{kind}: ")
        both = products[(products["kind"] == kind) & (products["compound"] == compound)]
        of = {str(name): list(some["accuracy"]) for name, some in own.groupby("part", sort=False)}
        lines = {name: list(both[name]) for name in (_WHOLE, _PRODUCT)}
        lines |= {name: of[name] for name in compounds[compound] if name in of}
        lines[_CHANCE] = list(own.loc[own["part"] == compound, "mismatched"])
        rows += [
            {"compound": compound, "line": line, "accuracy": float(value)}
            for line, values in lines.items()
            for value in values
        ]
    said = finding(
        scores[0], below="is later than its parts make it", open_="was not seen to be later than its parts make it",
        above="is there more often than its parts by themselves would be",
    )  # fmt: skip
    title = f"{kind}: the {scores[0].reading.removeprefix(f'{kind}: ')} {said}"
    return curves_by_layer(
        pd.DataFrame(rows), panel="compound", line="line", value="accuracy", title=title, said="share of pictures",
        dotted=(_PRODUCT, _CHANCE),
    )  # fmt: skip
