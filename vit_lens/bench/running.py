"""Candidates through the tasks, one after the other; one that fails is reported as that, and the others go on."""

__all__ = ["TASKS", "all_candidates", "run_bench"]

import random
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from vit_lens.bench.candidates import KINDS, Candidate, named_candidate
from vit_lens.bench.features import FEATURES
from vit_lens.bench.heads import HEADS
from vit_lens.bench.names import NAMES
from vit_lens.bench.own import OWN
from vit_lens.bench.plants import Plants
from vit_lens.bench.relations import RELATIONS
from vit_lens.bench.result import Bench, Outcome
from vit_lens.bench.steering import STEERING
from vit_lens.bench.tasks import Task
from vit_lens.errors import StudyError

TASKS: tuple[Task, ...] = (HEADS, NAMES, RELATIONS, FEATURES, STEERING)
"""The tasks: each is a file, and says whom it asks."""


def all_candidates() -> list[Candidate]:
    """Return all of our own, those that should lose among them."""
    return [named_candidate(kind, name) for kind in KINDS for name in OWN[kind]]


def run_bench(
    candidates: Sequence[Candidate],
    *,
    seeds: Sequence[int] = (0,),
    n_plants: int = 6,
    command: str | None = None,
    on_done: Callable[[Bench], None] | None = None,
) -> Bench:
    """Ask candidates about plants that are drawn anew from seeds.

    Args:
        candidates: The candidates.
        seeds: The seeds of all that is drawn.
        n_plants: How many plants each task has for each seed.
        command: The command that makes it again.
        on_done: Called with what there is after each candidate.

    Raises:
        StudyError: There are no candidates, two have one name, or the seeds are no different ones.

    >>> found = vl.bench.run_bench([vl.bench.named_candidate("lens", "random")], seeds=[3], n_plants=1)
    >>> [score.measure for score in found.outcomes[0].scores]
    ['planted', 'fidelity', 'decoys', 'random weights']
    """
    names = [(one.kind, one.name) for one in candidates]
    if not names or len(set(names)) < len(names):
        raise StudyError(f"candidates {[name for _, name in names]}: give at least one, and none twice")
    plants, found = Plants(seeds, n_plants), Bench(seeds=tuple(seeds), n_plants=n_plants, command=command, outcomes=())
    for one in candidates:
        found = found.with_outcome(_asked(one, plants))
        if on_done is not None:
            on_done(found)
    return found


def _asked(candidate: Candidate, plants: Plants) -> Outcome:
    started, scores, error = time.perf_counter(), [], None
    tasks = [task for task in TASKS if task.asks(candidate)]
    for task in tasks:
        try:
            with _same_start(plants.seeds[0]):
                scores += task.run(candidate, plants)
        except Exception as wrong:  # anybody's code: whatever it raises is its result
            *_, at = traceback.extract_tb(wrong.__traceback__)
            error = f"{task.name}: {type(wrong).__name__}: {str(wrong)[:500]} ({Path(at.filename).name}:{at.lineno})"
            break
    return Outcome(
        name=candidate.name, kind=candidate.kind, tasks=tuple(task.name for task in tasks), scores=tuple(scores),
        error=error, seconds=round(time.perf_counter() - started, 1),
    )  # fmt: skip


@contextmanager
def _same_start(seed: int) -> Iterator[None]:
    """Let a candidate that draws numbers without a generator draw the same, whoever was asked before it.

    Whoever runs the bench goes on with the numbers that it had.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
