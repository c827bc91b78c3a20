"""The text towers of Hugging Face's CLIP."""

__all__ = ["FAMILY", "ClipText"]

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from vit_lens.config import HookedTextConfig
from vit_lens.sources.families.family import Blueprint
from vit_lens.sources.families.hugging_face import ModelType
from vit_lens.sources.families.hugging_face_text import HuggingFaceText
from vit_lens.sources.families.plain import activation_of, check_scale, common_eps, same_for_all
from vit_lens.sources.recipe import Recipe
from vit_lens.sources.refusals import kind, refuse

_PROJECTION, _NORMS = "text_projection.weight", ("layer_norm1", "layer_norm2")
_MEANS_HIGHEST = 2  # what older configs say for the end, whose pooling takes the highest id then


def _run(parts: Any, ids: Tensor) -> Tensor:
    return parts["project"](parts["core"](input_ids=ids).pooler_output)


class ClipText(HuggingFaceText):
    """CLIP's causal text tower, with or without its projection, in both layouts of transformers."""

    towers = "Hugging Face's CLIP text towers"
    homes = ("transformers.models.clip",)
    classes = ("CLIPModel", "CLIPTextModelWithProjection", "CLIPTextModel", "CLIPTextTransformer")
    older_classes = ("CLIPTextTransformer",)
    tier = "A"
    unused = ("vision_model", "visual_proj")
    prefix = "text_model."
    other_prefixes = ("vision_model.", "visual_projection.", "logit_scale", "logit_bias")
    model_types: ClassVar = {
        "clip": ModelType("CLIPConfig", "CLIPTextModel", ("CLIPModel",)),
        "clip_text_model": ModelType(
            "CLIPTextConfig", "CLIPTextModel", ("CLIPTextModelWithProjection", "CLIPTextModel")
        ),
    }
    run = staticmethod(_run)

    def blueprint(self, tower: Any, image_size: tuple[int, int] | None = None) -> Blueprint:
        core, projection = self.core(tower), getattr(tower, "text_projection", None)
        layers, embeddings = list(core.encoder.layers), core.embeddings
        layer_kind = same_for_all("layer type", (kind(layer) for layer in layers))
        if layer_kind != "CLIPEncoderLayer":
            refuse(f"layers of type {layer_kind}")
        n_vocab, d_model = embeddings.token_embedding.weight.shape
        n_heads = same_for_all("head count", (layer.self_attn.num_heads for layer in layers))
        if d_model % n_heads:
            refuse(f"width {d_model} for {n_heads} heads")
        check_scale((layer.self_attn.scale for layer in layers), d_model // n_heads)
        if projection is not None and (type(projection) is not nn.Linear or projection.bias is not None):
            refuse("a text_projection that is not a linear map without bias")
        end = core.eos_token_id
        cfg = HookedTextConfig(
            n_layers=len(layers), d_model=d_model, n_heads=n_heads, d_head=d_model // n_heads,
            d_mlp=same_for_all("MLP width", (layer.mlp.fc1.out_features for layer in layers)),
            d_embed=d_model if projection is None else projection.out_features,
            act_fn=same_for_all("activation", (activation_of(layer.mlp.activation_fn) for layer in layers)),
            eps=common_eps({"final_layer_norm": core.final_layer_norm}, "layers", layers, _NORMS),
            n_vocab=n_vocab, n_ctx=len(embeddings.position_embedding.weight), has_pos_embed=True, is_causal=True,
            eos_token_id=None if end == _MEANS_HIGHEST else end, pool="eos", attn_pool=None, ln_final="before_pool",
            has_proj=projection is not None, has_proj_bias=False,
        )  # fmt: skip
        return Blueprint(cfg, partial(self.recipe, cfg))

    def recipe(self, cfg: HookedTextConfig, tensors: Mapping[str, Tensor]) -> Recipe:
        """Return how a tower of these sizes is converted."""
        steps, d = Recipe(frozenset({"embeddings.position_ids"})), cfg.d_model
        steps.take("embed.W_E", "embeddings.token_embedding.weight", (cfg.n_vocab, d))
        steps.take("pos_embed.W_pos", "embeddings.position_embedding.weight", (cfg.n_ctx, d))
        steps.blocks(
            cfg, "encoder.layers", norms=_NORMS, qkv=[f"self_attn.{letter}_proj." for letter in "qkv"],
            out="self_attn.out_proj", mlp=("mlp.fc1", "mlp.fc2"),
        )  # fmt: skip
        steps.norm("ln_final", "final_layer_norm", d)
        if cfg.has_proj:
            steps.take("unembed.W_U", _PROJECTION, (cfg.d_embed, d), lambda x: x.T)
        return steps

    def tensors(self, tower: Any) -> dict[str, Tensor]:
        projection = getattr(tower, "text_projection", None)
        return super().tensors(tower) | ({} if projection is None else {_PROJECTION: projection.weight})

    def tower_of(self, config: Any, names: Collection[str]) -> tuple[Any, str]:
        text, tower_class = super().tower_of(config, names)
        if hasattr(config, "text_config"):  # a whole model's alone counts
            text.projection_dim = config.projection_dim
        return text, "CLIPTextModelWithProjection" if _PROJECTION in names else tower_class


FAMILY = ClipText()
