"""Read the sizes and switches of a Hugging Face SigLIP vision tower from the object itself."""

__all__ = ["siglip_blueprint"]

from functools import partial
from typing import Any

from torch import nn

from vit_lens.config import AttentionPoolConfig, HookedViTConfig
from vit_lens.convert import siglip_recipe
from vit_lens.pretrained.checks import (
    activation_of,
    common_eps,
    grid_of,
    kind,
    patch_of,
    refuse,
    require_scale,
    same_for_all,
)
from vit_lens.pretrained.fitting import Blueprint
from vit_lens.pretrained.positions import clip_positions, config_size


def siglip_blueprint(core: Any, image_size: tuple[int, int] | None) -> Blueprint:
    """Read the module that holds ``embeddings``, ``encoder``, ``post_layernorm`` and ``head``.

    Raises:
        UnsupportedTowerError: The tower is not SigLIP's; the message names the part.
    """
    layers = list(core.encoder.layers)
    layer_kind = same_for_all("layer type", (kind(layer) for layer in layers))
    if layer_kind != "SiglipEncoderLayer":
        refuse(f"layers of type {layer_kind}")
    if not getattr(core, "use_head", True) or not hasattr(core, "head"):
        refuse("a SigLIP tower with vision_use_head=False, which has no image embedding")
    pool = _map_head(core.head)
    norms = {"post_layernorm": core.post_layernorm, "head.layernorm": core.head.layernorm}
    for i, layer in enumerate(layers):
        norms |= {f"layers.{i}.layer_norm1": layer.layer_norm1, f"layers.{i}.layer_norm2": layer.layer_norm2}
    embed = core.embeddings.patch_embedding
    patch = patch_of(embed, "patch_embedding", bias=True)
    own = config_size(core.embeddings.image_size)
    image = image_size or own
    grid_of(image, patch)
    n_heads = same_for_all("head count", (layer.self_attn.num_heads for layer in layers))
    require_scale((layer.self_attn.scale for layer in layers), embed.out_channels // n_heads)
    mlps = [*(layer.mlp for layer in layers), core.head.mlp]
    cfg = HookedViTConfig(
        n_layers=len(layers),
        d_model=embed.out_channels,
        n_heads=n_heads,
        d_head=embed.out_channels // n_heads,
        d_mlp=same_for_all("MLP width", (layer.mlp.fc1.out_features for layer in layers)),
        d_embed=pool.d_model,
        image_size=image,
        patch_size=patch,
        has_cls=False,
        n_registers=0,
        has_patch_bias=True,
        act_fn=same_for_all("activation", (activation_of(mlp.activation_fn) for mlp in mlps)),
        eps=common_eps(norms, (nn.LayerNorm,)),
        has_ln_pre=False,
        pool="attn",
        attn_pool=pool,
        ln_final="before_pool",
        has_proj=False,
        has_proj_bias=False,
    )
    positions = None if image == own else clip_positions(core.embeddings, image, cfg.n_ctx)
    return Blueprint(cfg, partial(siglip_recipe, cfg, positions=positions))


def _map_head(head: Any) -> AttentionPoolConfig:
    if kind(head) != "SiglipMultiheadAttentionPoolingHead":
        refuse(f"a SigLIP head of type {kind(head)}")
    attn = head.attention
    if type(attn) is not nn.MultiheadAttention:
        refuse(f"attention pooling with attention of type {kind(attn)}")
    if attn.in_proj_weight is None or attn.in_proj_bias is None or attn.bias_k is not None or attn.add_zero_attn:
        refuse("attention pooling without a fused biased projection, or with added keys")
    return AttentionPoolConfig(
        n_heads=attn.num_heads,
        d_head=attn.head_dim,
        d_model=attn.embed_dim,
        d_mlp=head.mlp.fc1.out_features,
        has_ln_post=False,
    )
