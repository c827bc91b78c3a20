"""The sizes and switches of a tower, in three parts: the blocks, what comes before them, and how an output is read.

A tower's config is one flat dataclass, made of the parts that it has: TransformerLens' tools, and its users, read
``cfg.n_layers`` and ``cfg.d_model`` of any model.
"""

__all__ = [
    "ActivationName", "AttentionPoolConfig", "BlocksConfig", "HookedTextConfig", "HookedViTConfig", "PatchEmbedConfig",
    "ReadoutConfig", "RelativeBiasConfig", "TowerConfig",
]  # fmt: skip

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from vit_lens.errors import VitLensError

ActivationName = Literal["gelu", "gelu_pytorch_tanh", "quick_gelu", "relu"]

_LARGEST = 2**20  # of any size; far above every tower, and far below what would fill a machine
_MOST_LAYERS = 1000
_FROM_ZERO = ("n_registers", "eos_token_id")


def _check_values(cfg: Any) -> None:
    """Raise unless every value of a config is of its kind, and a number in the range that towers have."""
    for name, kind in get_type_hints(type(cfg)).items():
        value: Any = getattr(cfg, name)
        kinds = {kind, *get_args(kind)}
        if (value is None and type(None) in kinds) or get_origin(kind) is ClassVar:
            continue
        expected, fits = "", True
        if get_origin(kind) is Literal:
            expected, fits = f"one of {', '.join(map(str, get_args(kind)))}", value in get_args(kind)
        elif get_origin(kind) is tuple:
            expected = f"(height, width), whole numbers from 1 to {_LARGEST}"
            fits = isinstance(value, tuple) and len(value) == 2 and all(_is_whole(side, 1, _LARGEST) for side in value)
        elif int in kinds:
            least, most = int(name not in _FROM_ZERO), _MOST_LAYERS if name == "n_layers" else _LARGEST
            expected, fits = f"a whole number from {least} to {most}", _is_whole(value, least, most)
        elif float in kinds:
            least, most = (0, 1) if name == "eps" else (1e-9, _LARGEST)
            expected = f"a number from {least}, and below {most}"
            fits = isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value < most
        elif kind is bool:
            expected, fits = "True or False", isinstance(value, bool)
        if not fits:
            raise VitLensError(f"{name}={value!r}; expected {expected}")


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


@dataclass(frozen=True, kw_only=True)
class AttentionPoolConfig:
    """Sizes of attention pooling: one learned query attends to all tokens (SigLIP's MAP head, CoCa's pooler).

    Attributes:
        n_heads: The number of attention heads.
        d_head: The width of one head.
        d_model: The width of the pooled vector.
        d_mlp: The hidden width of the MLP that is added to the pooled vector; None where there is no MLP.
        has_ln_post: Whether a LayerNorm follows, between pooling and projection.

    >>> pool = AttentionPoolConfig(n_heads=12, d_head=64, d_model=768, d_mlp=3072, has_ln_post=False)  # SigLIP B/16
    >>> pool.n_heads * pool.d_head
    768
    """

    n_heads: int
    d_head: int
    d_model: int
    d_mlp: int | None
    has_ln_post: bool

    def __post_init__(self) -> None:
        _check_values(self)


@dataclass(frozen=True, kw_only=True)
class RelativeBiasConfig:
    """Sizes of T5's relative position bias: what each head adds to a score by how far a key is from its query.

    Attributes:
        n_buckets: The number of buckets that distances are sorted into, half of them for keys behind the query.
        max_distance: The distance, in tokens, from which on all distances share a bucket.

    >>> RelativeBiasConfig(n_buckets=32, max_distance=128)  # T5's encoder
    RelativeBiasConfig(n_buckets=32, max_distance=128)
    """

    n_buckets: int
    max_distance: int

    def __post_init__(self) -> None:
        _check_values(self)
        if self.n_buckets < 4 or self.max_distance <= self.n_buckets // 4:
            raise VitLensError(
                f"n_buckets={self.n_buckets}, max_distance={self.max_distance}; expected at least 4 buckets, and a "
                "distance above a quarter of their number"
            )


