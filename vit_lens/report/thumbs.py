"""Thumbnails for the page: as sharp as a budget of bytes allows, however many pictures there are."""

__all__ = ["BUDGET", "inline_pictures"]

from collections.abc import Callable, Sequence
from contextlib import suppress

import PIL.Image

from vit_lens.errors import RecordError
from vit_lens.records import thumbnail_uri

BUDGET = 11_000_000
"""Bytes of thumbnails that a page carries at most; the whole page then stays below 15 MB."""
LADDER = ((96, 84), (96, 70), (72, 70), (56, 65), (40, 60), (32, 50))
N_SAMPLE = 48


def inline_pictures(
    read: Callable[[int], PIL.Image.Image], rows: Sequence[int], budget: int | None = None
) -> dict[int, str]:
    """Return data URIs of the readable pictures among ``rows``.

    Size and quality are the best of a ladder that keeps all of them within ``budget`` (`BUDGET`), judged by an evenly
    spread sample. Where even the smallest are too many, the last rows map to "" and the page links them.
    """
    budget = BUDGET if budget is None else budget
    size, quality = _rung(read, rows, budget)
    found: dict[int, str] = {}
    spent = 0
    for row in rows:
        picture = _readable(read, row)
        if picture is not None:
            uri = thumbnail_uri(picture, size, quality) if spent < budget else ""
            spent += len(uri)
            found[row] = uri if spent <= budget else ""
    return found


def _rung(read: Callable[[int], PIL.Image.Image], rows: Sequence[int], budget: int) -> tuple[int, int]:
    step = max(1, len(rows) // N_SAMPLE)
    sample = [picture for row in rows[::step] if (picture := _readable(read, row)) is not None]
    for size, quality in LADDER:
        spent = sum(len(thumbnail_uri(picture, size, quality)) for picture in sample)
        if spent * len(rows) <= 0.95 * budget * max(1, len(sample)):
            return size, quality
    return LADDER[-1]


def _readable(read: Callable[[int], PIL.Image.Image], row: int) -> PIL.Image.Image | None:
    with suppress(RecordError):
        return read(row)
