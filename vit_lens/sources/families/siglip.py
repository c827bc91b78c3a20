"""Hugging Face's SigLIP, and SigLIP 2 of fixed resolution."""

__all__ = ["FAMILY", "Siglip", "recipe"]

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from vit_lens.config import AttentionPoolConfig, HookedViTConfig
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
from vit_lens.sources.refusals import kind, refuse
from vit_lens.sources.supported import SupportedTower

_NAFLEX = (
    "Siglip2Model takes patches of any resolution (NaFlex), which HookedViT does not; fixed-resolution SigLIP 2 "
    "checkpoints (google/siglip2-base-patch16-224 and its like) are `siglip` models, and load"
)


class Siglip(HuggingFace):
    """SigLIP: no class token, attention pooling."""

    towers = "Hugging Face's SigLIP"
    homes = ("transformers.models.siglip",)
    classes = ("SiglipModel", "SiglipVisionModel", "SiglipVisionTransformer")
    older_classes = ("SiglipVisionTransformer",)
    unused = ("text_model",)
    vision_prefix = "vision_model."
    text_prefixes = ("text_model.", "logit_scale", "logit_bias")
    model_types: ClassVar = {
        "siglip": ModelType("SiglipConfig", "SiglipVisionModel", ("SiglipModel",)),
        "siglip_vision_model": ModelType("SiglipVisionConfig", "SiglipVisionModel", ("SiglipVisionModel",)),
    }

    def owns(self, module: nn.Module) -> bool:
        return super().owns(module) or type(module).__module__.startswith("transformers.models.siglip2.")

    def core(self, tower: Any) -> Any:
        if "siglip2" in type(tower).__module__:
            refuse(_NAFLEX)
        return super().core(tower)

    def reads(self, config: Mapping[str, Any]) -> bool:
        if str(config.get("model_type")).startswith("siglip2"):
            refuse(_NAFLEX)
        return super().reads(config)

    def blueprint(self, tower: Any, image_size: tuple[int, int] | None = None) -> Blueprint:
        core = self.core(tower)
        layers, norms = plain_layers(core, "SiglipEncoderLayer")
        if not getattr(core, "use_head", True) or not hasattr(core, "head"):
            refuse("a SigLIP tower with vision_use_head=False, which has no image embedding")
        pool = _head_sizes(core.head)
        patch = patch_of(core.embeddings.patch_embedding, "patch_embedding", bias=True)
        image = image_size or stored_size(core.embeddings)
        grid_of(image, patch)
        d_model = core.embeddings.patch_embedding.out_channels
        n_heads, d_head = head_sizes(layers, d_model)
        mlps = [*(layer.mlp for layer in layers), core.head.mlp]
        cfg = HookedViTConfig(
            n_layers=len(layers),
            d_model=d_model,
            n_heads=n_heads,
            d_head=d_head,
            d_mlp=same_for_all("MLP width", (layer.mlp.fc1.out_features for layer in layers)),
            d_embed=pool.d_model,
            image_size=image,
            patch_size=patch,
            has_cls=False,
            n_registers=0,
            has_patch_bias=True,
            act_fn=same_for_all("activation", (activation_of(mlp.activation_fn, ACTIVATIONS) for mlp in mlps)),
            eps=common_eps({**norms, "head.layernorm": core.head.layernorm}, (nn.LayerNorm,)),
            has_ln_pre=False,
            pool="attn",
            attn_pool=pool,
            ln_final="before_pool",
            has_proj=False,
            has_proj_bias=False,
        )
        return Blueprint(cfg, partial(recipe, cfg, positions=embedding_positions(core.embeddings, cfg)))

    def table(self) -> list[SupportedTower]:
        out = SupportedTower(name="Siglip2Model", library="transformers", tier=None, reason=_NAFLEX)
        return [*super().table(), out]


def recipe(cfg: HookedViTConfig, tensors: Mapping[str, Tensor], *, positions: Positions | None = None) -> Recipe:
    """Return how a tower of these sizes is converted; arguments as of :func:`vit_lens.sources.families.clip.recipe`."""
    steps, d = Recipe(frozenset({"embeddings.position_ids"})), cfg.d_model
    patch = "embeddings.patch_embedding"
    steps.patches(f"{patch}.weight", d, cfg.patch_size, f"{patch}.bias")
    take_positions(steps, cfg, tensors, positions)
    take_blocks(steps, cfg)
    steps.norm("ln_final", "post_layernorm", d)
    if cfg.attn_pool is not None:
        _take_head(steps, cfg, cfg.attn_pool)
    return steps


def _head_sizes(head: Any) -> AttentionPoolConfig:
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


def _take_head(steps: Recipe, cfg: HookedViTConfig, pool: AttentionPoolConfig) -> None:
    """SigLIP's head: a probe attends to the tokens, then an MLP adds to what it found."""
    d, heads = pool.d_model, (pool.n_heads, pool.d_head)
    steps.take("attn_pool.query", "head.probe", (1, 1, d), lambda x: x[0, 0])
    steps.attention("attn_pool.attn", ["head.attention.in_proj_"], heads, cfg.d_model)
    steps.output("attn_pool.attn", "head.attention.out_proj", heads, d)
    steps.norm("attn_pool.ln2", "head.layernorm", d)
    steps.mlp("attn_pool.mlp", "head.mlp.fc1", "head.mlp.fc2", d, pool.d_mlp or 0)


FAMILY = Siglip()
