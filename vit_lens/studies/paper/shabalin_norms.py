"""How long tokens are, by stream, block and step."""

__all__ = ["NORMS"]

import numpy as np
import plotly.graph_objects as go

from vit_lens.dictionaries import stream_norms
from vit_lens.studies.paper.shabalin_bench import Bench
from vit_lens.studies.paper.shabalin_figure import About, PaperFigure, Tables, estimate, of_inputs
from vit_lens.studies.paper.shabalin_lines import Finding, Line, lines_figure, reading

_MANY = 8  # lines in a panel


def measure(bench: Bench) -> Tables:
    chosen = bench.live.split(bench.sizes.held_out)[1].inputs
    inputs = [bench.inputs[index] for index in chosen]
    own = stream_norms(bench.model, inputs, tokens=bench.tokens, **bench.run)
    rows, growth = own.to_frame().to_dict("records"), []
    for row, values in zip(rows, own.by_input.flatten(0, 1), strict=True):
        interval = estimate(values, bench.sizes.seed)
        row |= {"step": None if bench.steps is None else row["step"], "low": interval["low"], "high": interval["high"]}
    if bench.steps is not None and len(bench.steps) > 1:
        for i, site in enumerate(own.sites):
            ratio = own.by_input[i, -1] / own.by_input[i, 0]
            said = {"site": site, "block": own.blocks[i], "stream": own.streams[i], "n_inputs": len(inputs)}
            growth.append(said | estimate(np.log(ratio.numpy()), bench.sizes.seed))
    return {"norms": rows, "growth": _exponentials(growth)}


def _exponentials(rows: list[dict]) -> list[dict]:
    """Return the geometric mean of ratios, last step to first, from the mean of their logarithms."""
    ends = ("value", "low", "high")
    return [row | {end: None if row[end] is None else float(np.exp(row[end])) for end in ends} for row in rows]


def finding(tables: Tables, about: About) -> Finding:
    norms, growth = tables["norms"], tables["growth"]
    n = norms[0]["n_inputs"]
    tail = f"{about['model']}; {of_inputs(about, n)}; 95 % intervals over {about['unit']}"
    if not growth:
        first, last = norms[0], norms[-1]
        said = f"Tokens are {reading(first['mean'], first['low'], first['high'], 1)} long behind {first['block']}, "
        return Finding(f"{said}{reading(last['mean'], last['low'], last['high'], 1)} behind {last['block']}", tail)
    said = []
    for stream in dict.fromkeys(row["stream"] for row in growth):
        own = [row for row in growth if row["stream"] == stream]
        least, most = (pick(own, key=lambda row: row["value"]) for pick in (min, max))
        of = "image" if stream == "image" else "text"
        said.append(
            f"{of} x{reading(least['value'], least['low'], least['high'])} ({least['block']}) to "
            f"x{reading(most['value'], most['low'], most['high'])} ({most['block']})"
        )
    paper = "the paper: about tenfold, and a jump of the text at the last double block"
    return Finding(f"Norms from the first step to the last: {'; '.join(said)}", f"{tail}; {paper}")


def draw(tables: Tables, about: About) -> go.Figure:
    rows, lines, across = tables["norms"], [], []
    steps = list(dict.fromkeys(row["step"] for row in rows))
    shown = [steps[0], steps[len(steps) // 2], steps[-1]] if len(steps) > 3 else steps
    for stream in dict.fromkeys(row["stream"] for row in rows):
        of_stream = [row for row in rows if row["stream"] == stream]
        blocks = list(dict.fromkeys(row["block"] for row in of_stream))
        across.append("block")
        for step in shown:
            own = [row for row in of_stream if row["step"] == step]
            lines.append(_line(f"{stream}, over blocks", _step_name(step), "block", own))
        if steps == [None]:
            continue
        across.append("step")
        chosen = dict.fromkeys(blocks[round(i * (len(blocks) - 1) / max(1, _MANY - 1))] for i in range(_MANY))
        for block in chosen:
            own = [row for row in of_stream if row["block"] == block]
            lines.append(_line(f"{stream}, over steps", block, "step", own))
    return lines_figure(lines, across=across, up="mean length of tokens", log_y=True)


def _step_name(step: int | None) -> str:
    return "all tokens" if step is None else f"step {step}"


def _line(panel: str, name: str, x: str, own: list[dict]) -> Line:
    columns = {key: [row[key] for row in own] for key in (x, "mean", "low", "high")}
    return Line(panel=panel, name=name, x=columns[x], y=columns["mean"], low=columns["low"], high=columns["high"])


NORMS = PaperFigure(
    name="norms",
    words="How long tokens are, by stream, block and step.",
    measure=measure,
    finding=finding,
    draw=draw,
    runs=lambda bench: len(bench.inputs) - bench.train_inputs,
)
