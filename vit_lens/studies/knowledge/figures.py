"""Curves of common and rare names, and the effects of layers beside those of a planted table."""

__all__ = ["concentration_figure", "effects_figure", "figures_of", "rise_figure"]

import html
from itertools import cycle
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from vit_lens.figures import dress
from vit_lens.studies.findings import StudyResult
from vit_lens.studies.knowledge.concentration import CONCENTRATION
from vit_lens.studies.knowledge.frequency import LATER
from vit_lens.studies.knowledge.name_runs import OUTCOMES
from vit_lens.studies.layer_figures import finding
from vit_lens.studies.score_figures import score_figure

if TYPE_CHECKING:
    import pandas as pd

_COLOURS = ("#1c1b19", "#b3401f", "#3b6ea5", "#5a8a3a", "#8a5a9c", "#c08a1e", "#8a857c", "#2f8f8a", "#7a4a12")


def figures_of(result: StudyResult) -> dict[str, go.Figure]:
    """Return the figures of a result, of one encoder or pooled, by name."""
    effects = result.frame("effects")
    one = next(score for score in result.scores if score.measure == CONCENTRATION)
    figures = {"rise": rise_figure(result)}
    figures |= {f"effects-{outcome}": effects_figure(effects, outcome, f"{one.n} {one.unit}") for outcome in OUTCOMES}
    return figures | {"concentration": concentration_figure(result)}


def rise_figure(result: StudyResult) -> go.Figure:
    """Draw how curves of accuracy above chance rise to their own last value: the first kind whole, the second dashed.

    Args:
        result: A result of the study.
    """
    curves = result.frame("curves")
    whole = next(score for score in result.scores if score.measure == LATER)
    said = finding(
        whole, below="of rare names is there earlier, in layers", open_="of rare names is not told apart, in layers",
        above="of rare names is there later, in layers",
    )  # fmt: skip
    figure = go.Figure()
    dashes = dict(zip(curves["kind"].unique(), ("solid", "dash"), strict=True))
    for part, colour in zip(curves["part"].unique(), cycle(_COLOURS), strict=False):
        for kind, dash in dashes.items():
            own = curves[(curves["part"] == part) & (curves["kind"] == kind)]
            figure.add_scatter(
                x=list(range(len(own))), y=own["share of the last"], mode="lines+markers",
                name=html.escape(f"{part}, {kind}"), line={"color": colour, "dash": dash},
            )  # fmt: skip
    figure.add_hline(y=0.5, line={"color": "#8a857c", "width": 1, "dash": "dot"})
    figure.update_xaxes(title="layer (0: the embeddings)")
    figure.update_yaxes(title="accuracy above chance, share of its last value")
    return dress(figure, html.escape(f"The {whole.reading} {said}"), 860, 520)


def concentration_figure(result: StudyResult) -> go.Figure:
    """Draw how much of each effect the best block has, beside an even spread and planted tables.

    Args:
        result: A result of the study.
    """
    found = [score for score in result.scores if score.measure == CONCENTRATION and score.estimate.value is not None]
    shares = [score.estimate.value or 0.0 for score in found]
    title = (
        f"The best block has {min(shares):.2f} to {max(shares):.2f} of an effect, where an even spread would be "
        f"{found[0].controls['even spread']:.2f} (n = {found[0].n} {found[0].unit})"
        if found
        else "No block has an effect"
    )
    frame = result.frame().drop(columns="whole effect")  # no share
    return score_figure(frame, CONCENTRATION, title)


def effects_figure(effects: "pd.DataFrame", outcome: str, n: str) -> go.Figure:
    """Draw the effect of every layer on one outcome: the encoder's own whole, those of planted tables dotted.

    Args:
        effects: The study's table ``effects``.
        outcome: Which outcome.
        n: What they are means over, such as 64 names.
    """
    figure = go.Figure()
    some = effects.loc[effects["outcome"] == outcome]
    for kind, colour in zip(some["effect"].unique(), cycle(_COLOURS), strict=False):
        for encoder, own in some.loc[some["effect"] == kind].groupby("encoder", sort=False):
            is_own = encoder == "its own"
            figure.add_scatter(
                x=own["layer"], y=own["all names"], mode="lines+markers" if is_own else "lines", legendgroup=str(kind),
                name=html.escape(str(kind) if is_own else f"{kind}, {encoder}"), showlegend=is_own,
                line={"color": colour, "dash": "solid" if is_own else "dot", "width": 2 if is_own else 1},
            )  # fmt: skip
    figure.add_hline(y=0, line={"color": "#8a857c", "width": 1, "dash": "dot"})
    figure.update_xaxes(title="block")
    figure.update_yaxes(title="share of the difference to another name")
    title = f"What blocks do to the {outcome} ({n}; dotted: planted tables)"
    return dress(figure, html.escape(title), 860, 520)
