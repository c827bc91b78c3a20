"""Read the sizes and switches of Hugging Face's DINOv2, with and without registers, from the object itself."""

__all__ = ["dinov2_blueprint"]

from functools import partial
from typing import Any

from torch import nn

from vit_lens.config import HookedViTConfig
from vit_lens.convert import dinov2_recipe
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
from vit_lens.pretrained.positions import config_size, dinov2_positions

_LAYERS = ("Dinov2Layer", "Dinov2WithRegistersLayer")
_MLPS = ("Dinov2MLP", "Dinov2WithRegistersMLP")


def dinov2_blueprint(model: Any, image_size: tuple[int, int] | None) -> Blueprint:
    """Read ``Dinov2Model`` or ``Dinov2WithRegistersModel``; the embedding is its ``pooler_output``.

    DINOv2 fits its positions to every image that it is given, so they are always taken at the tower's size by its own
    function.

    Raises:
        UnsupportedTowerError: The tower is not a plain DINOv2; the message names the part.
    """
    layers = list(model.encoder.layer)
    for layer in layers:
        _require_plain_layer(layer)
    norms = {"layernorm": model.layernorm}
    for i, layer in enumerate(layers):
        norms |= {f"layer.{i}.norm1": layer.norm1, f"layer.{i}.norm2": layer.norm2}
    embed = model.embeddings.patch_embeddings
    patch = patch_of(embed.projection, "patch_embeddings.projection", bias=True)
    own = config_size(embed.image_size)
    image = image_size or own
    d_model = embed.projection.out_channels
    attention = [_inner(layer.attention) for layer in layers]
    n_heads = same_for_all("head count", (attn.num_attention_heads for attn in attention))
    d_head = same_for_all("head width", (_head_width(attn) for attn in attention))
    require_scale((attn.scaling for attn in attention), d_head)
    rows, columns = grid_of(image, patch)
    registers = getattr(model.embeddings, "register_tokens", None)
    cfg = HookedViTConfig(
        n_layers=len(layers),
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_head,
        d_mlp=same_for_all("MLP width", (layer.mlp.fc1.out_features for layer in layers)),
        d_embed=d_model,
        image_size=image,
        patch_size=patch,
        has_cls=True,
        n_registers=0 if registers is None else registers.shape[1],
        has_patch_bias=True,
        act_fn=same_for_all("activation", (activation_of(_activation(layer.mlp)) for layer in layers)),
        eps=common_eps(norms, (nn.LayerNorm,)),
        has_ln_pre=False,
        pool="cls",
        attn_pool=None,
        # The norm acts on each token alone, so it may come before CLS is picked; hooks then see every token.
        ln_final="before_pool",
        has_proj=False,
        has_proj_bias=False,
    )
    positions = dinov2_positions(model.embeddings, image, 1 + rows * columns)
    return Blueprint(cfg, partial(dinov2_recipe, cfg, positions=positions))


def _require_plain_layer(layer: Any) -> None:
    if kind(layer) not in _LAYERS:
        refuse(f"layers of type {kind(layer)}")
    if kind(layer.mlp) not in _MLPS:
        refuse(f"a DINOv2 with an MLP of type {kind(layer.mlp)} (SwiGLU, as in the giant size)")
    for name, map_ in _inner(layer.attention).named_children():
        if isinstance(map_, nn.Linear) and map_.bias is None:
            refuse(f"a DINOv2 with attention without biases ({name}; qkv_bias=False)")


def _inner(attention: Any) -> Any:
    """Return the module that has the heads; older versions of transformers nest it once more."""
    return getattr(attention, "attention", attention)


def _head_width(attention: Any) -> int:
    return attention.head_dim if hasattr(attention, "head_dim") else attention.attention_head_size


def _activation(mlp: Any) -> Any:
    return mlp.activation_fn if hasattr(mlp, "activation_fn") else mlp.activation
