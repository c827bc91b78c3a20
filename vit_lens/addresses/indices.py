"""Whole numbers, as Python, numpy and torch have them."""

__all__ = ["Indices", "as_index", "as_indices"]

import operator
from collections.abc import Iterable
from typing import SupportsIndex

Indices = SupportsIndex | Iterable[SupportsIndex]  # one whole number or several, of Python, numpy or torch


def as_index(value: object) -> int | None:
    """Return a whole number of Python, numpy or torch as an int; None for all else, for a bool too.

    >>> as_index(np.int64(3)), as_index(torch.tensor(3)), as_index(3.0), as_index(True)
    (3, 3, None, None)
    """
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool") or getattr(value, "ndim", 0):
        return None
    try:
        return operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return None


def as_indices(value: object) -> list[int] | None:
    """Return one whole number or several as a list; None if one of them is no whole number.

    >>> as_indices(3), as_indices(torch.tensor([3, 5])), as_indices([3, "5"])
    ([3], [3, 5], None)
    """
    if (one := as_index(value)) is not None:
        return [one]
    if isinstance(value, str) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) != 1:
        return None
    found = [as_index(item) for item in value]
    whole = [index for index in found if index is not None]
    return whole if len(whole) == len(found) else None
