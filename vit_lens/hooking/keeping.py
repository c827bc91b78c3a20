"""Hooks that keep activations: one value for each hook point, in each step of a run that has steps."""

__all__ = ["Keeper"]

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.errors import VitLensError
from vit_lens.hooking.guard import as_device
from vit_lens.hooking.stepped import Step, SteppedCache

OfOne = TypeVar("OfOne")


class Keeper:
    """Caching hooks, and the dict that they fill; a value that is there is never written over in silence.

    What is kept shares no memory with the weights, nor with anything else that is kept.

    Args:
        model: The model, which says its steps, and how often a point fires in one: a :class:`LoudHookedRootModule`.
        names: The names of the hook points to keep.
        cache: The dict to fill, None for a new one: ``<name>~<index>`` in a step, ``<name>`` outside of steps;
            gradients are under ``<name>_grad``.
        incl_bwd: Whether gradients are kept as well.
        part: Takes a value, its name and whether it is a gradient, and returns what is kept of it; None keeps all.
        device: Where values are kept; None leaves them where they are.
        remove_batch_dim: Whether the batch axis, of one image, is dropped.
        at_steps: The indices of the steps to keep; None keeps all.

    Raises:
        VitLensError: ``at_steps`` is empty or no list of whole numbers, or there is no such device; or later, in a
            run, a value that is there would be written over.

    >>> keeper = Keeper(model, ["hook_pooled"])
    >>> out = model.run_with_hooks(pixels, fwd_hooks=keeper.hooks()[0])
    >>> keeper.result(dict)["hook_pooled"].shape
    torch.Size([2, 128])
    """

    def __init__(
        self,
        model: Any,
        names: Sequence[str],
        cache: dict[str, Tensor] | None = None,
        incl_bwd: bool = False,
        *,
        part: Callable[[Tensor, str, bool], Tensor] | None = None,
        device: str | torch.device | None = None,
        remove_batch_dim: bool = False,
        at_steps: Sequence[int] | None = None,
    ):
        self.model, self.names, self.incl_bwd, self.part = model, names, incl_bwd, part
        self.device = None if device is None else as_device(device)
        self.cache: dict[str, Tensor] = {} if cache is None else cache
        self.remove_batch_dim, self.at_steps = remove_batch_dim, _indices(at_steps)
        self._taken = {_memory(weight) for weight in model.parameters()}
        self._seen: dict[int, Step] = {}
        self._times: dict[str, int] = {}
        self._awaited: dict[str, list[Step | None]] = {}  # firings whose gradients have not come, by point
        self._reached: set[str] = set()  # points that gradients came to

    def hooks(self) -> tuple[list, list]:
        """Return forward and backward hooks, as (name, function) pairs."""
        keep = partial(self._keep)
        keep.only_reads = True  # pyright: ignore[reportAttributeAccessIssue]
        backward = self.names if self.incl_bwd else []
        return [(name, keep) for name in self.names], [(name, self._keep_gradient) for name in backward]

    def _keep(self, tensor: Tensor, hook: HookPoint) -> None:
        step, name = self.model.current_step, str(hook.name)
        if step is not None:
            self._seen[step.index] = step
        if tensor.requires_grad:
            self._awaited.setdefault(name, []).append(step)
        if self._is_kept(step):
            key, _ = self._count(name, "", step)
            self.cache[key] = self._cut(tensor, name, False)

    def _keep_gradient(self, tensor: Tensor, hook: HookPoint) -> None:
        name, step = str(hook.name), None
        if name in self._awaited:
            if not self._awaited[name]:
                raise VitLensError(f"a second backward pass reached {name!r}; caches keep the gradients of one")
            step = self._awaited[name].pop()  # of later passes first: backward goes through them in reverse
        self._reached.add(name)
        if self._is_kept(step):
            key, times = self._count(name, "_grad", step)
            if not times:  # the first that comes is of the last firing, whose activation is kept
                self.cache[key] = self._cut(tensor, name, True)

    def _is_kept(self, step: Step | None) -> bool:
        return step is None or self.at_steps is None or step.index in self.at_steps

    def _count(self, name: str, suffix: str, step: Step | None) -> tuple[str, int]:
        """Return the key of a value that has come, and how many came before."""
        key = f"{name}{suffix}" if step is None else f"{name}{suffix}~{step.index}"
        allowed: int = self.model.firings(name)
        times = self._times.get(key, allowed) if key in self.cache else 0
        if times >= allowed:
            where = "" if step is None else f" in step {step.index}"
            raise VitLensError(
                f"{name!r} fired again{where}, and a cache keeps one value. A model that runs its blocks several "
                "times says so: `with model.step(index):` around each pass. A dict that an earlier run has filled is "
                "emptied first: cache.clear()"
            )
        self._times[key] = times + 1
        return key, times

    def _cut(self, tensor: Tensor, name: str, is_gradient: bool) -> Tensor:
        value = tensor.detach()
        value = value if self.part is None else self.part(value, name, is_gradient)
        value = value if self.device is None else value.to(self.device)
        if (memory := _memory(value)) is not None and memory == _memory(tensor):  # no copy was made
            value = value.clone() if memory in self._taken else value
            self._taken.add(memory)
        if self.remove_batch_dim and len(value) != 1:
            raise VitLensError(f"remove_batch_dim=True needs one image, not {len(value)}")
        return value[0] if self.remove_batch_dim else value

    def result(self, of_one: Callable[[dict[str, Tensor]], OfOne]) -> OfOne | SteppedCache[OfOne]:
        """Return what was kept: an ordinary cache, or that of a run in steps.

        Args:
            of_one: Makes the ordinary cache of a dict of activations.

        Raises:
            VitLensError: Steps that were asked for did not come, or gradients came to some firings of a point alone,
                so that it is not known to which.
        """
        if halfway := [n for n, awaited in self._awaited.items() if awaited and n in self._reached]:
            raise VitLensError(
                f"gradients came to some passes through {halfway[:4]} and not to all, so they cannot be told apart; "
                "run what is detached under torch.no_grad()"
            )
        if absent := [index for index in self.at_steps or () if index not in self._seen]:
            said = f"had steps {list(self._seen)}" if self._seen else "said no steps"
            raise VitLensError(f"at_steps={absent}: at the points that are kept, the run {said}")
        if not self._seen:
            return of_one(self.cache)
        return SteppedCache(self.cache, [step for step in self._seen.values() if self._is_kept(step)], of_one)


def _memory(tensor: Tensor) -> int | None:
    """Return where a tensor's memory begins; None where none is shown: in torch.func, and of quantised weights."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return None


def _indices(at_steps: Any) -> list[int] | None:
    try:
        indices = None if at_steps is None else [operator.index(index) for index in at_steps]
    except TypeError:
        indices = []
    if indices == []:
        raise VitLensError(f"at_steps={at_steps!r}; expected a list of steps, as whole numbers, or None for all")
    return indices
