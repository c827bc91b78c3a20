"""What a figure of Shabalin et al. is: how its numbers are measured, what they say, how they are drawn."""

__all__ = ["About", "PaperFigure", "Rows", "Tables", "estimate", "of_inputs", "plain"]

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from torch import Tensor

from vit_lens.studies.paper.shabalin_bench import Bench, Recipe
from vit_lens.studies.paper.shabalin_lines import Finding
from vit_lens.studies.statistics import mean_interval

Rows = list[dict[str, Any]]
Tables = dict[str, Rows]
About = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class PaperFigure:
    """One figure: a file that makes one of these, and a line in :data:`FIGURES`.

    Attributes:
        name: What its files are called, and ``--figure``.
        words: What it shows, in a sentence.
        measure: The numbers, as tables by name; plain values, None where one is undefined.
        finding: What the numbers say, with n and interval; it becomes the title.
        draw: The figure.
        recipes: Which dictionaries it needs.
        sites: Which hook points are read for it.
        runs: How many inputs the model runs on beside those hook points.
        pictures: How many pictures are drawn for it.
        lacks: Why a model has no such figure; None where it has.
    """

    name: str
    words: str
    measure: Callable[[Bench], Tables]
    finding: Callable[[Tables, About], Finding]
    draw: Callable[[Tables, About], go.Figure]
    recipes: Callable[[Bench], Sequence[Recipe]] = lambda bench: ()
    sites: Callable[[Bench], Sequence[str]] = lambda bench: ()
    runs: Callable[[Bench], int] = lambda bench: 0
    pictures: Callable[[Bench], int] = lambda bench: 0
    lacks: Callable[[Bench], str | None] = lambda bench: None


def estimate(values: Tensor | np.ndarray | Sequence[float], seed: int) -> dict[str, float | None]:
    """Return the mean of the values that are defined, and its interval, as ``value``, ``low`` and ``high``."""
    found = mean_interval(np.asarray(values, dtype=np.float64), seed=seed)
    return {"value": found.value, "low": found.low, "high": found.high}


def of_inputs(about: About, n: int | None = None) -> str:
    """Say what a number is of, such as ``n = 80 held-out prompts``."""
    return f"n = {about['n_held_out'] if n is None else n} held-out {about['unit']}"


def plain(tables: Tables) -> Tables:
    """Return tables in which what is undefined is None."""

    def known(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: [{key: known(value) for key, value in row.items()} for row in rows] for name, rows in tables.items()}
