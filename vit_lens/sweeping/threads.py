"""Pictures are encoded and written by threads, while the device draws the next."""

__all__ = ["PictureThreads"]

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from jaxtyping import UInt8
from torch import Tensor

from vit_lens.records import RecordWriter

_MOST_THREADS, _WAITING = 8, 64


class PictureThreads:
    """Writes pictures of a record beside the main thread; a block that ends well has written all of them.

    An error of a thread is raised by the next :meth:`settle`, or earlier by a :meth:`write` that has to wait.
    """

    def __init__(self, writer: RecordWriter):
        self._writer = writer
        self._pool = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), thread_name_prefix="vit_lens")
        self._pending: deque[Future] = deque()

    def __enter__(self) -> "PictureThreads":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            self.settle()

    def write(self, row: int, picture: UInt8[Tensor, "height width 3"], drawn: str) -> None:
        """Write a picture some time before the next :meth:`settle`; waits where too many are waiting."""
        while len(self._pending) >= _WAITING:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._writer.write_picture, row, picture, drawn))

    def settle(self) -> None:
        """Wait until every picture lies on disk."""
        while self._pending:
            self._pending.popleft().result()
