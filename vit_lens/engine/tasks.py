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
    """Rows of one batch.

    Attributes:
        rows: Of the record, or of what is drawn.
        settings: Of the decoder, the noise seed included.
        size: Rows that run together; fewer are filled up.
        drawn: What the record calls this pass.
        folder: Of the record that holds the conditions; None where they are held in memory.
        threads: That compute; None: as many as there are.
        recipe: Of the bench; see :attr:`Bench.recipe`.
    """

    rows: tuple[int, ...]
    settings: Any
    size: int
    drawn: str = "full"
    folder: Path | None = None
    threads: int | None = None
    recipe: dict[str, Any] | None = field(default=None, compare=False)


@dataclass(frozen=True, eq=False, kw_only=True)
class Drawn:
    """What came of a task, or of a part of one.

    Attributes:
        task: The task.
        rows: Of the pictures.
        pictures: One for each row.
        seen: The pictures read again, by reader; see :meth:`Bench.look`.
        size: Rows that ran together.
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
    """
    if task.recipe is None or task.folder is None:
        raise VitLensError(
            "this task was made of a model or decoder in memory, or of conditions in memory, which another process "
            "cannot load: load both by name (from_pretrained), or draw with executor='local'"
        )
    condition = Record.load(task.folder).conditions["lens"][list(task.rows)]
    bench = _bench(task.recipe)
    with recorded_threads(task.threads or 1):
        pictures = bench.draw(condition, task.settings, task.size)
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
