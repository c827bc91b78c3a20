"""Hugging Face's vision towers: CLIP, SigLIP, DINOv2 with and without registers."""

__all__ = [
    "canonical_dinov2",
    "dinov2_recipe",
    "from_dinov2",
    "from_hf_clip",
    "from_siglip",
    "hf_clip_recipe",
    "siglip_recipe",
]

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vit_lens.config import AttentionPoolConfig, HookedViTConfig
from vit_lens.convert.recipe import Recipe, StateDict, build
from vit_lens.errors import CheckpointError

Positions = Callable[[Tensor], Tensor]

# The integers 0 .. n_ctx - 1, which older files carry.
_POSITION_IDS = frozenset({"embeddings.position_ids"})
# DINOv2's stand-in for patches that are hidden in training.
_MASK_TOKEN = frozenset({"embeddings.mask_token"})
_DINOV2_NAMES = {
    ".attention.attention.query.": ".attention.q_proj.",
    ".attention.attention.key.": ".attention.k_proj.",
    ".attention.attention.value.": ".attention.v_proj.",
    ".attention.output.dense.": ".attention.o_proj.",
}


def from_hf_clip(state_dict: Mapping[str, Tensor], cfg: HookedViTConfig, *, copy: bool = True) -> StateDict:
    """Convert the vision state dict of Hugging Face CLIP, with or without the prefix ``vision_model.``.

    Args:
        state_dict: Every tensor of the tower and its projection, and no other.
        cfg: The tower's sizes.
        copy: False makes the result share memory with the source.

    Raises:
        CheckpointError: Tensors are missing, extra or misshapen, and the message lists them.
    """
    tower = _without_prefix(state_dict)
    recipe = hf_clip_recipe(cfg, tower)
    recipe.check(tower)
    return build(recipe, tower, copy=copy)


def from_siglip(state_dict: Mapping[str, Tensor], cfg: HookedViTConfig, *, copy: bool = True) -> StateDict:
    """Convert the vision state dict of Hugging Face SigLIP, with or without the prefix ``vision_model.``.

    Arguments and errors are those of :func:`from_hf_clip`.
    """
    tower = _without_prefix(state_dict)
    recipe = siglip_recipe(cfg, tower)
    recipe.check(tower)
    return build(recipe, tower, copy=copy)


def from_dinov2(state_dict: Mapping[str, Tensor], cfg: HookedViTConfig) -> StateDict:
    """Convert the state dict of Hugging Face's DINOv2, with or without registers, in the size of its positions.

    LayerScale is folded into ``W_O``, ``b_O``, ``W_out`` and ``b_out``, so memory cannot be shared.

    Raises:
        CheckpointError: Tensors are missing, extra or misshapen, and the message lists them.
    """
    tower = {canonical_dinov2(name): tensor for name, tensor in state_dict.items()}
    recipe = dinov2_recipe(cfg, tower)
    recipe.check(tower)
    return build(recipe, tower)


def hf_clip_recipe(
    cfg: HookedViTConfig, tensors: Mapping[str, Tensor], *, positions: Positions | None = None
) -> Recipe:
    """Return how a CLIP tower of these sizes is converted.

    Args:
        cfg: The tower's sizes.
        tensors: The source's, without ``vision_model.``.
        positions: Turns the stored position embeddings into those of ``cfg.image_size``, where that is another size.
    """
    recipe, d = Recipe(_POSITION_IDS), cfg.d_model
    recipe.patches("embeddings.patch_embedding.weight", d, cfg.patch_size, None)
    recipe.take("embed.cls_token", "embeddings.class_embedding", (d,))
    _positions(recipe, "embeddings.position_embedding.weight", (cfg.n_ctx, d), tensors, positions)
    recipe.norm("ln_pre", "pre_layrnorm", d)
    _clip_blocks(recipe, cfg)
    recipe.norm("ln_final", "post_layernorm", d)
    if cfg.has_proj:
        recipe.take("unembed.W_U", "visual_projection.weight", (cfg.d_embed, d), lambda x: x.T)
    return recipe


def siglip_recipe(cfg: HookedViTConfig, tensors: Mapping[str, Tensor], *, positions: Positions | None = None) -> Recipe:
    """Return how a SigLIP tower of these sizes is converted; arguments as of :func:`hf_clip_recipe`."""
    recipe, d = Recipe(_POSITION_IDS), cfg.d_model
    patch = "embeddings.patch_embedding"
    recipe.patches(f"{patch}.weight", d, cfg.patch_size, f"{patch}.bias")
    _positions(recipe, "embeddings.position_embedding.weight", (cfg.n_ctx, d), tensors, positions)
    _clip_blocks(recipe, cfg)
    recipe.norm("ln_final", "post_layernorm", d)
    if cfg.attn_pool is not None:
        _map_head(recipe, cfg, cfg.attn_pool)
    return recipe


