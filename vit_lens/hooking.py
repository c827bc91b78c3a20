"""Loud hooks: TransformerLens' hook interface in which nothing is ignored in silence.

An unknown name raises with the nearest names; a filter that matches nothing raises; a hook that changes a
shape or dtype raises with both; a hook that cannot fire in a call raises before the call.
"""

__all__ = ["LoudHookedRootModule", "as_pairs", "check_hook_result", "is_hooked"]

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from vit_lens.errors import HookShapeError, UnfiredHookError, UnknownHookError, VitLensError, nearest

Direction = Literal["fwd", "bwd"]
Name = str | Callable[[str], bool]


class _Guard:
    """A user's hook function, which works on a copy and may not change what flows through the model but in value.

    A copy, because activations share memory with each other and with weights (``hook_resid_post`` is the next
    ``hook_resid_pre``; positions are the same for all images): an edit in place would reach what was cached before.
    """

    def __init__(self, hook: Callable, name: str, direction: Direction):
        if not callable(hook):
            raise UnknownHookError(f"the hook on {name!r} is {hook!r}; expected a function of (tensor, hook)")
        if direction not in get_args(Direction):
            raise UnknownHookError(f"dir={direction!r}; expected 'fwd' or 'bwd'")
        self.hook, self.name, self.fired = hook, name, 0
        self.direction: Direction = direction
        self.only_reads = direction == "bwd" or getattr(hook, "only_reads", False)

    def __call__(self, tensor: Tensor, hook: HookPoint) -> Any:
        self.fired += 1
        given = tensor if self.only_reads else tensor.clone()
        result = self.hook(given, hook=hook)
        value = result[0] if self.direction == "bwd" and isinstance(result, tuple) and len(result) == 1 else result
        if value is None:
            return None if self.only_reads else given
        check_hook_result(value, tensor, self.name)
        return result

    def __repr__(self) -> str:
        # The arguments of a partial can be large tensors, and TransformerLens asks for this at every add_hook.
        return f"partial({self.hook.func!r}, ...)" if isinstance(self.hook, partial) else repr(self.hook)


