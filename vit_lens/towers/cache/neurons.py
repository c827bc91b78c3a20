"""What each neuron wrote to the residual stream, and everything that was: heads, neurons, embeddings, biases."""

__all__ = ["Neurons"]

from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from transformer_lens.utilities import Slice  # pyright: ignore[reportPrivateImportUsage]

from vit_lens.addresses import as_index
from vit_lens.errors import VitLensError, expect
from vit_lens.towers.cache.heads import head_names, head_parts
from vit_lens.towers.cache.held import HeldActivations, as_slice, cut, input_of, need
from vit_lens.towers.cache.norms import FrozenNorm, LabelledStack, Parts, Reading
from vit_lens.towers.cache.stream import labelled, no_parts, remainder_name, sources, stacked, with_remainder


class Neurons(HeldActivations):
    """Stacks of what neurons wrote, and of everything that was written."""

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: Any = None,
        pos_slice: Any = None,
        project_output_onto: Float[Tensor, " d_model"] | Float[Tensor, "d_model out"] | None = None,
    ) -> Float[Tensor, "*batch_pos_neuron_out"]:
        """Return what each neuron of a layer wrote, or its projection; see ``ActivationCache.get_neuron_results``.

        Args:
            layer: The index of the block, counted from 0.
            neuron_slice: The neurons to keep, None for all; an int drops the axis.
            pos_slice: The positions to keep, None for all; an int drops the axis.
            project_output_onto: A direction [d_model], or several [d_model out], so that nothing of width d_model is
                built but weights; None keeps d_model.

        Returns:
            [*batch *pos neuron d_model], or ``out`` in place of d_model, or neither for a [d_model] projection.

        Raises:
            UnknownHookError: The cache lacks the layer's ``mlp.hook_post``.
        """
        project, squeeze = _two_axes(project_output_onto)
        reading = FrozenNorm(self, self.model.cfg.n_layers).reading(as_slice(None), False, project)
        if (index := as_index(layer)) is None or not 0 <= index < self.model.cfg.n_layers:
            raise VitLensError(f"layer={layer!r}: expected 0 to {self.model.cfg.n_layers - 1}")
        post, weight = _neurons_of(self, layer, as_slice(neuron_slice), as_slice(pos_slice), reading)
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
    ) -> LabelledStack:
        """Stack what each neuron before ``layer`` wrote; see ``ActivationCache.stack_neuron_results``.

        For all neurons of a large tower this is immense: cut positions and neurons, or project.

        Args:
            layer: The first layer whose neurons do not count; None or -1 takes all. 0 with ``incl_remainder`` is the
                whole stream, as upstream.
            pos_slice: The positions to keep, None for all; an int drops the axis.
            neuron_slice: The neurons to keep, of every layer, None for all; an int keeps one.
            return_labels: Whether ``L0N0``, ``L0N1``, ... are returned as well.
            incl_remainder: Whether the rest of the stream that enters ``layer`` (or its MLP) is appended.
            apply_ln: Whether the norm that reads the stream there is applied (:meth:`apply_ln_to_stack`).
            project_output_onto: A direction [d_model], or several [d_model out], applied after the norm, so that no
                tensor of neurons x d_model is built but the weights; None keeps d_model.
            mlp_input: Whether the remainder, and the norm, are those of the input of the MLP of ``layer``.

        Raises:
            UnknownHookError: The cache lacks something; the message says what to cache.
        """
        layer, pos = input_of(self, layer, mlp_input), as_slice(pos_slice)
        project, squeeze = _two_axes(project_output_onto)
        rest = remainder_name(self, layer, mlp_input, apply_ln, incl_remainder)
        names = [f"blocks.{n}.mlp.hook_post" for n in range(self.first_layer, layer)]
        norm = FrozenNorm(self, layer, mlp_input)
        names += norm.names(apply_ln)
        need(self, [*names, *([rest] if rest else [])], "stack_neuron_results")
        reading = norm.reading(pos, apply_ln, project)
        parts = _neurons(self, layer, as_slice(neuron_slice), pos, reading)
        stack, labels = with_remainder(self, rest, parts, pos, reading)
        return labelled(stack[..., 0] if squeeze else stack, labels, return_labels)

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Any = None,
        return_labels: bool = False,
        project_output_onto: Float[Tensor, " d_model"] | Float[Tensor, "d_model out"] | None = None,
    ) -> LabelledStack:
        """Stack heads, neurons (or MLPs), embeddings and biases: their sum is the stream that enters ``layer``.

        See ``ActivationCache.get_full_resid_decomposition``, whose order and labels are kept: ``L0H0``, ...;
        ``L0N0``, ... or ``0_mlp_out``, ...; ``embed``, ``pos_embed`` (``resid_in`` in a run with
        ``start_at_layer``); ``bias``, the biases that attention blocks (and, with ``expand_neurons``, MLPs) wrote.

        Args:
            layer: The layer whose input is decomposed; None or -1 takes the end of the stream.
            mlp_input: Whether it is the input of the MLP of ``layer``.
            expand_neurons: Whether each neuron is an entry by itself, instead of each MLP.
            apply_ln: Whether the norm that reads the stream there is applied (:meth:`apply_ln_to_stack`; add its bias
                for ``hook_normalized``).
            pos_slice: The positions to keep, None for all; an int drops the axis.
            return_labels: Whether the labels are returned as well.
            project_output_onto: A direction [d_model], or several [d_model out], applied after the norm; None keeps
                d_model.

        Raises:
            UnknownHookError: The cache lacks something; the message says what to cache.
        """
        layer, pos = input_of(self, layer, mlp_input), as_slice(pos_slice)
        project, squeeze = _two_axes(project_output_onto)
        blocks, begins = range(self.first_layer, layer), sources(self)
        mlps = {f"{n}_mlp_out": f"blocks.{n}.hook_mlp_out" for n in blocks}
        if expand_neurons:
            mlps = {f"{n}": f"blocks.{n}.mlp.hook_post" for n in blocks}
        heads_until = layer + mlp_input
        names = [*head_names(self, range(self.first_layer, heads_until)), *mlps.values(), *begins.values()]
        norm = FrozenNorm(self, layer, mlp_input)
        need(self, [*names, *norm.names(apply_ln)], "get_full_resid_decomposition")

        reading = norm.reading(pos, apply_ln, project)
        whole = [head_parts(self, heads_until, pos, reading)]
        if expand_neurons:
            whole.append(_neurons(self, layer, as_slice(None), pos, reading))
        named = begins if expand_neurons else mlps | begins
        stream = stacked(self, named.values(), pos, "get_full_resid_decomposition")
        bias = _bias(self, layer, mlp_input, expand_neurons).to(stream.device)
        bias = reading(bias.expand(1, *stream.shape[1:]))
        stack = torch.cat([*(part for part, _ in whole), reading(stream), bias])
        labels = [*(label for _, part in whole for label in part), *named, "bias"]
        return labelled(stack[..., 0] if squeeze else stack, labels, return_labels)


