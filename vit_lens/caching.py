"""Runs that keep their activations: which hook points, which positions, and where they end up."""

__all__ = ["CachingRootModule", "reached"]

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import Slice  # pyright: ignore[reportPrivateImportUsage]

from vit_lens.cache import Rows, ViTActivationCache
from vit_lens.config import HookedViTConfig
from vit_lens.errors import UnfiredHookError, VitLensError
from vit_lens.hooking import LoudHookedRootModule, Name

if TYPE_CHECKING:
    from vit_lens.model import HookedViT

_SWITCH = {  # gated points, and the switch that turns each on for every run
    "hook_result": "use_attn_result",
    "hook_attn_in": "use_attn_in",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_mlp_in": "use_hook_mlp_in",
}
_POOLED = ("hook_pooled", "hook_image_embeds")
_PER_QUERY = ("hook_attn_scores", "hook_pattern")
_READOUT_PARTS = (
    "hook_resid_pre", "attn.hook_z", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post",
)  # fmt: skip


class CachingRootModule(LoudHookedRootModule):
    """``run_with_cache`` for a vision tower."""

    cfg: HookedViTConfig

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
            incl_bwd: Also keep gradients, as ``<name>_grad``, of the sum of the output.
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
            UnfiredHookError: It names a point behind ``stop_at_layer``.
        """
        if rows not in ("all", "readout"):
            raise VitLensError(f"rows={rows!r}; expected 'all' or 'readout'")
        if rows == "readout":
            if pos_slice is not None or names_filter is not None or remove_batch_dim:
                raise VitLensError(
                    "rows='readout' keeps a fixed set; leave names_filter, pos_slice and remove_batch_dim"
                )
            names_filter = self._readout_names(model_kwargs.get("stop_at_layer"))
        names = self._names_to_cache(names_filter, model_kwargs.get("stop_at_layer"))
        cache, fwd, bwd = self.get_caching_hooks(
            names, incl_bwd, device, remove_batch_dim=remove_batch_dim, pos_slice=pos_slice, rows=rows
        )
        with self.hooks(fwd, bwd, reset_hooks_end, clear_contexts):
            out = self(*model_args, **model_kwargs)
            if incl_bwd:
                out.sum().backward()
        if not return_cache_object:
            return out, cache
        model = cast("HookedViT", self)
        held = rows if pos_slice is None else "cut"
        return out, ViTActivationCache(cache, model, has_batch_dim=not remove_batch_dim, rows=held)

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
        cut = Slice.unwrap(pos_slice)

        def save(tensor: Tensor, hook: HookPoint, suffix: str) -> None:
            name = str(hook.name)
            value = tensor.detach()
            if rows == "readout":
                value = self.readout_rows(value)
            elif pos_slice is not None and (axis := self.pos_axis(name)) is not None:
                value = cut.apply(value, dim=axis)
            value = value if device is None else value.to(device)
            if remove_batch_dim and len(value) != 1:
                raise VitLensError(f"remove_batch_dim=True needs one image, not {len(value)}")
            cache[name + suffix] = value[0] if remove_batch_dim else value

        names = self.select_names(names_filter) or self._names_to_cache(None, None)
        fwd = [(name, partial(save, suffix="")) for name in names]
        return cache, fwd, [(name, partial(save, suffix="_grad")) for name in names] if incl_bwd else []

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

    def pos_axis(self, name: str) -> int | None:
        """Return the axis of token positions of a hook point's activation, or None if it is pooled."""
        last = name.rsplit(".", 1)[-1]
        if last in _POOLED or (name.startswith("ln_final.") and self.cfg.ln_final == "after_pool"):
            return None
        return 2 if last in _PER_QUERY else 1

    def readout_rows(self, x: Float[Tensor, "batch pos *axes"]) -> Float[Tensor, "batch row *axes"]:
        """Return the rows of a residual-like activation that the embedding is read from.

        One row, CLS; or every patch (mean pooling after the final norm); or their mean (before it).
        """
        if self.cfg.readout == "cls":
            return x[:, :1].clone()
        return x[:, 1:].clone() if self.cfg.readout == "patches" else x[:, 1:].mean(1, keepdim=True)

    def with_readout_rows(
        self, x: Float[Tensor, "batch pos *axes"], rows: Float[Tensor, "#batch row *axes"]
    ) -> Float[Tensor, "batch pos *axes"]:
        """Return a copy of an activation in which the read-out finds ``rows``; a mean row goes to every patch."""
        out = x.clone()
        out[:, slice(0, 1) if self.cfg.readout == "cls" else slice(1, None)] = rows.to(x)
        return out

    def n_blocks_until(self, stop_at_layer: int | None) -> int:
        """Return how many blocks run before ``stop_at_layer`` (None: all; negative: from the end)."""
        n_layers = self.cfg.n_layers
        if stop_at_layer is None:
            return n_layers
        if not isinstance(stop_at_layer, int) or not -n_layers <= stop_at_layer <= n_layers:
            raise VitLensError(f"stop_at_layer={stop_at_layer}: expected -{n_layers} to {n_layers}")
        return stop_at_layer % n_layers if stop_at_layer < 0 else stop_at_layer

    def _names_to_cache(self, names_filter: Name | Sequence[str] | None, stop_at_layer: int | None) -> list[str]:
        names = self.select_names(names_filter)
        reachable = partial(reached, n_blocks=self.n_blocks_until(stop_at_layer) if stop_at_layer is not None else None)
        if names is None:
            return [n for n in self.hook_dict if reachable(n) and not self._is_resting(n)]
        beyond = [n for n in names if not reachable(n)]
        if beyond and (not callable(names_filter) or len(beyond) == len(names)):
            raise UnfiredHookError(f"{beyond[:4]} cannot be cached: stop_at_layer={stop_at_layer}")
        return [n for n in names if reachable(n)]

    def _is_resting(self, name: str) -> bool:
        switch = _SWITCH.get(name.rsplit(".", 1)[-1])
        return switch is not None and not getattr(self.cfg, switch)

    def _readout_names(self, stop_at_layer: int | None) -> list[str]:
        layers = range(self.n_blocks_until(stop_at_layer))
        return [f"blocks.{layer}.{part}" for layer in layers for part in _READOUT_PARTS]


def reached(name: str, *, n_blocks: int | None) -> bool:
    """Whether a hook point fires in a run of the first ``n_blocks`` blocks (None: a whole run)."""
    if n_blocks is None:
        return True
    if name.startswith("blocks."):
        return int(name.split(".")[1]) < n_blocks
    return not name.startswith(("ln_final.", *_POOLED))
