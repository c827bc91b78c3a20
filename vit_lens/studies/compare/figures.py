"""Areas by layer for every method, and a sheet of what the methods say of one prompt."""

__all__ = ["area_curves", "prompt_sheet"]

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import PIL.Image
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_lens.figures import SEQUENTIAL, dress, picture_uri
from vit_lens.studies.compare.scoring import OTHER_PROMPT, OTHER_WORD, OWN

if TYPE_CHECKING:
    import pandas as pd

_COLOURS = ("#b3401f", "#c08a1e", "#3b6ea5", "#2f8f8a", "#5a8a3a", "#8a5a9c", "#1c1b19", "#8a857c", "#7a4a12")
_ROW = 62


def area_curves(curves: "pd.DataFrame") -> go.Figure:
    """Draw the area under the curve by layer, every method's own line whole and its placebos dotted and dashed.

    Args:
        curves: The table "curves" of the study's result.
    """
    figure = go.Figure()
    means = {}
    for colour, (method, own) in zip(_COLOURS * len(curves), curves.groupby("method", sort=False), strict=False):
        means[str(method)] = own.loc[own["layer"] > 0, OWN].mean()
        for kind, dash in ((OWN, "solid"), (OTHER_WORD, "dot"), (OTHER_PROMPT, "dash")):
            is_own = kind == OWN
            figure.add_scatter(
                x=own["layer"], y=own[kind], mode="lines+markers" if is_own else "lines", legendgroup=str(method),
                name=html.escape(str(method)), showlegend=is_own, marker={"size": 4},
                line={"color": colour, "dash": dash, "width": 2 if is_own else 1}, opacity=1 if is_own else 0.6,
            )  # fmt: skip
    figure.add_hline(y=0.5, line={"color": "#8a857c", "width": 1})
    figure.update_xaxes(title="layer (0: the embeddings)")
    figure.update_yaxes(title="AUC, words there against erased", range=[0, 1.02])
    best, least = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    title = f"Which words are there? n = {int(curves['n'].iloc[0])} prompts"
    title += f"<br>Mean over layers: {best} {means[best]:.2f}" + (
        f", {least} {means[least]:.2f}" if len(means) > 1 else ""
    )
    title += f"<br><sup>dotted: {OTHER_WORD}; dashed: {OTHER_PROMPT}</sup>"
    return dress(figure, title, 940, 580)


def prompt_sheet(items: "pd.DataFrame", pictures: Mapping[str, list[PIL.Image.Image]]) -> go.Figure:
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
        vertical_spacing=0.002, specs=[[{}] * n + [{"rowspan": len(layers)}]] + [[{}] * n + [None]] * (len(layers) - 1),
    )  # fmt: skip
    for column, some in enumerate(pictures.values(), start=1):
        for row, picture in enumerate(some, start=1):
            figure.add_trace(go.Image(source=picture_uri(picture), hoverinfo="skip"), row=row, col=column)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    heat = go.Heatmap(
        z=table.to_numpy(), x=[html.escape(str(one)).replace(" ", "<br>", 1) for one in table.columns], y=layers,
        zmin=0, zmax=1, colorscale=SEQUENTIAL, showscale=False, texttemplate="%{z:.2f}", xgap=2, ygap=2,
    )  # fmt: skip
    figure.add_trace(heat, row=1, col=n + 1)
    figure.update_xaxes(visible=True, side="top", showgrid=False, row=1, col=n + 1)
    figure.update_yaxes(visible=True, autorange="reversed", dtick=1, showgrid=False, row=1, col=n + 1)
    names = "" if not pictures else f"Pictures: {', '.join(pictures)}. "
    title = f"“{html.escape(first)}”, layer by layer (a row each)<br><sup>{html.escape(names)}"
    title += "Numbers: share of erased states below, mean over the three words</sup>"
    dress(figure, title, 120 + 66 * n + 92 * len(table.columns), 170 + _ROW * len(layers))
    return figure.update_layout(margin={"t": 130, "b": 20})
