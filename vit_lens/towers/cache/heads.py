"""What each head wrote to the residual stream, built for the slice that is asked for alone."""

__all__ = ["Heads", "head_names", "head_parts"]

import logging
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from transformer_lens.utilities import Slice  # pyright: ignore[reportPrivateImportUsage]

from vit_lens.towers.cache.held import HeldActivations, as_slice, cut, input_of, need
from vit_lens.towers.cache.norms import FrozenNorm, LabelledStack, Parts, Reading
from vit_lens.towers.cache.stream import labelled, no_parts, remainder_name, with_remainder


class Heads(HeldActivations):
    """Stacks of what heads wrote."""

    def compute_head_results(self) -> None:
        """Write each head's output in the residual stream to the cache, for every layer whose ``z`` it holds.

        As ``ActivationCache.compute_head_results``: the results of all heads and positions, 27 MB a layer and image
        for ViT-bigG/14 in float32. :meth:`stack_head_results` does not need them. Results that are there stay.

        Raises:
            UnknownHookError: The cache holds neither results nor ``z`` of any layer.
        """
        layers = range(self.first_layer, self.model.cfg.n_layers)
        done = [n for n in layers if f"blocks.{n}.attn.hook_result" in self.cache_dict]
        todo = [n for n in layers if n not in done and f"blocks.{n}.attn.hook_z" in self.cache_dict]
        if not todo:
            need(self, [] if done else [f"blocks.{n}.attn.hook_z" for n in layers], "compute_head_results")
            logging.warning("Tried to compute head results when they were already cached")
        for layer in todo:
            results = _head_results(self, layer, as_slice(None), Reading(None, None, None))
            self.cache_dict[f"blocks.{layer}.attn.hook_result"] = results.movedim(0, -2)

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
            layer: The first layer whose heads do not count; None or -1 takes all. 0 with ``incl_remainder`` is the
                whole stream, as upstream.
            return_labels: Whether ``L0H0``, ``L0H1``, ... are returned as well.
            incl_remainder: Whether the rest of the stream that enters ``layer`` is appended, so that the sum is that
                stream.
            pos_slice: The positions to keep, None for all; an int drops the axis.
            apply_ln: Whether the norm that reads the stream there is applied (:meth:`apply_ln_to_stack`).

        Raises:
            UnknownHookError: The cache lacks something; the message says what to cache.
        """
        layer, pos = input_of(self, layer), as_slice(pos_slice)
        rest = remainder_name(self, layer, False, apply_ln, incl_remainder)
        norm = FrozenNorm(self, layer)
        names = [*head_names(self, range(self.first_layer, layer)), *norm.names(apply_ln)]
        need(self, [*names, *([rest] if rest else [])], "stack_head_results")
        reading = norm.reading(pos, apply_ln)
        stack, labels = with_remainder(self, rest, head_parts(self, layer, pos, reading), pos, reading)
        return labelled(stack, labels, return_labels)


def head_names(cache: HeldActivations, layers: range) -> list[str]:
    """Return what the heads' outputs are read from: cached results, else ``z``."""
    results = {n: f"blocks.{n}.attn.hook_result" for n in layers}
    return [name if name in cache.cache_dict else f"blocks.{n}.attn.hook_z" for n, name in results.items()]


def head_parts(cache: HeldActivations, layer: int, pos: Slice, reading: Reading) -> Parts:
    """Stack what is read of every head before a layer."""
    layers = range(cache.first_layer, layer)
    labels = [f"L{n}H{h}" for n in layers for h in range(cache.model.cfg.n_heads)]
    parts = [_head_results(cache, n, pos, reading) for n in layers]
    return torch.cat(parts) if parts else no_parts(cache, pos, reading), labels


def _head_results(
    cache: HeldActivations, layer: int, pos: Slice, reading: Reading
) -> Float[Tensor, "head *batch_pos out"]:
    (name,) = head_names(cache, range(layer, layer + 1))
    x = cut(cache.cache_dict[name], pos, -3, "positions")
    if name.endswith("hook_result"):
        return reading.scaled(reading.fold(x, x), n_axes=2).movedim(-2, 0)
    weight = reading.fold(cache.model.blocks[layer].attn.W_O, x)
    return einsum(reading.scaled(x.to(weight.dtype), n_axes=2), weight, "... h k, h k d -> h ... d")
