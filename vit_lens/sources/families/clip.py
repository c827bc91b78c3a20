"""Hugging Face's CLIP."""

__all__ = ["FAMILY", "Clip"]

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vit_lens.config import AttentionPoolConfig, HookedViTConfig
from vit_lens.sources.families.family import Blueprint
from vit_lens.sources.families.hugging_face import HuggingFace, ModelType, Positions, fitted, stored_shape, stored_size
from vit_lens.sources.families.plain import activation_of, check_scale, common_eps, patch_of, same_for_all
from vit_lens.sources.recipe import Recipe
from vit_lens.sources.refusals import kind, refuse

_PROJECTION, _NORMS = "visual_projection.weight", ("layer_norm1", "layer_norm2")


class Clip(HuggingFace):
    """CLIP, with or without its projection; SigLIP's encoder is the same (:mod:`vit_lens.sources.families.siglip`).

    Attributes:
        layer_kind: Class of the layers.
        patch_bias: Whether patches are embedded with a bias.
    """

    towers = "Hugging Face's CLIP"
    homes = ("transformers.models.clip",)
    classes = ("CLIPModel", "CLIPVisionModelWithProjection", "CLIPVisionModel", "CLIPVisionTransformer")
    older_classes = ("CLIPVisionTransformer",)
    tier = "A"
    unused = ("text_model", "text_proj")
    prefix = "vision_model."
    other_prefixes = ("text_model.", "text_projection.", "logit_scale", "logit_bias")
    model_types: ClassVar = {
        "clip": ModelType("CLIPConfig", "CLIPVisionModel", ("CLIPModel",)),
        "clip_vision_model": ModelType(
            "CLIPVisionConfig", "CLIPVisionModel", ("CLIPVisionModelWithProjection", "CLIPVisionModel")
        ),
    }
    layer_kind: str = "CLIPEncoderLayer"
    patch_bias: bool = False

    def blueprint(self, tower: Any, image_size: tuple[int, int] | None = None) -> Blueprint:
        core, projection = self.core(tower), getattr(tower, "visual_projection", None)
        layers, embeddings = list(core.encoder.layers), core.embeddings
        layer_kind = same_for_all("layer type", (kind(layer) for layer in layers))
        if layer_kind != self.layer_kind:
            refuse(f"layers of type {layer_kind}")
        pool = self.pool_sizes(core)
        heads = [core.head] if pool else []
        norms = {name: getattr(core, name) for name in ("pre_layrnorm", "post_layernorm") if hasattr(core, name)}
        if pool:
            norms["head.layernorm"] = core.head.layernorm
        image = image_size or stored_size(embeddings)
        patch = patch_of(embeddings.patch_embedding, "patch_embedding", image, bias=self.patch_bias)
        d_model = embeddings.patch_embedding.out_channels
        n_heads = same_for_all("head count", (layer.self_attn.num_heads for layer in layers))
        if d_model % n_heads:
            refuse(f"width {d_model} for {n_heads} heads")
        check_scale((layer.self_attn.scale for layer in layers), d_model // n_heads)
        if projection is not None and (type(projection) is not nn.Linear or projection.bias is not None):
            refuse("a visual_projection that is not a linear map without bias")
        acts = [activation_of(part.mlp.activation_fn) for part in (*layers, *heads)]
        cfg = HookedViTConfig(
            n_layers=len(layers), d_model=d_model, n_heads=n_heads, d_head=d_model // n_heads,
            d_mlp=same_for_all("MLP width", (layer.mlp.fc1.out_features for layer in layers)),
            d_embed=projection.out_features if projection is not None else pool.d_model if pool else d_model,
            image_size=image, patch_size=patch, has_cls=hasattr(embeddings, "class_embedding"), n_registers=0,
            has_patch_bias=self.patch_bias, act_fn=same_for_all("activation", acts),
            eps=common_eps(norms, "layers", layers, _NORMS),
            has_ln_pre="pre_layrnorm" in norms, pool="attn" if pool else "cls", attn_pool=pool,
            # The norm acts on each token alone, so it may come before CLS is picked; hooks then see every token.
            ln_final="before_pool", has_proj=projection is not None, has_proj_bias=False,
        )  # fmt: skip
        positions = None
        if image != stored_size(embeddings):
            positions = fitted(embeddings, image, cfg.n_ctx, _put_positions)
        return Blueprint(cfg, partial(self.recipe, cfg, positions=positions))

    def pool_sizes(self, core: Any) -> AttentionPoolConfig | None:
        """Return the sizes of attention pooling, which CLIP does not have."""
        return None

    def recipe(
        self, cfg: HookedViTConfig, tensors: Mapping[str, Tensor], *, positions: Positions | None = None
    ) -> Recipe:
        """Return how a tower of these sizes is converted.

        Args:
            cfg: The tower's sizes.
            tensors: The source's, without ``vision_model.``.
            positions: Turns the stored position embeddings into those of ``cfg.image_size``, where that is another
                size.
        """
        # Older files carry the integers 0 .. n_ctx - 1.
        steps, d = Recipe(frozenset({"embeddings.position_ids"})), cfg.d_model
        patch, places = "embeddings.patch_embedding", "embeddings.position_embedding.weight"
        steps.patches(f"{patch}.weight", d, cfg.patch_size, f"{patch}.bias" if cfg.has_patch_bias else None)
        if cfg.has_cls:
            steps.take("embed.cls_token", "embeddings.class_embedding", (d,))
        if positions is None:
            steps.take("pos_embed.W_pos", places, (cfg.n_ctx, d))
        else:
            stored = {places: stored_shape(tensors, places, (cfg.n_ctx, d))}
            steps.compute("pos_embed.W_pos", stored, lambda x: positions(x)[0])
        if cfg.has_ln_pre:
            steps.norm("ln_pre", "pre_layrnorm", d)
        steps.blocks(
            cfg, "encoder.layers", norms=_NORMS, qkv=[f"self_attn.{letter}_proj." for letter in "qkv"],
            out="self_attn.out_proj", mlp=("mlp.fc1", "mlp.fc2"),
        )  # fmt: skip
        steps.norm("ln_final", "post_layernorm", d)
        if cfg.has_proj:
            steps.take("unembed.W_U", _PROJECTION, (cfg.d_embed, d), lambda x: x.T)
        return steps

    def tensors(self, tower: Any) -> dict[str, Tensor]:
        projection = getattr(tower, "visual_projection", None)
        return super().tensors(tower) | ({} if projection is None else {_PROJECTION: projection.weight})

    def tower_of(self, config: Any, names: Collection[str]) -> tuple[Any, str]:
        vision, tower_class = super().tower_of(config, names)
        if hasattr(config, "projection_dim"):  # a whole model's alone counts
            vision.projection_dim = config.projection_dim
        return vision, "CLIPVisionModelWithProjection" if _PROJECTION in names else tower_class


def _put_positions(holder: Any, stored: Tensor) -> None:
    holder.position_embedding = nn.Embedding.from_pretrained(stored)
    holder.position_ids = torch.arange(len(stored), device=stored.device)[None]


FAMILY = Clip()
