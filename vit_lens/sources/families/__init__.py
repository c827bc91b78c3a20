"""The families of towers: one file each, and this list of them.

Another family is one more file with a ``FAMILY`` and its name below, or :func:`register_family` from outside.
"""

__all__ = ["families", "family_of", "register_family"]

import importlib
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from vit_lens.sources.families.family import Family

_FAMILIES: list["str | Family"] = ["clip", "siglip", "dinov2", "open_clip", "timm"]


def families() -> list["Family"]:
    """Return every family; the files are read here, and the libraries of the towers not before a tower needs them."""
    return [_file(each) if isinstance(each, str) else each for each in _FAMILIES]


def family_of(module: nn.Module) -> "Family | None":
    """Return the family that knows how to read a module, or None."""
    return next((family for family in families() if family.owns(module)), None)


def register_family(family: "Family") -> None:
    """Let a family of your own be read, converted and verified like those that ship; it is asked last.

    ``tests/test_families.py`` has a whole one in 50 lines.
    """
    _FAMILIES.append(family)


def _file(name: str) -> "Family":
    return importlib.import_module(f"{__name__}.{name}").FAMILY
