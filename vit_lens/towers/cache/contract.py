"""What a cache asks of the model that filled it, and of captions."""

__all__ = ["CachedTower", "CaptionBank"]

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, SupportsIndex, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from vit_lens.towers.layers import TransformerBlock


@runtime_checkable
class CaptionBank(Protocol):
    """Captions with their text embeddings, such as :class:`vit_lens.TextBank`."""

    @property
    def unit(self) -> Float[Tensor, "caption d_embed"]: ...

    def logits(self, image_embeds: Float[Tensor, "*batch d_embed"]) -> Float[Tensor, "*batch caption"]: ...

    def check(self, model: Any) -> "CaptionBank":
        """Return the bank itself if it is of this model's encoder; raise otherwise."""
        ...


class CachedTower(Protocol):
    """A transformer whose activations a cache takes apart: :class:`vit_lens.HookedViT`, or one like it.

    The cache does not check for it: since Python 3.12 ``isinstance`` does not find a module's submodules.
    """

    blocks: Sequence[TransformerBlock]

    @property
    def cfg(self) -> Any:
        """Sizes: ``n_layers``, ``n_heads``, ``d_model``, ``d_mlp``, ``readout``, ``ln_final``, ``attn_pool``."""
        ...

    @property
    def hook_dict(self) -> Mapping[str, Any]: ...

    @property
    def b_U(self) -> Float[Tensor, " d_embed"]: ...

    @property
    def vocabulary(self) -> CaptionBank | None: ...

    def get_submodule(self, target: str) -> nn.Module: ...

    def to_single_token(self, caption: str) -> int: ...

    def tokens_to_residual_directions(self, tokens: int | str | Tensor) -> Float[Tensor, "*tokens d_pooled"]: ...

    def blocks_to_run(self, start_at_layer: SupportsIndex | None, stop_at_layer: SupportsIndex | None) -> range: ...

    def readout_rows(self, x: Float[Tensor, "batch pos *axes"]) -> Float[Tensor, "batch row *axes"]: ...

    def embed_rows(self, rows: Float[Tensor, "*batch row d_model"]) -> Float[Tensor, "*batch d_embed"]: ...

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]: ...
