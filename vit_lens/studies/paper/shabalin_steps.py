"""What dictionaries of one step and of all explain at each step."""

__all__ = ["STEPS", "step_recipes"]

import plotly.graph_objects as go

from vit_lens.dictionaries import fvu_by_step
from vit_lens.studies.paper.shabalin_bench import BESIDE, Bench, Recipe
from vit_lens.studies.paper.shabalin_figure import About, PaperFigure, Tables, estimate, of_inputs
from vit_lens.studies.paper.shabalin_lines import Finding, Line, lines_figure, reading
from vit_lens.studies.paper.shabalin_reconstruction import block_name

_ALL, _FEW = "all steps", "all steps, as few tokens"


def step_recipes(bench: Bench) -> dict[str, Recipe]:
    """Return the dictionaries: of the first, middle and last step, of all, and of all with as few tokens as of one."""
    steps, sizes = list(bench.steps or ()), bench.sizes
    chosen = dict.fromkeys((steps[0], steps[len(steps) // 2], steps[-1]))
    shared = {"kind": "topk", "site": bench.main, "k": sizes.k, "width": sizes.width}
    few = max(2, round(bench.train_inputs / len(steps)))
    return {
        _ALL: Recipe(**shared), _FEW: Recipe(**shared, n_inputs=few),
        **{f"step {step} alone": Recipe(**shared, steps=(step,)) for step in chosen},
    }  # fmt: skip


def measure(bench: Bench) -> Tables:
    named = {name: bench.dictionary(recipe) for name, recipe in step_recipes(bench).items()}
    named |= bench.controls(named[_ALL], bench.main)
    found = fvu_by_step(named, bench.split(bench.main)[1])
    rows = []
    for one in found.points:
        interval = estimate(one.by_input, bench.sizes.seed)
        rows.append(
            {
                "dictionary": one.name, "step": one.step, "sigma": one.sigma, "is_own": one.is_own, "fvu": one.fvu,
                "low": interval["low"], "high": interval["high"], "fvu_standardised": one.fvu_standardised,
                "ve": one.ve, "l0": one.l0, "dead": one.dead, "n_tokens": one.n_tokens, "n_inputs": found.n_inputs,
            }
        )  # fmt: skip
    return {"by_step": rows}


def finding(tables: Tables, about: About) -> Finding:
    rows = [row for row in tables["by_step"] if row["step"] is not None]
    at = {(row["dictionary"], row["step"]): row for row in rows}
    first, last = about["steps"][0], about["steps"][-1]

    def said(name: str, step: int) -> str:
        row = at[name, step]
        return reading(row["fvu"], row["low"], row["high"])

    names = (_ALL, f"step {first} alone", f"step {last} alone")
    told = "; ".join(f"of {name} {said(name, first)} and {said(name, last)}" for name in names)
    return Finding(
        f"FVU at step {first} and at step {last}: {told}",
        f"{about['model']} at {block_name(about['block'])}, TopK, k = {about['k']}; {of_inputs(about)}; 95 % intervals "
        f"over {about['unit']}; filled: steps that it was learnt at",
    )


def draw(tables: Tables, about: About) -> go.Figure:
    rows = [row for row in tables["by_step"] if row["step"] is not None]
    lines = []
    for panel, key in (("FVU", "fvu"), ("codes of a token (L0)", "l0")):
        for name in dict.fromkeys(row["dictionary"] for row in rows):
            own = [row for row in rows if row["dictionary"] == name]
            ends = {end: [row[end] for row in own] if key == "fvu" else None for end in ("low", "high")}
            lines.append(
                Line(panel=panel, name=name, x=[row["step"] for row in own], y=[row[key] for row in own], **ends,
                     beside=name in BESIDE, filled=None if name in BESIDE else [row["is_own"] for row in own])
            )  # fmt: skip
    is_wide = max(row["fvu"] for row in rows) > 2
    return lines_figure(
        lines, across="step, from noise to picture", up=["share of the step's variance", "codes"],
        log_y=[is_wide, False],
    )  # fmt: skip


def lacks(bench: Bench) -> str | None:
    return None if len(bench.steps or ()) > 1 else "it is read at no steps, or at one"


STEPS = PaperFigure(
    name="explained_by_step", words="What dictionaries of one step and of all explain at each step.",
    measure=measure, finding=finding, draw=draw, lacks=lacks, sites=lambda bench: [bench.main],
    recipes=lambda bench: list(step_recipes(bench).values()),
)  # fmt: skip
