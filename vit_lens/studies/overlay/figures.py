"""Figure of the overlay study: what is left of an overlay as heads are taken away, order by order."""

__all__ = ["trajectory_figure"]

import html
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from vit_lens.figures import dress

_COLOURS = ("#c4520f", "#2368a6", "#3c7a3f", "#7d4aa0", "#a67c1a", "#1f8a8a", "#9c2f52", "#5b5750")
_FRAMED = ("greedy (upper bound)", "random")


def trajectory_figure(frame: pd.DataFrame, value: str = "T", title: str | None = None) -> go.Figure:
    """Draw one line for each order over the number of heads that are gone, the band of random orders behind them.

    Lenses are drawn in full before decoding, dashed as read off pictures by the judge, dotted by the encoder itself;
    greedy in black, the mean of random orders in grey.

    Args:
        frame: The table ``trajectories`` of an overlay study.
        value: ``T``, ``left``, ``to_base`` or ``to_overlay``.
        title: The title of the figure.
    """
    figure = go.Figure()
    random = frame.loc[frame["reading"] == "random"]
    if value == "T" and random["T_low"].notna().all():
        places = _places(random["heads"])
        figure.add_scatter(
            x=[*places, *places[::-1]], y=[*random["T_high"], *random["T_low"][::-1]], fill="toself", mode="none",
            fillcolor="rgba(138,133,124,0.25)", name="random orders, 95%", hoverinfo="skip",
        )  # fmt: skip
    readings = [name for name in dict.fromkeys(frame["reading"]) if name not in _FRAMED]
    colours: dict[str, str] = dict(zip(readings, _COLOURS * len(readings), strict=False))
    for _, rows in frame.groupby(["reading", "level", "circular"], sort=False):
        reading, level, circular = (rows[name].iloc[0] for name in ("reading", "level", "circular"))
        reader = ", own encoder (circular)" if circular else ""
        figure.add_scatter(
            x=_places(rows["heads"]), y=rows[value], mode="lines+markers", customdata=rows["heads"],
            name=html.escape(reading if reading in _FRAMED else f"{reading} ({level}{reader})"),
            line=_line(reading, level, bool(circular), colours), marker={"size": 5},
            hovertemplate="%{customdata} heads: %{y:.3f}",
        )  # fmt: skip
    steps = sorted(set(frame["heads"]))
    figure.update_xaxes(title="heads taken away", tickvals=_places(pd.Series(steps)), ticktext=[str(k) for k in steps])
    figure.update_yaxes(title=_TITLES[value])
    dress(figure, html.escape(title or f"Taking heads away: {_TITLES[value]}"), 980, 560)
    figure.update_layout(legend={"font": {"size": 10}})
    return figure


_TITLES = {
    "T": "T = cos(to image without overlay) - cos(to overlay alone)",
    "left": "share of the overlay that is left",
    "to_base": "cosine with the image without the overlay",
    "to_overlay": "cosine with the overlay alone",
}


def _places(heads: pd.Series) -> list[float]:
    return list(np.log2(1 + heads.to_numpy(dtype=float)))


def _line(reading: str, level: str, circular: bool, colours: dict[str, str]) -> dict[str, Any]:
    if reading in _FRAMED:
        return {"color": "#1c1b19" if reading != "random" else "#8a857c", "width": 3}
    return {"color": colours[reading], "dash": "solid" if level == "embedding" else "dot" if circular else "dash"}
