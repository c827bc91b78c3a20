"""Tokens of an image, as researchers write them: ``cls``, ``register2``, ``patch17``, ``(row, column)``."""

__all__ = ["Token", "Tokens", "describe_position", "resolve_tokens"]

import re
from collections.abc import Sequence
from typing import SupportsIndex

import torch
from torch import Tensor

from vit_lens.addresses import as_index, as_indices
from vit_lens.config import HookedViTConfig
from vit_lens.errors import InterventionError

Token = str | SupportsIndex | tuple[SupportsIndex, SupportsIndex]
Tokens = Token | Sequence[Token] | Tensor

_NUMBERED = re.compile(r"(patch|register)\s*(\d+)", re.IGNORECASE)


def resolve_tokens(tokens: Tokens, cfg: HookedViTConfig) -> list[int]:
    """Return positions on the axis ``pos``, in order of appearance, each once.

    =================================== ==================================================================
    ``(row, column)``                   a patch of the grid, from the top left
    ``"patch17"``                       the same by its number, row by row
    ``"cls"``, ``"register2"``          the class token; one register
    ``"patches"``, ``"registers"``      all of them
    ``5``                               a position on the axis ``pos``, as everywhere in TransformerLens; where
                                        there is a class token, 0 is the class token and not a patch
    a bool tensor [rows columns]        the patches where it is True: a mask on the grid
    a list of these                     all of them
    =================================== ==================================================================

    Raises:
        InterventionError: A token that the model has not, or no token.
    """
    if isinstance(tokens, Tensor) and as_index(tokens) is None:
        return _of_mask(tokens, cfg)
    items = list(tokens) if isinstance(tokens, Sequence) and not isinstance(tokens, (str, tuple)) else [tokens]
    found = [position for item in items for position in _positions(item, cfg)]
    if not found:
        raise InterventionError("tokens selects nothing; pass None for every token")
    return list(dict.fromkeys(found))


def describe_position(position: int, cfg: HookedViTConfig) -> str:
    """Return how a position is written: ``cls``, ``register0``, ``(2, 3)``."""
    if cfg.has_cls and position == 0:
        return "cls"
    if position < cfg.n_prefix:
        return f"register{position - cfg.has_cls}"
    return str(divmod(position - cfg.n_prefix, cfg.grid[1]))


def _of_mask(mask: Tensor, cfg: HookedViTConfig) -> list[int]:
    if mask.dtype != torch.bool or tuple(mask.shape) != cfg.grid:
        raise InterventionError(
            f"a mask of tokens is a bool tensor of the grid's shape {cfg.grid}, not {mask.dtype} {tuple(mask.shape)}"
        )
    if not mask.any():
        raise InterventionError("the mask of tokens is False everywhere; pass None for every token")
    return [cfg.n_prefix + int(i) for i in mask.flatten().nonzero()]


def _positions(item: object, cfg: HookedViTConfig) -> list[int]:
    if isinstance(item, str):
        return _named(item, cfg)
    if (position := as_index(item)) is not None:
        return [_checked(position, cfg.n_ctx, 0, f"position {position}")]
    place = as_indices(item) if isinstance(item, tuple) else None
    if place is not None and len(place) == 2:
        (row, column), (rows, columns) = place, cfg.grid
        if not (0 <= row < rows and 0 <= column < columns):
            raise InterventionError(
                f"patch (row {row}, column {column}) lies outside the grid of {rows} rows and {columns} columns"
            )
        return [cfg.n_prefix + row * columns + column]
    raise InterventionError(
        f"tokens={item!r}; expected 'cls', 'patches', 'registers', (row, column), 'patch17', 'register0', "
        "a position, a list of these, or a bool mask of the grid"
    )


def _named(name: str, cfg: HookedViTConfig) -> list[int]:
    key = name.strip().lower()
    groups = {
        "cls": range(int(cfg.has_cls)),
        "registers": range(int(cfg.has_cls), cfg.n_prefix),
        "patches": range(cfg.n_prefix, cfg.n_ctx),
    }
    if key in groups:
        if not groups[key]:
            raise InterventionError(f"tokens={name!r}: the model has none")
        return list(groups[key])
    if not (numbered := _NUMBERED.fullmatch(key)):
        raise InterventionError(
            f"tokens={name!r}; expected 'cls', 'patches', 'registers', 'patch17' or 'register0', or a patch as "
            "(row, column)"
        )
    group = groups["patches" if numbered[1] == "patch" else "registers"]
    return [_checked(int(numbered[2]), len(group), group.start, name)]


def _checked(index: int, n: int, offset: int, name: str) -> int:
    if not 0 <= index < n:
        raise InterventionError(f"{name} is out of range: there are {n}, counted from 0")
    return offset + index