def _neurons(cache: HeldActivations, layer: int, which: Slice, pos: Slice, reading: Reading) -> Parts:
    """Stack what is read of neurons of every layer before one."""
    layers = range(cache.first_layer, layer)
    if which.mode == "int":
        which = Slice([int(which.slice)])  # pyright: ignore[reportArgumentType]
    kept = cut(torch.arange(cache.model.cfg.d_mlp), which, 0, "neurons").tolist()
    parts = []
    for n in layers:
        post, weight = _neurons_of(cache, n, which, pos, reading)
        parts.append(einsum(reading.scaled(post), weight, "... n, n d -> n ... d"))
    labels = [f"L{n}N{neuron}" for n in layers for neuron in kept]
    return torch.cat(parts) if parts else no_parts(cache, pos, reading), labels


def _neurons_of(
    cache: HeldActivations, layer: int, which: Slice, pos: Slice, reading: Reading
) -> tuple[Float[Tensor, "*batch_pos_neuron"], Float[Tensor, "*neuron out"]]:
    (post,) = need(cache, [f"blocks.{layer}.mlp.hook_post"], "get_neuron_results")
    post = cut(cut(post, pos, -2, "positions"), which, -1, "neurons")
    weight = reading.fold(cut(cache.model.blocks[layer].mlp.W_out, which, 0, "neurons"), post)
    return post.to(weight.dtype), weight


def _two_axes(project: Tensor | None) -> tuple[Tensor | None, bool]:
    """Return a projection as [d_model out], and whether it was a direction, whose axis ``out`` is to be dropped."""
    if project is not None:
        expect(project, Tensor, "project_output_onto", VitLensError, "a direction [d_model], or several [d_model out]")
    return (project[:, None], True) if project is not None and project.ndim == 1 else (project, False)


def _bias(cache: HeldActivations, layer: int, mlp_input: bool, of_mlps: bool) -> Float[Tensor, " d_model"]:
    first, biases = cache.first_layer, cache.model.accumulated_bias
    total = biases(layer, mlp_input, include_mlp_biases=of_mlps)
    return total - biases(first, include_mlp_biases=of_mlps) if first else total
