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

    Rows come first, along one axis or several: a lens returns [batch site], a decoder takes one axis. Indexing,
    ``len`` and :meth:`map` act on rows.

    Attributes:
        tokens: The token embeddings that the decoder attends to; None where it attends to none.
        mask: True where a token counts; None where all do.
        pooled: One vector for each row, such as an image embedding; None where there is none.

    Raises:
        ContractError: There are neither tokens nor a pooled vector, there is a mask without tokens, a part is no
            tensor, or the rows of the parts differ.

    >>> condition = vl.Condition(pooled=torch.zeros(2, 3, 16))
    >>> condition.rows, condition[0, 1].shapes()
    ((2, 3), {'pooled': (16,)})
    >>> vl.Condition(tokens=torch.zeros(2, 5, 16), mask=torch.ones(2, 5, dtype=torch.bool))
    Condition([2] rows of tokens [5, 16] and mask [5])
    >>> vl.Condition(mask=torch.ones(2, 5, dtype=torch.bool))
    Traceback (most recent call last):
    vit_lens.errors.ContractError: a condition has tokens, a pooled vector or both, and a mask goes with tokens alone
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
        """Return a condition as it is; a tensor counts as pooled.

        >>> vl.Condition.of(model(pixels))
        Condition([2] rows of pooled [128])
        """
        return given if isinstance(given, Condition) else cls(pooled=given)

    @classmethod
    def cat(cls, conditions: Sequence["Condition"], axis: int = 0) -> "Condition":
        """Join conditions along an axis of rows.

        Args:
            conditions: The conditions to join, at least one; all have the same parts.
            axis: The axis of rows along which they are joined, counted from 0.

        Raises:
            ContractError: The conditions have different parts.

        >>> one = vl.Condition(pooled=torch.zeros(2, 16))
        >>> vl.Condition.cat([one, one]).rows
        (4,)
        """
        if len({tuple(one.parts()) for one in conditions}) > 1:
            raise ContractError(f"conditions of different parts: {[list(one.parts()) for one in conditions]}")
        names = conditions[0].parts()
        return cls(**{name: torch.cat([getattr(one, name) for one in conditions], axis) for name in names})

    @classmethod
    def empty(cls, shapes: dict[str, Sequence[int]], n: int) -> "Condition":
        """Return ``n`` rows that hold nothing yet: nan, and no token that counts.

        Args:
            shapes: The shape of each part of one row, as :meth:`shapes` gives it.
            n: The number of rows.

        >>> vl.Condition.empty({"pooled": (3,)}, 2).pooled
        tensor([[nan, nan, nan],
                [nan, nan, nan]])
        """
        nothing = {"tokens": torch.nan, "mask": False, "pooled": torch.nan}
        return cls(**{name: torch.full((n, *shape), nothing[name]) for name, shape in shapes.items()})

    def parts(self) -> dict[str, Tensor]:
        """Return the parts that are not None, by name."""
        return {name: getattr(self, name) for name in _PARTS if getattr(self, name) is not None}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each part of one row."""
        n_axes = len(self.rows)
        return {name: tuple(part.shape[n_axes:]) for name, part in self.parts().items()}

    def words(self) -> str:
        """Say what one row holds, for messages.

        >>> vl.Condition(tokens=torch.zeros(2, 5, 16), pooled=torch.zeros(2, 8)).words()
        'tokens [5, 16] and pooled [8]'
        """
        return " and ".join(f"{name} {list(shape)}" for name, shape in self.shapes().items())

    @property
    def rows(self) -> tuple[int, ...]:
        """The sizes of the axes of rows."""
        return tuple(self.tokens.shape[:-2] if self.pooled is None else self.pooled.shape[:-1])  # pyright: ignore[reportOptionalMemberAccess]

    @property
    def device(self) -> torch.device:
        """The device that the parts lie on."""
        return next(iter(self.parts().values())).device

    def map(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        """Return the condition with a change made to every part.

        Args:
            change: Takes and returns a part, rows first; it must do the same to the rows of all parts.

        >>> vl.Condition(pooled=torch.zeros(2, 16)).map(lambda part: part.repeat(3, 1)).rows
        (6,)
        """
        return Condition(**{name: change(part) for name, part in self.parts().items()})

    def __len__(self) -> int:
        return self.rows[0]

    def __getitem__(self, rows: Any) -> "Condition":
        return self.map(lambda part: part[rows])

    def flatten_rows(self) -> "Condition":
        """Return the condition with its first two axes of rows as one, the second the faster.

        >>> vl.Condition(pooled=torch.zeros(2, 3, 16)).flatten_rows().rows
        (6,)
        """
        return self.map(lambda part: part.flatten(0, 1))

    def to(self, device: str | torch.device) -> "Condition":
        """Return the condition on a device."""
        return self.map(lambda part: part.to(device))

    def kept(self) -> "Condition":
        """Return the condition as records keep it: float32, on the CPU."""
        return self.map(lambda part: part.detach().cpu() if part.dtype == torch.bool else part.detach().float().cpu())

    def padded(self, size: int) -> "Condition":
        """Return ``size`` rows, at least as many as there are: those there are, then copies of the last.

        >>> len(vl.Condition(pooled=torch.zeros(2, 16)).padded(5))
        5
        """
        return self.map(lambda part: torch.cat([part, part[-1:].expand(size - len(part), *part.shape[1:])]))

    @property
    def flat(self) -> Float[Tensor, "*rows numbers"]:
        """Everything that the decoder is given of a row, as one vector; tokens that do not count are zero.

        >>> vl.Condition(tokens=torch.ones(2, 5, 16), pooled=torch.ones(2, 8)).flat.shape
        torch.Size([2, 88])
        """
        found = []
        if self.tokens is not None:
            counted = self.tokens if self.mask is None else self.tokens * self.mask[..., None]
            found.append(counted.flatten(-2))
        if self.pooled is not None:
            found.append(self.pooled)
        return torch.cat(found, -1) if len(found) > 1 else found[0]

    @property
    def vector(self) -> Float[Tensor, "*rows d"]:
        """One vector for each row: the pooled one, else the mean of the tokens that count.

        >>> mask = torch.tensor([[True, True, False]])
        >>> vl.Condition(tokens=torch.tensor([[[1.0], [3.0], [8.0]]]), mask=mask).vector
        tensor([[2.]])
        """
        if self.pooled is not None or self.tokens is None:
            return self.flat
        if self.mask is None:
            return self.tokens.mean(-2)
        weight = self.mask[..., None].to(self.tokens)
        return (self.tokens * weight).sum(-2) / weight.sum(-2).clamp(min=1)

    def __repr__(self) -> str:
        return f"Condition({list(self.rows)} rows of {self.words()})"