class LoudHookedRootModule(HookedRootModule):
    """``HookedRootModule`` with the guarantees of this module's docstring."""

    def hook_points_named(self, name: Name) -> list[tuple[str, HookPoint]]:
        """Return the hook points that a name or predicate selects.

        Raises:
            UnknownHookError: There is none.
        """
        if isinstance(name, str):
            if name not in self.hook_dict:
                raise UnknownHookError(f"no hook point {name!r}; nearest: {nearest(name, self.hook_dict)}")
            return [(name, self.hook_dict[name])]
        if not callable(name):
            raise UnknownHookError(f"a hook is named by a string or a predicate on names, not {type(name).__name__}")
        found = [(n, hp) for n, hp in self.hook_dict.items() if name(n)]
        if not found:
            raise UnknownHookError(
                f"the predicate {name!r} matches none of the {len(self.hook_dict)} hook points; "
                f"they look like {nearest('blocks.0.hook', self.hook_dict)}"
            )
        return found

    def hooked_names(self) -> list[str]:
        """Return the hook points that carry a hook now."""
        return [name for name, point in self.hook_dict.items() if is_hooked(point)]

    def refuse_hooks(self, purpose: str) -> None:
        """Raise if any hook is on the model, where a result would not say so.

        Raises:
            VitLensError: There are hooks.
        """
        if hooked := self.hooked_names():
            raise VitLensError(
                f"hooks are on {hooked[:4]}{'...' if len(hooked) > 4 else ''}, and {purpose} could not say so; call "
                "model.reset_hooks(including_permanent=True) first"
            )

    def select_names(self, names_filter: Name | Sequence[str] | None) -> list[str] | None:
        """Return the hook points that a ``names_filter`` selects, or None for no filter.

        Raises:
            UnknownHookError: A name is unknown, or the filter selects nothing.
        """
        if names_filter is None:
            return None
        if isinstance(names_filter, str) or callable(names_filter) or not isinstance(names_filter, Iterable):
            return [n for n, _ in self.hook_points_named(names_filter)]
        chosen = {n for item in names_filter for n, _ in self.hook_points_named(item)}
        if not chosen:
            raise UnknownHookError("names_filter is empty; pass None to cache everything")
        return [n for n in self.hook_dict if n in chosen]

    def add_hook(
        self,
        name: Name,
        hook: Callable,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Add a hook to every point that ``name`` selects; see ``HookedRootModule.add_hook``."""
        for point_name, point in self.hook_points_named(name):
            guard = _Guard(hook, point_name, dir)
            self.check_and_add_hook(point, point_name, guard, dir, is_permanent, level, prepend)

    def _guard(self, hooks: Iterable[tuple[Name, Callable]], direction: Direction) -> list[_Guard]:
        points = [(point, hook) for name, hook in as_pairs(hooks) for point, _ in self.hook_points_named(name)]
        return [hook if isinstance(hook, _Guard) else _Guard(hook, point, direction) for point, hook in points]

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Iterable[tuple[Name, Callable]] = (),
        bwd_hooks: Iterable[tuple[Name, Callable]] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator["LoudHookedRootModule"]:
        """Add hooks for the time of a ``with`` block; those that did not fire in it are named in a warning.

        Raises:
            UnknownHookError: A name or predicate selects nothing; no hook is left behind.
        """
        guards = [*self._guard(fwd_hooks, "fwd"), *self._guard(bwd_hooks, "bwd")]
        self.context_level += 1
        try:
            for guard in guards:
                self.hook_dict[guard.name].add_hook(guard, dir=guard.direction, level=self.context_level)
            yield self
            if reset_hooks_end and (silent := _silent(guards)):
                warnings.warn(f"these hooks never fired inside their `with` block: {silent}", stacklevel=3)
        finally:
            if reset_hooks_end:
                self._remove_hooks_of_level(clear_contexts)
            self.context_level -= 1

    def _remove_hooks_of_level(self, clear_contexts: bool) -> None:
        """Do what ``reset_hooks(level=self.context_level)`` does, and touch hooked points alone: there are hundreds."""
        for point in self.hook_dict.values():
            if is_hooked(point):
                point.remove_hooks("both", including_permanent=False, level=self.context_level)
            if clear_contexts:
                point.clear_context()
        self.is_caching = False

    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: Iterable[tuple[Name, Callable]] = (),
        bwd_hooks: Iterable[tuple[Name, Callable]] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """Run the model once with these hooks; see ``HookedRootModule.run_with_hooks``.

        Raises:
            UnknownHookError: A name or predicate selects nothing.
            HookShapeError: A hook returned another shape, dtype or device.
            UnfiredHookError: A forward hook did not fire, or backward hooks would be removed before any
                backward pass could reach them.
        """
        bwd_hooks = as_pairs(bwd_hooks)
        if bwd_hooks and reset_hooks_end:
            raise UnfiredHookError(
                "run_with_hooks removes its hooks when it returns, so backward hooks could never fire; pass "
                "reset_hooks_end=False, or call backward() inside `with model.hooks(bwd_hooks=...)`"
            )
        guards = self._guard(fwd_hooks, "fwd")
        with self.hooks([(g.name, g) for g in guards], bwd_hooks, reset_hooks_end, clear_contexts):
            out = self(*model_args, **model_kwargs)
            if silent := _silent(guards):
                raise UnfiredHookError(f"these hooks never fired in this call: {silent}")
        return out

    def check_hooks_can_fire(self, reachable: Callable[[str], bool], why: str) -> None:
        """Raise if a temporary hook sits on a point that this call will not reach.

        Raises:
            UnfiredHookError: Such hooks exist; permanent hooks are part of the model and may rest.
        """
        stuck = [
            name
            for name, point in self.hook_dict.items()
            if any(not h.is_permanent for h in [*point.fwd_hooks, *point.bwd_hooks]) and not reachable(name)
        ]
        if stuck:
            raise UnfiredHookError(f"hooks on {stuck[:4]}{'...' if len(stuck) > 4 else ''} cannot fire: {why}")


def as_pairs(hooks: Any) -> list[tuple[Name, Callable]]:
    """Return hooks as pairs.

    Raises:
        UnknownHookError: They are a pair of their own, or a hook without a name.
    """
    found: list[Any] = [hooks] if isinstance(hooks, str) or not isinstance(hooks, Iterable) else list(hooks)
    for item in found:
        if not (isinstance(item, (tuple, list)) and len(item) == 2 and callable(item[1])):
            raise UnknownHookError(f"hooks are a list of (name, function) pairs; {item!r} is none")
    return [(name, hook) for name, hook in found]


def _silent(guards: list[_Guard]) -> list[str]:
    return sorted({guard.name for guard in guards if not guard.fired})


def check_hook_result(value: Any, tensor: Tensor, name: str) -> None:
    """Raise unless what a hook returned can stand in the place of what it was given.

    Raises:
        HookShapeError: Its shape, dtype, device or type is another.
    """
    if not isinstance(value, Tensor):
        raise HookShapeError(f"the hook on {name!r} returned {type(value).__name__}; return a tensor or None")
    if value.shape != tensor.shape or value.dtype != tensor.dtype or value.device != tensor.device:
        raise HookShapeError(
            f"the hook on {name!r} returned {_describe(value)} for {_describe(tensor)}; "
            "a hook must keep shape, dtype and device"
        )


def is_hooked(point: HookPoint) -> bool:
    """Whether any hook, forward or backward, sits on a hook point."""
    return bool(point.fwd_hooks or point.bwd_hooks)


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {torch.device(tensor.device)}"
