"""Head importance: correlations of all readings side by side, and each head by what it shows, does and weighs."""

__all__ = ["importance_heads", "importance_scores"]

import html

import pandas as pd
import plotly.graph_objects as go

from vit_lens.errors import RecordError
from vit_lens.figures import SEQUENTIAL, dress
from vit_lens.studies.score_figures import row_names, score_figure

_EFFECT = "total effect, mean ablation"
_NORM = "norm of h minus its mean"
_TICKS = {"equal-norm placebo: mean": "#8d744a", "no content: mean": "#3f6c88"}
_EXCESS = "excess"  # a difference of correlations, which has no place among them


def importance_scores(
    scores: pd.DataFrame, effect: str = _EFFECT, kind: str = "centred similarity", *, given: bool = False
) -> go.Figure:
    """Draw the correlations of one kind of score with one effect, baselines without a lens first, decoded ones last.

    Args:
        scores: The table that ``StudyResult.frame()`` of study importance returns.
        effect: The effect, such as ``direct effect, resample ablation``.
        kind: ``raw similarity`` or ``centred similarity``.
        given: Whether the correlations are those given the norms.

    Raises:
        RecordError: There are none.
    """
    ending = f" with {effect}{', given the norms' if given else ''}"
    kinds = scores["measure"].str.removesuffix(ending).where(scores["measure"].str.endswith(ending))
    rows = scores.loc[(kinds == "no lens") | kinds.fillna("").str.startswith(kind)].copy()
    if rows.empty:
        raise RecordError(f"no scores of {kind!r} with {effect!r} in this table: is it that of study importance?")
    reader = kinds.loc[rows.index].str.removeprefix(kind).str.removeprefix(", ")
    decoded = rows["level"] == "decoded"
    rows.loc[decoded, "level"] = rows.loc[decoded, "level"] + ", " + reader.loc[decoded]
    rows.loc[kinds.loc[rows.index] == "no lens", "level"] = "no lens"
    rows["measure"] = f"Spearman{ending}"
    dropped = [name for name in rows.columns if name.startswith(_EXCESS)]
    title = f"Which heads matter: {kind}{ending}"
    figure = score_figure(rows.drop(columns=dropped), f"Spearman{ending}", title)
    names = row_names(rows)
    for column in (name for name in rows.columns if name.endswith(": mean") and rows[name].notna().any()):
        marker = {"symbol": "line-ns-open", "size": 15, "line": {"width": 2}, "color": _TICKS.get(column, "#8a857c")}
        label = html.escape(f"null: {column.replace(': mean', ', mean')}")
        figure.add_scatter(x=rows[column], y=names, mode="markers", name=label, marker=marker)
    height = figure.to_dict()["layout"]["height"]
    figure.update_layout(margin={"b": 245}, height=height + 95)  # the legend has four lines more
    return figure


def importance_heads(
    heads: pd.DataFrame, lens: str, effect: str = _EFFECT, kind: str = "centred similarity"
) -> go.Figure:
    """Draw every head: how much it resembles the input under a lens, against its effect, coloured by its size.

    Args:
        heads: The table ``heads`` of the study's result.
        lens: The spelling of one of its lenses.
        effect: The effect, such as ``direct effect, resample ablation``.
        kind: ``raw similarity`` or ``centred similarity``.

    Raises:
        RecordError: The table does not hold these.
    """
    score = f"{kind}: {lens}"
    if missing := [name for name in ("site", effect, score, _NORM) if name not in heads.columns]:
        raise RecordError(f"the table has no column {', '.join(missing)}: is it the table 'heads' of study importance?")
    figure = go.Figure(
        go.Scatter(
            x=heads[score], y=heads[effect], mode="markers", text=[html.escape(site) for site in heads["site"]],
            hovertemplate="%{text}: %{x:.3f}, %{y:.5f}<extra></extra>",
            marker={
                "color": heads[_NORM], "colorscale": SEQUENTIAL, "size": 10, "line": {"width": 1, "color": "#1c1b19"},
                "colorbar": {"title": {"text": "norm of h minus<br>its mean (length)"}},
            },
        )
    )  # fmt: skip
    figure.update_xaxes(title=html.escape(f"{kind} to the input (cosine), {lens}"))
    figure.update_yaxes(title=html.escape(f"{effect} (1 - cosine)"), type="log")
    return dress(figure, html.escape(f"Each head by what it shows, does and weighs: {lens}"), 720, 520)
