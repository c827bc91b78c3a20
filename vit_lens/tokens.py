"""Tokens: what the positions of addresses (``cls``, ``patch17``, ``(row, column)``, ``5``) are in one tower."""

__all__ = [
    "RUN_IDS", "Token", "Tokens", "describe_position", "image_config", "read_token", "resolve_tokens", "token_list",
]  # fmt: skip

from collections.abc import Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from vit_lens.addresses import Position, as_index, as_indices
from vit_lens.config import HookedTextConfig, PatchEmbedConfig, TowerConfig
from vit_lens.errors import InterventionError, UnknownSiteError

Token = Position | str | SupportsIndex | tuple[SupportsIndex, SupportsIndex]
Tokens = Token | Sequence[Token] | Tensor
RUN_IDS = "vit_lens: ids of the prompts that run"
"""The key under which ``hook.ctx`` has them while a text tower runs."""


def resolve_tokens(tokens: Tokens, cfg: TowerConfig) -> list[int]:
    """Return positions on the axis ``pos``, in order of appearance, each once.

    =================================== ==================================================================
    ``(row, column)``                   a patch of the grid, from the top left
    ``"patch17"``                       the same by its number, row by row
    ``"cls"``, ``"register2"``          the class token; one register
    ``"patches"``, ``"registers"``      all of them
    ``5``                               a position on the axis ``pos``, as everywhere in TransformerLens; where
                                        there is a class token, 0 is the class token and not a patch
    ``"(3,7)"``, ``"5"``, a Position    the same, as addresses have them behind ``@``
    a bool tensor [rows columns]        the patches where it is True: a mask on the grid
    a list of these                     all of them
    =================================== ==================================================================

    Args:
        tokens: Which tokens, in any of the spellings above.
        cfg: The config of the tower whose tokens they are.

    Raises:
        InterventionError: The tower has no such token, or nothing is selected.

    >>> resolve_tokens([(0, 2), "cls"], model.cfg)
    [3, 0]
    >>> resolve_tokens(torch.eye(4, dtype=torch.bool), model.cfg)
    [1, 6, 11, 16]
    >>> resolve_tokens((4, 0), model.cfg)
    Traceback (most recent call last):
    vit_lens.errors.InterventionError: patch (row 4, column 0) lies outside the grid of 4 rows and 4 columns
    """
    if isinstance(tokens, Tensor) and as_index(tokens) is None:
        return _of_mask(tokens, image_config(cfg, "a mask of tokens"))
    found = [position for item in token_list(tokens) for position in _positions(item, cfg)]
    if not found:
        raise InterventionError("tokens selects nothing; pass None for every token")
    return list(dict.fromkeys(found))


def describe_position(position: int, cfg: TowerConfig) -> str:
    """Return how a position is written: ``cls``, ``register0``, or a patch as ``(row, column)``.

    Args:
        position: The place on the token axis, counted from 0.
        cfg: The config of the tower whose token it is.

    Raises:
        InterventionError: The tower has no such position.

    >>> describe_position(0, model.cfg), describe_position(12, model.cfg)
    ('cls', '(2, 3)')
    """
    position = _checked(as_index(position), range(cfg.n_ctx), f"position {position}")
    if not isinstance(cfg, PatchEmbedConfig):
        return str(position)
    if cfg.has_cls and position == 0:
        return "cls"
    if position < cfg.n_prefix:
        return f"register{position - cfg.has_cls}"
    return str(divmod(position - cfg.n_prefix, cfg.grid[1]))


def image_config(cfg: TowerConfig, wanted: object) -> PatchEmbedConfig:
    """Return the config as that of a tower which sees patches.

    Args:
        cfg: The config of any tower.
        wanted: What is wanted of its patches, for the message.

    Raises:
        InterventionError: The tower sees none.

    >>> image_config(model.cfg, "a map").grid
    (4, 4)
    """
    if not isinstance(cfg, PatchEmbedConfig):
        raise InterventionError(f"{wanted}: this tower sees no patches; give positions, 0 to {cfg.n_ctx - 1}")
    return cfg


def _of_mask(mask: Tensor, cfg: PatchEmbedConfig) -> list[int]:
    if mask.is_meta or mask.dtype != torch.bool or tuple(mask.shape) != cfg.grid:
        raise InterventionError(
            f"a mask of tokens is a bool tensor of the grid's shape {cfg.grid}, not {mask.dtype} {tuple(mask.shape)}"
        )
    if not mask.any():
        raise InterventionError("the mask of tokens is False everywhere; pass None for every token")
    return [cfg.n_prefix + int(i) for i in mask.flatten().nonzero()]


def _positions(item: object, cfg: TowerConfig) -> list[int]:
    kind, value = read_token(item)
    told = f"tokens={str(item) if isinstance(item, Position) else item!r}"
    if kind in ("eos", "pad", "word") and isinstance(cfg, HookedTextConfig):
        raise InterventionError(f"{told} is at a place of its own in every prompt; say which are run: prompts=")
    if kind == "index":
        return [_checked(value, range(cfg.n_ctx), f"position {value}")]
    image = image_config(cfg, told)
    if isinstance(value, tuple):
        (row, column), (rows, columns) = value, image.grid
        if not (0 <= row < rows and 0 <= column < columns):
            raise InterventionError(
                f"patch (row {row}, column {column}) lies outside the grid of {rows} rows and {columns} columns"
            )
        return [image.n_prefix + row * columns + column]
    registers, patches = range(int(image.has_cls), image.n_prefix), range(image.n_prefix, image.n_ctx)
    found = {
        "cls": range(int(image.has_cls)), "registers": registers, "register": registers, "patches": patches,
        "patch": patches,
    }.get(kind, range(0))  # fmt: skip
    if isinstance(value, int):
        return [_checked(value, found, f"{kind}{value}")]
    if not found:
        raise InterventionError(f"{told}: the model has none")
    return list(found)


def _checked(index: object, found: range, name: str) -> int:
    if not isinstance(index, int) or not 0 <= index < len(found):
        raise InterventionError(f"{name} is out of range: there are {len(found)}, counted from 0")
    return found[index]


def token_list(tokens: Any) -> list[Any]:
    """Return one token or several as a list.

    >>> token_list("cls"), token_list([(0, 2), "cls"])
    (['cls'], [(0, 2), 'cls'])
    """
    return list(tokens) if isinstance(tokens, Sequence) and not isinstance(tokens, (str, tuple)) else [tokens]


def read_token(item: object) -> tuple[str, int | tuple[int, ...] | str | None]:
    """Return kind and value of a token, also of one that no tower has, such as -1.

    Raises:
        InterventionError: It is no token in any spelling.

    >>> read_token('"star"'), read_token(3), read_token((0, 2))
    (('word', 'star'), ('index', 3), ('place', (0, 2)))
    """
    if (index := as_index(item)) is not None:
        return "index", index
    place = as_indices(item) if isinstance(item, tuple) else None
    if place is not None and len(place) == 2:
        return "place", tuple(place)
    try:
        position = Position.parse(item) if isinstance(item, str) else item
    except UnknownSiteError:
        position = None
    if not isinstance(position, Position):
        raise InterventionError(
            f"tokens={item!r}; expected 'cls', 'patches', 'registers', (row, column), 'patch17', 'register0', "
            "a position, a list of these, or a bool mask of the grid; in prompts 'eos', 'pad' or a word '\"star\"'"
        )
    return position.kind, position.value