@dataclass(frozen=True, kw_only=True)
class BlocksConfig:
    """Sizes and switches of a stack of pre-norm transformer blocks; what the checkpoint decides has no default.

    The fields with a default are what most towers share, and the switches of hook points, as in TransformerLens;
    change these with the model's setters (``model.set_use_attn_result(True)``).

    Attributes:
        n_layers: The number of transformer blocks.
        d_model: The width of the residual stream.
        n_heads: The number of attention heads in each block.
        d_head: The width of one head; ``n_heads * d_head`` need not be ``d_model``.
        d_mlp: The hidden width of the MLP.
        act_fn: The MLP's nonlinearity: ``gelu`` (exact, erf), ``gelu_pytorch_tanh``, ``quick_gelu`` or ``relu``.
        eps: What every norm adds to the variance before the square root.
        normalization_type: The kind of norm: ``LN`` is LayerNorm; ``RMS`` takes no mean off and adds no bias, as in T5.
        gated_mlp: Whether the MLP's hidden layer is the activation times a second linear map.
        has_biases: Whether attention and MLP have biases; without them ``b_O`` and its kin are zero and no weights.
        attn_scale: What attention scores are divided by; None means the square root of ``d_head``.
        relative_bias: The sizes of a relative position bias, which all blocks share; None where there is none.
        is_causal: Whether a token sees none behind it.
        use_attn_result: Whether every run computes ``hook_result``, each head's output in the residual stream.
        use_attn_in: Whether every head reads its own copy of the residual stream (``hook_attn_in``).
        use_split_qkv_input: Whether queries, keys and values read copies of their own (``hook_q_input``, ...).
        use_hook_mlp_in: Whether the MLP reads its own copy of the residual stream (``hook_mlp_in``).
        device: The device of the model's weights, as text; the model keeps it up to date.

    Raises:
        VitLensError: A value is of another kind, or out of the range that towers have.

    >>> BlocksConfig(n_layers=2, d_model=12, n_heads=3, d_head=4, d_mlp=0, act_fn="gelu", eps=1e-5)
    Traceback (most recent call last):
    vit_lens.errors.VitLensError: d_mlp=0; expected a whole number from 1 to 1048576
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    d_mlp: int
    act_fn: ActivationName
    eps: float

    normalization_type: Literal["LN", "RMS"] = "LN"
    gated_mlp: bool = False
    has_biases: bool = True
    attn_scale: float | None = None
    relative_bias: RelativeBiasConfig | None = None
    is_causal: bool = False
    use_attn_result: bool = False
    use_attn_in: bool = False
    use_split_qkv_input: bool = False
    use_hook_mlp_in: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        _check_values(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the sizes and switches as plain values; the device is not one.

        >>> model.cfg.to_dict()["d_mlp"]
        512
        """
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "device"}

    attn_only: ClassVar[bool] = False
    """False: every block has an MLP."""
    n_key_value_heads: ClassVar[None] = None
    """None: keys and values are not grouped."""


