"""One engine draws everything: tasks without tensors, executors that run them, and a bench that draws and looks."""

__all__ = [
    "OWN", "Bench", "Drawn", "Executor", "Local", "Task", "draw", "duration_words", "executor", "flops_per_second",
    "machine_kind", "make_executor", "recorded_threads", "size_words", "work",
]  # fmt: skip

from vit_lens.engine.bench import OWN, Bench, machine_kind, recorded_threads
from vit_lens.engine.estimates import duration_words, flops_per_second, size_words
from vit_lens.engine.executors import Executor, Local, draw, executor, make_executor
from vit_lens.engine.tasks import Drawn, Task, work
