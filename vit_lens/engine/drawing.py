"""Drawing what is held in memory: studies, figures and checks go through the same tasks as sweeps."""

__all__ = ["draw"]

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from vit_lens.conditions import Condition
from vit_lens.engine.bench import Bench
from vit_lens.engine.executors import Local
from vit_lens.engine.tasks import Drawn, Task


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
    condition = condition.kept()
    tasks = (
        Task(rows=tuple(range(start, min(start + size, len(condition)))), settings=settings, size=size)
        for start in range(0, len(condition), size)
    )
    found: list[Drawn] = []
    with tqdm(total=len(condition), desc=label, unit="picture", disable=not progress) as bar:
        for drawn in Local().run(bench, tasks, lambda rows: condition[list(rows)]):
            found.append(drawn)
            bar.update(len(drawn.rows))
            if keep is not None:
                keep(drawn)
    seen = {name: Condition.cat([one.seen[name] for one in found]) for name in found[0].seen}
    return torch.cat([one.pictures for one in found]), seen
