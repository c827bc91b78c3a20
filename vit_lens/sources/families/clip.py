"""Hugging Face's CLIP."""

__all__ = ["FAMILY", "Clip", "recipe"]

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from vit_lens.config import HookedViTConfig
from vit_lens.sources.families.family import Blueprint
from vit_lens.sources.families.hugging_face import (
    ACTIVATIONS,
    HuggingFace,
    ModelType,
    Positions,
    embedding_positions,
    head_sizes,
    plain_layers,
    stored_size,
    take_blocks,
    take_positions,
)
from vit_lens.sources.families.plain_parts import activation_of, common_eps, grid_of, patch_of, same_for_all
from vit_lens.sources.recipe import Recipe
from vit_lens.sources.refusals import refuse

# The integers 0 .. n_ctx - 1, which older files carry.
_POSITION_IDS = frozenset({"embeddings.position_ids"})
_PROJECTION = "visual_projection.weight"


class Clip(HuggingFace):
    """CLIP, with or without its projection."""

    towers = "Hugging Face's CLIP"
    homes = ("transformers.models.clip",)
    classes = ("CLIPModel", "CLIPVisionModelWithProjection", "CLIPVisionModel", "CLIPVisionTransformer")
    older_classes = ("CLIPVisionTransformer",)
    tier = "A"
    unused = ("text_model", "text_proj")
    vision_prefix = "vision_model."
    text_prefixes = ("text_model.", "text_projection.", "logit_scale")
    model_types: ClassVar = {
        "clip": ModelType("CLIPConfig", "CLIPVisionModel", ("CLIPModel",)),
        "clip_vision_model": ModelType(
            "CLIPVisionConfig", "CLIPVisionModel", ("CLIPVisionModelWithProjection", "CLIPVisionModel")
        ),
    }

    def blueprint(self, tower: Any, image_size: tuple[int, int] | None = None) -> Blueprint:
        core, projection = self.core(tower), getattr(tower, "visual_projection", None)
        layers, norms = plain_layers(core, "CLIPEncoderLayer")
        patch = patch_of(core.embeddings.patch_embedding, "patch_embedding")
        image = image_size or stored_size(core.embeddings)
        grid_of(image, patch)
        d_model = core.embeddings.patch_embedding.out_channels
        n_heads, d_head = head_sizes(layers, d_model)
        if projection is not None and (type(projection) is not nn.Linear or projection.bias is not None):
            refuse("a visual_projection that is not a linear map without bias")
        cfg = HookedViTConfig(
            n_layers=len(layers),
            d_model=d_model,
            n_heads=n_heads,
            d_head=d_head,
            d_mlp=same_for_all("MLP width", (layer.mlp.fc1.out_features for layer in layers)),
            d_embed=d_model if projection is None else projection.out_features,
            image_size=image,
            patch_size=patch,
            has_cls=True,
            n_registers=0,
            has_patch_bias=False,
            act_fn=same_for_all("activation", (activation_of(x.mlp.activation_fn, ACTIVATIONS) for x in layers)),
            eps=common_eps({"pre_layrnorm": core.pre_layrnorm, **norms}, (nn.LayerNorm,)),
            has_ln_pre=True,
            pool="cls",
            attn_pool=None,
            # The norm acts on each token alone, so it may come before CLS is picked; hooks then see every token.
            ln_final="before_pool",
            has_proj=projection is not None,
            has_proj_bias=False,
        )
        return Blueprint(cfg, partial(recipe, cfg, positions=embedding_positions(core.embeddings, cfg)))

    def tensors(self, tower: Any) -> dict[str, Tensor]:
        projection = getattr(tower, "visual_projection", None)
        return super().tensors(tower) | ({} if projection is None else {_PROJECTION: projection.weight})

    def tower_of(self, config: Any, names: Collection[str]) -> tuple[Any, str]:
        vision, tower_class = super().tower_of(config, names)
        vision.projection_dim = config.projection_dim  # a whole model's config alone has the one that counts
        return vision, "CLIPVisionModelWithProjection" if _PROJECTION in names else tower_class


def recipe(cfg: HookedViTConfig, tensors: Mapping[str, Tensor], *, positions: Positions | None = None) -> Recipe:
    """Return how a tower of these sizes is converted.

    Args:
        cfg: The tower's sizes.
        tensors: The source's, without ``vision_model.``.
        positions: Turns the stored position embeddings into those of ``cfg.image_size``, where that is another size.
    """
    steps, d = Recipe(_POSITION_IDS), cfg.d_model
    steps.patches("embeddings.patch_embedding.weight", d, cfg.patch_size, None)
    steps.take("embed.cls_token", "embeddings.class_embedding", (d,))
    take_positions(steps, cfg, tensors, positions)
    steps.norm("ln_pre", "pre_layrnorm", d)
    take_blocks(steps, cfg)
    steps.norm("ln_final", "post_layernorm", d)
    if cfg.has_proj:
        steps.take("unembed.W_U", _PROJECTION, (cfg.d_embed, d), lambda x: x.T)
    return steps


FAMILY = Clip()
