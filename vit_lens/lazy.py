"""Faces whose names are imported on first use, so that `import vit_lens` and `vit-lens --help` stay fast."""

__all__ = ["lazy"]

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy(face: str, home: Mapping[str, str]) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__all__``, ``__getattr__`` and ``__dir__`` of a package.

    Args:
        face: The package's ``__name__``.
        home: For each public name the module that has it, ``.inside`` the package or absolute; the package itself for
            one of its modules.
    """

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {face!r} has no attribute {name!r}")
        return import_module(f".{name}", face) if home[name] == face else getattr(import_module(home[name], face), name)

    return list(home), load, lambda: sorted(home)
