"""A task is what is drawn together: rows, settings, and recipes for whoever draws them. It never holds a tensor."""

__all__ = ["Drawn", "Task", "work"]

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from vit_lens.conditions import Condition
from vit_lens.decoders import load_decoder
from vit_lens.engine.bench import Bench, recorded_threads
from vit_lens.errors import VitLensError
from vit_lens.models import HookedViT
from vit_lens.records import Record


@dataclass(frozen=True, kw_only=True)
class Task:
    """The rows of one batch. It holds no tensor, so that it can be sent to another process.

    Attributes:
        rows: The numbers of the rows, in the record or in what is drawn.
        settings: The decoder's settings, the noise seed included.
        size: How many rows run together; fewer are filled up.
        drawn: What the record calls this pass: ``coarse`` or ``full``.
        noise: ``shared`` by all rows, or ``legacy``: consumed ``size`` rows after ``size`` rows, which may not be cut.
        folder: The folder of the record that holds the conditions; None where they are held in memory.
        threads: How many threads compute; None for as many as there are.
        recipe: How another process makes the bench; see :attr:`Bench.recipe`. None where it cannot.

    >>> task = vl.engine.Task(rows=(4, 5), settings=decoder.settings(steps=1), size=2)
    >>> task.drawn, task.folder
    ('full', None)
    """

    rows: tuple[int, ...]
    settings: Any
    size: int
    drawn: str = "full"
    noise: str = "shared"
    folder: Path | None = None
    threads: int | None = None
    recipe: dict[str, Any] | None = field(default=None, compare=False)


@dataclass(frozen=True, eq=False, kw_only=True)
class Drawn:
    """What came of a task, or of a part of one.

    Attributes:
        task: The task.
        rows: The numbers of the rows that were drawn.
        pictures: One picture for each row, 0 to 255.
        seen: The pictures read again, by reader; see :meth:`Bench.look`.
        size: How many rows ran together.
        change: Why they are fewer than planned; empty where they are not.
    """

    task: Task
    rows: tuple[int, ...]
    pictures: UInt8[Tensor, "row height width 3"]
    seen: dict[str, Condition]
    size: int
    change: str = ""


def work(task: Task) -> Drawn:
    """Draw a task in a process that has nothing but the task: its bench is loaded once, its conditions are read.

    Raises:
        VitLensError: The task has no recipe or no folder.

    >>> vl.engine.work(vl.engine.Task(rows=(0,), settings=None, size=1))
    Traceback (most recent call last):
    vit_lens.errors.VitLensError: this task was made of a model or decoder in memory, ...
    """
    if task.recipe is None or task.folder is None:
        raise VitLensError(
            "this task was made of a model or decoder in memory, or of conditions in memory, which another process "
            "cannot load: load both by name (from_pretrained), or draw with executor='local'"
        )
    condition = Record.load(task.folder).conditions["lens"][list(task.rows)]
    with recorded_threads(task.threads or 1):
        bench = _bench(task.recipe)
        pictures = bench.draw(condition, task.settings, task.size, noise=task.noise)
        return Drawn(task=task, rows=task.rows, pictures=pictures, seen=bench.look(pictures, task.size), size=task.size)


_BENCHES: dict[str, Bench] = {}  # the last that was loaded


def _bench(recipe: dict[str, Any]) -> Bench:
    key = repr(sorted(recipe.items()))
    if key not in _BENCHES:
        _BENCHES.clear()
        sources = dict(recipe)
        model = HookedViT.from_pretrained(**sources.pop("model")).requires_grad_(False)
        decoder = load_decoder(**sources.pop("decoder"))
        readers = {name: HookedViT.from_pretrained(**source) for name, source in sources.items()}
        _BENCHES[key] = Bench(model=model, decoder=decoder, negative=decoder.negative(model), readers=readers)
    return _BENCHES[key]
