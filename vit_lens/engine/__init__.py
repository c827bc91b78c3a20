"""One engine draws everything: tasks without tensors, executors that run them, and a bench that draws and looks."""

__all__ = [
    "OWN",
    "Bench",
    "Drawn",
    "Executor",
    "Local",
    "Task",
    "draw",
    "executor",
    "machine_kind",
    "make_executor",
    "recorded_threads",
    "work",
]

from vit_lens.engine.bench import OWN, Bench, machine_kind, recorded_threads
from vit_lens.engine.drawing import draw
from vit_lens.engine.executors import Executor, Local, executor, make_executor
from vit_lens.engine.tasks import Drawn, Task, work
