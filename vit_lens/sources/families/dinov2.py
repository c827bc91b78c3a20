"""Hugging Face's DINOv2, with and without registers."""

__all__ = ["FAMILY", "Dinov2"]

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_lens.config import HookedViTConfig
from vit_lens.images import PreprocessSpec
from vit_lens.sources.families.family import Blueprint
from vit_lens.sources.families.hugging_face import HuggingFace, ModelType, Positions, fitted, stored_shape, stored_size
from vit_lens.sources.families.plain import activation_of, check_scale, common_eps, patch_of, same_for_all
from vit_lens.sources.recipe import Recipe
from vit_lens.sources.refusals import kind, refuse

_LAYERS = ("Dinov2Layer", "Dinov2WithRegistersLayer")
_MLPS = ("Dinov2MLP", "Dinov2WithRegistersMLP")
# A stand-in for patches that are hidden in training.
_MASK_TOKEN = frozenset({"embeddings.mask_token"})
# Files, and older versions of transformers, nest attention.
_OLDER_NAMES = {
    ".attention.attention.query.": ".attention.q_proj.",
    ".attention.attention.key.": ".attention.k_proj.",
    ".attention.attention.value.": ".attention.v_proj.",
    ".attention.output.dense.": ".attention.o_proj.",
}


class Dinov2(HuggingFace):
    """DINOv2; the embedding is its ``pooler_output``.

    It fits its positions to every image that it is given, so they are always taken at the tower's size by its own
    function.
    """

    towers = "Hugging Face's DINOv2"
    homes = ("transformers.models.dinov2", "transformers.models.dinov2_with_registers")
    classes = ("Dinov2Model", "Dinov2WithRegistersModel")
    final_norm = "layernorm"
    fits_positions = False
    model_types: ClassVar = {
        "dinov2": ModelType("Dinov2Config", "Dinov2Model", ("Dinov2Model",)),
        "dinov2_with_registers": ModelType(
            "Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", ("Dinov2WithRegistersModel",)
        ),
    }

    def size(
        self, image_size: tuple[int, int] | None, spec: PreprocessSpec | None, what: str
    ) -> tuple[int, int] | None:
        return image_size or (spec.size if spec is not None else None)

    def blueprint(self, tower: Any, image_size: tuple[int, int] | None = None) -> Blueprint:
        layers, embeddings = list(tower.encoder.layer), tower.embeddings
        for layer in layers:
            _require_plain_layer(layer)
        projection = embeddings.patch_embeddings.projection
        image = image_size or stored_size(embeddings)
        patch = patch_of(projection, "patch_embeddings.projection", image, bias=True)
        attention = [_inner(layer.attention) for layer in layers]
        d_head = same_for_all("head width", (_head_width(attn) for attn in attention))
        check_scale((attn.scaling for attn in attention), d_head)
        registers = getattr(embeddings, "register_tokens", None)
        cfg = HookedViTConfig(
            n_layers=len(layers), d_model=projection.out_channels, d_head=d_head, d_embed=projection.out_channels,
            n_heads=same_for_all("head count", (attn.num_attention_heads for attn in attention)),
            d_mlp=same_for_all("MLP width", (layer.mlp.fc1.out_features for layer in layers)),
            image_size=image, patch_size=patch, has_cls=True, has_patch_bias=True,
            n_registers=0 if registers is None else registers.shape[1],
            act_fn=same_for_all("activation", (activation_of(_activation(x.mlp)) for x in layers)),
            eps=common_eps({"layernorm": tower.layernorm}, "layer", layers, ("norm1", "norm2")),
            # The norm acts on each token alone, so it may come before CLS is picked; hooks then see every token.
            has_ln_pre=False, pool="cls", attn_pool=None, ln_final="before_pool", has_proj=False, has_proj_bias=False,
        )  # fmt: skip
        positions = fitted(embeddings, image, 1 + cfg.n_patches, _put_positions)
        return Blueprint(cfg, partial(self.recipe, cfg, positions=positions))

    def recipe(self, cfg: HookedViTConfig, tensors: Mapping[str, Tensor], *, positions: Positions) -> Recipe:
        """Return how a tower of these sizes is converted; arguments are those of ``Clip.recipe``.

        LayerScale is folded into ``W_O``, ``b_O``, ``W_out`` and ``b_out``, so memory cannot be shared.
        """
        steps, d = Recipe(_MASK_TOKEN), cfg.d_model
        patch = "embeddings.patch_embeddings.projection"
        steps.patches(f"{patch}.weight", d, cfg.patch_size, f"{patch}.bias")
        steps.take("embed.cls_token", "embeddings.cls_token", (1, 1, d), lambda x: x[0, 0])
        if cfg.n_registers:
            steps.take("embed.registers", "embeddings.register_tokens", (1, cfg.n_registers, d), lambda x: x[0])
        _take_positions(steps, cfg, tensors, positions)
        steps.blocks(
            cfg, "encoder.layer", norms=("norm1", "norm2"), qkv=[f"attention.{letter}_proj." for letter in "qkv"],
            out="attention.o_proj", mlp=("mlp.fc1", "mlp.fc2"), gains=("layer_scale1.lambda1", "layer_scale2.lambda1"),
        )  # fmt: skip
        steps.norm("ln_final", "layernorm", d)
        return steps

    def current_name(self, name: str) -> str:
        for old, new in _OLDER_NAMES.items():
            name = name.replace(old, new)
        return name


def _take_positions(steps: Recipe, cfg: HookedViTConfig, tensors: Mapping[str, Tensor], positions: Positions) -> None:
    """Positions of CLS and patches; registers stand between the two and have none."""
    name, shape = "embeddings.position_embeddings", (1, 1 + cfg.n_patches, cfg.d_model)

    def spread(stored: Float[Tensor, "1 stored d_model"]) -> Float[Tensor, "pos d_model"]:
        rows = positions(stored)[0]
        return torch.cat([rows[:1], rows.new_zeros(cfg.n_registers, cfg.d_model), rows[1:]])

    steps.compute("pos_embed.W_pos", {name: stored_shape(tensors, name, shape)}, spread)


def _put_positions(holder: Any, stored: Tensor) -> None:
    holder.position_embeddings = nn.Parameter(stored, requires_grad=False)


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


FAMILY = Dinov2()
