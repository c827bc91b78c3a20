"""How much dictionaries explain: over the number of codes, over the number of features, over blocks."""

__all__ = ["OVER_BLOCKS", "OVER_K", "OVER_WIDTH"]

from collections.abc import Sequence
from functools import partial
from typing import Any

import plotly.graph_objects as go

from vit_lens.studies.paper.shabalin_bench import BESIDE, Bench, Recipe
from vit_lens.studies.paper.shabalin_figure import About, PaperFigure, Tables, estimate, of_inputs
from vit_lens.studies.paper.shabalin_lines import Finding, Line, lines_figure, reading

Setting = tuple[str, int, int]
_ACROSS = {"k": "codes of a token, k", "width": "features", "block": "block"}


def settings(axis: str, bench: Bench) -> list[Setting]:
    """Return hook point, number of codes and number of features of each comparison along an axis."""
    sizes = bench.sizes
    if axis == "k":
        return [(bench.main, k, sizes.width) for k in sizes.ks]
    if axis == "width":
        return [(bench.main, sizes.k, width) for width in sizes.widths]
    return [(site, sizes.k, sizes.width) for site in bench.blocks or ()]


def recipes(axis: str, bench: Bench) -> Sequence[Recipe]:
    return [recipe for setting in settings(axis, bench) for recipe in bench.recipes(*setting)]


def measure(axis: str, bench: Bench) -> Tables:
    rows = []
    for site, k, width in settings(axis, bench):
        for one, n_features in bench.compared(site, k, width):
            interval = estimate(one.by_input, bench.sizes.seed)
            rows.append(
                {
                    "block": site, "k": k, "width": width, "dictionary": one.name, "n_features": n_features,
                    "fvu": one.fvu, "low": interval["low"], "high": interval["high"],
                    "fvu_standardised": one.fvu_standardised, "ve": one.ve, "l0": one.l0, "dead": one.dead,
                    "n_tokens": one.n_tokens, "n_inputs": len(one.by_input),
                }
            )  # fmt: skip
    return {"explained": rows}


def finding(axis: str, tables: Tables, about: About) -> Finding:
    rows = tables["explained"]
    names = ("TopK", "ITDA", "data points", "untrained")
    if axis == "block":
        best = {name: min((row for row in rows if row["dictionary"] == name), key=lambda row: row["fvu"])
                for name in ("TopK", "ITDA")}  # fmt: skip
        worst = {name: max((row for row in rows if row["dictionary"] == name), key=lambda row: row["fvu"])
                 for name in ("TopK", "ITDA")}  # fmt: skip
        said = "; ".join(
            f"{name} {_fvu(best[name])} ({block_name(best[name]['block'])}) to {_fvu(worst[name])} "
            f"({block_name(worst[name]['block'])})"
            for name in best
        )
        said = f"FVU over blocks, k = {about['k']}: {said}"
    else:
        last = max(row[axis] for row in rows)
        at = {row["dictionary"]: row for row in rows if row[axis] == last}
        fixed = f"k = {last}" if axis == "k" else f"k = {about['k']}, {last} features"
        said = f"FVU at {fixed}: " + ", ".join(f"{name} {_fvu(at[name])}" for name in names)
    where = "" if axis == "block" else f" at {block_name(about['block'])}"
    n_tokens = rows[0]["n_tokens"]
    of = f"{about['model']}{where}; {of_inputs(about)}, {n_tokens:,} tokens; 95 % intervals over {about['unit']}"
    return Finding(said, of)


def _fvu(row: dict[str, Any]) -> str:
    return reading(row["fvu"], row["low"], row["high"])


def block_name(site: str) -> str:
    """Return a hook point without its last part, where that is the stream or the update behind a block."""
    return site.removesuffix(".hook_resid_post").removesuffix(".hook_update")


def draw(axis: str, tables: Tables, about: About) -> go.Figure:
    rows, lines = tables["explained"], []
    for name in dict.fromkeys(row["dictionary"] for row in rows):
        own = [row for row in rows if row["dictionary"] == name]
        x = [
            block_name(row["block"]) if axis == "block" else row["n_features" if axis == "width" else "k"]
            for row in own
        ]
        lines += [
            Line(panel="FVU (less is better)", name=name, x=x, y=[row["fvu"] for row in own],
                 low=[row["low"] for row in own], high=[row["high"] for row in own], beside=name in BESIDE),
            Line(panel="VE, the paper's (more is better)", name=name, x=x, y=[row["ve"] for row in own],
                 beside=name in BESIDE),
        ]  # fmt: skip
    lines.sort(key=lambda one: one.panel)
    is_log = axis != "block"
    figure = lines_figure(
        lines, across=_ACROSS[axis], up=["share of the variance", "mean squared correlation"], log_x=is_log
    )
    if axis == "width":
        words = f"PCA has {about['d']} components at most"
        figure.add_annotation(text=words, xref="paper", yref="paper", x=1, y=1.12, showarrow=False, font={"size": 10})
    return figure


def _figure(axis: str, words: str) -> PaperFigure:
    return PaperFigure(
        name={"k": "explained_by_k", "width": "explained_by_width", "block": "explained_by_block"}[axis], words=words,
        measure=partial(measure, axis), finding=partial(finding, axis), draw=partial(draw, axis),
        recipes=partial(recipes, axis), sites=lambda bench: list(dict.fromkeys(s for s, _, _ in settings(axis, bench))),
    )  # fmt: skip


OVER_K = _figure("k", "What TopK and ITDA explain with more codes, beside what was not learnt.")
OVER_WIDTH = _figure("width", "What they explain with more features.")
OVER_BLOCKS = _figure("block", "What they explain at each block.")
