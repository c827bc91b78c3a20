"""Both objects over layers, in both orders of a sentence."""

__all__ = ["figures_of", "order_figure"]

import plotly.graph_objects as go

from vit_lens.studies.findings import StudyResult
from vit_lens.studies.layer_figures import curves_by_layer, finding
from vit_lens.studies.order.study import LINEAR, SYNTACTIC


def figures_of(result: StudyResult) -> dict[str, go.Figure]:
    """Return the figures of a result, of one encoder or pooled, by name."""
    return {"layers": order_figure(result)}


def order_figure(result: StudyResult) -> go.Figure:
    """Draw how often the head and the other object are there, by layer, with the head first and fronted."""
    curves = result.frame("curves")
    linear, syntactic = (next(s for s in result.scores if s.measure == one) for one in (LINEAR, SYNTACTIC))
    first = finding(
        linear, below="What is named first is later, in layers", open_="Place in the sentence is not told apart",
        above="What is named first is earlier, in layers",
    )  # fmt: skip
    second = finding(
        syntactic, below="the head is later", open_="head and other are not told apart", above="the head is earlier"
    )
    return curves_by_layer(
        curves.assign(above=curves["accuracy"] - curves["mismatched"]), panel="kind", line="part", value="above",
        title=f"{first}; {second}", said="share of pictures, less another prompt's",
    )  # fmt: skip
