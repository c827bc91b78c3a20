"""The residual stream, and what each layer wrote to it."""

__all__ = ["Streams", "labelled", "no_parts", "remainder_name", "sources", "stacked", "stream_until", "with_remainder"]

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.utilities import (
    Slice,  # pyright: ignore[reportPrivateImportUsage]
    get_act_name,  # pyright: ignore[reportPrivateImportUsage]
)

from vit_lens.errors import VitLensError, expect
from vit_lens.towers.cache.held import HeldActivations, as_slice, cut, input_of, need
from vit_lens.towers.cache.norms import FrozenNorm, LabelledStack, Parts, Reading

Mode = Literal["all", "mlp", "attn"]

_STREAM = ("hook_embed", "hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")


class Streams(HeldActivations):
    """Stacks of the residual stream, and of what layers wrote to it."""

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
            layer: The layer up to whose input the stream is stacked; None or -1 goes to the end.
            incl_mid: Whether the stream between attention and MLP is stacked as well.
            apply_ln: Whether a norm is applied, as TransformerLens does: at the end of the stream, ``ln_final`` of
                every entry with its own statistics, weight and bias; at another layer, that layer's norm at its
                frozen scale.
            pos_slice: The positions to keep, None for all; an int drops the axis.
            mlp_input: Whether the stream that the MLP of ``layer`` reads is stacked as well.
            return_labels: Whether ``0_pre``, ``0_mid``, ..., ``final_post`` are returned as well.

        Raises:
            UnknownHookError: The cache lacks something; the message says what to cache.
        """
        layer, pos = input_of(self, layer, mlp_input), as_slice(pos_slice)
        named = stream_until(self, layer, incl_mid)
        if mlp_input:
            named[f"{layer}_mid"] = f"blocks.{layer}.hook_resid_mid"
        is_end = layer == self.model.cfg.n_layers
        norm, is_frozen = FrozenNorm(self, layer, mlp_input), apply_ln and not is_end
        need(self, [*named.values(), *norm.names(is_frozen)], "accumulated_resid")
        stack = norm.reading(pos, is_frozen)(stacked(self, named.values(), pos, "accumulated_resid"))
        stack = norm.recomputed(stack) if apply_ln and is_end else stack
        return labelled(stack, list(named), return_labels)

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
            layer: The layer whose input is decomposed; None or -1 takes the end of the stream.
            mlp_input: Whether it is the input of the MLP of ``layer``.
            mode: Which parts of layers are stacked: ``all``, ``mlp`` or ``attn``.
            apply_ln: Whether the norm that reads the stream there is applied (:meth:`apply_ln_to_stack`).
            pos_slice: The positions to keep, None for all; an int drops the axis.
            incl_embeds: Whether the embeddings are stacked as well.
            return_labels: Whether the labels are returned as well.

        Raises:
            UnknownHookError: The cache lacks something; the message says what to cache.
        """
        if mode not in get_args(Mode):
            raise VitLensError(f"mode={mode!r}; expected one of {', '.join(get_args(Mode))}")
        layer, pos = input_of(self, layer, mlp_input), as_slice(pos_slice)
        named = sources(self) if incl_embeds else {}
        parts = [part for part in ("attn", "mlp") if mode in ("all", part)]
        for index in range(self.first_layer, layer):
            named |= {f"{index}_{part}_out": f"blocks.{index}.hook_{part}_out" for part in parts}
        if mlp_input and "attn" in parts:
            named[f"{layer}_attn_out"] = f"blocks.{layer}.hook_attn_out"
        norm = FrozenNorm(self, layer, mlp_input)
        need(self, [*named.values(), *norm.names(apply_ln)], "decompose_resid")
        stack = norm.reading(pos, apply_ln)(stacked(self, named.values(), pos, "decompose_resid"))
        return labelled(stack, list(named), return_labels)

    def stack_activation(
        self, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None
    ) -> Float[Tensor, "layer *axes"]:
        """Stack one activation of all layers before ``layer``; see ``ActivationCache.stack_activation``.

        Args:
            activation_name: The short name of the activation, such as ``z`` or ``mlp_out``.
            layer: The first layer that does not count; None or -1 takes all.
            sublayer_type: The part of a block that it belongs to, such as ``ln1`` for ``scale``; None where the name
                alone says it.

        Raises:
            UnknownHookError: The cache lacks a layer.
        """
        advice = "the short name of an activation, such as 'z' or 'mlp_out'"
        expect(activation_name, str, "activation_name", VitLensError, advice)
        layers = range(self.first_layer, input_of(self, layer))
        names = [get_act_name(activation_name, index, sublayer_type) for index in layers]
        if unknown := [name for name in names if name not in self.model.hook_dict]:
            self[unknown[0]]  # raises, with the nearest names
        if not names:
            raise VitLensError(f"layer={layer}: there is no layer before it to stack")
        return torch.stack(need(self, names, f"stack_activation({activation_name!r})"))