def dinov2_recipe(cfg: HookedViTConfig, tensors: Mapping[str, Tensor], *, positions: Positions | None = None) -> Recipe:
    """Return how a DINOv2 tower of these sizes is converted; arguments as of :func:`hf_clip_recipe`.

    Names are those that :func:`canonical_dinov2` gives.
    """
    recipe, d, heads = Recipe(_MASK_TOKEN), cfg.d_model, (cfg.n_heads, cfg.d_head)
    patch = "embeddings.patch_embeddings.projection"
    recipe.patches(f"{patch}.weight", d, cfg.patch_size, f"{patch}.bias")
    recipe.take("embed.cls_token", "embeddings.cls_token", (1, 1, d), lambda x: x[0, 0])
    if cfg.n_registers:
        recipe.take("embed.registers", "embeddings.register_tokens", (1, cfg.n_registers, d), lambda x: x[0])
    _dinov2_positions(recipe, cfg, tensors, positions)
    for layer in range(cfg.n_layers):
        source, target = f"encoder.layer.{layer}", f"blocks.{layer}"
        gains = [recipe.gain(f"{source}.layer_scale{i}.lambda1", d) for i in (1, 2)]
        recipe.norm(f"{target}.ln1", f"{source}.norm1", d)
        recipe.norm(f"{target}.ln2", f"{source}.norm2", d)
        _separate_heads(recipe, f"{target}.attn", f"{source}.attention", heads, d)
        recipe.output(f"{target}.attn", f"{source}.attention.o_proj", heads, d, gains[0])
        recipe.mlp(f"{target}.mlp", f"{source}.mlp.fc1", f"{source}.mlp.fc2", d, cfg.d_mlp, gains[1])
    recipe.norm("ln_final", "layernorm", d)
    return recipe


def canonical_dinov2(name: str) -> str:
    """Return a tensor's name as current versions of transformers have it; files, and older versions, nest attention."""
    for old, new in _DINOV2_NAMES.items():
        name = name.replace(old, new)
    return name


def _without_prefix(state_dict: Mapping[str, Tensor]) -> StateDict:
    tower = {name.removeprefix("vision_model."): tensor for name, tensor in state_dict.items()}
    if len(tower) != len(state_dict):
        raise CheckpointError("tensors occur twice, with and without the prefix 'vision_model.'")
    return tower


def _positions(
    recipe: Recipe, name: str, shape: tuple[int, int], tensors: Mapping[str, Tensor], positions: Positions | None
) -> None:
    if positions is None:
        recipe.take("pos_embed.W_pos", name, shape)
    else:
        recipe.compute("pos_embed.W_pos", {name: _stored(tensors, name, shape)}, positions)


def _dinov2_positions(
    recipe: Recipe, cfg: HookedViTConfig, tensors: Mapping[str, Tensor], positions: Positions | None
) -> None:
    """Positions of CLS and patches; registers stand between the two and have none."""
    name, shape = "embeddings.position_embeddings", (1, 1 + cfg.n_patches, cfg.d_model)
    if positions is None and not cfg.n_registers:
        recipe.take("pos_embed.W_pos", name, shape, lambda x: x[0])
        return

    def spread(stored: Tensor) -> Tensor:
        rows = (stored if positions is None else positions(stored))[0]
        return torch.cat([rows[:1], rows.new_zeros(cfg.n_registers, cfg.d_model), rows[1:]])

    recipe.compute("pos_embed.W_pos", {name: _stored(tensors, name, shape) if positions else shape}, spread)


def _stored(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in which positions of another size are stored: any number of rows."""
    stored = tensors.get(name)
    if stored is None or stored.ndim != len(shape):
        return shape
    return (*shape[:-2], stored.shape[-2], shape[-1])


def _clip_blocks(recipe: Recipe, cfg: HookedViTConfig) -> None:
    d, heads = cfg.d_model, (cfg.n_heads, cfg.d_head)
    for layer in range(cfg.n_layers):
        source, target = f"encoder.layers.{layer}", f"blocks.{layer}"
        recipe.norm(f"{target}.ln1", f"{source}.layer_norm1", d)
        recipe.norm(f"{target}.ln2", f"{source}.layer_norm2", d)
        _separate_heads(recipe, f"{target}.attn", f"{source}.self_attn", heads, d)
        recipe.output(f"{target}.attn", f"{source}.self_attn.out_proj", heads, d)
        recipe.mlp(f"{target}.mlp", f"{source}.mlp.fc1", f"{source}.mlp.fc2", d, cfg.d_mlp)


def _separate_heads(recipe: Recipe, target: str, source: str, heads: tuple[int, int], d_in: int) -> None:
    for letter in "QKV":
        names = f"{source}.{letter.lower()}_proj.weight", f"{source}.{letter.lower()}_proj.bias"
        recipe.projection(f"{target}.{letter}", names, heads, d_in)


def _map_head(recipe: Recipe, cfg: HookedViTConfig, pool: AttentionPoolConfig) -> None:
    """SigLIP's head: a probe attends to the tokens, then an MLP adds to what it found."""
    d, heads = pool.d_model, (pool.n_heads, pool.d_head)
    recipe.take("attn_pool.query", "head.probe", (1, 1, d), lambda x: x[0, 0])
    for part, letter in enumerate("QKV"):
        names = "head.attention.in_proj_weight", "head.attention.in_proj_bias"
        recipe.projection(f"attn_pool.attn.{letter}", names, heads, cfg.d_model, part, 3)
    recipe.output("attn_pool.attn", "head.attention.out_proj", heads, d)
    recipe.norm("attn_pool.ln2", "head.layernorm", d)
    recipe.mlp("attn_pool.mlp", "head.mlp.fc1", "head.mlp.fc2", d, pool.d_mlp or 0)
