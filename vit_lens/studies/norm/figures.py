"""Parts over layers under every norm, and how long states are."""

__all__ = ["figures_of", "lengths_figure", "norm_figure"]

import plotly.graph_objects as go

from vit_lens.figures import dress
from vit_lens.studies.findings import StudyResult
from vit_lens.studies.layer_figures import curves_by_layer
from vit_lens.studies.norm.study import MEAN

_USUAL, _BARE = "format", "none"


def figures_of(result: StudyResult) -> dict[str, go.Figure]:
    """Return the figures of a result, of one encoder or pooled, by name."""
    kinds = result.frame("curves")["kind"].unique()
    figures = {f"layers-{k}": norm_figure(result, kind) for k, kind in enumerate(kinds)}
    return figures | {"lengths": lengths_figure(result)}


def norm_figure(result: StudyResult, kind: str) -> go.Figure:
    """Draw, for every part of a kind of prompts, accuracy less chance by layer under every norm.

    Args:
        result: A result of the study.
        kind: A kind of prompts in it.
    """
    curves = result.frame("curves")
    own = curves[curves["kind"] == kind].assign(above=curves["accuracy"] - curves["mismatched"])
    part = own["part"].iloc[0]
    found = {
        norm: score
        for norm in result.options["norms"]
        for score in result.scores
        if (score.measure, score.reading) == (MEAN, f"{norm}; {kind}: {part}")
    }
    shown = [f"{found[norm].estimate} ({norm})" for norm in (_USUAL, _BARE) if norm in found]
    one = next(iter(found.values()))
    title = f"{kind}: the {part} over all layers, above chance: {', '.join(shown)}; n = {one.n} {one.unit}"
    return curves_by_layer(own, panel="part", line="norm", value="above", title=title, said="accuracy less chance")


def lengths_figure(result: StudyResult) -> go.Figure:
    """Draw how long states are at every layer."""
    lengths = result.frame("lengths")
    figure = go.Figure()
    figure.add_scatter(x=lengths["layer"], y=lengths["length"], mode="lines+markers", line={"color": "#1c1b19"})
    figure.update_xaxes(title="layer (0: the embeddings)")
    figure.update_yaxes(title="root mean square length of a state", rangemode="tozero")
    first = float(lengths["share of the last"].iloc[0])
    encoders = result.setup.get("encoders")
    n = f"{result.options['n']} prompts" if encoders is None else f"{len(encoders)} encoders"
    title = f"Embeddings are {first:.2f} times as long as the last state (n = {n})"
    return dress(figure, title, 860, 420)
