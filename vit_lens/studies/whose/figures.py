"""Curves of every reading over layers, part by part."""

__all__ = ["figures_of", "readings_figure"]

import plotly.graph_objects as go

from vit_lens.studies.findings import StudyResult
from vit_lens.studies.layer_figures import curves_by_layer, finding
from vit_lens.studies.score_figures import score_figure
from vit_lens.studies.whose.curves import later_than
from vit_lens.studies.whose.rates import RATIO


def figures_of(result: StudyResult) -> dict[str, go.Figure]:
    """Return the figures of a result, of one encoder or pooled, by name."""
    kinds, scores = result.frame("curves")["kind"].unique(), result.frame()
    figures = {f"layers-{k}": readings_figure(result, kind) for k, kind in enumerate(kinds)}
    if scores.loc[scores["measure"] == RATIO, "value"].notna().any():
        figures["rates"] = score_figure(scores, RATIO)
    return figures


def readings_figure(result: StudyResult, kind: str) -> go.Figure:
    """Draw, for every part of a kind of prompts, accuracy less chance by layer under every reading.

    Args:
        result: A result of the study.
        kind: A kind of prompts in it.
    """
    curves = result.frame("curves")
    own = curves[curves["kind"] == kind].assign(above=curves["accuracy"] - curves["chance"])
    first = own["part"].iloc[0]
    known = [s for s in result.scores if (s.measure, s.reading) == (later_than("interpolation"), f"{kind}: {first}")]
    said = [
        finding(
            one, below="is there earlier than in a mixture of first and last layer, in layers",
            open_="is not told apart from a mixture of first and last layer, in layers",
            above="is there later than in a mixture of first and last layer, in layers",
        )
        for one in known
    ]  # fmt: skip
    title = f"{kind}: the {first} {said[0]}" if said else f"{kind} (n = {int(own['n'].iloc[0])} prompts)"
    readings = list(own["reading"].unique())
    return curves_by_layer(
        own, panel="part", line="reading", value="above", title=title, said="accuracy less chance",
        dotted=[one for one in readings if one.startswith("probe")],
    )  # fmt: skip
