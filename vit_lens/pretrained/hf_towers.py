"""Read the sizes and switches of a Hugging Face vision tower from the object itself."""

__all__ = ["HF_TOWERS", "hf_blueprint", "hf_state_dict"]

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from vit_lens.config import HookedViTConfig
from vit_lens.convert import canonical_dinov2, hf_clip_recipe
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
from vit_lens.pretrained.dinov2_towers import dinov2_blueprint
from vit_lens.pretrained.fitting import Blueprint
from vit_lens.pretrained.positions import clip_positions, config_size
from vit_lens.pretrained.siglip_towers import siglip_blueprint

# Class of transformers: the model family that says how it is read.
HF_TOWERS = {
    "CLIPModel": "clip",
    "CLIPVisionModelWithProjection": "clip",
    "CLIPVisionModel": "clip",
    "CLIPVisionTransformer": "clip",
    "SiglipModel": "siglip",
    "SiglipVisionModel": "siglip",
    "SiglipVisionTransformer": "siglip",
    "Dinov2Model": "dinov2",
    "Dinov2WithRegistersModel": "dinov2_with_registers",
}
NAFLEX = (
    "Siglip2Model takes patches of any resolution (NaFlex), which HookedViT does not; fixed-resolution SigLIP 2 "
    "checkpoints (google/siglip2-base-patch16-224 and its like) are `siglip` models, and load"
)


def hf_blueprint(tower: Any, image_size: tuple[int, int] | None = None) -> Blueprint:
    """Read a CLIP, SigLIP or DINOv2 vision tower of Hugging Face.

    Args:
        tower: The model, or its vision tower.
        image_size: Interpolate the positions to this size with the tower's own function; None keeps its own size.

    Raises:
        UnsupportedTowerError: The tower is another one; the message names the part.
    """
    family, core = _core(tower)
    if family == "clip":
        return _clip_blueprint(core, getattr(tower, "visual_projection", None), image_size)
    read: Callable[..., Blueprint] = siglip_blueprint if family == "siglip" else dinov2_blueprint
    return read(core, image_size)


def hf_state_dict(tower: Any) -> dict[str, Tensor]:
    """Return the tensors of the vision tower and its projection, named as inside the tower."""
    family, core = _core(tower)
    tensors = dict(core.state_dict())
    if family.startswith("dinov2"):
        return {canonical_dinov2(name): tensor for name, tensor in tensors.items()}
    projection = getattr(tower, "visual_projection", None)
    if projection is not None:
        tensors["visual_projection.weight"] = projection.weight
    return tensors


def _core(tower: Any) -> tuple[str, Any]:
    """Return the family, and the module that holds embeddings and layers; older versions nest it once more."""
    family = HF_TOWERS.get(kind(tower))
    if "siglip2" in type(tower).__module__:
        refuse(NAFLEX)
    if family is None or not type(tower).__module__.startswith(f"transformers.models.{family}."):
        refuse(f"a Hugging Face model of type {kind(tower)}")
    core = tower
    while not hasattr(core, "embeddings"):
        core = core.vision_model
    return family, core


def _clip_blueprint(core: Any, projection: Any, image_size: tuple[int, int] | None) -> Blueprint:
    layers = list(core.encoder.layers)
    layer_kind = same_for_all("layer type", (kind(layer) for layer in layers))
    if layer_kind != "CLIPEncoderLayer":
        refuse(f"layers of type {layer_kind}")
    norms = {"pre_layrnorm": core.pre_layrnorm, "post_layernorm": core.post_layernorm}
    for i, layer in enumerate(layers):
        norms |= {f"layers.{i}.layer_norm1": layer.layer_norm1, f"layers.{i}.layer_norm2": layer.layer_norm2}
    patch = patch_of(core.embeddings.patch_embedding, "patch_embedding")
    own = config_size(core.embeddings.image_size)
    image = image_size or own
    grid_of(image, patch)
    d_model = core.embeddings.patch_embedding.out_channels
    n_heads = same_for_all("head count", (layer.self_attn.num_heads for layer in layers))
    if d_model % n_heads:
        refuse(f"width {d_model} for {n_heads} heads")
    require_scale((layer.self_attn.scale for layer in layers), d_model // n_heads)
    if projection is not None and (type(projection) is not nn.Linear or projection.bias is not None):
        refuse("a visual_projection that is not a linear map without bias")
    cfg = HookedViTConfig(
        n_layers=len(layers),
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_model // n_heads,
        d_mlp=same_for_all("MLP width", (layer.mlp.fc1.out_features for layer in layers)),
        d_embed=d_model if projection is None else projection.out_features,
        image_size=image,
        patch_size=patch,
        has_cls=True,
        n_registers=0,
        has_patch_bias=False,
        act_fn=same_for_all("activation", (activation_of(layer.mlp.activation_fn) for layer in layers)),
        eps=common_eps(norms, (nn.LayerNorm,)),
        has_ln_pre=True,
        pool="cls",
        attn_pool=None,
        # The norm acts on each token alone, so it may come before CLS is picked; hooks then see every token.
        ln_final="before_pool",
        has_proj=projection is not None,
        has_proj_bias=False,
    )
    positions = None if image == own else clip_positions(core.embeddings, image, cfg.n_ctx)
    return Blueprint(cfg, partial(hf_clip_recipe, cfg, positions=positions))
