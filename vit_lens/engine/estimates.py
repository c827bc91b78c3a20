"""How long something will take here: operations counted, over what a convolution reaches on this device."""

__all__ = ["duration_words", "flops_per_second", "size_words"]

import time
from functools import lru_cache

import torch
import torch.nn.functional as F

_REPEATS, _AT_LEAST = 3, 0.02  # seconds
# What whole decoders reach of a large convolution's rate: norms and small layers take time without many operations.
# Measured on the embedded pair, two CPU cores, float32: .21 to .28.
_SHARE = 0.25


@lru_cache(maxsize=8)
def flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Return operations per second to reckon with: a quarter of what a 3 x 3 convolution reaches, at its best.

    It is measured once for a device and type, in about a tenth of a second.

    >>> vl.engine.flops_per_second(torch.device("cpu"), torch.float32) > 1e6
    True
    """
    pixels = torch.randn(4, 128, 64, 64, device=device, dtype=dtype)
    kernel = torch.randn(128, 128, 3, 3, device=device, dtype=dtype)
    operations = 2 * 4 * 128 * 128 * 9 * 64 * 64
    best = 0.0
    for _ in range(_REPEATS):
        started, n = time.perf_counter(), 0
        while time.perf_counter() - started < _AT_LEAST or not n:
            F.conv2d(pixels, kernel, padding=1)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            n += 1
        took = time.perf_counter() - started
        best = max(best, n * operations / took)
        if took > 1:  # float16 on a CPU: once is enough
            break
    return _SHARE * best


def duration_words(seconds: float | int) -> str:
    """Say a duration in words: ``40 s``, ``16 min``, ``3.2 h``.

    >>> [vl.engine.duration_words(seconds) for seconds in (40, 960, 11520)]
    ['40 s', '16 min', '3.2 h']
    """
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def size_words(n: float | int) -> str:
    """Say a number of bytes in words, in powers of 1000.

    >>> vl.engine.size_words(2_210_000)
    '2.21 MB'
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit in ("bytes", "kB") else f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"
