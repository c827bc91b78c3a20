"""Read the sizes and switches of a Hugging Face CLIP vision tower from the object itself."""

__all__ = ["hf_config", "hf_state_dict"]

import math
from typing import Any

from torch import Tensor, nn

from vit_lens.config import ActivationName, HookedViTConfig
from vit_lens.pretrained.checks import common_eps, kind, patch_of, refuse, same_for_all

_TOWERS = ("CLIPModel", "CLIPVisionModelWithProjection", "CLIPVisionModel", "CLIPVisionTransformer")


def hf_config(tower: Any) -> HookedViTConfig:
    """Return the config of a Hugging Face CLIP vision tower, with or without projection.

    Raises:
        UnsupportedTowerError: The tower is not CLIP's; the message names the part.
    """
    core, projection = _core(tower), getattr(tower, "visual_projection", None)
    layers = list(core.encoder.layers)
    norms = {"pre_layrnorm": core.pre_layrnorm, "post_layernorm": core.post_layernorm}
    for i, layer in enumerate(layers):
        norms |= {f"layers.{i}.layer_norm1": layer.layer_norm1, f"layers.{i}.layer_norm2": layer.layer_norm2}
    patch = patch_of(core.embeddings.patch_embedding, "patch_embedding")
    side = core.embeddings.image_size
    image = (side, side) if isinstance(side, int) else tuple(side)
    if image[0] % patch[0] or image[1] % patch[1]:
        refuse(f"image size {image} that is not a multiple of the patch size {patch}")
    d_model = core.embeddings.patch_embedding.out_channels
    n_heads = same_for_all("head count", (layer.self_attn.num_heads for layer in layers))
    _require_scale(layers, d_model, n_heads)
    if projection is not None and (type(projection) is not nn.Linear or projection.bias is not None):
        refuse("a visual_projection that is not a linear map without bias")
    return HookedViTConfig(
        n_layers=len(layers),
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_model // n_heads,
        d_mlp=same_for_all("MLP width", (layer.mlp.fc1.out_features for layer in layers)),
        d_embed=d_model if projection is None else projection.out_features,
        image_size=image,
        patch_size=patch,
        act_fn=same_for_all("activation", (_activation(layer.mlp.activation_fn) for layer in layers)),
        eps=common_eps(norms, (nn.LayerNorm,)),
        has_ln_pre=True,
        pool="cls",
        # The norm acts on each token alone, so it may come before CLS is picked; hooks then see every token.
        ln_final="before_pool",
        has_proj=projection is not None,
    )


def hf_state_dict(tower: Any) -> dict[str, Tensor]:
    """Return the tensors of the vision tower and its projection, named as inside the tower."""
    tensors = dict(_core(tower).state_dict())
    projection = getattr(tower, "visual_projection", None)
    if projection is not None:
        tensors["visual_projection.weight"] = projection.weight
    return tensors


def _core(tower: Any) -> Any:
    """Return the module that holds embeddings and layers; older versions nest it once more."""
    if kind(tower) not in _TOWERS or not type(tower).__module__.startswith("transformers.models.clip."):
        refuse(f"a Hugging Face model of type {kind(tower)}")
    core = tower
    while not hasattr(core, "embeddings"):
        core = core.vision_model
    layer_kind = same_for_all("layer type", (kind(layer) for layer in core.encoder.layers))
    if layer_kind != "CLIPEncoderLayer":
        refuse(f"layers of type {layer_kind}")
    return core


def _require_scale(layers: list[Any], d_model: int, n_heads: int) -> None:
    scale = same_for_all("attention scale", (layer.self_attn.scale for layer in layers))
    if d_model % n_heads or not math.isclose(scale, (d_model // n_heads) ** -0.5):
        refuse(f"attention scale {scale} for width {d_model} and {n_heads} heads")


def _activation(act: nn.Module) -> ActivationName:
    from transformers.activations import GELUActivation, QuickGELUActivation

    if type(act) is QuickGELUActivation:
        return "quick_gelu"
    if type(act) is GELUActivation or (type(act) is nn.GELU and act.approximate == "none"):
        return "gelu"
    refuse(f"activation {kind(act)}; expected exact GELU or QuickGELU")