def stream_until(cache: HeldActivations, layer: int, incl_mid: bool) -> dict[str, str]:
    """Return the states of the stream up to the input of a layer, by label."""
    n_layers, named = cache.model.cfg.n_layers, {}
    for index in range(cache.first_layer, layer + 1):
        if index == n_layers:
            named["final_post"] = f"blocks.{n_layers - 1}.hook_resid_post"
            continue
        named[f"{index}_pre"] = f"blocks.{index}.hook_resid_pre"
        if incl_mid and index < layer:
            named[f"{index}_mid"] = f"blocks.{index}.hook_resid_mid"
    return named


def sources(cache: HeldActivations) -> dict[str, str]:
    """Return what the stream begins with, by label."""
    if cache.start_at_layer is None:
        named = {"embed": "hook_embed", "pos_embed": "hook_pos_embed"}
        return {label: name for label, name in named.items() if name in cache.model.hook_dict}
    return {"resid_in": f"blocks.{cache.first_layer}.hook_resid_pre"}


def stacked(
    cache: HeldActivations, names: Any, pos: Slice, purpose: str
) -> Float[Tensor, "component *batch_pos d_model"]:
    """Stack activations of width d_model."""
    parts = [cut(x, pos, -2, "positions") for x in need(cache, names, purpose)]
    return torch.stack(parts) if parts else no_parts(cache, pos, Reading(None, None, None))


def no_parts(cache: HeldActivations, pos: Slice, reading: Reading) -> Float[Tensor, "0 *batch_pos out"]:
    """Return no components, in the shape that they would have."""
    held = [n for n in cache.cache_dict if n.rsplit(".", 1)[-1] in _STREAM and not n.startswith("attn_pool.")]
    (x,) = need(cache, held[:1] or ["hook_embed"], "the shape of an empty stack")
    return reading(cut(x, pos, -2, "positions")[None])[:0]


def remainder_name(cache: HeldActivations, layer: int, mlp_input: bool, apply_ln: bool, wanted: bool) -> str | None:
    """Return the state of the stream that a stack with its remainder adds up to; None if none is wanted."""
    if not wanted:
        return None
    if mlp_input:
        return f"blocks.{layer}.hook_resid_mid"
    if layer > cache.first_layer:
        return f"blocks.{layer - 1}.hook_resid_post"
    if cache.first_layer or apply_ln:
        raise VitLensError(
            f"layer={layer} has nothing before it: with incl_remainder, TransformerLens means the whole stream by "
            "layer=0, which is no input of that layer's norm. Take layer=-1, or cache['resid_pre', layer]"
        )
    return f"blocks.{cache.model.cfg.n_layers - 1}.hook_resid_post"


def with_remainder(
    cache: HeldActivations, name: str | None, parts: Parts, pos: Slice, reading: Reading
) -> tuple[Float[Tensor, "component_out *batch_pos out"], list[str]]:
    """Append what a state of the stream has beyond components; no name leaves them as they are."""
    if name is None:
        return parts
    stack, labels = parts
    rest = reading(cut(cache.cache_dict[name], pos, -2, "positions")) - stack.sum(0)
    return torch.cat([stack, rest[None]]), [*labels, "remainder"]


def labelled(stack: Tensor, labels: list[str], return_labels: bool) -> Any:
    """Return a stack, with its labels if they were asked for."""
    return (stack, labels) if return_labels else stack
