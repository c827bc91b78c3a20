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
    """Whatever runs tasks: any object with this method.

    >>> isinstance(vl.engine.Local(), vl.engine.Executor)
    True
    """

    def run(
        self, bench: Bench, tasks: Iterable[Task], conditions: Callable[[tuple[int, ...]], Condition]
    ) -> Iterator[Drawn]:
        """Yield what comes of every task, in any order.

        Args:
            bench: The decoder and encoder, for executors of this process; others go by the tasks' recipes.
            tasks: The tasks, pulled one by one; the next is made when it is asked for.
            conditions: Returns what rows ask for, for executors of this process.
        """
        ...


EXECUTORS: dict[str, Callable[..., Executor]] = {}
_E = TypeVar("_E", bound=Callable[..., Executor])


def executor(name: str) -> Callable[[_E], _E]:
    """Register what makes an executor of its options under a name.

    >>> @vl.engine.executor("repeated")
    ... class Repeated(vl.engine.Local):
    ...     def __init__(self, times: str = "1"):
    ...         self.times = int(times)
    >>> vl.engine.make_executor("repeated:times=3").times
    3
    """

    def register(make: _E) -> _E:
        EXECUTORS[name] = make
        return make

    return register


def make_executor(given: Executor | str) -> Executor:
    """Return an executor as it is, or make one of its name and options: ``local``, ``NAME:key=value,key=value``.

    Raises:
        VitLensError: There is no such executor, or an option is not one of its.

    >>> type(vl.engine.make_executor("local"))
    <class 'vit_lens.engine.executors.Local'>
    >>> vl.engine.make_executor("local:gpus=2")
    Traceback (most recent call last):
    vit_lens.errors.VitLensError: executor 'local:gpus=2': Local() takes no arguments
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
    """Runs tasks one after the other in this process; where memory runs out, the rest in smaller batches.

    >>> from vit_lens.conditions import Condition
    >>> asked = Condition(pooled=model(pixels))
    >>> bench = vl.engine.Bench(model=model, decoder=decoder, negative=None)
    >>> task = vl.engine.Task(rows=(1,), settings=decoder.settings(steps=1, guidance=1.0), size=1)
    >>> [drawn] = vl.engine.Local().run(bench, [task], lambda rows: asked[list(rows)])
    >>> drawn.rows, drawn.pictures.shape
    ((1,), torch.Size([1, 64, 64, 3]))
    """

    def run(
        self, bench: Bench, tasks: Iterable[Task], conditions: Callable[[tuple[int, ...]], Condition]
    ) -> Iterator[Drawn]:
        """Yield the tasks' results in order; one that had to be cut comes in several."""
        limit: int | None = None
        for task in tasks:
            left, size, change = task.rows, min(task.size, limit or task.size), ""
            while left:
                rows = left if task.noise == "legacy" else left[:size]
                told: list[str] = []

                def smaller(new_size: int, size: int = size, told: list[str] = told) -> None:
                    if new_size < size:
                        raise _Smaller(new_size)
                    told.append("out of memory: MoVQ takes fewer pictures at a time")

                try:
                    pictures = bench.draw(conditions(rows), task.settings, size, smaller, noise=task.noise)
                except _Smaller as error:
                    size = limit = error.args[0]
                    change = "out of memory"
                    continue
                seen = bench.look(pictures, size)
                yield Drawn(
                    task=task, rows=rows, pictures=pictures, seen=seen, size=size, change=change or "".join(told[:1])
                )
                left, change = left[len(rows) :], ""


def draw(
    bench: Bench, condition: Condition, settings: Any, size: int, *, keep: Callable[[Drawn], object] | None = None,
    label: str = "pictures", progress: bool = False,
) -> tuple[UInt8[Tensor, "row height width 3"], dict[str, Condition]]:  # fmt: skip
    """Draw every row and read the pictures again.

    Args:
        bench: What draws and looks.
        condition: What is drawn, a picture for each row.
        settings: The decoder's settings, the noise seed included.
        size: How many rows run together; the last are filled up to as many.
        keep: A function that is called with what is finished, batch by batch; None keeps nothing.
        label: The words before the bar.
        progress: Whether a bar is shown.

    Returns:
        The pictures, and what they are read as, by reader; see :meth:`Bench.look`.

    >>> from vit_lens.conditions import Condition
    >>> bench = vl.engine.Bench(model=model, decoder=decoder, negative=None)
    >>> settings = decoder.settings(steps=1, guidance=1.0)
    >>> pictures, seen = vl.engine.draw(bench, Condition(pooled=model(pixels)), settings, 2)
    >>> pictures.shape, list(seen)
    (torch.Size([2, 64, 64, 3]), ['own'])
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
