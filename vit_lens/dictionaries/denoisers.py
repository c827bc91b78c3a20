"""What dictionaries ask of a hooked diffusion model, and how a token of it is told: by step and position."""

__all__ = ["Denoises", "cells_of", "place_of", "positions_of", "replayed", "run_of", "seed_of", "step_and_position"]

import hashlib
from typing import Any, Protocol, runtime_checkable

from vit_lens.addresses import as_index
from vit_lens.dictionaries.semantics import Provenance
from vit_lens.errors import DictionaryError

_STEP = 2**20  # more positions than any denoiser has


@runtime_checkable
class Denoises(Protocol):
    """A model that draws prompts in steps; :class:`vit_lens.HookedDiffusion` is one, which rests on this room."""

    current_branch: str | None
    current_sides: tuple[int, int] | None

    @property
    def row_branches(self) -> tuple[str, ...]: ...
    def __call__(self, prompts: Any, **options: Any) -> Any: ...
    def run_with_cache(self, prompts: Any, **options: Any) -> Any: ...
    def run_settings(self, **options: Any) -> dict[str, Any]: ...
    def denoising_loss(self, prompts: Any, latents: Any, **options: Any) -> Any: ...
    def axes_of(self, name: str) -> str: ...
    def is_text(self, name: str) -> bool: ...
    def text_tokens(self, prompts: Any, **options: Any) -> list[list[str]]: ...


def place_of(step: int, position: int) -> int:
    """Return the place of a token in a draw, as labels have it: the step times 2^20, and the position.

    >>> place_of(3, 17)
    3145745
    """
    return step * _STEP + position


def step_and_position(place: int) -> tuple[int, int]:
    """Return the step and the position that a place in a draw is of.

    Args:
        place: The second column of labels: of a batch's, or of ITDA's atoms.

    >>> step_and_position(3145745)
    (3, 17)
    """
    return divmod(place, _STEP)


def positions_of(tokens: str) -> list[int] | None:
    """Return the positions that a rule names in a stream of a denoiser; None for all.

    Raises:
        DictionaryError: It is neither ``all`` nor positions.

    >>> positions_of("0,5"), positions_of("all")
    ([0, 5], None)
    """
    if tokens == "all":
        return None
    found = [as_index(int(each)) for each in tokens.split(",") if each.strip().isdecimal()]
    if len(found) != tokens.count(",") + 1:
        raise DictionaryError(
            f"tokens={tokens!r}: of a denoiser's stream give 'all', or positions counted from 0, such as '0,5'"
        )
    return sorted({each for each in found if each is not None})


def cells_of(height: int, width: int, n_positions: int) -> tuple[int, int] | None:
    """Return rows and columns of a picture's cells; None where so many positions are not halvings of its sides.

    >>> cells_of(64, 96, 24), cells_of(64, 96, 25)
    ((4, 6), None)
    """
    rows, columns = height, width
    while rows * columns > n_positions:
        rows, columns = -(-rows // 2), -(-columns // 2)
    return (rows, columns) if rows * columns == n_positions else None


def seed_of(noise_seed: int, index: int) -> int:
    """Return the seed of the noise that an input is drawn from: it depends on these two alone."""
    return int.from_bytes(hashlib.sha256(repr((noise_seed, index)).encode()).digest()[:7], "little")


def run_of(provenance: Provenance) -> dict[str, Any]:
    """Return what a pipeline was called with, to call it so again; nothing where that is not known."""
    run = {name: tuple(value) if isinstance(value, list) else value for name, value in (provenance.run or {}).items()}
    return {name: value for name, value in run.items() if name != "noise_seed"}


def replayed(provenance: Provenance) -> dict[str, Any]:
    """Return what a source takes to read other prompts as those were read; nothing where that is not known."""
    said = {"at_steps": provenance.at_steps, "branch": provenance.branch, **(provenance.run or {})}
    return {name: value for name, value in (said | run_of(provenance)).items() if value is not None}