@dataclass(frozen=True, kw_only=True)
class PatchEmbedConfig:
    """How an image becomes tokens: patches, and what stands before them.

    Attributes:
        image_size: The (height, width) of the image in pixels; what is left of whole patches, at the bottom and right,
            is not seen.
        patch_size: The (height, width) of a patch in pixels.
        has_cls: Whether a class token stands before the patches.
        n_registers: The number of register tokens between the class token and the patches.
        has_patch_bias: Whether the patch embedding has a bias.
        has_ln_pre: Whether a LayerNorm follows the embeddings.

    >>> switches = dict(has_cls=True, n_registers=4, has_patch_bias=True, has_ln_pre=False)
    >>> patches = PatchEmbedConfig(image_size=(224, 224), patch_size=(14, 14), **switches)  # DINOv2 with registers
    >>> patches.grid, patches.n_prefix, patches.n_ctx
    ((16, 16), 5, 261)
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    has_cls: bool
    n_registers: int
    has_patch_bias: bool
    has_ln_pre: bool

    def check_patches(self) -> None:
        """Raise unless there are patches, and registers only behind a class token.

        Raises:
            VitLensError: The image is smaller than a patch, or there are registers without a class token.
        """
        if self.n_ctx > _LARGEST:
            raise VitLensError(f"image_size={self.image_size}: {self.n_ctx} tokens; expected at most {_LARGEST}")
        if 0 in self.grid:
            raise VitLensError(f"image_size={self.image_size} is smaller than patch_size={self.patch_size}")
        if self.n_registers and not self.has_cls:
            raise VitLensError(f"n_registers={self.n_registers}: registers follow a class token")

    @property
    def grid(self) -> tuple[int, int]:
        """The patches of an image as (rows, columns)."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def n_patches(self) -> int:
        """The number of patches of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def n_prefix(self) -> int:
        """The number of tokens before the patches: the class token, then the registers."""
        return int(self.has_cls) + self.n_registers

    @property
    def n_ctx(self) -> int:
        """The number of tokens of an image: class token, registers and patches."""
        return self.n_prefix + self.n_patches

    @property
    def d_patch(self) -> int:
        """How many numbers one patch holds: channels x patch height x patch width."""
        return 3 * self.patch_size[0] * self.patch_size[1]


@dataclass(frozen=True, kw_only=True)
class ReadoutConfig:
    """How an output is read off the last residual stream.

    Attributes:
        d_embed: The width of the output.
        pool: What the output is read from: ``cls`` reads the class token, ``avg`` the mean of the patches, ``attn``
            pools all tokens by attention, ``eos`` reads the token that ends a text, ``all`` reads every token and pools
            nothing.
        attn_pool: The sizes of attention pooling, for ``pool="attn"`` alone; None for the others.
        ln_final: Whether the norm after the last block comes before or after pooling.
        has_proj: Whether a projection follows; without one the output is the pooled vector.
        has_proj_bias: Whether the projection has a bias.

    >>> read = dict(attn_pool=None, ln_final="before_pool", has_proj=False, has_proj_bias=False)
    >>> ReadoutConfig(d_embed=7, pool="cls", **read).check_readout(d_model=12)
    Traceback (most recent call last):
    vit_lens.errors.VitLensError: without a projection d_embed=7 must equal the pooled width 12
    """

    d_embed: int
    pool: Literal["cls", "avg", "attn", "eos", "all"]
    attn_pool: AttentionPoolConfig | None
    ln_final: Literal["before_pool", "after_pool"]
    has_proj: bool
    has_proj_bias: bool

    def check_readout(self, d_model: int) -> None:
        """Raise unless the switches go together.

        Raises:
            VitLensError: Two of the switches contradict each other; the message names them.
        """
        if (self.pool == "attn") != (self.attn_pool is not None):
            raise VitLensError(f"pool={self.pool!r} with attn_pool={self.attn_pool}: sizes go with pool='attn'")
        if self.pool not in ("cls", "avg") and self.ln_final != "before_pool":
            raise VitLensError(f"pool={self.pool!r} reads tokens that are normed: ln_final='before_pool'")
        if self.has_proj_bias and not self.has_proj:
            raise VitLensError("has_proj_bias=True needs has_proj=True")
        d_pooled = d_model if self.attn_pool is None else self.attn_pool.d_model
        if not self.has_proj and self.d_embed != d_pooled:
            raise VitLensError(f"without a projection d_embed={self.d_embed} must equal the pooled width {d_pooled}")

    @property
    def d_vocab(self) -> int:
        """The width of the output, which stands where a language model has its vocabulary."""
        return self.d_embed


@dataclass(frozen=True, kw_only=True)
class TowerConfig(BlocksConfig, ReadoutConfig):
    """Blocks and a read-out: what every hooked tower has; a kind of tower adds how its inputs are embedded.

    The attributes are those of :class:`BlocksConfig` and :class:`ReadoutConfig`.

    >>> model.cfg.d_model, model.cfg.d_pooled, model.cfg.d_embed
    (128, 128, 128)
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_readout(self.d_model)

    if TYPE_CHECKING:  # a kind of tower says it

        @property
        def n_ctx(self) -> int: ...

    @property
    def d_pooled(self) -> int:
        """The width of the pooled vector, which the projection reads."""
        return self.d_model if self.attn_pool is None else self.attn_pool.d_model


