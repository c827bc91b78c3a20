"""The sizes and switches of one vision tower."""

__all__ = ["ActivationName", "HookedViTConfig"]

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from vit_lens.errors import VitLensError

ActivationName = Literal["gelu", "quick_gelu"]


@dataclass(frozen=True, kw_only=True)
class HookedViTConfig:
    """Sizes and switches of one vision tower; the checkpoint decides them, so none has a default.

    The fields with a default at the end are switches of hook points, as in TransformerLens; change
    them with the model's setters (``model.set_use_attn_result(True)``).

    Attributes:
        n_layers: Transformer blocks.
        d_model: Width of the residual stream.
        n_heads: Attention heads per block.
        d_head: Width of one head.
        d_mlp: Hidden width of the MLP.
        d_embed: Width of the image embedding.
        image_size: (height, width) in pixels.
        patch_size: (height, width) in pixels.
        act_fn: ``gelu`` (exact, erf) or ``quick_gelu``.
        eps: Of every LayerNorm.
        has_ln_pre: Whether a LayerNorm follows the embeddings.
        pool: ``cls`` reads the class token, ``avg`` the mean of the patches without it.
        ln_final: Whether the last LayerNorm comes before or after pooling.
        has_proj: Whether a projection follows; without one the embedding is the pooled residual.
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    d_mlp: int
    d_embed: int
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    act_fn: ActivationName
    eps: float
    has_ln_pre: bool
    pool: Literal["cls", "avg"]
    ln_final: Literal["before_pool", "after_pool"]
    has_proj: bool

    use_attn_result: bool = False
    use_attn_in: bool = False
    use_split_qkv_input: bool = False
    use_hook_mlp_in: bool = False

    def __post_init__(self) -> None:
        for name in ("n_layers", "d_model", "n_heads", "d_head", "d_mlp", "d_embed"):
            if getattr(self, name) < 1:
                raise VitLensError(f"{name}={getattr(self, name)} must be at least 1")
        for side, patch in zip(self.image_size, self.patch_size, strict=True):
            if side % patch:
                raise VitLensError(f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}")
        if self.act_fn not in ("gelu", "quick_gelu"):
            raise VitLensError(f"act_fn={self.act_fn!r}; expected 'gelu' or 'quick_gelu'")
        if not self.has_proj and self.d_embed != self.d_model:
            raise VitLensError(f"without a projection d_embed={self.d_embed} must equal d_model={self.d_model}")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches as (rows, columns)."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def n_patches(self) -> int:
        """Patches per image."""
        return self.grid[0] * self.grid[1]

    @property
    def n_ctx(self) -> int:
        """Tokens per image: the class token and the patches."""
        return self.n_patches + 1

    @property
    def d_patch(self) -> int:
        """Numbers in one patch: channels x patch height x patch width."""
        return 3 * self.patch_size[0] * self.patch_size[1]

    @property
    def readout(self) -> Literal["cls", "patches", "pooled"]:
        """What the embedding is read from: the CLS row, every patch row, or the mean of the patch rows."""
        if self.pool == "cls":
            return "cls"
        return "pooled" if self.ln_final == "after_pool" else "patches"

    def to_dict(self) -> dict[str, Any]:
        """Return the sizes and switches as plain values."""
        return dataclasses.asdict(self)

    # TransformerLens' cache algebra reads these of any model's cfg.
    @property
    def normalization_type(self) -> str:
        """``LN``: every norm is a LayerNorm with weight and bias."""
        return "LN"

    @property
    def attn_only(self) -> bool:
        """False: every block has an MLP."""
        return False

    @property
    def final_rms(self) -> bool:
        """False: the last norm is a LayerNorm."""
        return False

    @property
    def n_key_value_heads(self) -> None:
        """None: keys and values are not grouped."""
        return None
