"""What a dictionary is of at a hook point: all that it holds, or what its block added."""

__all__ = ["OwnPart"]

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.dictionaries.semantics import Stream
from vit_lens.errors import DictionaryError


class OwnPart:
    """Takes from an activation what a dictionary is of; of a block's update that needs what the block was given.

    Args:
        stream: ``output`` or ``update``, as :class:`Provenance` has it.
    """

    def __init__(self, stream: Stream):
        self.stream = stream
        self._before: dict[str | None, Tensor] = {}  # what the block was given, by branch

    def hooks(self, model: Any, name: str) -> list[tuple[str, Callable]]:
        """Return the hooks that :meth:`take` needs in front of it.

        Args:
            model: The hooked model.
            name: The hook point whose activation is taken from.

        Raises:
            DictionaryError: Updates are asked for, and the hook point is not the end of a block.
        """
        return [(_start_of(model, name), self._keep)] if self.stream == "update" else []

    def take(self, x: Tensor, hook: HookPoint) -> tuple[Tensor, Tensor | None]:
        """Return what the dictionary is of, and what the block was given: None where the activation is taken whole.

        Raises:
            DictionaryError: The block did not say what it was given, or that has another shape.
        """
        if self.stream != "update":
            return x, None
        before = self._before.pop(getattr(hook, "branch", None), None)
        if before is None:
            raise DictionaryError(f"a dictionary of updates: the block at {hook.name!r} did not say what it was given")
        if before.shape != x.shape:
            raise DictionaryError(
                f"a dictionary of updates: the block at {hook.name!r} is given {tuple(before.shape[1:])} and leaves "
                f"{tuple(x.shape[1:])}, so nothing is added to what it is given"
            )
        return x - before, before

    @property
    def _keep(self) -> Callable:
        def keep(x: Tensor, hook: HookPoint) -> None:
            self._before[getattr(hook, "branch", None)] = x

        keep.only_reads = True  # pyright: ignore[reportFunctionMemberAccess]
        return keep


def _start_of(model: Any, name: str) -> str:
    start = name.removesuffix("hook_resid_post") + "hook_resid_pre"
    if not name.endswith("hook_resid_post") or start not in model.hook_dict:
        raise DictionaryError(
            f"a dictionary of updates belongs at a hook_resid_post whose block has a hook_resid_pre; {name!r} has none"
        )
    return start
