"""Areas by layer for every method, and a sheet of what the methods say of one prompt."""

__all__ = ["area_curves", "figures_of", "prompt_sheet"]

import html
import textwrap
from collections.abc import Mapping
from typing import Any

import pandas as pd
import PIL.Image
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_lens.figures import SEQUENTIAL, dress, picture_uri
from vit_lens.studies.compare.scoring import KINDS
from vit_lens.studies.compare.study import AUC
from vit_lens.studies.findings import StudyResult
from vit_lens.studies.layer_figures import curves_by_layer
from vit_lens.studies.score_figures import score_figure

_ROW = 62


def figures_of(result: StudyResult) -> dict[str, go.Figure]:
    """Return the figures of a result, of one encoder or pooled, by name."""
    return {"areas": area_curves(result), "scores": score_figure(result.frame(), AUC)}


def area_curves(result: StudyResult) -> go.Figure:
    """Draw the area under the curve by layer, a panel for each method, its placebos dotted.

    Args:
        result: A result of the study.
    """
    curves = result.frame("curves")
    rows = curves.melt(id_vars=["method", "layer"], value_vars=list(KINDS), var_name="asked", value_name="area")
    scores = [one for one in result.scores if one.measure == AUC and one.estimate.value is not None]
    said = [f"{one.reading} {one.estimate}" for one in sorted(scores, key=lambda one: -(one.estimate.value or 0.0))]
    title = f"Words that are there are told from erased ones best by {said[0]}" if said else "No area is defined"
    title += f", least by {said[-1]}" if len(said) > 1 else ""
    title += f" (AUC, mean over layers; n = {scores[0].n} {scores[0].unit})" if scores else ""
    figure = curves_by_layer(
        rows, panel="method", line="asked", value="area", title=title, said="AUC", dotted=KINDS[1:], chance=0.5
    )
    return figure.update_yaxes(range=[0, 1.03])


def prompt_sheet(items: pd.DataFrame, pictures: Mapping[str, list[PIL.Image.Image]]) -> go.Figure:
    """Draw what is said of the first prompt: a row for each layer, pictures and then numbers, a column each.

    A number is the share of states without the word, of all prompts, that the method scores below this prompt's whole
    state, the mean over its words: 1 is there, .5 cannot tell.

    Args:
        items: The table "items" of the study's result.
        pictures: Columns of pictures, one for each layer; none where no method draws.
    """
    first = str(items["prompt"].iloc[0])
    own: Any = items[items["prompt"] == first]
    table = own.pivot_table(index="layer", columns="method", values="share of erased states below", sort=False)
    layers, n = list(table.index), len(pictures)
    figure = make_subplots(
        rows=len(layers), cols=n + 1, column_widths=[1.0] * n + [1.3 * len(table.columns)], horizontal_spacing=0.005,
        subplot_titles=[html.escape(name).replace(" ", "<br>") for name in pictures],
        vertical_spacing=0.002,
        specs=[[{}] * n + [{"rowspan": len(layers)}]] + [[{}] * n + [None]] * (len(layers) - 1),
    )  # fmt: skip
    for column, some in enumerate(pictures.values(), start=1):
        for row, picture in enumerate(some, start=1):
            figure.add_trace(go.Image(source=picture_uri(picture), hoverinfo="skip"), row=row, col=column)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    heads = ["<br>".join(map(html.escape, textwrap.wrap(str(one), 14))) for one in table.columns]
    heat = go.Heatmap(
        z=table.to_numpy(), x=heads, y=layers, zmin=0, zmax=1, colorscale=SEQUENTIAL, showscale=False,
        texttemplate="%{z:.2f}", xgap=2, ygap=2,
    )  # fmt: skip
    figure.add_trace(heat, row=1, col=n + 1)
    figure.update_xaxes(visible=True, side="top", tickangle=0, showgrid=False, row=1, col=n + 1)
    figure.update_yaxes(visible=True, autorange="reversed", dtick=1, showgrid=False, row=1, col=n + 1)
    drawn = "Pictures: the first noise. " if n else ""
    title = (
        f"“{html.escape(first)}”, layer by layer<br><sup>{drawn}Numbers: share of erased states below, mean over the "
    )
    title += "three words</sup>"
    figure.update_annotations(font_size=12)
    dress(figure, title, 120 + 66 * n + 92 * len(table.columns), 190 + _ROW * len(layers))
    return figure.update_layout(margin={"t": 170, "b": 20})
