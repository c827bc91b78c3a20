"""Executors run tasks, here or elsewhere, in any order; whoever asked keeps the results. They register by name."""

__all__ = ["EXECUTORS", "Executor", "Local", "draw", "executor", "make_executor"]

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from vit_lens.conditions import Condition
from vit_lens.engine.bench import Bench
from vit_lens.engine.tasks import Drawn, Task
from vit_lens.errors import VitLensError, nearest


@runtime_checkable
class Executor(Protocol):
    """Whatever runs tasks."""

    def run(
        self, bench: Bench, tasks: Iterable[Task], conditions: Callable[[tuple[int, ...]], Condition]
    ) -> Iterator[Drawn]:
        """Yield what comes of every task, in any order.

        Args:
            bench: For executors of this process; others go by the tasks' recipes.
            tasks: Pulled one by one; the next is made when it is asked for.
            conditions: What rows ask for, for executors of this process.
        """
        ...


EXECUTORS: dict[str, Callable[..., Executor]] = {}
_E = TypeVar("_E", bound=Callable[..., Executor])


def executor(name: str) -> Callable[[_E], _E]:
    """Register what makes an executor of its options under a name."""

    def register(make: _E) -> _E:
        EXECUTORS[name] = make
        return make

    return register


def make_executor(given: Executor | str) -> Executor:
    """Return an executor as it is, or make one of its name and options: ``local``, ``NAME:key=value,key=value``.

    Raises:
        VitLensError: There is no such executor, or an option is not one of its.
    """
    if not isinstance(given, str):
        return given
    name, _, rest = given.partition(":")
    if name not in EXECUTORS:
        raise VitLensError(f"no executor {name!r}; nearest: {nearest(name, EXECUTORS)}")
    pairs = [part.split("=", 1) for part in rest.split(",") if part]
    if any(len(pair) < 2 for pair in pairs):
        raise VitLensError(f"executor {given!r}: write options as {name}:key=value,key=value")
    options = {key.strip(): value.strip() for key, value in pairs}
    try:
        return EXECUTORS[name](**options)
    except TypeError as error:
        raise VitLensError(f"executor {given!r}: {error}") from error


class _Smaller(Exception):  # how decode's callback leaves the batch that has to be cut
    pass


@executor("local")
class Local:
    """Runs tasks one after the other in this process; where memory runs out, the rest in smaller batches."""

    def run(
        self, bench: Bench, tasks: Iterable[Task], conditions: Callable[[tuple[int, ...]], Condition]
    ) -> Iterator[Drawn]:
        """Yield the tasks' results in order; one that had to be cut comes in several."""
        limit: int | None = None
        for task in tasks:
            left, size, change = task.rows, min(task.size, limit or task.size), ""
            while left:
                rows = left[:size]
                told: list[str] = []

                def smaller(new_size: int, size: int = size, told: list[str] = told) -> None:
                    if new_size < size:
                        raise _Smaller(new_size)
                    told.append("out of memory: MoVQ takes fewer pictures at a time")

                try:
                    pictures = bench.draw(conditions(rows), task.settings, size, smaller)
                except _Smaller as error:
                    size = limit = error.args[0]
                    change = "out of memory"
                    continue
                seen = bench.look(pictures, size)
                yield Drawn(
                    task=task, rows=rows, pictures=pictures, seen=seen, size=size, change=change or "".join(told[:1])
                )
                left, change = left[size:], ""


def draw(
    bench: Bench,
    condition: Condition,
    settings: Any,
    size: int,
    *,
    keep: Callable[[Drawn], object] | None = None,
    label: str = "pictures",
    progress: bool = False,
) -> tuple[UInt8[Tensor, "row height width 3"], dict[str, Condition]]:
    """Draw every row and read the pictures again.

    Args:
        bench: What draws and looks.
        condition: What is drawn.
        settings: Of the decoder.
        size: Rows that run together; the last are filled up to as many.
        keep: Called with what is finished, batch by batch.
        label: Of the bar.
        progress: Show a bar.
    """
    condition, found = condition.kept(), []
    batches = (range(len(condition))[start : start + size] for start in range(0, len(condition), size))
    tasks = (Task(rows=tuple(rows), settings=settings, size=size) for rows in batches)
    with tqdm(total=len(condition), desc=label, unit="picture", disable=not progress) as bar:
        for drawn in Local().run(bench, tasks, lambda rows: condition[list(rows)]):
            found.append(drawn)
            bar.update(len(drawn.rows))
            if keep is not None:
                keep(drawn)
    seen = {name: Condition.cat([one.seen[name] for one in found]) for name in found[0].seen}
    return torch.cat([one.pictures for one in found]), seen
