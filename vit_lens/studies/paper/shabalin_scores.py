"""Scores of explanations: of what was learnt, of neurons, and of what nothing was learnt for, by both protocols."""

__all__ = ["SCORES"]

import html
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_lens.dictionaries import DenoiserTokens, drawn_pictures
from vit_lens.explaining import (
    PROTOCOLS,
    AttributeOracle,
    Explanations,
    Halves,
    NothingToExplain,
    StillLifeOracle,
    Units,
    explain,
    neurons_site,
    units_beside,
)
from vit_lens.figures import dress
from vit_lens.identity import EMBEDDED_PIPELINES, MINI_ENCODER
from vit_lens.mini import world
from vit_lens.studies.paper.shabalin_bench import Bench, Recipe
from vit_lens.studies.paper.shabalin_figure import About, PaperFigure, Rows, Tables
from vit_lens.studies.paper.shabalin_lines import Finding, colour_of, reading
from vit_lens.studies.paper.shabalin_reconstruction import block_name

_LEAST = 10  # images of each half on which a unit has to fire
_NEEDED = 4 * _LEAST  # of each half as many on which it is silent
_BESIDE = ("neurons", "untrained", "random directions")
_KINDS = ("TopK", "ITDA", *_BESIDE)
_BINS = np.linspace(-0.025, 1.025, 22)  # around the scores that an exact judge can give
_ENDS = ("value", "low", "high")
_WORDS = {"mended": "mended: tested on other images", "paper": "paper: as published"}


def recipes(bench: Bench) -> list[Recipe]:
    return bench.recipes(bench.main, bench.sizes.k, bench.sizes.width)


def sites(bench: Bench) -> list[str]:
    mlp = neurons_site(bench.model, bench.main)
    return [bench.main, *([] if mlp is None else [mlp])]


def runs(bench: Bench) -> int:
    """Return how many pictures are drawn to be looked at."""
    return len(held_out(bench)) if isinstance(bench.live.reader, DenoiserTokens) else 0


def held_out(bench: Bench) -> list[int]:
    """Return the inputs that nothing was learnt from, each once, so that none explains and tests."""
    keys: Sequence[str] = bench.live.reader.keys
    inputs: tuple[int, ...] = bench.live.split(bench.sizes.held_out)[1].inputs
    first: dict[str, int] = {}
    for index in inputs:
        first.setdefault(keys[index], index)
    return list(first.values())


def lacks(bench: Bench) -> str | None:
    if bench.grid is None:
        return "its tokens are no patches of an image"
    if (n := len(held_out(bench))) < _NEEDED:
        return f"{n} different {bench.unit} are held out, and {_NEEDED} are needed; give more --n-inputs"
    if world_of(bench) is None and scenes_of(bench) is None:
        return (
            "only what the embedded models draw and see has an exact judge; of others ask a model, by `vit-lens dict "
            "explain --explainer`"
        )
    return None


def world_of(bench: Bench) -> str | None:
    """Return the embedded model that draws; None for others."""
    name = str(bench.live.provenance.model).removeprefix("vit_lens/")
    return name if name in EMBEDDED_PIPELINES and isinstance(bench.live.reader, DenoiserTokens) else None


def scenes_of(bench: Bench) -> list[world.Scene] | None:
    """Return the scenes that the embedded encoder reads where nothing is given; None of other images."""
    if bench.live.provenance.model != MINI_ENCODER or not all(isinstance(one, np.ndarray) for one in bench.inputs):
        return None
    scenes = world.sample_scenes(_SCENES, np.random.default_rng(0))[: len(bench.inputs)]
    alike = len(scenes) == len(bench.inputs) and np.array_equal(world.render(scenes), np.stack(list(bench.inputs)))
    return scenes if alike else None


_SCENES = 1000  # of the command


def measure(bench: Bench) -> Tables:
    numbers, images, oracle = looked_at(bench)
    topk, itda = map(bench.dictionary, recipes(bench))
    source, train = replace(bench.source(bench.main), inputs=numbers), bench.split(bench.main)[0]
    mlp, seed = neurons_site(bench.model, bench.main), bench.sizes.seed
    kinds = [Units.of_dictionary(topk, source, name="TopK"), Units.of_dictionary(itda, source, name="ITDA")]
    kinds += units_beside(
        topk, source, train, inputs=Halves.of(len(images), seed=seed).explain, names=_BESIDE, model=bench.model,
        neurons=None if mlp is None else replace(bench.source(mlp), inputs=numbers), seed=seed,
    )  # fmt: skip
    tables: Tables = {"units": [], "scores": [], "differences": []}
    for protocol in PROTOCOLS:
        for name, rows in _explained(kinds, images, oracle, protocol, bench).items():
            tables[name] += rows
    return tables


def looked_at(bench: Bench) -> tuple[tuple[int, ...], list[Any], AttributeOracle | StillLifeOracle]:
    """Return the numbers of the held-out inputs that are scenes, what is seen of them, and their oracle."""
    numbers, grid = held_out(bench), bench.grid or (0, 0)
    if (name := world_of(bench)) is not None and bench.folder is not None:
        pictures = drawn_pictures(replace(bench.live, inputs=tuple(numbers)), bench.folder / "pictures")
        oracle = StillLifeOracle.of_drawn(pictures, name, grid=grid)
        return tuple(numbers[k] for k in oracle.kept), oracle.pictures, oracle
    scenes = scenes_of(bench) or []
    shown = [scenes[k] for k in numbers]
    oracle = AttributeOracle(AttributeOracle.pictures_of(shown), shown, grid=grid)
    return tuple(numbers), oracle.pictures, oracle


