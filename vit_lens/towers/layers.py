"""The parts of a tower; every activation passes its hook point and goes on from there."""

__all__ = [
    "MLP", "Attention", "AttentionPool", "Embed", "LayerNorm", "PosEmbed", "PreNorm", "RMSNorm", "RelativeBias",
    "TokenEmbed", "TransformerBlock", "Unembed", "norm_of", "wide",
]  # fmt: skip

import math

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from vit_lens.config import (
    ActivationName,
    AttentionPoolConfig,
    BlocksConfig,
    HookedTextConfig,
    HookedViTConfig,
    RelativeBiasConfig,
    TowerConfig,
)
from vit_lens.hooking import is_hooked


class Embed(nn.Module):
    """Cut the image into patches, project them and put class token and registers before them.

    Args:
        cfg: The config of the tower.

    >>> Embed(model.cfg)(pixels).shape
    torch.Size([2, 17, 128])
    """

    def __init__(self, cfg: HookedViTConfig):
        super().__init__()
        self.cfg = cfg
        self.W_E = nn.Parameter(torch.zeros(cfg.d_patch, cfg.d_model))
        self.b_E = nn.Parameter(torch.zeros(cfg.d_model)) if cfg.has_patch_bias else None
        self.cls_token = nn.Parameter(torch.zeros(cfg.d_model)) if cfg.has_cls else None
        self.registers = nn.Parameter(torch.zeros(cfg.n_registers, cfg.d_model)) if cfg.n_registers else None

    def forward(self, pixels: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch pos d_model"]:
        (rows, columns), (height, width) = self.cfg.grid, self.cfg.patch_size
        whole = pixels[:, :, : rows * height, : columns * width]
        patches = rearrange(whole, "b c (y ph) (x pw) -> b (y x) (c ph pw)", ph=height, pw=width) @ self.W_E
        if self.b_E is not None:
            patches = patches + self.b_E
        prefix = [x if x.ndim == 2 else x[None] for x in (self.cls_token, self.registers) if x is not None]
        return torch.cat([*(repeat(x, "n d -> b n d", b=len(pixels)) for x in prefix), patches], dim=1)


class TokenEmbed(nn.Module):
    """The embeddings of a text's tokens, one row for each id.

    Args:
        cfg: The config of the tower.

    >>> TokenEmbed(text_model.cfg)(torch.tensor([[1, 6, 3]])).shape
    torch.Size([1, 3, 96])
    """

    def __init__(self, cfg: HookedTextConfig):
        super().__init__()
        self.W_E = nn.Parameter(torch.zeros(cfg.n_vocab, cfg.d_model))

    def forward(self, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        return self.W_E[ids]


class PosEmbed(nn.Module):
    """The learned position embeddings, one for each token; zero where the source has none (registers).

    Args:
        cfg: The config of the tower.

    >>> PosEmbed(model.cfg)(2).shape
    torch.Size([2, 17, 128])
    """

    def __init__(self, cfg: TowerConfig):
        super().__init__()
        self.W_pos = nn.Parameter(torch.zeros(cfg.n_ctx, cfg.d_model))

    def forward(self, batch: int, n_pos: int | None = None) -> Float[Tensor, "batch pos d_model"]:
        """Return those of the first ``n_pos`` tokens; None for all."""
        return self.W_pos[:n_pos].expand(batch, -1, -1)


class LayerNorm(nn.Module):
    """LayerNorm with hook points.

    ``hook_scale`` is the standard deviation that divides (with eps inside); ``hook_normalized`` is the output
    with weight and bias applied, which is what the next matrices read, as in TransformerLens 2 (later versions fire
    it before weight and bias). Statistics of half-precision inputs are taken in float32, by torch's kernels too, as
    open_clip's ``LayerNormFp32`` does.

    Args:
        d_model: The width of what is normed.
        eps: What is added to the variance before the square root.

    >>> norm = LayerNorm(4, eps=0.0)
    >>> x = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    >>> norm.read(x).round(decimals=2).tolist()
    [[-1.0, -1.0, 1.0, 1.0]]
    >>> centred, scale = norm.split(x)
    >>> centred.tolist(), scale.tolist()
    ([[-1.0, -1.0, 1.0, 1.0]], [[1.0]])
    """

    def __init__(self, d_model: int, eps: float | int):
        super().__init__()
        self.eps = eps
        self.w = nn.Parameter(torch.ones(d_model))
        self.b = nn.Parameter(torch.zeros(d_model))
        self.hook_scale, self.hook_normalized = HookPoint(), HookPoint()

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        if not (is_hooked(self.hook_scale) or is_hooked(self.hook_normalized)):
            return F.layer_norm(x, self.w.shape, self.w, self.b, self.eps)
        w, b = wide(self.w), wide(self.b)
        point = self.hook_scale
        is_plain = len(point._forward_hooks) > len(point.fwd_hooks) or point._forward_pre_hooks
        if torch.is_grad_enabled() or is_plain:  # the fused norm's scale lies outside the graph, and edits in place
            centred, scale = self.split(x)
            return self.hook_normalized((centred / self.hook_scale(scale) * w + b).to(x.dtype))
        normalized, _, inverse = torch.native_layer_norm(wide(x), self.w.shape, w, b, self.eps)
        scale = 1 / inverse
        if (edited := self.hook_scale(scale)) is not scale:
            normalized = self.split(x)[0] / edited * w + b
        return self.hook_normalized(normalized.to(x.dtype))

    def read(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the normed input without hooks, in its own dtype."""
        return F.layer_norm(x, self.w.shape, self.w.to(x), self.b.to(x), self.eps)

    def split(
        self, x: Float[Tensor, "*batch d_model"]
    ) -> tuple[Float[Tensor, "*batch d_model"], Float[Tensor, "*batch 1"]]:
        """Return the centred input and the scale that divides it, in float32 or wider."""
        centred = self.centre(wide(x))
        return centred, (centred.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()

    def centre(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return what the norm sees of a vector: all but its mean. The map is its own transpose."""
        return x - x.mean(-1, keepdim=True)


class RMSNorm(LayerNorm):
    """A norm that takes no mean off and adds no bias (Zhang and Sennrich 2019); ``b`` is zero and no weight.

    As T5 computes it: in float32 for half precision, and in the input's own dtype otherwise.
    """

    def __init__(self, d_model: int, eps: float | int):
        super().__init__(d_model, eps)
        del self.b
        self.register_buffer("b", torch.zeros(d_model), persistent=False)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        centred, scale = self.split(x)
        return self.hook_normalized((centred / self.hook_scale(scale) * wide(self.w)).to(x.dtype))

    def read(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the normed input without hooks, in its own dtype."""
        return F.rms_norm(x, self.w.shape, self.w.to(x), self.eps)

    def centre(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the vector as it is."""
        return x


def norm_of(cfg: BlocksConfig, d_model: int | None = None) -> LayerNorm:
    """Return a norm of the tower's kind, of the residual stream's width or another."""
    kind = RMSNorm if cfg.normalization_type == "RMS" else LayerNorm
    return kind(d_model or cfg.d_model, cfg.eps)


class PreNorm(LayerNorm):
    """CLIP's LayerNorm on the embeddings, split exactly into the parts that it adds up.

    With ``s`` the scale of ``e + p``, the output is ``(e - mean e) / s * w + b`` plus ``(p - mean p) / s * w``.
    So the position part depends on the image through ``s``.

    Args:
        d_model: The width of the embeddings.
        eps: What is added to the variance before the square root.

    >>> patches, positions = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    >>> norm = PreNorm(8, eps=1e-5)
    >>> bool(torch.allclose(sum(norm(patches, positions)), norm.read(patches + positions), atol=1e-5))
    True
    """

    def __init__(self, d_model: int, eps: float | int):
        super().__init__(d_model, eps)
        del self.hook_normalized  # its value would be hook_embed + hook_pos_embed: one name for one thing

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, embed: Float[Tensor, "batch pos d_model"], pos_embed: Float[Tensor, "batch pos d_model"]
    ) -> tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch pos d_model"]]:
        _, scale = self.split(embed + pos_embed)
        scale = self.hook_scale(scale)
        embed_part = self.split(embed)[0] / scale * wide(self.w) + wide(self.b)
        pos_part = self.split(pos_embed)[0] / scale * wide(self.w)
        return embed_part.to(embed.dtype), pos_part.to(embed.dtype)


class Attention(nn.Module):
    """Multi-head attention, one weight matrix per head.

    Args:
        cfg: The config of the tower.
        pool: The sizes of attention pooling, where one query attends; None where tokens attend to each other.

    >>> attn, normed = model.blocks[3].attn, cache["normalized", 3, "ln1"]
    >>> attn.W_Q.shape, attn(normed, normed, normed).shape
    (torch.Size([8, 128, 16]), torch.Size([2, 17, 128]))
    """

    W_Q: nn.Parameter
    W_K: nn.Parameter
    W_V: nn.Parameter
    b_Q: Tensor
    b_K: Tensor
    b_V: Tensor
    b_O: Tensor

    def __init__(self, cfg: BlocksConfig, pool: AttentionPoolConfig | None = None):
        super().__init__()
        self.cfg = cfg
        sizes = pool or cfg
        heads, d_head = sizes.n_heads, sizes.d_head
        for name, d_in in zip("QKV", (sizes.d_model, cfg.d_model, cfg.d_model), strict=True):
            laid_out = torch.zeros(heads, d_head, d_in)  # so that heads become one matrix without a copy
            setattr(self, f"W_{name}", nn.Parameter(laid_out.transpose(1, 2)))
            _bias(self, f"b_{name}", (heads, d_head), cfg.has_biases)
        self.W_O = nn.Parameter(torch.zeros(heads, d_head, sizes.d_model))
        _bias(self, "b_O", (sizes.d_model,), cfg.has_biases)
        self.scale = math.sqrt(d_head) if cfg.attn_scale is None else cfg.attn_scale
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_scores, self.hook_pattern = HookPoint(), HookPoint()
        self.hook_z, self.hook_result = HookPoint(), HookPoint()

    def forward(
        self,
        query: Float[Tensor, "batch query *head d_query"],
        key: Float[Tensor, "batch pos *head d_model"],
        value: Float[Tensor, "batch pos *head d_model"],
        mask: Bool[Tensor, "#batch #head query pos"] | None = None,
        bias: Float[Tensor, "#batch head query pos"] | None = None,
    ) -> Float[Tensor, "batch query d_query"]:
        """Attend; ``mask`` is True where a query (third axis) may look at a key; ``bias`` is added to the scores."""
        q = self.hook_q(_per_head(query, self.W_Q, self.b_Q))
        k = self.hook_k(_per_head(key, self.W_K, self.b_K))
        v = self.hook_v(_per_head(value, self.W_V, self.b_V))
        z = self.hook_z(self._attend(q, k, v, mask, bias))
        if self.cfg.use_attn_result or is_hooked(self.hook_result):
            result = einsum(z, self.W_O, "b p h d_head, h d_head d_model -> b p h d_model")
            return self.hook_result(result).sum(2) + self.b_O
        return F.linear(rearrange(z, "b p h d -> b p (h d)"), _flat_output(self.W_O), self.b_O)

    def _attend(
        self,
        q: Float[Tensor, "batch query head d_head"],
        k: Float[Tensor, "batch pos head d_head"],
        v: Float[Tensor, "batch pos head d_head"],
        mask: Bool[Tensor, "#batch #head query pos"] | None,
        bias: Float[Tensor, "#batch head query pos"] | None,
    ) -> Float[Tensor, "batch query head d_head"]:
        if not (is_hooked(self.hook_attn_scores) or is_hooked(self.hook_pattern)):
            added = mask if bias is None or mask is None else bias.masked_fill(~mask, float("-inf"))
            fused = F.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=1 / self.scale,
                attn_mask=bias if mask is None else added,
            )  # fmt: skip
            return fused.transpose(1, 2)
        scores = einsum(q, k, "b query h d, b key h d -> b h query key") / self.scale
        if bias is not None:
            scores = scores + bias
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        pattern = self.hook_pattern(wide(self.hook_attn_scores(scores)).softmax(-1).to(scores.dtype))
        return einsum(pattern, v, "b h query key, b key h d -> b query h d")


class RelativeBias(nn.Module):
    """T5's relative position bias (Raffel et al. 2020, section 2.1), for tokens that see both ways.

    Half of the buckets are for keys behind the query, half for keys at it or before; in each half, near distances
    have a bucket of their own and far ones share them logarithmically.
    """

    def __init__(self, sizes: RelativeBiasConfig, n_heads: int):
        super().__init__()
        self.sizes = sizes
        self.rel_attn_bias = nn.Parameter(torch.zeros(sizes.n_buckets, n_heads))
        self.hook_rel_bias = HookPoint()

    def forward(self, batch: int, n_pos: int) -> Float[Tensor, "batch head pos pos"]:
        place = torch.arange(n_pos, device=self.rel_attn_bias.device)
        bias = rearrange(self.rel_attn_bias[self.buckets(place[None] - place[:, None])], "q k h -> h q k")
        return self.hook_rel_bias(bias.expand(batch, -1, -1, -1))

    def buckets(self, distance: Int[Tensor, "*axes"]) -> Int[Tensor, "*axes"]:
        """Return the bucket of each distance, a key's place less the query's."""
        half = self.sizes.n_buckets // 2
        near, far = half // 2, distance.abs()
        log = torch.log(far.clamp(min=1).float() / near) / math.log(self.sizes.max_distance / near) * (half - near)
        shared = (near + log.long()).clamp(max=half - 1)
        return torch.where(distance > 0, half, 0) + torch.where(far < near, far, shared)


class MLP(nn.Module):
    """The two-layer perceptron of a block; gated, its hidden layer is the activation times a second linear map.

    With a gate, ``hook_pre`` is what the activation reads (``W_gate``) and ``hook_pre_linear`` what it multiplies
    (``W_in``), as in TransformerLens.
    """

    b_in: Tensor
    b_out: Tensor

    def __init__(
        self, d_model: int, d_mlp: int, act_fn: ActivationName, *, has_biases: bool = True, gated: bool = False
    ):
        super().__init__()
        self.act_fn: ActivationName = act_fn
        self.W_in = nn.Parameter(torch.zeros(d_model, d_mlp))
        _bias(self, "b_in", (d_mlp,), has_biases)
        self.W_gate = nn.Parameter(torch.zeros(d_model, d_mlp)) if gated else None
        self.W_out = nn.Parameter(torch.zeros(d_mlp, d_model))
        _bias(self, "b_out", (d_model,), has_biases)
        self.hook_pre = HookPoint()
        self.hook_pre_linear = HookPoint() if gated else None
        self.hook_post = HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        pre = F.linear(x, self.W_in.T, self.b_in)
        if self.W_gate is None or self.hook_pre_linear is None:
            post = activation(self.hook_pre(pre), self.act_fn)
        else:
            gate = activation(self.hook_pre(x @ self.W_gate), self.act_fn)
            post = gate * self.hook_pre_linear(pre)
        return F.linear(self.hook_post(post), self.W_out.T, self.b_out)


class TransformerBlock(nn.Module):
    """Pre-norm block: attention, then the MLP, each added to the residual stream."""

    hook_out_is_single_residual_stream = True  # read by TransformerLens' logit lens

    def __init__(self, cfg: BlocksConfig):
        super().__init__()
        self.cfg = cfg
        self.hook_resid_pre, self.hook_attn_in = HookPoint(), HookPoint()
        self.hook_q_input, self.hook_k_input, self.hook_v_input = HookPoint(), HookPoint(), HookPoint()
        self.ln1 = norm_of(cfg)
        self.attn = Attention(cfg)
        self.hook_attn_out, self.hook_resid_mid, self.hook_mlp_in = HookPoint(), HookPoint(), HookPoint()
        self.ln2 = norm_of(cfg)
        self.mlp = MLP(cfg.d_model, cfg.d_mlp, cfg.act_fn, has_biases=cfg.has_biases, gated=cfg.gated_mlp)
        self.hook_mlp_out, self.hook_resid_post = HookPoint(), HookPoint()

    def forward(
        self,
        resid: Float[Tensor, "batch pos d_model"],
        mask: Bool[Tensor, "#batch #head pos pos"] | None = None,
        bias: Float[Tensor, "#batch head pos pos"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        resid_pre = self.hook_resid_pre(resid)
        attn_out = self.hook_attn_out(self.attn(*self._attention_inputs(resid_pre), mask, bias))
        resid_mid = self.hook_resid_mid(resid_pre + attn_out)
        mlp_in = resid_mid
        if self.cfg.use_hook_mlp_in or is_hooked(self.hook_mlp_in):
            mlp_in = self.hook_mlp_in(resid_mid.clone())
        mlp_out = self.hook_mlp_out(self.mlp(self.ln2(mlp_in)))
        return self.hook_resid_post(resid_mid + mlp_out)

    def _attention_inputs(self, resid_pre: Float[Tensor, "batch pos d_model"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return what queries, keys and values read: one tensor, or one per head where heads are edited apart."""
        attn_in = resid_pre
        if self.cfg.use_attn_in or is_hooked(self.hook_attn_in):
            attn_in = self.hook_attn_in(self._repeat_heads(resid_pre))
        split = (self.hook_q_input, self.hook_k_input, self.hook_v_input)
        if not (self.cfg.use_split_qkv_input or any(is_hooked(point) for point in split)):
            normalized = self.ln1(attn_in)
            return normalized, normalized, normalized
        per_head = attn_in if attn_in.ndim == 4 else self._repeat_heads(attn_in)
        query, key, value = (self.ln1(point(per_head)) for point in split)
        return query, key, value

    def _repeat_heads(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos head d_model"]:
        return repeat(resid, "b p d -> b p h d", h=self.cfg.n_heads)


class AttentionPool(nn.Module):
    """One learned query attends to all tokens; an MLP may add to what it finds, and a LayerNorm may follow.

    SigLIP's MAP head has the MLP (Zhai et al. 2023), CoCa's pooler the LayerNorm (Yu et al. 2022). Of CoCa's
    queries only the first reaches the embedding; its LayerNorm is folded into ``query``.
    """

    def __init__(self, cfg: BlocksConfig, pool: AttentionPoolConfig):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(pool.d_model))
        self.attn = Attention(cfg, pool)
        self.hook_attn_out = HookPoint()
        self.ln2 = LayerNorm(pool.d_model, cfg.eps) if pool.d_mlp else None
        self.mlp = MLP(pool.d_model, pool.d_mlp, cfg.act_fn) if pool.d_mlp else None
        self.hook_mlp_out = HookPoint() if pool.d_mlp else None
        self.ln_post = LayerNorm(pool.d_model, cfg.eps) if pool.has_ln_post else None

    def forward(self, tokens: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch d_pooled"]:
        query = repeat(self.query, "d -> b 1 d", b=len(tokens))
        pooled = self.hook_attn_out(self.attn(query, tokens, tokens))
        if self.mlp is not None and self.ln2 is not None and self.hook_mlp_out is not None:
            pooled = pooled + self.hook_mlp_out(self.mlp(self.ln2(pooled)))
        return (pooled if self.ln_post is None else self.ln_post(pooled))[:, 0]

    def read(self, tokens: Float[Tensor, "*batch row d_model"]) -> Float[Tensor, "*batch d_pooled"]:
        """Return what :meth:`forward` would, without hooks, in the tokens' dtype; keys and values stay implicit."""
        query, attn = self.query.to(tokens), self.attn
        q = einsum(query, attn.W_Q.to(tokens), "d, h d k -> h k") + attn.b_Q.to(tokens)
        keys = einsum(attn.W_K.to(tokens), q, "h d k, h k -> h d")
        scores = (tokens @ keys.T + (attn.b_K.to(tokens) * q).sum(-1)) / math.sqrt(q.shape[-1])
        seen = scores.softmax(-2).transpose(-1, -2) @ tokens
        z = einsum(seen, attn.W_V.to(tokens), "... h d, h d k -> ... h k") + attn.b_V.to(tokens)
        pooled = einsum(z, attn.W_O.to(tokens), "... h k, h k d -> ... d") + attn.b_O.to(tokens)
        return self.finish(pooled + self.mlp_of(pooled))

    def mlp_of(self, attn_out: Float[Tensor, "*batch d_pooled"]) -> Float[Tensor, "*batch d_pooled"]:
        """Return what the MLP adds to a pooled vector, without hooks; zero where there is none."""
        if self.mlp is None or self.ln2 is None:
            return torch.zeros_like(attn_out)
        mlp, x = self.mlp, self.ln2.read(attn_out)
        post = activation(x @ mlp.W_in.to(x) + mlp.b_in.to(x), mlp.act_fn)
        return post @ mlp.W_out.to(x) + mlp.b_out.to(x)

    def finish(self, pooled: Float[Tensor, "*batch d_pooled"]) -> Float[Tensor, "*batch d_pooled"]:
        """Return what the projection reads, without hooks: ``ln_post`` applied where there is one."""
        return pooled if self.ln_post is None else self.ln_post.read(pooled)


class Unembed(nn.Module):
    """The projection from the pooled vector to the image embedding."""

    def __init__(self, d_pooled: int, d_embed: int, *, bias: bool):
        super().__init__()
        self.W_U = nn.Parameter(torch.zeros(d_pooled, d_embed))
        self.b_U = nn.Parameter(torch.zeros(d_embed)) if bias else None

    def forward(self, x: Float[Tensor, "*batch d_pooled"]) -> Float[Tensor, "*batch d_embed"]:
        return x @ self.W_U if self.b_U is None else x @ self.W_U + self.b_U


def activation(pre: Float[Tensor, "*batch d_mlp"], name: ActivationName) -> Float[Tensor, "*batch d_mlp"]:
    """Apply the MLP's nonlinearity."""
    if name == "quick_gelu":
        return pre * torch.sigmoid(1.702 * pre)
    if name == "relu":
        return pre.relu()
    return F.gelu(pre, approximate="tanh" if name == "gelu_pytorch_tanh" else "none")


def wide(x: Float[Tensor, "*axes"], device: torch.device | None = None) -> Float[Tensor, "*axes"]:
    """Return a tensor in float32 or wider, on its own device or another; the tensor itself where nothing changes."""
    return x.to(device=device, dtype=torch.promote_types(x.dtype, torch.float32))


def _bias(module: nn.Module, name: str, shape: tuple[int, ...], exists: bool) -> None:
    """Give a module a bias; where it has none, zeros that are no weights, so that every sum over biases holds."""
    if exists:
        module.register_parameter(name, nn.Parameter(torch.zeros(shape)))
    else:
        module.register_buffer(name, torch.zeros(shape), persistent=False)


def _per_head(
    x: Float[Tensor, "batch pos *heads d_in"],
    weight: Float[Tensor, "head d_in d_head"],
    bias: Float[Tensor, "head d_head"],
) -> Float[Tensor, "batch pos head d_head"]:
    if x.ndim == 4:
        return einsum(x, weight, "b p h d_model, h d_model d_head -> b p h d_head") + bias
    flat = F.linear(x, rearrange(weight, "h d_model d_head -> (h d_head) d_model"), bias.flatten())
    return rearrange(flat, "b p (h d_head) -> b p h d_head", h=weight.shape[0])


def _flat_output(weight: Float[Tensor, "head d_head d_model"]) -> Float[Tensor, "d_model head_d_head"]:
    return rearrange(weight, "h d_head d_model -> d_model (h d_head)")
