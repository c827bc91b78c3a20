"""Data-parallel training on one machine: a few single-thread processes that average their gradients.

On a shared CPU this beats one process with many threads, whose every operation waits for its slowest thread.
"""

__all__ = ["Worker", "run_workers"]

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One of `n_workers` processes; the only one by default."""

    rank: int = 0
    n_workers: int = 1

    def join(self, meeting_point: Path) -> None:
        """Meet the other workers at a file that all of them name and none has used before."""
        distributed.init_process_group(
            "gloo", init_method=meeting_point.absolute().as_uri(), rank=self.rank, world_size=self.n_workers
        )

    def share(self, rows: Tensor) -> Tensor:
        """Give this worker's part of a batch."""
        return rows[self.rank :: self.n_workers]

    def average(self, gradients: Sequence[Tensor]) -> None:
        """Replace gradients by their mean over the workers."""
        if self.n_workers == 1:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.n_workers
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def run_workers(function: Callable[[Worker], None], n_workers: int) -> None:
    """Call a picklable `function` in `n_workers` processes of one thread each, and wait for all of them."""
    level = logging.getLogger(__name__).getEffectiveLevel()
    with tempfile.TemporaryDirectory() as directory:
        meeting_point = Path(directory) / "meeting"
        spawn(_enter, args=(function, n_workers, meeting_point, level), nprocs=n_workers)


def _enter(rank: int, function: Callable[[Worker], None], n_workers: int, meeting_point: Path, level: int) -> None:
    torch.set_num_threads(1)
    if rank == 0:
        logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    worker = Worker(rank=rank, n_workers=n_workers)
    worker.join(meeting_point)
    function(worker)
    distributed.destroy_process_group()
