"""A model that runs its blocks several times: its steps, and a cache that keeps each of them."""

__all__ = ["Activations", "Step", "SteppedCache"]

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.errors import UnknownHookError, VitLensError, nearest

OfOne = TypeVar("OfOne")


@dataclass(frozen=True)
class Step:
    """One pass of a model that runs its blocks several times.

    Attributes:
        index: Which pass it is; a model that counts its passes begins at 0.
        sigma: The noise level that the pass ran at; None where the model has not said it.

    >>> Step(3, sigma=0.5)
    Step(index=3, sigma=0.5)
    """

    index: int
    sigma: float | None = None


class Activations(dict[str, Tensor]):
    """The activations of one run of any module, by hook name.

    Raises:
        UnknownHookError: A name is looked up that the cache does not hold.

    >>> Activations(hook_pooled=torch.zeros(2, 8))["hook_poled"]
    Traceback (most recent call last):
    vit_lens.errors.UnknownHookError: the cache holds no 'hook_poled'; nearest: 'hook_pooled'
    """

    def __missing__(self, name: Any) -> Tensor:
        raise UnknownHookError(f"the cache holds no {name!r}; nearest: {nearest(str(name), self)}")


class SteppedCache(Mapping[Any, Tensor], Generic[OfOne]):
    """The activations of a run in steps.

    ``cache[name]`` is [step batch ...], stacked when it is asked for, in the order of :attr:`steps`; a point that fired
    outside of the steps (before them, or behind) has no axis of steps. Everything else is of one step:
    ``cache.at_step(i)`` is the ordinary cache of it, with the points outside of the steps, and all algebra works there.

    Args:
        kept: The activations by name, as caching hooks keep them: ``<name>~<index>`` in a step, ``<name>`` outside.
        steps: The steps, in the order in which they ran.
        of_one: Makes the ordinary cache of a dict of activations.

    Raises:
        VitLensError: A point fired in steps and outside of them.

    >>> kept = {"hook_x~0": torch.zeros(2, 4), "hook_x~1": torch.ones(2, 4)}
    >>> cache = SteppedCache(kept, [Step(0, sigma=1.0), Step(1, sigma=0.5)])
    >>> cache
    SteppedCache(1 activations; steps 0 at sigma 1, 1 at sigma 0.5)
    >>> cache["hook_x"].shape, cache.at_step(1)["hook_x"].shape
    (torch.Size([2, 2, 4]), torch.Size([2, 4]))
    """

    def __init__(
        self, kept: dict[str, Tensor], steps: Iterable[Step], of_one: Callable[[dict[str, Tensor]], OfOne] = Activations
    ):
        self.steps: tuple[Step, ...] = tuple(steps)
        self._of_one = of_one
        self._outside = {name: value for name, value in kept.items() if "~" not in name}
        self._inside: dict[int, dict[str, Tensor]] = {
            step.index: {n.removesuffix(end): value for n, value in kept.items() if n.endswith(end)}
            for step in self.steps
            for end in [f"~{step.index}"]
        }
        if both := [name for held in self._inside.values() for name in held if name in self._outside]:
            raise VitLensError(
                f"{both[0]!r} fired in steps and outside of them; put every pass of the model into a step of its own"
            )

    def at_step(self, index: int) -> OfOne:
        """Return the ordinary cache of one step, which shares memory with this one.

        Raises:
            VitLensError: The step is not kept; the message lists those that are.
        """
        if index not in self._inside:
            raise VitLensError(f"step {index!r} is not kept; expected one of {list(self._inside)}")
        return self._of_one({**self._outside, **self._inside[index]})

    def __getitem__(self, key: Any) -> Float[Tensor, "*step_batch_axes"]:
        with suppress(KeyError):
            return self._look_up(self._outside, key)
        held: dict[int, Tensor] = {}
        for index, inside in self._inside.items():
            with suppress(KeyError):
                held[index] = self._look_up(inside, key)
        if not held:
            return self._look_up(dict.fromkeys(self, torch.empty(0)), key)  # which raises
        if absent := [index for index in self._inside if index not in held]:
            raise UnknownHookError(
                f"{key!r} fired in steps {list(held)} and not in {absent}, so its steps do not stack; take "
                f"cache.at_step({next(iter(held))})[{key!r}]"
            )
        if len(shapes := {tuple(value.shape): None for value in held.values()}) > 1:
            raise VitLensError(f"{key!r} has shapes {list(shapes)} at its steps; take cache.at_step(...)[{key!r}]")
        return torch.stack(list(held.values()))

    def _look_up(self, held: dict[str, Tensor], key: Any) -> Tensor:
        cache: Any = self._of_one(held)
        return cache[key]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for held in (self._outside, *self._inside.values()) for name in held))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and hasattr(self.at_step(self.steps[0].index), name):
            raise VitLensError(f"{name} is of one step: cache.at_step({self.steps[0].index}).{name}")
        raise AttributeError(f"{type(self).__name__} has no {name!r}")

    def __repr__(self) -> str:
        steps = ", ".join(f"{s.index}" if s.sigma is None else f"{s.index} at sigma {s.sigma:.4g}" for s in self.steps)
        return f"{type(self).__name__}({len(self)} activations; steps {steps})"
