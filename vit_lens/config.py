"""The sizes and switches of one vision tower."""

__all__ = ["ActivationName", "AttentionPoolConfig", "HookedViTConfig"]

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vit_lens.errors import VitLensError

ActivationName = Literal["gelu", "gelu_pytorch_tanh", "quick_gelu"]


@dataclass(frozen=True, kw_only=True)
class AttentionPoolConfig:
    """Sizes of attention pooling: one learned query attends to all tokens (SigLIP's MAP head, CoCa's pooler).

    Attributes:
        n_heads: Attention heads.
        d_head: Width of one head.
        d_model: Width of the pooled vector.
        d_mlp: Hidden width of the MLP that is added to the pooled vector; None where there is none.
        has_ln_post: Whether a LayerNorm follows, between pooling and projection.
    """

    n_heads: int
    d_head: int
    d_model: int
    d_mlp: int | None
    has_ln_post: bool


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
        image_size: (height, width) in pixels; what is left of whole patches, at the bottom and right, is not seen.
        patch_size: (height, width) in pixels.
        has_cls: Whether a class token stands before the patches.
        n_registers: Register tokens between the class token and the patches.
        has_patch_bias: Whether the patch embedding has a bias.
        act_fn: ``gelu`` (exact, erf), ``gelu_pytorch_tanh`` or ``quick_gelu``.
        eps: Of every LayerNorm.
        has_ln_pre: Whether a LayerNorm follows the embeddings.
        pool: ``cls`` reads the class token, ``avg`` the mean of the patches, ``attn`` pools all tokens by attention.
        attn_pool: Sizes of attention pooling, for ``pool="attn"`` alone.
        ln_final: Whether the LayerNorm after the last block comes before or after pooling.
        has_proj: Whether a projection follows; without one the embedding is the pooled vector.
        has_proj_bias: Whether the projection has a bias.
        device: Where the model's weights are, as text; kept up to date by the model.
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    d_mlp: int
    d_embed: int
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    has_cls: bool
    n_registers: int
    has_patch_bias: bool
    act_fn: ActivationName
    eps: float
    has_ln_pre: bool
    pool: Literal["cls", "avg", "attn"]
    attn_pool: AttentionPoolConfig | None
    ln_final: Literal["before_pool", "after_pool"]
    has_proj: bool
    has_proj_bias: bool

    use_attn_result: bool = False
    use_attn_in: bool = False
    use_split_qkv_input: bool = False
    use_hook_mlp_in: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("n_layers", "d_model", "n_heads", "d_head", "d_mlp", "d_embed"):
            if getattr(self, name) < 1:
                raise VitLensError(f"{name}={getattr(self, name)} must be at least 1")
        if 0 in self.grid:
            raise VitLensError(f"image_size={self.image_size} is smaller than patch_size={self.patch_size}")
        if self.act_fn not in get_args(ActivationName):
            raise VitLensError(f"act_fn={self.act_fn!r}; expected one of {', '.join(get_args(ActivationName))}")
        for name, allowed in (("pool", ("cls", "avg", "attn")), ("ln_final", ("before_pool", "after_pool"))):
            if getattr(self, name) not in allowed:
                raise VitLensError(f"{name}={getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        if self.n_registers < 0 or (self.n_registers and not self.has_cls):
            raise VitLensError(f"n_registers={self.n_registers}: registers follow a class token, and are 0 or more")
        if self.pool == "cls" and not self.has_cls:
            raise VitLensError("pool='cls' needs has_cls=True")
        if (self.pool == "attn") != (self.attn_pool is not None):
            raise VitLensError(f"pool={self.pool!r} with attn_pool={self.attn_pool}: sizes go with pool='attn'")
        if self.attn_pool is not None and self.ln_final != "before_pool":
            raise VitLensError("attention pooling reads tokens that are normed: ln_final='before_pool'")
        if self.has_proj_bias and not self.has_proj:
            raise VitLensError("has_proj_bias=True needs has_proj=True")
        if not self.has_proj and self.d_embed != self.d_pooled:
            raise VitLensError(
                f"without a projection d_embed={self.d_embed} must equal the pooled width {self.d_pooled}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches as (rows, columns)."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def n_patches(self) -> int:
        """Patches per image."""
        return self.grid[0] * self.grid[1]

    @property
    def n_prefix(self) -> int:
        """Tokens before the patches: the class token, then the registers."""
        return int(self.has_cls) + self.n_registers

    @property
    def n_ctx(self) -> int:
        """Tokens per image: class token, registers and patches."""
        return self.n_prefix + self.n_patches

    @property
    def d_patch(self) -> int:
        """Numbers in one patch: channels x patch height x patch width."""
        return 3 * self.patch_size[0] * self.patch_size[1]

    @property
    def d_pooled(self) -> int:
        """Width of the pooled vector, which the projection reads."""
        return self.d_model if self.attn_pool is None else self.attn_pool.d_model

    @property
    def readout(self) -> Literal["cls", "patches", "pooled", "tokens"]:
        """What the embedding is read from: the CLS row, every patch row, their mean, or every token."""
        if self.pool == "cls":
            return "cls"
        if self.pool == "attn":
            return "tokens"
        return "pooled" if self.ln_final == "after_pool" else "patches"

    def to_dict(self) -> dict[str, Any]:
        """Return the sizes and switches as plain values; the device is not one."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "device"}

    # TransformerLens' tools read these of any model's cfg.
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

    @property
    def d_vocab(self) -> int:
        """The width of the embedding, which stands where a language model has its vocabulary."""
        return self.d_embed

    @property
    def gated_mlp(self) -> bool:
        """False: the MLPs have one input matrix."""
        return False

    @property
    def positional_embedding_type(self) -> str:
        """``standard``: learned and added."""
        return "standard"

    @property
    def model_name(self) -> str:
        """For messages."""
        return "HookedViT"
