"""The two matrices of the content study: what sites change, and what their lens or picture shows to change."""

__all__ = ["content_matrices"]

import html

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_lens.errors import RecordError
from vit_lens.figures import DIVERGING, dress

_EFFECTS = ("total effect", "direct effect")


def content_matrices(matrix: pd.DataFrame, reading: str, *, drawn_as: str | None = "top") -> go.Figure:
    """Draw sites against attributes three times: total effect, direct effect, and what one reading shows.

    Each row is in units of its own largest entry, as the study compares attributes within a site; the share of the
    whole image's change is shown on hovering.

    Args:
        matrix: The table ``matrix`` of the study's result.
        reading: The reading, a column of the table such as ``dsl-mean:alpha=5, decoded``.
        drawn_as: The sites to draw: ``top``, ``largest`` or ``random``; None for all that have this reading.

    Raises:
        RecordError: The table is another study's, or has no such reading or sites.
    """
    fixed = {"site", "drawn as", "attribute", *_EFFECTS}
    if not fixed <= set(matrix.columns):
        raise RecordError(f"this is not the table 'matrix' of study content; it has {', '.join(matrix.columns)}")
    if reading not in matrix.columns or reading in fixed:
        raise RecordError(f"no reading {reading!r}; there are {'; '.join(c for c in matrix.columns if c not in fixed)}")
    rows = matrix.loc[matrix[reading].notna() & ((matrix["drawn as"] == drawn_as) | (drawn_as is None))]
    if rows.empty:
        raise RecordError(f"no site drawn as {drawn_as!r} has the reading {reading!r}")
    panels = (*_EFFECTS, reading)
    figure = make_subplots(
        rows=1, cols=3, shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=[html.escape(p) for p in panels]
    )
    for column, name in enumerate(panels, start=1):
        shares = rows.pivot_table(index="site", columns="attribute", values=name, sort=False).astype(float)
        scaled = shares.div(shares.abs().max(axis=1).where(lambda size: size > 0, 1.0), axis=0)
        figure.add_heatmap(
            z=scaled.to_numpy(), x=[html.escape(a) for a in shares.columns], y=[html.escape(s) for s in shares.index],
            customdata=shares.to_numpy(), zmin=-1, zmax=1, colorscale=DIVERGING, showscale=column == 3,
            hovertemplate="%{y}, %{x}: %{customdata:+.3f} of the whole image's change<extra></extra>",
            colorbar={"title": {"text": "share of the<br>row's largest"}}, row=1, col=column,
        )  # fmt: skip
    figure.update_yaxes(autorange="reversed", type="category", title="site", col=1)
    figure.update_yaxes(autorange="reversed", type="category", col=2)
    figure.update_yaxes(autorange="reversed", type="category", col=3)
    figure.update_xaxes(tickangle=-50)
    height = 250 + 22 * rows["site"].nunique()
    return dress(figure, "What sites change, and what is shown to change, attribute by attribute", 1180, height)
