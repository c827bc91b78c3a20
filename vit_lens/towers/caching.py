"""Runs that keep their activations: which hook points, which positions, and where they end up."""

__all__ = ["CachingRootModule"]

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.utilities import Slice  # pyright: ignore[reportPrivateImportUsage]

from vit_lens.config import TowerConfig
from vit_lens.errors import UnfiredHookError, VitLensError
from vit_lens.hooking import Activations, Keeper, LoudHookedRootModule, Name, is_hooked
from vit_lens.towers.cache import Rows, ViTActivationCache
from vit_lens.towers.cache.held import as_slice, cut
from vit_lens.towers.readout import Readout

_SWITCH = {  # gated points, and the switch that turns each on for every run
    "hook_result": "use_attn_result", "hook_attn_in": "use_attn_in", "hook_mlp_in": "use_hook_mlp_in",
    **dict.fromkeys(("hook_q_input", "hook_k_input", "hook_v_input"), "use_split_qkv_input"),
}  # fmt: skip


class CachingRootModule(LoudHookedRootModule):
    """``run_with_cache`` for a tower, which says what its hook points hold and which of them a call reaches."""

    cfg: TowerConfig

    if TYPE_CHECKING:  # what the tower says

        def readout_of(self, *model_args: Any) -> Readout: ...
        def pos_axis(self, name: str) -> int | None: ...
        def is_readout_part(self, name: str) -> bool: ...
        def reaches(self, start_at_layer: Any, stop_at_layer: Any) -> Callable[[str], bool]: ...

    def run_with_cache(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *model_args: Any,
        names_filter: Name | Sequence[str] | None = None,
        device: str | torch.device | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Any = None,
        rows: Rows = "all",
        at_steps: Sequence[int] | None = None,
        return_cache_object: bool = True,
        **model_kwargs: Any,
    ) -> tuple[Tensor, Any]:
        """Run the model and keep its activations; see ``HookedRootModule.run_with_cache``.

        ``pos_slice`` cuts token positions and leaves pooled activations whole.

        Args:
            *model_args: What :meth:`forward` takes.
            names_filter: A name, a list of names, or a predicate on names; None keeps every point that is not gated.
            device: Where activations are kept; None leaves them where they are.
            remove_batch_dim: Whether the batch axis is dropped; for one image only.
            incl_bwd: Whether gradients of the sum of the output are kept as well, as ``<name>_grad``. With
                ``rows="readout"``, where a row is the mean of the patches, the gradient is with respect to that row.
            reset_hooks_end: Whether the caching hooks are removed afterwards.
            clear_contexts: Whether the contexts of the hook points are emptied afterwards.
            pos_slice: The positions to keep, an int, tuple, list, array or ``Slice``; None keeps all.
            rows: Which rows are kept: ``all``, or ``readout`` for what lenses need, at the positions that the embedding
                is read from: a few MB per image even for ViT-bigG.
            at_steps: The indices of the steps to keep, of a run in steps (:meth:`step`); None keeps all.
            return_cache_object: Whether the cache is a :class:`ViTActivationCache`; False gives a plain dict.
            **model_kwargs: What :meth:`forward` takes by name.

        Returns:
            The model's output and the cache; of a run in steps a :class:`vit_lens.hooking.SteppedCache`.

        Raises:
            UnknownHookError: ``names_filter`` selects nothing.
            UnfiredHookError: ``names_filter`` names a point before ``start_at_layer`` or behind ``stop_at_layer``.
            VitLensError: ``rows`` is none of the two, or goes with another cut; or gradients are asked for where there
                are none.
        """
        if rows not in ("all", "readout"):
            raise VitLensError(f"rows={rows!r}; expected 'all' or 'readout'")
        if rows == "readout" and (pos_slice is not None or names_filter is not None or remove_batch_dim):
            raise VitLensError("rows='readout' keeps a fixed set; leave names_filter, pos_slice and remove_batch_dim")
        start, stop = model_kwargs.get("start_at_layer"), model_kwargs.get("stop_at_layer")
        names = self._names_to_cache(self.is_readout_part if rows == "readout" else names_filter, start, stop)
        part = self._part(pos_slice, rows, len(names), model_args)
        keeper = Keeper(
            self, names, None, incl_bwd, part=part, device=device, remove_batch_dim=remove_batch_dim, at_steps=at_steps
        )
        of_one: Callable[[dict[str, Tensor]], Any] = Activations
        if return_cache_object:
            held = rows if pos_slice is None else "cut"
            read_out = self.readout_of(*model_args) if start is None else None
            of_one = partial(
                ViTActivationCache, model=self, has_batch_dim=not remove_batch_dim, rows=held, start_at_layer=start,
                read_out=read_out,
            )  # fmt: skip
        return self._run_keeping(keeper, of_one, (reset_hooks_end, clear_contexts), model_args, model_kwargs)

    def get_caching_hooks(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        names_filter: Name | Sequence[str] | None = None,
        incl_bwd: bool = False,
        device: str | torch.device | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: Any = None,
        rows: Rows = "all",
    ) -> tuple[dict[str, Tensor], list, list]:
        """Return a dict and the hooks that fill it once; see :meth:`LoudHookedRootModule.get_caching_hooks`."""
        names = self.select_names(names_filter) or self._names_to_cache(None, None, None)
        part = self._part(pos_slice, rows, len(names))
        keeper = Keeper(self, names, cache, incl_bwd, part=part, device=device, remove_batch_dim=remove_batch_dim)
        return keeper.cache, *keeper.hooks()

    def _part(
        self, pos_slice: Any, rows: Rows, n: int, model_args: tuple[Any, ...] = ()
    ) -> Callable[[Tensor, str, bool], Tensor] | None:
        """Return what cuts the ``n`` activations of a run, and their gradients, to what is kept; None keeps all."""
        if rows == "all" and pos_slice is None:
            return None
        block, readout, positions = _Block(), self.readout_of(*model_args), as_slice(pos_slice)
        if positions.mode == "int":  # the axis stays, with one position
            positions = Slice([positions.slice])  # pyright: ignore[reportArgumentType]

        def part(value: Tensor, name: str, is_gradient: bool) -> Tensor:
            axis = self.pos_axis(name)
            if axis is None:
                return value
            if rows == "all":
                return cut(value, positions, axis, "positions")
            return block.copy(readout.gradient_rows(value) if is_gradient else readout.rows(value), n)

        return part

    def firings(self, name: str) -> int:
        """Return how often a hook point fires in one pass: with inputs split by head ``ln1`` does three times.

        For queries, keys and values in turn; a cache keeps what it gave for the values, and the gradient of that.
        """
        block, _, part = name.partition(".ln1.")
        splits = [self.hook_dict[f"{block}.hook_{x}_input"] for x in "qkv"] if part else []
        return 3 if part and (self.cfg.use_split_qkv_input or any(map(is_hooked, splits))) else 1

    def _names_to_cache(
        self, names_filter: Name | Sequence[str] | None, start: SupportsIndex | None, stop: SupportsIndex | None
    ) -> list[str]:
        names, reached = self.select_names(names_filter), self.reaches(start, stop)
        if names is None:
            return [n for n in self.hook_dict if reached(n) and not self._is_resting(n)]
        beyond = [n for n in names if not reached(n)]
        if beyond and (not callable(names_filter) or len(beyond) == len(names)):
            raise UnfiredHookError(f"{beyond[:4]} cannot be cached: {_span(start, stop)}")
        return [n for n in names if reached(n)]

    def _is_resting(self, name: str) -> bool:
        switch = _SWITCH.get(name.rsplit(".", 1)[-1])
        return switch is not None and not getattr(self.cfg, switch)

    def check_reach(self, start_at_layer: SupportsIndex | None, stop_at_layer: SupportsIndex | None) -> None:
        """Raise if a temporary hook sits where a call from ``start_at_layer`` to ``stop_at_layer`` does not come by.

        Raises:
            UnfiredHookError: A hook sits there; the message names it.
        """
        if start_at_layer is not None or stop_at_layer is not None:
            self.check_hooks_can_fire(self.reaches(start_at_layer, stop_at_layer), _span(start_at_layer, stop_at_layer))


class _Block:
    """Memory for the rows that one run keeps, taken in large pieces.

    Small tensors scattered among large activations would keep the allocator from using the memory of these again.
    """

    _free: Tensor | None = None

    def copy(self, rows: Float[Tensor, "*axes"], n: int) -> Float[Tensor, "*axes"]:
        """Return a copy of the rows; a new piece has room for ``n`` such."""
        free, size = self._free, rows.numel()
        if free is None or free.numel() < size or free.dtype != rows.dtype or free.device != rows.device:
            free = torch.empty(n * size, dtype=rows.dtype, device=rows.device)
        self._free = free[size:]
        return free[:size].view(rows.shape).copy_(rows)


def _span(start_at_layer: SupportsIndex | None, stop_at_layer: SupportsIndex | None) -> str:
    layers = {"start_at_layer": start_at_layer, "stop_at_layer": stop_at_layer}
    return ", ".join(f"{name}={layer}" for name, layer in layers.items() if layer is not None)
