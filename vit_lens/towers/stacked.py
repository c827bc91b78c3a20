"""The weights of all blocks at once, under HookedTransformer's names."""

__all__ = ["StackedWeights"]

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from transformer_lens import FactoredMatrix

from vit_lens.towers.layers import TransformerBlock


def _stacked(name: str, what: str, axes: str) -> Any:
    """Return a property: a weight of every block, stacked."""
    read = attrgetter(name)
    return property(lambda self: torch.stack([read(block) for block in self.blocks]), doc=f"{what} (a copy), [{axes}].")


class StackedWeights(nn.Module):
    """Properties of a model that has ``blocks``."""

    blocks: Sequence[TransformerBlock]

    W_Q = _stacked("attn.W_Q", "Query weights of every block, stacked", "layer head d_model d_head")
    W_K = _stacked("attn.W_K", "Key weights of every block, stacked", "layer head d_model d_head")
    W_V = _stacked("attn.W_V", "Value weights of every block, stacked", "layer head d_model d_head")
    W_O = _stacked("attn.W_O", "Output weights of every block, stacked", "layer head d_head d_model")
    W_in = _stacked("mlp.W_in", "Input weights of every MLP, stacked", "layer d_model d_mlp")
    W_out = _stacked("mlp.W_out", "Output weights of every MLP, stacked", "layer d_mlp d_model")
    b_Q = _stacked("attn.b_Q", "Query biases of every block, stacked", "layer head d_head")
    b_K = _stacked("attn.b_K", "Key biases of every block, stacked", "layer head d_head")
    b_V = _stacked("attn.b_V", "Value biases of every block, stacked", "layer head d_head")
    b_O = _stacked("attn.b_O", "Output biases of every block's attention, stacked", "layer d_model")
    b_in = _stacked("mlp.b_in", "Input biases of every MLP, stacked", "layer d_mlp")
    b_out = _stacked("mlp.b_out", "Output biases of every MLP, stacked", "layer d_model")

    @property
    def QK(self) -> FactoredMatrix:
        """The query-key circuit of every head: ``W_Q W_K^T``, [layer head d_model d_model], kept factored."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def OV(self) -> FactoredMatrix:
        """The output-value circuit of every head: ``W_V W_O``, [layer head d_model d_model], kept factored."""
        return FactoredMatrix(self.W_V, self.W_O)
