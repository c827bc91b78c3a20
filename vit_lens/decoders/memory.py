"""How much memory there is: what is free on a device, how many pictures fit into it, and whether it ran out."""

__all__ = ["MAX_ROWS", "MovqChunk", "free_memory", "guarded", "rows_that_fit"]

import gc
from collections.abc import Callable
from typing import TypeVar

import psutil
import torch

from vit_lens.decoders.settings import DecodeSettings
from vit_lens.errors import DecoderError, expect

# Rows per pass beyond which little is gained: 16 cost 3 % more per picture than 32 on two CPU cores, and half as much
# where a sweep is small, since the last pass is filled up.
MAX_ROWS = 16
# The rest is for workspaces of convolutions, for fragments, and for others on the device. On a CPU convolutions copy
# what they read and write into a layout of their own, which doubles the memory; and running out ends the process.
_SHARE = 0.8
_CPU_SHARE = 0.4
# MoVQ needs far more memory per picture than the UNet: at most eight pictures of 512 x 512 at a time.
_MOVQ_PIXELS = 8 * 512 * 512
# Allocators without an error class of their own: the CPU's, and Metal's.
_SAID = ("can't allocate memory", "out of memory")

_T = TypeVar("_T")


class MovqChunk:
    """How many pictures MoVQ decodes at a time; once memory ran out, it stays at what fitted."""

    def __init__(self) -> None:
        self._pixels = _MOVQ_PIXELS

    def rows(self, settings: DecodeSettings) -> int:
        """Return how many pictures of a size MoVQ takes at a time."""
        return max(1, self._pixels // (settings.height * settings.width))

    def halve(self, settings: DecodeSettings, rows: int) -> bool:
        """Take half as many from now on, where a pass has ``rows``; return False at one, which has no half."""
        at_once = min(rows, self.rows(settings))
        if at_once > 1:
            self._pixels = at_once // 2 * settings.height * settings.width
        return at_once > 1


def free_memory(device: torch.device) -> int:
    """Return the bytes that a computation on a device can still get, with what torch's cache holds unused.

    Raises:
        DecoderError: The kind of device does not say.

    >>> vl.decoders.free_memory(torch.device("cpu")) > 0
    True
    """
    expect(device, torch.device, "device", DecoderError, "torch.device('cpu')")
    if device.type == "cpu":
        return psutil.virtual_memory().available
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    raise DecoderError(f"how much memory is free is not known for device {device}; give batch_size, the rows per pass")


def rows_that_fit(device: torch.device, bytes_per_row: int) -> int:
    """Return rows per pass for the memory that is free now, between 1 and :data:`MAX_ROWS`."""
    share = _CPU_SHARE if device.type == "cpu" else _SHARE
    return min(MAX_ROWS, max(1, int(share * free_memory(device)) // bytes_per_row))


def guarded(call: Callable[[], _T], device: torch.device) -> tuple[_T | None, str]:
    """Run a computation; where memory runs out, free what it held and return None with what was said."""
    try:
        return call(), ""
    except (RuntimeError, MemoryError) as error:
        if not _ran_out(error):
            raise
        said = str(error).split("\n")[0]
    # Past the clause, where the traceback no longer holds the tensors of the computation.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    return None, said


def _ran_out(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in _SAID)
