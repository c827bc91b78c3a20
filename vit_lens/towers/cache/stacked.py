"""What each head and each neuron wrote to the residual stream, built for the slice that is asked for alone."""

__all__ = ["StackedActivations"]

import logging
import operator
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from transformer_lens.utilities import Slice  # pyright: ignore[reportPrivateImportUsage]

from vit_lens.errors import VitLensError
from vit_lens.towers.cache.held import as_slice, cut
from vit_lens.towers.cache.normed import Reading
from vit_lens.towers.cache.stream import LabelledStack, Stack, StreamActivations, labelled


class StackedActivations(StreamActivations):
    """A cache that stacks the components of the residual stream, each method from what it needs alone."""

    # ---- heads --------------------------------------------------------------------------------------------

    def compute_head_results(self) -> None:
        """Write each head's output in the residual stream to the cache, for every layer whose ``z`` it holds.

        As ``ActivationCache.compute_head_results``: the results of all heads and positions, 27 MB a layer and image
        for ViT-bigG/14 in float32. :meth:`stack_head_results` does not need them. Results that are there stay.

        Raises:
            UnknownHookError: The cache holds neither results nor ``z`` of any layer.
        """
        layers = range(self._first, self.model.cfg.n_layers)
        done = [n for n in layers if f"blocks.{n}.attn.hook_result" in self.cache_dict]
        todo = [n for n in layers if n not in done and f"blocks.{n}.attn.hook_z" in self.cache_dict]
        if not todo:
            self._need([] if done else [f"blocks.{n}.attn.hook_z" for n in layers], "compute_head_results")
            logging.warning("Tried to compute head results when they were already cached")
        for layer in todo:
            heads = self._head_results(layer, as_slice(None), Reading(None, None, None))
            self.cache_dict[f"blocks.{layer}.attn.hook_result"] = heads.movedim(0, -2)

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Any = None,
        apply_ln: bool = False,
    ) -> LabelledStack:
        """Stack what each head before ``layer`` wrote; see ``ActivationCache.stack_head_results``.

        Only ``z`` (or ``hook_result``) of these layers is needed, and positions are cut before anything of width
        d_model is built; nothing is added to the cache.

        Args:
            layer: Heads of all layers before; None or -1: all. 0 with ``incl_remainder`` is the whole stream, as
                upstream.
            return_labels: Also return ``L0H0``, ``L0H1``, ...
            incl_remainder: Append the rest of the stream that enters ``layer``: with it the sum is that stream.
            pos_slice: Positions to keep; an int drops the axis.
            apply_ln: Apply the norm that reads the stream there (:meth:`apply_ln_to_stack`).

        Raises:
            UnknownHookError: The cache lacks something; the message says what to cache.
        """
        layer, pos = self._layer(layer), as_slice(pos_slice)
        rest = self._remainder_name(layer, False, apply_ln) if incl_remainder else None
        names = [*self._head_names(range(self._first, layer)), *self._norm_names(layer, False, apply_ln)]
        self._need([*names, *([rest] if rest else [])], "stack_head_results")
        reading = self._reading(layer, False, pos, apply_ln, None)
        stack, labels = self._heads(layer, pos, reading)
        if rest:
            stack = torch.cat([stack, self._remainder(rest, stack, pos, reading)])
            labels.append("remainder")
        return labelled(stack, labels, return_labels)

    def _head_names(self, layers: range) -> list[str]:
        """Return what the heads' outputs are read from: cached results, else ``z``."""
        results = {n: f"blocks.{n}.attn.hook_result" for n in layers}
        return [name if name in self.cache_dict else f"blocks.{n}.attn.hook_z" for n, name in results.items()]

    def _heads(self, layer: int, pos: Slice, reading: Reading) -> tuple[Stack, list[str]]:
        layers = range(self._first, layer)
        labels = [f"L{n}H{h}" for n in layers for h in range(self.model.cfg.n_heads)]
        parts = [self._head_results(n, pos, reading) for n in layers]
        return torch.cat(parts) if parts else self._empty(pos, reading), labels

    def _head_results(self, layer: int, pos: Slice, reading: Reading) -> Float[Tensor, "head *batch_pos out"]:
        (name,) = self._head_names(range(layer, layer + 1))
        x = cut(self.cache_dict[name], pos, -3, "positions")
        if name.endswith("hook_result"):
            return reading.scaled(reading.fold(x, x), n_axes=2).movedim(-2, 0)
        weight = reading.fold(self.model.blocks[layer].attn.W_O, x)
        return einsum(reading.scaled(x.to(weight.dtype), n_axes=2), weight, "... h k, h k d -> h ... d")

    # ---- neurons ------------------------------------------------------------------------------------------

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: Any = None,
        pos_slice: Any = None,
        project_output_onto: Float[Tensor, " d_model"] | Float[Tensor, "d_model out"] | None = None,
    ) -> Float[Tensor, "*batch_pos_neuron_out"]:
        """Return what each neuron of a layer wrote, or its projection; see ``ActivationCache.get_neuron_results``.

        Args:
            layer: The block.
            neuron_slice: Neurons to keep; an int drops the axis.
            pos_slice: Positions to keep; an int drops the axis.
            project_output_onto: [d_model] or [d_model out]; then nothing of width d_model is built but weights.

        Returns:
            [*batch *pos neuron d_model], or ``out`` in place of d_model, or neither for a [d_model] projection.

        Raises:
            UnknownHookError: The cache lacks the layer's ``mlp.hook_post``.
        """
        project, squeeze = _two_axes(project_output_onto)
        reading = self._reading(self.model.cfg.n_layers, False, as_slice(None), False, project)
        neurons = as_slice(neuron_slice)
        if not 0 <= operator.index(layer) < self.model.cfg.n_layers:
            raise VitLensError(f"layer={layer}: expected 0 to {self.model.cfg.n_layers - 1}")
        post, weight = self._neurons_of(layer, neurons, as_slice(pos_slice), reading, "get_neuron_results")
        out = post[..., None] * weight
        return out[..., 0] if squeeze else out

    def stack_neuron_results(
        self,
        layer: int | None,
        pos_slice: Any = None,
        neuron_slice: Any = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
        project_output_onto: Float[Tensor, " d_model"] | Float[Tensor, "d_model out"] | None = None,
        mlp_input: bool = False,
    ) -> Float[Tensor, "component *batch_pos_out"] | tuple[Float[Tensor, "component *batch_pos_out"], list[str]]:
        """Stack what each neuron before ``layer`` wrote; see ``ActivationCache.stack_neuron_results``.

        For all neurons of a large tower this is immense: cut positions and neurons, or project.

        Args:
            layer: Neurons of all layers before; None or -1: all. 0 with ``incl_remainder`` is the whole stream, as
                upstream.
            pos_slice: Positions to keep; an int drops the axis.
            neuron_slice: Neurons to keep, of every layer; an int keeps one.
            return_labels: Also return ``L0N0``, ``L0N1``, ...
            incl_remainder: Append the rest of the stream that enters ``layer`` (or its MLP).
            apply_ln: Apply the norm that reads the stream there (:meth:`apply_ln_to_stack`).
            project_output_onto: [d_model] or [d_model out], applied after the norm; no tensor of neurons x d_model
                is built but the weights.
            mlp_input: The remainder, and the norm, are those of the input of the MLP of ``layer``.

        Raises:
            UnknownHookError: The cache lacks something; the message says what to cache.
        """
        layer, pos = self._layer(layer, mlp_input), as_slice(pos_slice)
        project, squeeze = _two_axes(project_output_onto)
        rest = self._remainder_name(layer, mlp_input, apply_ln) if incl_remainder else None
        names = [f"blocks.{n}.mlp.hook_post" for n in range(self._first, layer)]
        names += self._norm_names(layer, mlp_input, apply_ln)
        self._need([*names, *([rest] if rest else [])], "stack_neuron_results")
        reading = self._reading(layer, mlp_input, pos, apply_ln, project)
        stack, labels = self._neurons(layer, as_slice(neuron_slice), pos, reading)
        if rest:
            stack = torch.cat([stack, self._remainder(rest, stack, pos, reading)])
            labels.append("remainder")
        return labelled(stack[..., 0] if squeeze else stack, labels, return_labels)

    def _neurons(self, layer: int, neurons: Slice, pos: Slice, reading: Reading) -> tuple[Stack, list[str]]:
        layers = range(self._first, layer)
        if neurons.mode == "int":
            neurons = Slice([int(neurons.slice)])  # pyright: ignore[reportArgumentType]
        kept = cut(torch.arange(self.model.cfg.d_mlp), neurons, 0, "neurons").tolist()
        parts = []
        for n in layers:
            post, weight = self._neurons_of(n, neurons, pos, reading, "stack_neuron_results")
            parts.append(einsum(reading.scaled(post), weight, "... n, n d -> n ... d"))
        labels = [f"L{n}N{neuron}" for n in layers for neuron in kept]
        return torch.cat(parts) if parts else self._empty(pos, reading), labels

    def _neurons_of(
        self, layer: int, neurons: Slice, pos: Slice, reading: Reading, purpose: str
    ) -> tuple[Float[Tensor, "*batch_pos_neuron"], Float[Tensor, "*neuron out"]]:
        (post,) = self._need([f"blocks.{layer}.mlp.hook_post"], purpose)
        post = cut(cut(post, pos, -2, "positions"), neurons, -1, "neurons")
        weight = reading.fold(cut(self.model.blocks[layer].mlp.W_out, neurons, 0, "neurons"), post)
        return post.to(weight.dtype), weight

    # ---- everything ---------------------------------------------------------------------------------------

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Any = None,
        return_labels: bool = False,
        project_output_onto: Float[Tensor, " d_model"] | Float[Tensor, "d_model out"] | None = None,
    ) -> Float[Tensor, "component *batch_pos_out"] | tuple[Float[Tensor, "component *batch_pos_out"], list[str]]:
        """Stack heads, neurons (or MLPs), embeddings and biases: their sum is the stream that enters ``layer``.

        See ``ActivationCache.get_full_resid_decomposition``, whose order and labels are kept: ``L0H0``, ...;
        ``L0N0``, ... or ``0_mlp_out``, ...; ``embed``, ``pos_embed`` (``resid_in`` in a run with
        ``start_at_layer``); ``bias``, the biases that attention blocks (and, with ``expand_neurons``, MLPs) wrote.

        Args:
            layer: None or -1: the end of the stream.
            mlp_input: The stream that the MLP of ``layer`` reads.
            expand_neurons: Each neuron by itself, instead of each MLP.
            apply_ln: Apply the norm that reads the stream there (:meth:`apply_ln_to_stack`; add its bias for
                ``hook_normalized``).
            pos_slice: Positions to keep; an int drops the axis.
            return_labels: Also return the labels.
            project_output_onto: [d_model] or [d_model out], applied after the norm.

        Raises:
            UnknownHookError: The cache lacks something; the message says what to cache.
        """
        layer, pos = self._layer(layer, mlp_input), as_slice(pos_slice)
        project, squeeze = _two_axes(project_output_onto)
        blocks, sources = range(self._first, layer), self._sources()
        mlps = {f"{n}_mlp_out": f"blocks.{n}.hook_mlp_out" for n in blocks}
        if expand_neurons:
            mlps = {f"{n}": f"blocks.{n}.mlp.hook_post" for n in blocks}
        heads_until = layer + mlp_input
        heads = self._head_names(range(self._first, heads_until))
        norm = self._norm_names(layer, mlp_input, apply_ln)
        self._need([*heads, *mlps.values(), *sources.values(), *norm], "get_full_resid_decomposition")

        reading = self._reading(layer, mlp_input, pos, apply_ln, project)
        whole = [self._heads(heads_until, pos, reading)]
        if expand_neurons:
            whole.append(self._neurons(layer, as_slice(None), pos, reading))
        named = sources if expand_neurons else mlps | sources
        stream = self._stack(named.values(), pos, "get_full_resid_decomposition")
        bias = self._bias(layer, mlp_input, expand_neurons).to(stream.device)
        bias = reading(bias.expand(1, *stream.shape[1:]))
        stack = torch.cat([*(part for part, _ in whole), reading(stream), bias])
        labels = [*(label for _, part in whole for label in part), *named, "bias"]
        return labelled(stack[..., 0] if squeeze else stack, labels, return_labels)

    def _bias(self, layer: int, mlp_input: bool, of_mlps: bool) -> Float[Tensor, " d_model"]:
        total = self.model.accumulated_bias(layer, mlp_input, include_mlp_biases=of_mlps)
        return total - self.model.accumulated_bias(self._first, include_mlp_biases=of_mlps) if self._first else total

    # ---- the rest of the stream ---------------------------------------------------------------------------

    def _remainder_name(self, layer: int, mlp_input: bool, apply_ln: bool) -> str:
        if mlp_input:
            return f"blocks.{layer}.hook_resid_mid"
        if layer > self._first:
            return f"blocks.{layer - 1}.hook_resid_post"
        if self._first or apply_ln:
            raise VitLensError(
                f"layer={layer} has nothing before it: with incl_remainder, TransformerLens means the whole stream by "
                "layer=0, which is no input of that layer's norm. Take layer=-1, or cache['resid_pre', layer]"
            )
        return f"blocks.{self.model.cfg.n_layers - 1}.hook_resid_post"

    def _remainder(self, name: str, stack: Stack, pos: Slice, reading: Reading) -> Float[Tensor, "1 *batch_pos out"]:
        return (reading(cut(self.cache_dict[name], pos, -2, "positions")) - stack.sum(0))[None]


def _two_axes(project: Tensor | None) -> tuple[Tensor | None, bool]:
    return (project[:, None], True) if project is not None and project.ndim == 1 else (project, False)
