"""Curves of accuracy over layers."""

__all__ = ["layer_curves"]

from typing import TYPE_CHECKING

import plotly.graph_objects as go

if TYPE_CHECKING:
    import pandas as pd


def layer_curves(curves: "pd.DataFrame", kind: str) -> go.Figure:
    """Draw the accuracy of every part of one kind of prompts over layers, and dotted what chance is there."""
    own = curves[curves["kind"] == kind]
    figure = go.Figure()
    for part, some in own.groupby("part", sort=False):
        layers = list(range(len(some)))
        figure.add_scatter(x=layers, y=some["accuracy"], name=str(part), mode="lines+markers")
        figure.add_scatter(
            x=layers, y=some["mismatched"], name=f"{part}, another prompt", mode="lines", line_dash="dot",
            showlegend=False,
        )  # fmt: skip
    figure.update_layout(title=f"Pictures of every layer: {kind}", xaxis_title="layer", yaxis_title="share of pictures")
    return figure