def _explained(kinds: Sequence[Units], images: Sequence[Any], oracle: Any, protocol: str, bench: Bench) -> Tables:
    """Return the scores of one protocol; none where no unit of TopK can be explained."""
    seed = bench.sizes.seed
    try:
        if len(images) < _NEEDED:
            raise NothingToExplain(f"{len(images)} scenes", ())
        found = explain(kinds, images, oracle, protocol=protocol, least=_LEAST, seed=seed, grid=bench.grid)
    except NothingToExplain:
        return {}
    units = [
        {"protocol": protocol, "kind": row.kind, "unit": row.unit, "text": row.text, "score": row.score,
         "shuffled": row.shuffled} for row in found.rows
    ]  # fmt: skip
    known = [kind for kind in found.kinds if found.counts()[kind]["explained"]]
    return {
        "units": units, "scores": [_score(found, kind) for kind in known],
        "differences": [_difference(found, kind) for kind in known if kind != "TopK"],
    }  # fmt: skip


def _score(found: Explanations, kind: str) -> dict[str, Any]:
    one, counts = found.estimate(kind), found.counts()[kind]
    return {
        "protocol": found.protocol, "kind": kind, "value": one.value, "low": one.low, "high": one.high,
        "shuffled": found.estimate(kind, "shuffled").value, "n": counts["explained"],
        "n_left_out": sum(counts.values()) - counts["explained"], "n_images": found.n_images,
    }  # fmt: skip


def _difference(found: Explanations, kind: str) -> dict[str, Any]:
    one = found.minus("TopK", kind)
    return {"protocol": found.protocol, "less": kind, "value": one.value, "low": one.low, "high": one.high}


def finding(tables: Tables, about: About) -> Finding:
    of = f"{about['model']} at {block_name(about['block'])}, k = {about['k']}"
    scores = {(row["protocol"], row["kind"]): row for row in tables["scores"]}
    less = {(row["protocol"], row["less"]): row for row in tables["differences"]}
    if not scores:
        return Finding("No unit of TopK could be explained", f"{of}; give more --n-inputs: n = 0 units")
    said, n = [], []
    for protocol in dict.fromkeys(protocol for protocol, _ in scores):
        if (row := less.get((protocol, "random directions"))) is None:
            said.append(f"undefined ({protocol}: no random direction could be explained)")
            continue
        said.append(f"{reading(*(row[end] for end in _ENDS))} ({protocol})")
        counts = (scores[protocol, kind]["n"] for kind in ("TopK", "random directions"))
        n.append(" and ".join(map(str, counts)))
    images, units = next(iter(scores.values()))["n_images"], ", ".join(dict.fromkeys(n)) or "0"
    return Finding(
        f"Scores of explanations, TopK minus random directions: {', '.join(said)}",
        f"{of}; n = {units} units on {images} held-out {about['unit']} that are scenes; explained and judged exactly; "
        "95 % intervals over units",
    )


def draw(tables: Tables, about: About) -> go.Figure:
    rows, scores = tables["units"], tables["scores"]
    kinds = [kind for kind in _KINDS if any(row["kind"] == kind for row in rows)] or ["TopK"]
    at = {(row["protocol"], row["kind"]): row for row in scores}
    figure = make_subplots(
        rows=len(kinds), cols=len(PROTOCOLS), shared_xaxes=True, vertical_spacing=0.12 / len(kinds) * 2,
        horizontal_spacing=0.08,
        subplot_titles=[_panel(kind, protocol, at, first=kind == kinds[0]) for kind in kinds for protocol in PROTOCOLS],
    )  # fmt: skip
    for row, kind in enumerate(kinds, start=1):
        for column, protocol in enumerate(PROTOCOLS, start=1):
            own = _values(rows, kind, protocol)
            counts, _ = np.histogram(own, _BINS)
            shares = counts / max(1, len(own))
            figure.add_trace(
                go.Bar(
                    x=((_BINS[:-1] + _BINS[1:]) / 2).tolist(), y=shares.tolist(), width=0.045, name=html.escape(kind),
                    showlegend=False, marker={"color": colour_of(kind, kinds)},
                    hovertemplate="score %{x:.2f}: %{y:.0%}<extra>" + html.escape(kind) + "</extra>",
                ), row, column,
            )  # fmt: skip
            if (score := at.get((protocol, kind))) is not None:
                where: Any = {"row": row, "col": column}
                figure.add_vline(x=score["value"], line={"width": 2, "color": "#1c1b19"}, **where)
            figure.update_yaxes(tickformat=".0%", rangemode="tozero", row=row, col=column)
    figure.update_xaxes(range=[-0.03, 1.03])
    figure.update_xaxes(title="score of a unit's explanation", row=len(kinds))
    figure.update_annotations(font_size=12)
    dress(figure, "", 920, 120 + 150 * len(kinds))
    return figure.update_layout(margin={"t": 30, "b": 60, "l": 60, "r": 20})


def _values(rows: Rows, kind: str, protocol: str) -> list[float]:
    return [row["score"] for row in rows if (row["kind"], row["protocol"]) == (kind, protocol)]


def _panel(kind: str, protocol: str, at: dict[tuple[str, str], dict[str, Any]], *, first: bool) -> str:
    score = at.get((protocol, kind))
    said = "none explained" if score is None else f"{reading(*(score[end] for end in _ENDS))}, n = {score['n']}"
    return f"{_WORDS[protocol] + '<br>' if first else ''}{html.escape(kind)}: {said}"


SCORES = PaperFigure(
    name="scores", words="How well explanations of units hold, beside neurons and what nothing was learnt for.",
    measure=measure, finding=finding, draw=draw, recipes=recipes, sites=sites, runs=runs, lacks=lacks,
)  # fmt: skip
