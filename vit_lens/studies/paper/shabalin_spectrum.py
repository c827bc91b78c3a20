"""How the variance is shared among principal components, block by block."""

__all__ = ["SPECTRUM"]

import plotly.graph_objects as go

from vit_lens.dictionaries import spectrum
from vit_lens.studies.paper.shabalin_bench import Bench
from vit_lens.studies.paper.shabalin_figure import About, PaperFigure, Tables
from vit_lens.studies.paper.shabalin_lines import Finding, Line, lines_figure
from vit_lens.studies.paper.shabalin_reconstruction import block_name

_PAPER = 0.58  # in one component, of FLUX.1 [schnell] at one step


def measure(bench: Bench) -> Tables:
    rows = []
    for site in bench.blocks or ():
        whole = bench.source(site)
        parts = {"all steps" if bench.steps else "all": whole}
        if bench.steps and len(bench.steps) > 1:
            parts |= {f"step {step}": whole.at_steps([step]) for step in (bench.steps[0], bench.steps[-1])}
        for name, source in parts.items():
            found = spectrum(source)
            shares = found.to_frame().to_dict("records")
            rows += [{"block": site, "tokens": name, **row, "n_tokens": found.n_tokens} for row in shares]
    return {"shares": rows}


def finding(tables: Tables, about: About) -> Finding:
    rows = tables["shares"]
    first = [row for row in rows if row["component"] == 1 and row["tokens"] == rows[0]["tokens"]]
    own = next((row for row in first if row["block"] == about["block"]), first[0])
    most = max(first, key=lambda row: row["share"])
    half = sum(
        row["cumulative"] < 0.9 for row in rows if (row["block"], row["tokens"]) == (own["block"], own["tokens"])
    )
    alone = [row for row in rows if (row["block"], row["component"]) == (own["block"], 1) and row is not own]
    said = (
        f"One component holds {100 * own['share']:.0f} % of the variance at {block_name(own['block'])} ({half + 1} "
        f"hold 90 %), at most {100 * most['share']:.0f} % ({block_name(most['block'])})"
    )
    said += "".join(f"; of {row['tokens']} alone {100 * row['share']:.0f} %" for row in alone)
    return Finding(
        said,
        f"{about['model']}; n = {own['n_tokens']:,} tokens of {about['n_inputs']} {about['unit']}; the paper: about "
        f"{100 * _PAPER:.0f} % in FLUX.1 [schnell]; dotted: the widest single dimension",
    )


def draw(tables: Tables, about: About) -> go.Figure:
    rows, lines = tables["shares"], []
    first = [row for row in rows if row["component"] == 1]
    usual = rows[0]["tokens"]
    for name in dict.fromkeys(row["tokens"] for row in first):
        own = [row for row in first if row["tokens"] == name]
        x = [block_name(row["block"]) for row in own]
        lines.append(Line(panel="first component", name=name, x=x, y=[row["share"] for row in own]))
        if name == usual:
            y = [row["dimension"] for row in own]
            lines.append(Line(panel="first component", name=f"widest dimension, {name}", x=x, y=y, beside=True))
    for site in dict.fromkeys(row["block"] for row in rows):
        own = [row for row in rows if (row["block"], row["tokens"]) == (site, usual)]
        x, y = [row["component"] for row in own], [row["cumulative"] for row in own]
        lines.append(Line(panel=f"components together, {usual}", name=block_name(site), x=x, y=y))
    return lines_figure(
        lines, across=["block", "components, the largest first"], up="share of the variance",
        log_x=[False, True],
    )  # fmt: skip


SPECTRUM = PaperFigure(
    name="spectrum", words="How much of the variance lies in one direction, and how many hold most of it.",
    measure=measure, finding=finding, draw=draw, sites=lambda bench: list(bench.blocks or ()),
)  # fmt: skip
