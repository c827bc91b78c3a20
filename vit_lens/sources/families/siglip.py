"""Hugging Face's SigLIP, and SigLIP 2 of fixed resolution: CLIP's encoder with a patch bias and attention pooling."""

__all__ = ["FAMILY", "Siglip"]

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from vit_lens.config import AttentionPoolConfig, HookedViTConfig
from vit_lens.sources.families.clip import Clip
from vit_lens.sources.families.family import SupportedTower
from vit_lens.sources.families.hugging_face import ModelType, Positions
from vit_lens.sources.families.plain import check_fused
from vit_lens.sources.recipe import Recipe
from vit_lens.sources.refusals import kind, refuse

_NAFLEX = (
    "Siglip2Model takes patches of any resolution (NaFlex), which HookedViT does not; fixed-resolution SigLIP 2 "
    "checkpoints (google/siglip2-base-patch16-224 and its like) are `siglip` models, and load"
)


class Siglip(Clip):
    """SigLIP: no class token; a probe attends to the tokens, then an MLP adds to what it found."""

    towers = "Hugging Face's SigLIP"
    homes = ("transformers.models.siglip",)
    classes = ("SiglipModel", "SiglipVisionModel", "SiglipVisionTransformer")
    older_classes = ("SiglipVisionTransformer",)
    tier = "B"
    model_types: ClassVar = {
        "siglip": ModelType("SiglipConfig", "SiglipVisionModel", ("SiglipModel",)),
        "siglip_vision_model": ModelType("SiglipVisionConfig", "SiglipVisionModel", ("SiglipVisionModel",)),
    }
    layer_kind = "SiglipEncoderLayer"
    patch_bias = True

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

    def pool_sizes(self, core: Any) -> AttentionPoolConfig:
        if not getattr(core, "use_head", True) or not hasattr(core, "head"):
            refuse("a SigLIP tower with vision_use_head=False, which has no image embedding")
        if kind(core.head) != "SiglipMultiheadAttentionPoolingHead":
            refuse(f"a SigLIP head of type {kind(core.head)}")
        attn = core.head.attention
        if type(attn) is not nn.MultiheadAttention:
            refuse(f"attention pooling with attention of type {kind(attn)}")
        check_fused(attn, "attention pooling")
        return AttentionPoolConfig(
            n_heads=attn.num_heads,
            d_head=attn.head_dim,
            d_model=attn.embed_dim,
            d_mlp=core.head.mlp.fc1.out_features,
            has_ln_post=False,
        )

    def recipe(
        self, cfg: HookedViTConfig, tensors: Mapping[str, Tensor], *, positions: Positions | None = None
    ) -> Recipe:
        steps, pool = super().recipe(cfg, tensors, positions=positions), cfg.attn_pool
        assert pool is not None  # as pool_sizes gives it
        d, heads = pool.d_model, (pool.n_heads, pool.d_head)
        steps.take("attn_pool.query", "head.probe", (1, 1, d), lambda x: x[0, 0])
        steps.attention("attn_pool.attn", ["head.attention.in_proj_"], heads, cfg.d_model)
        steps.output("attn_pool.attn", "head.attention.out_proj", heads, d)
        steps.norm("attn_pool.ln2", "head.layernorm", d)
        steps.mlp("attn_pool.mlp", "head.mlp.fc1", "head.mlp.fc2", d, pool.d_mlp or 0)
        return steps

    def table(self) -> list[SupportedTower]:
        out = SupportedTower(name="Siglip2Model", library="transformers", tier=None, reason=_NAFLEX)
        return [*super().table(), out]


FAMILY = Siglip()
