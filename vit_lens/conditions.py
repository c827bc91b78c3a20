"""What a decoder is asked to draw: tokens, a mask over them and a pooled vector, for any number of rows."""

__all__ = ["Condition"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Union

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vit_lens.errors import ContractError

_PARTS = ("tokens", "mask", "pooled")


@dataclass(frozen=True, eq=False)
class Condition:
    """What lenses return and decoders take; a CLIP image embedding is ``Condition(pooled=embeds)``.

    Rows come first, along one axis or several: a lens returns [batch site], a decoder takes one axis.

    Attributes:
        tokens: What the decoder attends to; None for none.
        mask: Which of the tokens count; None for all.
        pooled: One vector for each row, such as an image embedding; None for none.

    Raises:
        ContractError: There is neither, a mask without tokens, or the rows of the parts differ.

    >>> condition = Condition(pooled=torch.zeros(2, 3, 16))
    >>> condition.rows, condition[0, 1].shapes()
    ((2, 3), {'pooled': (16,)})
    """

    tokens: Float[Tensor, "*rows token d_token"] | None = None
    mask: Bool[Tensor, "*rows token"] | None = None
    pooled: Float[Tensor, "*rows d_pooled"] | None = None

    def __post_init__(self) -> None:
        for name in _PARTS:
            part = getattr(self, name)
            if part is not None and not isinstance(part, Tensor):
                raise ContractError(f"{name} of a condition is a {type(part).__name__}; expected a torch.Tensor")
        if self.tokens is None and (self.pooled is None or self.mask is not None):
            raise ContractError("a condition has tokens, a pooled vector or both, and a mask goes with tokens alone")
        rows = {name: tuple(part.shape[: -1 - (name == "tokens")]) for name, part in self.parts().items()}
        if len(set(rows.values())) > 1:
            raise ContractError(f"the parts of a condition have different rows: {rows}")

    @classmethod
    def of(cls, given: Union["Condition", Tensor]) -> "Condition":
        """Return a condition as it is; a tensor counts as pooled."""
        return given if isinstance(given, Condition) else cls(pooled=given)

    @classmethod
    def cat(cls, conditions: Sequence["Condition"], axis: int = 0) -> "Condition":
        """Join conditions along an axis of rows.

        Raises:
            ContractError: They have different parts.
        """
        if len({tuple(one.parts()) for one in conditions}) > 1:
            raise ContractError(f"conditions of different parts: {[list(one.parts()) for one in conditions]}")
        return cls(
            **{
                name: torch.cat([getattr(one, name) for one in conditions], axis)
                for name in conditions[0].parts()
            }
        )  # fmt: skip

    @classmethod
    def empty(cls, shapes: dict[str, Sequence[int]], n: int) -> "Condition":
        """Return ``n`` rows that hold nothing yet: nan, and no token that counts."""
        return cls(
            **{
                name: torch.zeros(n, *shape, dtype=torch.bool) if name == "mask" else torch.full((n, *shape), torch.nan)
                for name, shape in shapes.items()
            }
        )  # fmt: skip

    def parts(self) -> dict[str, Tensor]:
        """Return what there is, by name."""
        return {name: getattr(self, name) for name in _PARTS if getattr(self, name) is not None}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each part of one row."""
        n_axes = len(self.rows)
        return {name: tuple(part.shape[n_axes:]) for name, part in self.parts().items()}

    def words(self) -> str:
        """Say what one row holds, for messages: ``pooled [16]``."""
        return " and ".join(f"{name} {list(shape)}" for name, shape in self.shapes().items())

    @property
    def rows(self) -> tuple[int, ...]:
        """Sizes of the axes of rows."""
        return tuple(self.tokens.shape[:-2] if self.pooled is None else self.pooled.shape[:-1])  # pyright: ignore[reportOptionalMemberAccess]

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return next(iter(self.parts().values())).device

    def map(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        """Return the condition with a change of rows made to every part."""
        return Condition(**{name: change(part) for name, part in self.parts().items()})

    def __len__(self) -> int:
        return self.rows[0]

    def __getitem__(self, rows: Any) -> "Condition":
        return self.map(lambda part: part[rows])

    def flatten_rows(self) -> "Condition":
        """Return the condition with its first two axes of rows as one."""
        return self.map(lambda part: part.flatten(0, 1))

    def to(self, device: str | torch.device) -> "Condition":
        """Return the condition on a device."""
        return self.map(lambda part: part.to(device))

    def kept(self) -> "Condition":
        """Return the condition as records keep it: float32, on the CPU."""
        return self.map(lambda part: part.detach().cpu() if part.dtype == torch.bool else part.detach().float().cpu())

    def padded(self, size: int) -> "Condition":
        """Return ``size`` rows: those there are, then copies of the last."""
        return self.map(lambda part: torch.cat([part, part[-1:].expand(size - len(part), *part.shape[1:])]))

    @property
    def flat(self) -> Float[Tensor, "*rows numbers"]:
        """Everything that the decoder is given of a row, as one vector; tokens that do not count are zero."""
        found = []
        if self.tokens is not None:
            counted = self.tokens if self.mask is None else self.tokens * self.mask[..., None]
            found.append(counted.flatten(-2))
        if self.pooled is not None:
            found.append(self.pooled)
        return torch.cat(found, -1) if len(found) > 1 else found[0]

    @property
    def vector(self) -> Float[Tensor, "*rows d"]:
        """One vector for each row: the pooled one, else the mean of the tokens that count."""
        if self.pooled is not None or self.tokens is None:
            return self.flat
        if self.mask is None:
            return self.tokens.mean(-2)
        weight = self.mask[..., None].to(self.tokens)
        return (self.tokens * weight).sum(-2) / weight.sum(-2).clamp(min=1)

    def __repr__(self) -> str:
        return f"Condition({list(self.rows)} rows of {self.words()})"
