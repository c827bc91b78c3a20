"""Every head of every planted encoder, by how much of the planted attribute each lens shows there."""

__all__ = ["planted_figure"]

import html
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from vit_lens.errors import RecordError
from vit_lens.figures import dress

_OTHERS, _PLANTED = "#8a857c", "#b3401f"
_SPREAD = 0.32


def planted_figure(heads: pd.DataFrame, lenses: Sequence[str]) -> go.Figure:
    """Draw one line for each lens: the planted head of each encoder, and all others, on one scale.

    Values are shares of the largest that the lens shows anywhere in that encoder, so that lenses of any strength
    compare: a planted head at 1 was found, other heads far from 0 show what they do not write.

    Args:
        heads: The table ``heads`` of the study.
        lenses: The lenses to draw, which are columns of the table.

    Raises:
        RecordError: The table is empty, or lacks a column.
    """
    needed = ["attribute", "planted", "kind", "site", "is planted", *lenses]
    if heads.empty or not set(needed) <= set(heads):
        raise RecordError(f"the table of heads is empty or lacks columns; it needs {', '.join(needed)}")
    plants = heads.groupby(["attribute", "planted", "kind"], sort=False)
    place = plants.ngroup() / max(1, plants.ngroups - 1) - 0.5  # each encoder on a height of its own
    figure = go.Figure()
    for planted, name, colour, size, symbol in (
        (False, "other heads", _OTHERS, 4, "circle"),
        (True, "planted head", _PLANTED, 10, "diamond"),
    ):
        rows = heads.loc[heads["is planted"] == planted]
        said = [f"{r.site}: {r.attribute} planted in {r.planted}, {r.kind}" for r in rows.itertuples()]
        for line, lens in enumerate(lenses):
            share = heads[lens] / plants[lens].transform(lambda column: column.abs().max())
            figure.add_scatter(
                x=share[rows.index], y=line + 2 * _SPREAD * place[rows.index], mode="markers", name=name,
                legendgroup=name, showlegend=line == 0, text=[html.escape(text) for text in said],
                marker={"color": colour, "size": size, "symbol": symbol, "opacity": 0.9 if planted else 0.35},
                hovertemplate="%{text}<br>%{x:.2f}<extra></extra>",
            )  # fmt: skip
    figure.add_vline(x=0, line={"color": _OTHERS, "width": 1, "dash": "dot"})
    ticks = [html.escape(lens) for lens in lenses]
    figure.update_yaxes(tickvals=list(range(len(lenses))), ticktext=ticks, autorange="reversed", automargin=True)
    figure.update_xaxes(title="attribute shown, as a share of the most that the lens shows in any head")
    dress(figure, "Planted truth: what every head shows", 860, 210 + 60 * len(lenses))
    figure.update_layout(legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0})
    return figure
