"""The weights of all blocks at once, under HookedTransformer's names."""

__all__ = ["StackedWeights"]

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import FactoredMatrix

from vit_lens.towers.layers import TransformerBlock


class StackedWeights(nn.Module):
    """Properties of a model that has ``blocks``."""

    blocks: Sequence[TransformerBlock]

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Query weights of every block, stacked (a copy)."""
        return self._stack("attn.W_Q")

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Key weights of every block, stacked (a copy)."""
        return self._stack("attn.W_K")

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Value weights of every block, stacked (a copy)."""
        return self._stack("attn.W_V")

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        """Output weights of every block, stacked (a copy)."""
        return self._stack("attn.W_O")

    @property
    def W_in(self) -> Float[Tensor, "layer d_model d_mlp"]:
        """Input weights of every MLP, stacked (a copy)."""
        return self._stack("mlp.W_in")

    @property
    def W_out(self) -> Float[Tensor, "layer d_mlp d_model"]:
        """Output weights of every MLP, stacked (a copy)."""
        return self._stack("mlp.W_out")

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        """Query biases of every block, stacked (a copy)."""
        return self._stack("attn.b_Q")

    @property
    def b_K(self) -> Float[Tensor, "layer head d_head"]:
        """Key biases of every block, stacked (a copy)."""
        return self._stack("attn.b_K")

    @property
    def b_V(self) -> Float[Tensor, "layer head d_head"]:
        """Value biases of every block, stacked (a copy)."""
        return self._stack("attn.b_V")

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        """Output biases of every block's attention, stacked (a copy)."""
        return self._stack("attn.b_O")

    @property
    def b_in(self) -> Float[Tensor, "layer d_mlp"]:
        """Input biases of every MLP, stacked (a copy)."""
        return self._stack("mlp.b_in")

    @property
    def b_out(self) -> Float[Tensor, "layer d_model"]:
        """Output biases of every MLP, stacked (a copy)."""
        return self._stack("mlp.b_out")

    @property
    def QK(self) -> FactoredMatrix:
        """The query-key circuit of every head: ``W_Q W_K^T``, [layer head d_model d_model], kept factored."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def OV(self) -> FactoredMatrix:
        """The output-value circuit of every head: ``W_V W_O``, [layer head d_model d_model], kept factored."""
        return FactoredMatrix(self.W_V, self.W_O)

    def _stack(self, name: str) -> Tensor:
        return torch.stack([block.get_parameter(name) for block in self.blocks])
