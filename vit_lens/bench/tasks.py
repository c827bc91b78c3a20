"""What a task of the bench is: whom it asks, and how."""

__all__ = ["MANY_DRAWS", "N_DRAWS", "Task"]

from collections.abc import Callable
from dataclasses import dataclass

from vit_lens.bench.candidates import Candidate
from vit_lens.bench.measuring import Measured
from vit_lens.bench.plants import Plants

N_DRAWS = 3
"""Draws of every placebo."""
MANY_DRAWS = 20
"""The same where one costs next to nothing."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task, which is one file.

    Attributes:
        name: What it is called.
        words: What is planted, in a clause.
        asks: Whether a candidate is asked.
        run: Measures a candidate on plants.
    """

    name: str
    words: str
    asks: Callable[[Candidate], bool]
    run: Callable[[Candidate, Plants], list[Measured]]
