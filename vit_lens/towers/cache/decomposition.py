"""Everything that was written to the residual stream, part by part."""

__all__ = ["Decomposition"]

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.towers.cache.heads import head_names, head_parts
from vit_lens.towers.cache.held import HeldActivations, as_slice, input_of, need
from vit_lens.towers.cache.neurons import neuron_parts, two_axes
from vit_lens.towers.cache.norms import FrozenNorm
from vit_lens.towers.cache.stream import LabelledStack, labelled, sources, stacked


class Decomposition(HeldActivations):
    """The stack whose sum is the stream."""

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
        layer, pos = input_of(self, layer, mlp_input), as_slice(pos_slice)
        project, squeeze = two_axes(project_output_onto)
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
            whole.append(neuron_parts(self, layer, as_slice(None), pos, reading))
        named = begins if expand_neurons else mlps | begins
        stream = stacked(self, named.values(), pos, "get_full_resid_decomposition")
        bias = _bias(self, layer, mlp_input, expand_neurons).to(stream.device)
        bias = reading(bias.expand(1, *stream.shape[1:]))
        stack = torch.cat([*(part for part, _ in whole), reading(stream), bias])
        labels = [*(label for _, part in whole for label in part), *named, "bias"]
        return labelled(stack[..., 0] if squeeze else stack, labels, return_labels)


def _bias(cache: HeldActivations, layer: int, mlp_input: bool, of_mlps: bool) -> Float[Tensor, " d_model"]:
    first, biases = cache.first_layer, cache.model.accumulated_bias
    total = biases(layer, mlp_input, include_mlp_biases=of_mlps)
    return total - biases(first, include_mlp_biases=of_mlps) if first else total