@dataclass(frozen=True, kw_only=True)
class HookedViTConfig(PatchEmbedConfig, TowerConfig):
    """Sizes and switches of one vision tower: :class:`PatchEmbedConfig`, :class:`BlocksConfig`, :class:`ReadoutConfig`.

    Raises:
        VitLensError: A size is below 1, or two switches contradict each other; the message names them.

    >>> sizes = dict(n_layers=2, d_model=12, n_heads=3, d_head=4, d_mlp=20, act_fn="gelu", eps=1e-5)
    >>> patches = dict(image_size=(20, 15), patch_size=(5, 5), has_cls=True, n_registers=0, has_patch_bias=True)
    >>> read = dict(pool="cls", attn_pool=None, ln_final="before_pool", has_proj=True, has_proj_bias=False, d_embed=7)
    >>> cfg = HookedViTConfig(**sizes, **patches, **read, has_ln_pre=True)
    >>> cfg.grid, cfg.n_ctx
    ((4, 3), 13)
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_patches()
        if self.pool not in ("cls", "avg", "attn"):
            raise VitLensError(f"pool={self.pool!r} reads a text; an image is read by 'cls', 'avg' or 'attn'")
        if self.pool == "cls" and not self.has_cls:
            raise VitLensError("pool='cls' needs has_cls=True")


@dataclass(frozen=True, kw_only=True)
class HookedTextConfig(TowerConfig):
    """Sizes and switches of one text tower: :class:`BlocksConfig`, :class:`ReadoutConfig`, and how ids become tokens.

    Attributes:
        n_vocab: The number of ids that are embedded.
        n_ctx: The number of tokens that a prompt may have; of a T5, how many it was trained on.
        has_pos_embed: Whether learned position embeddings are added to the tokens, as in CLIP; T5 has none.
        eos_token_id: The id that ends a prompt, at its first place; None where the highest id of each prompt does,
            which is what Hugging Face's CLIP means by ``eos_token_id=2``.

    Raises:
        VitLensError: A size is below 1, or two switches contradict each other; the message names them.

    >>> sizes = dict(n_layers=2, d_model=12, n_heads=3, d_head=4, d_mlp=20, act_fn="quick_gelu", eps=1e-5)
    >>> read = dict(pool="eos", attn_pool=None, ln_final="before_pool", has_proj=True, has_proj_bias=False, d_embed=7)
    >>> texts = dict(n_vocab=40, n_ctx=11, has_pos_embed=True, eos_token_id=39)
    >>> cfg = HookedTextConfig(**sizes, **read, **texts, is_causal=True)
    >>> cfg.n_ctx, cfg.eos_token_id
    (11, 39)
    """

    n_vocab: int
    n_ctx: int  # pyright: ignore[reportIncompatibleMethodOverride]
    has_pos_embed: bool
    eos_token_id: int | None

    has_ln_pre: ClassVar[bool] = False
    """False: embeddings are the residual stream as they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool not in ("eos", "all"):
            raise VitLensError(f"pool={self.pool!r} reads an image; a text is read by 'eos' or 'all'")
        if self.eos_token_id is not None and self.eos_token_id >= self.n_vocab:
            raise VitLensError(f"eos_token_id={self.eos_token_id} is none of n_vocab={self.n_vocab} ids, from 0")
