"""What is known by name: the layouts that dictionaries are read from."""

__all__ = ["LAYOUTS", "Layout", "find_layout", "layout"]

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_lens.errors import DictionaryError, nearest

Read = Callable[[Path, Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Layout:
    """One way in which dictionaries lie on disk.

    Attributes:
        name: What it is called.
        holds: Whether a file or folder looks like one.
        read: Makes the :class:`Dictionary` of it, and of what the caller says where it is silent.

    >>> vl.dictionaries.LAYOUTS["sae_lens"].holds(tmp)
    False
    """

    name: str
    holds: Callable[[Path], bool]
    read: Read


LAYOUTS: dict[str, Layout] = {}
"""The layouts by name; :func:`layout` adds one."""


def layout(name: str, holds: Callable[[Path], bool]) -> Callable[[Read], Read]:
    """Register a function that reads a layout.

    Args:
        name: What the layout is called.
        holds: Whether a path looks like one; it may look at names and at the first bytes, and at nothing else.

    >>> @layout("arrays", lambda path: path.suffix == ".arrays")
    ... def read(path, said):
    ...     return vl.dictionaries.random_dictionary(2, 3, k=1)
    >>> LAYOUTS.pop("arrays").name
    'arrays'
    """

    def register(read: Read) -> Read:
        LAYOUTS[name] = Layout(name, holds, read)
        return read

    return register


def find_layout(path: Path, name: str | None) -> Read:
    """Return what reads a path.

    Args:
        path: A file or folder.
        name: The layout; None looks which one it is.

    Raises:
        DictionaryError: There is nothing there, no such layout, or not exactly one layout that it looks like.

    >>> find_layout(tmp / "nothing", None)
    Traceback (most recent call last):
    vit_lens.errors.DictionaryError: ...nothing: no such file or folder
    """
    if name is not None and name not in LAYOUTS:
        raise DictionaryError(f"layout={name!r}; nearest: {nearest(str(name), LAYOUTS)}")
    if not path.exists():
        raise DictionaryError(f"{path}: no such file or folder")
    if name is not None:
        return LAYOUTS[name].read
    found = [one for one in LAYOUTS.values() if one.holds(path)]
    if len(found) != 1:
        looks = (
            f"looks like several: {', '.join(one.name for one in found)}" if found else "is of no layout that is known"
        )
        raise DictionaryError(
            f"{path} {looks}. There are {', '.join(LAYOUTS)}: name one with layout=, or make a Dictionary of arrays: "
            "vl.Dictionary(W_dec=..., b_dec=..., semantics=...)"
        )
    return found[0].read
