"""Read the sizes and switches of an open_clip vision tower from the object itself."""

__all__ = ["open_clip_blueprint", "open_clip_spec"]

from functools import partial
from typing import Any, Literal

from torch import nn

from vit_lens.config import AttentionPoolConfig, HookedViTConfig
from vit_lens.convert import open_clip_recipe
from vit_lens.images import PreprocessSpec
from vit_lens.pretrained.checks import activation_of, common_eps, grid_of, kind, patch_of, refuse, same_for_all
from vit_lens.pretrained.fitting import Blueprint
from vit_lens.pretrained.timm_towers import timm_blueprint

_POOL: dict[str, Literal["cls", "avg"]] = {"tok": "cls", "avg": "avg"}
# option of open_clip: the part that it adds to a block
_CUSTOM_OPTIONS = {
    "qk_norm": "attn.ln_q",
    "scaled_cosine_attn": "attn.logit_scale",
    "scale_heads": "attn.head_scale",
    "scale_attn_inner": "attn.ln_inner",
    "scale_attn": "ln_attn",
    "scale_fc": "mlp.ln",
}


def open_clip_blueprint(visual: Any) -> Blueprint:
    """Read an open_clip vision tower: a native one, CoCa's, or a timm trunk.

    Raises:
        UnsupportedTowerError: The tower is not a plain ViT; the message names the part.
    """
    from open_clip import transformer

    if hasattr(visual, "trunk"):
        return timm_blueprint(visual)
    _require_plain(visual)
    blocks = list(visual.transformer.resblocks)
    for block in blocks:
        _require_plain_block(block)
    pooler, attn_pool = visual.attn_pool, _pooler(visual)
    norms = {"ln_post": visual.ln_post}
    if attn_pool is not None:
        norms |= {"attn_pool.ln_q": pooler.ln_q, "attn_pool.ln_k": pooler.ln_k}
    for i, block in enumerate(blocks):
        norms |= {f"resblocks.{i}.ln_1": block.ln_1, f"resblocks.{i}.ln_2": block.ln_2}
    has_ln_pre = not isinstance(visual.ln_pre, nn.Identity)
    if has_ln_pre:
        norms["ln_pre"] = visual.ln_pre
    patch, image = patch_of(visual.conv1, "conv1"), tuple(visual.image_size)
    grid_of(image, patch)
    d_model = visual.conv1.out_channels
    d_pooled = d_model if attn_pool is None else attn_pool.d_model
    n_heads = same_for_all("head count", (block.attn.num_heads for block in blocks))
    after_pool = visual.final_ln_after_pool and attn_pool is None  # open_clip ignores the switch for the pooler
    cfg = HookedViTConfig(
        n_layers=len(blocks),
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_model // n_heads,
        d_mlp=same_for_all("MLP width", (block.mlp.c_fc.out_features for block in blocks)),
        d_embed=d_pooled if visual.proj is None else visual.proj.shape[1],
        image_size=image,
        patch_size=patch,
        has_cls=True,
        n_registers=0,
        has_patch_bias=False,
        act_fn=same_for_all("activation", (activation_of(block.mlp.gelu) for block in blocks)),
        eps=common_eps(norms, (nn.LayerNorm, transformer.LayerNorm, transformer.LayerNormFp32)),
        has_ln_pre=has_ln_pre,
        pool=_POOL[visual.pool_type] if attn_pool is None else "attn",
        attn_pool=attn_pool,
        ln_final="after_pool" if after_pool else "before_pool",
        has_proj=visual.proj is not None,
        has_proj_bias=False,
    )
    return Blueprint(cfg, partial(open_clip_recipe, cfg))


def open_clip_spec(visual: Any) -> PreprocessSpec | None:
    """Return the preprocessing that open_clip's factory left on the tower, or None."""
    cfg: dict[str, Any] | None = getattr(visual, "preprocess_cfg", None)
    if cfg is not None:
        return PreprocessSpec.from_open_clip_cfg(cfg)
    mean, std = getattr(visual, "image_mean", None), getattr(visual, "image_std", None)
    if mean is None or std is None:
        return None
    # Versions of open_clip that leave only these two evaluate with bicubic, shortest side, always.
    return PreprocessSpec.from_open_clip_cfg({"size": tuple(visual.image_size), "mean": mean, "std": std})


def _require_plain(visual: Any) -> None:
    from open_clip.transformer import Transformer, VisionTransformer

    if type(visual) is not VisionTransformer:
        refuse(f"a vision tower of type {kind(visual)}")
    if getattr(visual, "attn_pool_contrastive", None) is not None:
        refuse(f"attentional pooling of type {visual.attn_pool_type!r} (attn_pool_contrastive)")
    if visual.pool_type not in _POOL:
        refuse(f"pool_type={visual.pool_type!r}; expected {' or '.join(map(repr, _POOL))}")
    if type(visual.transformer) is not Transformer:
        refuse(f"a transformer of type {kind(visual.transformer)}")
    if isinstance(visual.ln_post, nn.Identity):
        refuse("a tower without ln_post")


def _pooler(visual: Any) -> AttentionPoolConfig | None:
    """Return the sizes of CoCa's attention pooling, of which the embedding reads the first query."""
    from open_clip.transformer import AttentionalPooler

    pooler = visual.attn_pool
    if pooler is None:
        return None
    if type(pooler) is not AttentionalPooler:
        refuse(f"attention pooling of type {kind(pooler)}")
    if visual.pool_type != "tok":
        refuse(f"attentional pooling with pool_type={visual.pool_type!r}, which reads more than the first query")
    attn = pooler.attn
    if type(attn) is not nn.MultiheadAttention or attn.in_proj_bias is None or attn.bias_k is not None:
        refuse("attentional pooling whose attention has no biases, or added keys")
    if attn.add_zero_attn:
        refuse("attentional pooling whose attention has added keys")
    return AttentionPoolConfig(
        n_heads=attn.num_heads, d_head=attn.head_dim, d_model=attn.embed_dim, d_mlp=None, has_ln_post=True
    )


def _require_plain_block(block: Any) -> None:
    from open_clip.transformer import CustomResidualAttentionBlock, LayerScale, ResidualAttentionBlock

    if isinstance(block, CustomResidualAttentionBlock):
        options = [name for name, part in _CUSTOM_OPTIONS.items() if _is_on(block, part)]
        refuse(f"custom residual blocks ({', '.join(options) or 'block_type=custom'})")
    if type(block) is not ResidualAttentionBlock:
        refuse(f"residual blocks of type {kind(block)}")
    attn = block.attn
    if type(attn) is not nn.MultiheadAttention:
        refuse(f"attention of type {kind(attn)}")
    if attn.in_proj_weight is None or attn.in_proj_bias is None or attn.bias_k is not None or attn.add_zero_attn:
        refuse("attention without a fused biased projection, or with added keys")
    if list(dict(block.mlp.named_children())) != ["c_fc", "gelu", "c_proj"]:
        refuse(f"an MLP made of {', '.join(dict(block.mlp.named_children()))}")
    if hasattr(block, "ln_1_kv"):
        refuse("cross attention")
    for name in ("ls_1", "ls_2"):
        if type(getattr(block, name)) not in (nn.Identity, LayerScale):
            refuse(f"{name} of type {kind(getattr(block, name))}")


def _is_on(block: Any, part: str) -> bool:
    for name in part.split("."):
        block = getattr(block, name, None)
    return block is not None and not isinstance(block, nn.Identity)
