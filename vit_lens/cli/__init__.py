"""The command line: a thin skin over the library; what ``__all__`` names is for commands that mount themselves."""

__all__ = ["app", "dictionary_inputs", "flags", "intake", "main"]  # pyright: ignore[reportUnsupportedDunderAll]

from importlib import import_module
from typing import Any

from vit_lens.cli import dictionary_inputs, flags, intake


def __getattr__(name: str) -> Any:  # the program mounts commands, whose modules import what stands above
    if name not in ("app", "main"):
        raise AttributeError(f"module 'vit_lens.cli' has no attribute {name!r}")
    return getattr(import_module("vit_lens.cli.program"), name)
