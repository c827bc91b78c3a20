"""``LoudHookedRootModule``: a module whose hooks, caches and steps leave nothing unsaid."""

__all__ = ["LoudHookedRootModule", "Spliceable"]

import copy
import math
import operator
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal, Protocol, SupportsIndex, runtime_checkable

import torch
from torch import Tensor
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from vit_lens.errors import DictionaryError, UnfiredHookError, UnknownHookError, VitLensError, nearest
from vit_lens.hooking.guard import Direction, Guard, Name, as_pairs, is_hooked
from vit_lens.hooking.keeping import Keeper
from vit_lens.hooking.stepped import Activations, Step

_TURNS = threading.Lock()


@runtime_checkable
class Spliceable(Protocol):
    """What :meth:`LoudHookedRootModule.spliced` asks of a dictionary; :class:`vit_lens.Dictionary` is one."""

    def spliced_into(self, model: Any, site: str | None, **options: Any) -> AbstractContextManager[Any]:
        """Put it into a model for the time of a ``with`` block."""
        ...


class LoudHookedRootModule(HookedRootModule):
    """``HookedRootModule`` with the guarantees of :mod:`vit_lens.hooking`.

    Hooks are on a model for all threads at once: while one thread has hooks on it for a ``with`` block or a run, calls
    of other threads raise. Runs without hooks may go on side by side.

    >>> class Twice(LoudHookedRootModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.hook_x = HookPoint()
    ...         self.setup()
    ...     def forward(self, x):
    ...         return self.hook_x(2 * x)
    >>> out, cache = Twice().run_with_cache(torch.ones(2, 4))
    >>> cache["hook_x"].shape
    torch.Size([2, 4])
    >>> Twice().run_with_hooks(torch.ones(2, 4), fwd_hooks=[("hook_y", print)])
    Traceback (most recent call last):
    vit_lens.errors.UnknownHookError: no hook point 'hook_y'; nearest: 'hook_x'
    """

    current_step: Step | None = None
    """The step that the model is in, for hook functions to read; None outside of :meth:`step`."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._users: list[tuple[int, bool]] = []  # the threads that are in a run, or in a block with hooks

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, without another thread's hooks; a tensor that it returns is no one else's.

        Raises:
            VitLensError: Another thread has hooks on the model.
        """
        if torch.compiler.is_compiling():
            return super().__call__(*args, **kwargs)
        with self._turn(hooking=False):
            out = super().__call__(*args, **kwargs)
        kept = isinstance(out, Tensor) and any(point._forward_hooks for point in self.hook_dict.values())
        return out.clone() if kept else out

    @contextmanager
    def _turn(self, *, hooking: bool) -> Iterator[None]:
        """Hold the model against hooks of other threads, and with ``hooking`` against their runs too."""
        mine = threading.get_ident(), hooking
        with _TURNS:
            if any(thread != mine[0] and (hooking or hooks) for thread, hooks in self._users):
                raise VitLensError(
                    "another thread is in a run of this model, and hooks are on it for all threads at once: give every "
                    "thread a copy.deepcopy(model), or hold one lock around all that they do with it"
                )
            self._users.append(mine)
        try:
            yield
        finally:
            with _TURNS:  # another thread may be looking through them
                self._users.remove(mine)

    def setup(self) -> None:
        """Name the hook points; see ``HookedRootModule.setup``."""
        super().setup()
        for name, point in self.hook_dict.items():
            point.layer = partial(_layer_of, name)

    def __getstate__(self) -> dict[str, Any]:
        self.refuse_hooks("a pickled model, since functions do not travel,")
        return self._state()

    def _state(self) -> dict[str, Any]:
        return {**self.__dict__, "_users": []}

    def __deepcopy__(self, memo: dict[int, Any]) -> "LoudHookedRootModule":
        with self._turn(hooking=False):  # with the hooks of this thread, and never of another
            made = memo[id(self)] = type(self).__new__(type(self))
            made.__setstate__(copy.deepcopy(self._state(), memo))
        return made

    @contextmanager
    def step(self, index: SupportsIndex, *, sigma: float | Tensor | None = None) -> Iterator[Step]:
        """Say that the pass inside the ``with`` block is one of several through the same blocks.

        A model that runs its blocks several times says so in its ``forward``, around each pass; or whoever calls it
        several times does. Caches then keep every step.

        Args:
            index: Which pass it is; each index comes once in a run.
            sigma: The noise level that the pass runs at; None where there is none.

        Raises:
            VitLensError: The index is no whole number, ``sigma`` is not finite, or the model is in a step already, or
                in another thread's run.

        >>> kept, fwd, _ = model.get_caching_hooks("hook_pooled")
        >>> with model.hooks(fwd):
        ...     for index in range(2):
        ...         with model.step(index):
        ...             out = model(pixels)
        >>> list(kept)
        ['hook_pooled~0', 'hook_pooled~1']
        """
        if isinstance(index, bool) or not hasattr(index, "__index__"):
            raise VitLensError(f"step index={index!r}; expected a whole number")
        if self.current_step is not None:
            raise VitLensError(
                f"step {operator.index(index)} begins inside of step {self.current_step.index}; steps follow each "
                "other, in one run at a time"
            )
        try:
            level = None if sigma is None else float(sigma)
        except (TypeError, ValueError, RuntimeError):
            level = math.nan
        if level is not None and not math.isfinite(level):
            raise VitLensError(f"sigma={sigma!r}; expected a finite number, or None")
        with self._turn(hooking=True):
            self.current_step = Step(operator.index(index), level)
            try:
                yield self.current_step
            finally:
                self.current_step = None

    def firings(self, name: str) -> int:
        """Return how often a hook point fires in one pass; a cache keeps what it gave last, and its gradient."""
        return 1

    def hook_points_named(self, name: Name) -> list[tuple[str, HookPoint]]:
        """Return the hook points that a name or predicate selects.

        Raises:
            UnknownHookError: No hook point is selected; the message names the nearest.

        >>> [name for name, point in model.hook_points_named(lambda name: name.endswith("0.hook_mlp_out"))]
        ['blocks.0.hook_mlp_out']
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
        """Return the names of the hook points, and of other modules, that carry a hook now."""
        return [name for name, module in self.named_modules() if is_hooked(module)]

    def refuse_hooks(self, purpose: str) -> None:
        """Raise if any hook, of PyTorch's too, is on a module of the model, where a result would not say so.

        Args:
            purpose: What the result is, for the message.

        Raises:
            VitLensError: There are hooks; the message names the first.
        """
        if hooked := self.hooked_names():
            raise VitLensError(
                f"hooks are on {hooked[:4]}{'...' if len(hooked) > 4 else ''}, and {purpose} could not say so; call "
                "model.reset_hooks(including_permanent=True) first, and handle.remove() for what register_forward_hook "
                "and its kin gave"
            )

    def select_names(self, names_filter: Name | Sequence[str] | None) -> list[str] | None:
        """Return the names of the hook points that a ``names_filter`` selects, or None for no filter.

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
        """Add a hook to every point that ``name`` selects; see ``HookedRootModule.add_hook``.

        Args:
            name: The name of a hook point, or a predicate on names.
            hook: A function of (tensor, hook), which gets a copy and returns a tensor of the same shape, or None to
                leave the activation as it is (or as the function changed the copy).
            dir: What the hook gets: ``fwd`` for activations, ``bwd`` for gradients.
            is_permanent: Whether ``reset_hooks`` leaves the hook on the model.
            level: The depth of ``with`` blocks that the hook belongs to; None for none.
            prepend: Whether the hook comes before those that are there.

        Raises:
            UnknownHookError: The name or predicate selects nothing, or the hook is no function.
        """
        with self._turn(hooking=True):
            for guard in self._guards_at(name, hook, dir):
                self._put(guard, is_permanent, level, prepend)

    def _put(self, guard: Guard, is_permanent: bool, level: int | None, prepend: bool = False) -> None:
        point = self.hook_dict[guard.name]
        self.check_and_add_hook(point, guard.name, guard, guard.direction, is_permanent, level, prepend)
        handles: list[Any] = point.fwd_hooks if guard.direction == "fwd" else point.bwd_hooks
        handles[0 if prepend else -1].user_hook = guard.hook
        handles[0 if prepend else -1].guard = guard

    def reset_hooks(self, *args: Any, **kwargs: Any) -> None:
        """Remove hooks; see ``HookedRootModule.reset_hooks``.

        Raises:
            VitLensError: Another thread is in a run of the model.
        """
        with self._turn(hooking=True):
            super().reset_hooks(*args, **kwargs)

    def _guard(self, hooks: Iterable[tuple[Name, Callable]], direction: Direction) -> list[Guard]:
        return [guard for name, hook in as_pairs(hooks) for guard in self._guards_at(name, hook, direction)]

    def _guards_at(self, name: Name, hook: Callable, direction: Direction) -> list[Guard]:
        """Return a hook function for each hook point that a name selects, as it will sit there."""
        points = [point for point, _ in self.hook_points_named(name)]
        return [hook if isinstance(hook, Guard) else Guard(hook, point, direction) for point in points]

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Iterable[tuple[Name, Callable]] = (),
        bwd_hooks: Iterable[tuple[Name, Callable]] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator["LoudHookedRootModule"]:
        """Add hooks for the time of a ``with`` block; those that did not fire in it are named in a warning.

        Args:
            fwd_hooks: Pairs of a name, or a predicate on names, and a function of (tensor, hook) for activations.
            bwd_hooks: The same for gradients.
            reset_hooks_end: Whether the hooks are removed behind the block.
            clear_contexts: Whether the contexts of the hook points are emptied behind the block.

        Raises:
            UnknownHookError: A name or predicate selects nothing; no hook is left behind.
            VitLensError: Another thread is in a run of the model.

        >>> with model.hooks([("blocks.3.attn.hook_z", lambda z, hook: 0 * z)]):
        ...     silenced = model(pixels)
        >>> bool(torch.equal(silenced, model(pixels)))
        False
        """
        guards = [*self._guard(fwd_hooks, "fwd"), *self._guard(bwd_hooks, "bwd")]
        with self._turn(hooking=True):
            self.context_level += 1
            try:
                for guard in guards:
                    self._put(guard, False, self.context_level)
                yield self
                if reset_hooks_end and (silent := _silent(guards)):
                    warnings.warn(f"these hooks never fired inside their `with` block: {silent}", stacklevel=3)
            finally:
                if reset_hooks_end:
                    self._remove_hooks_of_level(clear_contexts)
                self.context_level -= 1

    @contextmanager
    def added_points(self, points: Mapping[str, HookPoint]) -> Iterator[None]:
        """Let hook points that are in no module be hooked and cached for the time of a ``with`` block.

        Whoever adds them calls them. The tree of modules stays as it is, and so do state dict and fingerprint.

        Args:
            points: The hook points by name.

        Raises:
            VitLensError: There is a hook point of that name, or another thread is in a run of the model.

        >>> with model.added_points({"blocks.3.hook_x": HookPoint()}):
        ...     "blocks.3.hook_x" in model.hook_dict
        True
        """
        with self._turn(hooking=True):
            if taken := [name for name in points if name in self.hook_dict]:
                raise VitLensError(f"there are hook points {taken[:4]} already; leave their `with` block first")
            for name, point in points.items():
                point.name, point.layer = name, partial(_layer_of, name)
            known = self.hook_dict, self.mod_dict
            self.hook_dict, self.mod_dict = {**self.hook_dict, **points}, {**self.mod_dict, **points}
            try:
                yield
            finally:
                self.hook_dict, self.mod_dict = known

    @contextmanager
    def spliced(
        self,
        dictionary: "Spliceable",
        site: str | None = None,
        *,
        error_term: bool = True,
        edit: Callable | None = None,
        gradients: Literal["exact", "through"] = "exact",
        at_steps: Sequence[int] | None = None,
        branch: Literal["cond", "uncond", "both"] | None = None,
    ) -> Iterator["LoudHookedRootModule"]:
        """Put a dictionary into the model for the time of a ``with`` block; see :func:`vit_lens.dictionaries.spliced`.

        Args:
            dictionary: A :class:`vit_lens.Dictionary` of this model.
            site: The hook point, or its address such as ``L5.resid_post``; None for the dictionary's own.
            error_term: Whether what the dictionary does not explain stays.
            edit: A hook function on the codes, ``(codes, hook) -> codes``; None for none.
            gradients: What flows back: ``exact``, or ``through`` the codes alone.
            at_steps: The steps of a diffusion model that it acts at; None for those that it was learnt at.
            branch: The branch of guidance that it acts in, or "both"; None for the one that it was learnt in.

        Raises:
            DictionaryError: It is no dictionary, or of another model, site or width.

        >>> found = vl.dictionaries.random_dictionary(128, 40, k=4, site="blocks.5.hook_resid_post")
        >>> with model.spliced(found):
        ...     same = model(pixels)
        >>> with model.spliced(found, edit=lambda codes, hook: 2 * codes):
        ...     bool(torch.equal(same, model(pixels)))
        False
        """
        if not isinstance(dictionary, Spliceable):
            raise DictionaryError(f"a {type(dictionary).__name__} cannot be spliced in; expected a vl.Dictionary")
        given: dict[str, Any] = {"error_term": error_term, "edit": edit, "gradients": gradients}
        given |= {"at_steps": at_steps, "branch": branch}
        with dictionary.spliced_into(self, site, **given):
            yield self

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

        Args:
            *model_args: What ``forward`` takes.
            fwd_hooks: Pairs of a name, or a predicate on names, and a function of (tensor, hook) for activations.
            bwd_hooks: The same for gradients; they need ``reset_hooks_end=False``.
            reset_hooks_end: Whether the hooks are removed afterwards.
            clear_contexts: Whether the contexts of the hook points are emptied afterwards.
            **model_kwargs: What ``forward`` takes by name.

        Raises:
            UnknownHookError: A name or predicate selects nothing.
            HookShapeError: A hook returned another shape, dtype or device.
            UnfiredHookError: A forward hook did not fire, or backward hooks would be removed before any
                backward pass could reach them.

        >>> model.run_with_hooks(pixels, fwd_hooks=[("hook_pooled", lambda pooled, hook: pooled[:1])])
        Traceback (most recent call last):
        vit_lens.errors.HookShapeError: the hook on 'hook_pooled' returned (1, 128) float32 on cpu for (2, 128) ...
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

    def run_with_cache(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *model_args: Any,
        names_filter: Name | Sequence[str] | None = None,
        device: str | torch.device | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        at_steps: Sequence[int] | None = None,
        **model_kwargs: Any,
    ) -> tuple[Any, Any]:
        """Run the model and keep its activations; see ``HookedRootModule.run_with_cache``.

        Args:
            *model_args: What ``forward`` takes.
            names_filter: A name, a list of names, or a predicate on names; None keeps every point.
            device: Where activations are kept; None leaves them where they are.
            remove_batch_dim: Whether the batch axis is dropped; for one input only.
            incl_bwd: Whether gradients of the sum of the output are kept as well, as ``<name>_grad``.
            reset_hooks_end: Whether the caching hooks are removed afterwards.
            clear_contexts: Whether the contexts of the hook points are emptied afterwards.
            at_steps: The indices of the steps to keep, of a run in steps (:meth:`step`); None keeps all.
            **model_kwargs: What ``forward`` takes by name.

        Returns:
            The model's output, and a dict of activations; of a run in steps a
            :class:`vit_lens.hooking.SteppedCache`.

        Raises:
            UnknownHookError: ``names_filter`` selects nothing.
            VitLensError: A point fired several times, and the model did not say in which steps.
        """
        names = self.select_names(names_filter) or list(self.hook_dict)
        keeper = Keeper(
            self, names, None, incl_bwd, device=device, remove_batch_dim=remove_batch_dim, at_steps=at_steps
        )
        return self._run_keeping(keeper, Activations, (reset_hooks_end, clear_contexts), model_args, model_kwargs)

    def _run_keeping(
        self, keeper: Keeper, of_one: Callable[..., Any], ends: tuple[bool, bool], args: Any, kwargs: Any
    ) -> tuple[Any, Any]:
        """Run the model once; ``ends`` says whether hooks are removed, and contexts emptied, behind it."""
        if keeper.incl_bwd and not torch.is_grad_enabled():
            raise VitLensError("incl_bwd=True needs gradients, and they are switched off: torch.set_grad_enabled(True)")
        with self.hooks(*keeper.hooks(), *ends):
            out = self(*args, **kwargs)
            if keeper.incl_bwd and not out.requires_grad:
                raise VitLensError("incl_bwd=True: nothing requires a gradient; model.requires_grad_(True)")
            if keeper.incl_bwd:
                out.sum().backward()
        return out, keeper.result(of_one)

    def get_caching_hooks(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        names_filter: Name | Sequence[str] | None = None,
        incl_bwd: bool = False,
        device: str | torch.device | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], list, list]:
        """Return a dict and the hooks that fill it; see ``HookedRootModule.get_caching_hooks``.

        They fill it once: empty the dict between runs. In a step, activations are kept as ``<name>~<index>``.

        Args:
            names_filter: A name, a list of names, or a predicate on names; None keeps every point.
            incl_bwd: Whether there are hooks for gradients as well, which are kept as ``<name>_grad``.
            device: Where activations are kept; None leaves them where they are.
            remove_batch_dim: Whether the batch axis is dropped; for one input only.
            cache: The dict to fill; None makes one.

        Returns:
            The dict, the forward hooks and the backward hooks, as (name, function) pairs.

        Raises:
            UnknownHookError: ``names_filter`` selects nothing.
        """
        names = self.select_names(names_filter) or list(self.hook_dict)
        keeper = Keeper(self, names, cache, incl_bwd, device=device, remove_batch_dim=remove_batch_dim)
        return keeper.cache, *keeper.hooks()

    def add_caching_hooks(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Add the hooks of :meth:`get_caching_hooks`, whose arguments it takes, until ``reset_hooks``."""
        cache, fwd, bwd = self.get_caching_hooks(*args, **kwargs)
        for name, hook in fwd:
            self.add_hook(name, hook, "fwd")
        for name, hook in bwd:
            self.add_hook(name, hook, "bwd")
        return cache

    def check_hooks_can_fire(self, reachable: Callable[[str], bool], why: str) -> None:
        """Raise if a temporary hook sits on a point that this call will not reach.

        Args:
            reachable: Says of a hook point's name whether the call reaches it.
            why: What keeps it from the others, for the message.

        Raises:
            UnfiredHookError: A hook sits on such a point; permanent hooks are part of the model and may rest.
        """
        stuck = [
            name
            for name, point in self.hook_dict.items()
            if any(not h.is_permanent for h in [*point.fwd_hooks, *point.bwd_hooks]) and not reachable(name)
        ]
        if stuck:
            raise UnfiredHookError(f"hooks on {stuck[:4]}{'...' if len(stuck) > 4 else ''} cannot fire: {why}")


def _layer_of(name: str) -> int:
    """Return the index of the block that a hook point lies in: what ``hook.layer()`` gives."""
    try:
        return int(name.split(".")[1])
    except (IndexError, ValueError):
        raise UnknownHookError(
            f"{name!r} lies in no block and has no layer; select points of blocks: "
            "lambda name: name.startswith('blocks.') and ..."
        ) from None


def _silent(guards: list[Guard]) -> list[str]:
    return sorted({guard.name for guard in guards if not guard.fired})
