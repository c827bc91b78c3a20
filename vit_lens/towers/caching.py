"""Runs that keep their activations: which hook points, which positions, and where they end up."""

__all__ = ["CachingRootModule"]

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, SupportsIndex, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import Slice  # pyright: ignore[reportPrivateImportUsage]

from vit_lens.config import TowerConfig
from vit_lens.errors import UnfiredHookError, VitLensError
from vit_lens.hooking import LoudHookedRootModule, Name
from vit_lens.towers.cache import Rows, ViTActivationCache
from vit_lens.towers.cache.held import as_slice, cut
from vit_lens.towers.readout import Readout

if TYPE_CHECKING:
    from vit_lens.models import HookedViT

_SWITCH = {  # gated points, and the switch that turns each on for every run
    "hook_result": "use_attn_result",
    "hook_attn_in": "use_attn_in",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_mlp_in": "use_hook_mlp_in",
}


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
        return_cache_object: bool = True,
        **model_kwargs: Any,
    ) -> tuple[Tensor, Any]:
        """Run the model and keep its activations; see ``HookedRootModule.run_with_cache``.

        ``pos_slice`` cuts token positions and leaves pooled activations whole.

        Args:
            *model_args: Of :meth:`forward`.
            names_filter: A name, a list of names, or a predicate; None keeps every point that is not gated.
            device: Where to keep activations.
            remove_batch_dim: Drop the batch axis; for one image only.
            incl_bwd: Also keep gradients, as ``<name>_grad``, of the sum of the output. With ``rows="readout"``, where
                a row is the mean of the patches, the gradient with respect to that row.
            reset_hooks_end: Remove the caching hooks afterwards.
            clear_contexts: Empty the hook points' contexts.
            pos_slice: An int, tuple, list, array or ``Slice`` of positions.
            rows: ``readout`` keeps what lenses need, at the positions that the embedding is read from: a few
                MB per image even for ViT-bigG.
            return_cache_object: False returns a plain dict.
            **model_kwargs: Of :meth:`forward`.

        Returns:
            The model's output and the cache.

        Raises:
            UnknownHookError: ``names_filter`` selects nothing.
            UnfiredHookError: It names a point before ``start_at_layer`` or behind ``stop_at_layer``.
        """
        if incl_bwd and not torch.is_grad_enabled():
            raise VitLensError("incl_bwd=True needs gradients, and they are switched off: torch.set_grad_enabled(True)")
        if rows not in ("all", "readout"):
            raise VitLensError(f"rows={rows!r}; expected 'all' or 'readout'")
        if rows == "readout":
            if pos_slice is not None or names_filter is not None or remove_batch_dim:
                raise VitLensError(
                    "rows='readout' keeps a fixed set; leave names_filter, pos_slice and remove_batch_dim"
                )
        start, stop = model_kwargs.get("start_at_layer"), model_kwargs.get("stop_at_layer")
        names = self._names_to_cache(self.is_readout_part if rows == "readout" else names_filter, start, stop)
        cache, fwd, bwd = self.get_caching_hooks(
            names, incl_bwd, device, remove_batch_dim=remove_batch_dim, pos_slice=pos_slice, rows=rows
        )
        with self.hooks(fwd, bwd, reset_hooks_end, clear_contexts):
            out = self(*model_args, **model_kwargs)
            if incl_bwd and not out.requires_grad:
                raise VitLensError("incl_bwd=True: nothing requires a gradient; model.requires_grad_(True)")
            if incl_bwd:
                out.sum().backward()
        if not return_cache_object:
            return out, cache
        model = cast("HookedViT", self)
        held = rows if pos_slice is None else "cut"
        return out, ViTActivationCache(cache, model, not remove_batch_dim, held, start)

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
        """Return a dict and the hooks that fill it; see ``HookedRootModule.get_caching_hooks``."""
        cache = {} if cache is None else cache
        block, readout = _Block(), self.readout_of()
        part = as_slice(pos_slice)
        if part.mode == "int":  # the axis stays, with one position
            part = Slice([part.slice])  # pyright: ignore[reportArgumentType]

        def save(tensor: Tensor, hook: HookPoint, suffix: str) -> None:
            name = str(hook.name)
            value = tensor.detach()
            if rows == "readout" and self.pos_axis(name) is not None:
                value = block.copy(readout.gradient_rows(value) if suffix else readout.rows(value), len(names))
            elif pos_slice is not None and (axis := self.pos_axis(name)) is not None:
                value = cut(value, part, axis, "positions")
            value = value if device is None else value.to(device)
            if remove_batch_dim and len(value) != 1:
                raise VitLensError(f"remove_batch_dim=True needs one image, not {len(value)}")
            cache[name + suffix] = value[0] if remove_batch_dim else value

        names = self.select_names(names_filter) or self._names_to_cache(None, None, None)
        keep, keep_gradient = partial(save, suffix=""), partial(save, suffix="_grad")
        keep.only_reads = True  # pyright: ignore[reportAttributeAccessIssue]
        return cache, [(name, keep) for name in names], [(name, keep_gradient) for name in names] if incl_bwd else []

    def add_caching_hooks(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        names_filter: Name | Sequence[str] | None = None,
        incl_bwd: bool = False,
        device: str | torch.device | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Add hooks that fill a dict in every run until ``reset_hooks``; see ``HookedRootModule``."""
        cache, fwd, bwd = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        for name, hook in fwd:
            self.add_hook(name, hook, "fwd")
        for name, hook in bwd:
            self.add_hook(name, hook, "bwd")
        return cache

    def _names_to_cache(
        self,
        names_filter: Name | Sequence[str] | None,
        start_at_layer: SupportsIndex | None,
        stop_at_layer: SupportsIndex | None,
    ) -> list[str]:
        names, reached = self.select_names(names_filter), self.reaches(start_at_layer, stop_at_layer)
        if names is None:
            return [n for n in self.hook_dict if reached(n) and not self._is_resting(n)]
        beyond = [n for n in names if not reached(n)]
        if beyond and (not callable(names_filter) or len(beyond) == len(names)):
            raise UnfiredHookError(f"{beyond[:4]} cannot be cached: {_span(start_at_layer, stop_at_layer)}")
        return [n for n in names if reached(n)]

    def _is_resting(self, name: str) -> bool:
        switch = _SWITCH.get(name.rsplit(".", 1)[-1])
        return switch is not None and not getattr(self.cfg, switch)

    def check_reach(self, start_at_layer: SupportsIndex | None, stop_at_layer: SupportsIndex | None) -> None:
        """Raise if a temporary hook sits where a call from ``start_at_layer`` to ``stop_at_layer`` does not come by.

        Raises:
            UnfiredHookError: It does.
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
