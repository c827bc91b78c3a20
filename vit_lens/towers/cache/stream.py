"""The residual stream, and what each layer wrote to it."""

__all__ = ["LabelledStack", "Stack", "StreamActivations", "labelled"]

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.utilities import (
    Slice,  # pyright: ignore[reportPrivateImportUsage]
    get_act_name,  # pyright: ignore[reportPrivateImportUsage]
)

from vit_lens.errors import VitLensError
from vit_lens.towers.cache.held import as_slice, cut
from vit_lens.towers.cache.normed import NormedActivations, Reading

Mode = Literal["all", "mlp", "attn"]
Stack = Float[Tensor, "component *batch_pos out"]
LabelledStack = Stack | tuple[Stack, list[str]]

_STREAM = ("hook_embed", "hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")


class StreamActivations(NormedActivations):
    """A cache that stacks the residual stream, and what layers wrote to it."""

    # ---- the stream and its layers ------------------------------------------------------------------------

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: Any = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> LabelledStack:
        """Stack the residual stream at the input of each layer; see ``ActivationCache.accumulated_resid``.

        Args:
            layer: Up to the input of this layer; None or -1: to the end.
            incl_mid: Also the stream between attention and MLP.
            apply_ln: As TransformerLens does: at the end of the stream, ``ln_final`` of every entry with its own
                statistics, weight and bias; at another layer, that layer's norm at its frozen scale.
            pos_slice: Positions to keep; an int drops the axis.
            mlp_input: Also the stream that the MLP of ``layer`` reads.
            return_labels: Also return ``0_pre``, ``0_mid``, ..., ``final_post``.

        Raises:
            UnknownHookError: The cache lacks something; the message says what to cache.
        """
        layer, pos = self._layer(layer, mlp_input), as_slice(pos_slice)
        named = self._stream_until(layer, incl_mid)
        if mlp_input:
            named[f"{layer}_mid"] = f"blocks.{layer}.hook_resid_mid"
        recompute = layer == self.model.cfg.n_layers
        self._need(
            [*named.values(), *self._norm_names(layer, mlp_input, apply_ln and not recompute)], "accumulated_resid"
        )
        stack = self._stack(named.values(), pos, "accumulated_resid")
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, mlp_input, pos, recompute_ln=recompute)
        return labelled(stack, list(named), return_labels)

    def _stream_until(self, layer: int, incl_mid: bool) -> dict[str, str]:
        n_layers, named = self.model.cfg.n_layers, {}
        for index in range(self._first, layer + 1):
            if index == n_layers:
                named["final_post"] = f"blocks.{n_layers - 1}.hook_resid_post"
                continue
            named[f"{index}_pre"] = f"blocks.{index}.hook_resid_pre"
            if incl_mid and index < layer:
                named[f"{index}_mid"] = f"blocks.{index}.hook_resid_mid"
        return named

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: str = "all",
        apply_ln: bool = False,
        pos_slice: Any = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> LabelledStack:
        """Stack what each layer wrote to the stream that enters ``layer``; see ``ActivationCache.decompose_resid``.

        With ``mode="all"`` the sum is the residual stream. Labels: ``embed``, ``pos_embed``, ``0_attn_out``,
        ``0_mlp_out``, ... In a run with ``start_at_layer``, the stream that was given stands for the embeddings and
        all layers before: ``resid_in``.

        Args:
            layer: None or -1: the end of the stream.
            mlp_input: The stream that the MLP of ``layer`` reads.
            mode: ``all``, ``mlp`` or ``attn``.
            apply_ln: Apply the norm that reads the stream there (:meth:`apply_ln_to_stack`).
            pos_slice: Positions to keep; an int drops the axis.
            incl_embeds: Include the embeddings.
            return_labels: Also return the labels.

        Raises:
            UnknownHookError: The cache lacks something; the message says what to cache.
        """
        if mode not in get_args(Mode):
            raise VitLensError(f"mode={mode!r}; expected one of {', '.join(get_args(Mode))}")
        layer, pos = self._layer(layer, mlp_input), as_slice(pos_slice)
        named = self._sources() if incl_embeds else {}
        parts = [part for part in ("attn", "mlp") if mode in ("all", part)]
        for index in range(self._first, layer):
            named |= {f"{index}_{part}_out": f"blocks.{index}.hook_{part}_out" for part in parts}
        if mlp_input and "attn" in parts:
            named[f"{layer}_attn_out"] = f"blocks.{layer}.hook_attn_out"
        self._need([*named.values(), *self._norm_names(layer, mlp_input, apply_ln)], "decompose_resid")
        stack = self._stack(named.values(), pos, "decompose_resid")
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, mlp_input, pos)
        return labelled(stack, list(named), return_labels)

    def _sources(self) -> dict[str, str]:
        """Return what the stream begins with, by label."""
        if self.start_at_layer is None:
            return {"embed": "hook_embed", "pos_embed": "hook_pos_embed"}
        return {"resid_in": f"blocks.{self._first}.hook_resid_pre"}

    def stack_activation(
        self, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None
    ) -> Float[Tensor, "layer *axes"]:
        """Stack one activation of all layers before ``layer``; see ``ActivationCache.stack_activation``.

        Raises:
            UnknownHookError: The cache lacks a layer.
        """
        layers = range(self._first, self._layer(layer))
        names = [get_act_name(activation_name, index, sublayer_type) for index in layers]
        if unknown := [name for name in names if name not in self.model.hook_dict]:
            self[unknown[0]]  # raises, with the nearest names
        if not names:
            raise VitLensError(f"layer={layer}: there is no layer before it to stack")
        return torch.stack(self._need(names, f"stack_activation({activation_name!r})"))

    # ---- shared -------------------------------------------------------------------------------------------

    def _stack(self, names: Any, pos: Slice, purpose: str) -> Float[Tensor, "component *batch_pos d_model"]:
        parts = [cut(x, pos, -2, "positions") for x in self._need(names, purpose)]
        return torch.stack(parts) if parts else self._empty(pos, Reading(None, None, None))

    def _empty(self, pos: Slice, reading: Reading) -> Float[Tensor, "0 *batch_pos out"]:
        """Return no components, in the shape that they would have."""
        held = [n for n in self.cache_dict if n.rsplit(".", 1)[-1] in _STREAM and not n.startswith("attn_pool.")]
        (x,) = self._need(held[:1] or ["hook_embed"], "the shape of an empty stack")
        return reading(cut(x, pos, -2, "positions")[None])[:0]


def labelled(stack: Tensor, labels: list[str], return_labels: bool) -> Any:
    """Return a stack, with its labels if they were asked for."""
    return (stack, labels) if return_labels else stack
