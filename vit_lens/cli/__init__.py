"""The command line: a thin skin over the library; ``flags`` and ``intake`` are for commands that mount themselves."""

__all__ = ["app", "flags", "intake", "main"]  # pyright: ignore[reportUnsupportedDunderAll]

from importlib import import_module
from typing import Any

from vit_lens.cli import flags, intake


def __getattr__(name: str) -> Any:  # the program mounts commands, whose modules import what stands above
    if name not in ("app", "main"):
        raise AttributeError(f"module 'vit_lens.cli' has no attribute {name!r}")
    return getattr(import_module("vit_lens.cli.program"), name)
