"""timm's VisionTransformer, by itself or as the trunk of an open_clip tower: SigLIP, SigLIP 2, MobileCLIP2-L."""

__all__ = ["from_timm", "timm_recipe"]

from collections.abc import Mapping

import torch
from torch import Tensor

from vit_lens.config import AttentionPoolConfig, HookedViTConfig
from vit_lens.convert.recipe import Recipe, StateDict, build


def from_timm(state_dict: Mapping[str, Tensor], cfg: HookedViTConfig, *, copy: bool = True) -> StateDict:
    """Convert the state dict of timm's ``VisionTransformer``, or of open_clip's ``TimmModel`` around one.

    Args:
        state_dict: Every tensor of the tower, and no other.
        cfg: The tower's sizes.
        copy: False makes the result share memory with the source.

    Raises:
        CheckpointError: Tensors are missing, extra or misshapen, and the message lists them; or memory cannot be
            shared.
    """
    recipe = timm_recipe(cfg, state_dict)
    recipe.check(state_dict)
    return build(recipe, state_dict, copy=copy)


def timm_recipe(cfg: HookedViTConfig, tensors: Mapping[str, Tensor]) -> Recipe:
    """Return how a tower of these sizes is converted; ``tensors`` says by its names which optional parts there are."""
    prefix = "trunk." if any(name.startswith("trunk.") for name in tensors) else ""
    recipe, d, heads = Recipe(), cfg.d_model, (cfg.n_heads, cfg.d_head)
    patch = f"{prefix}patch_embed.proj"
    recipe.patches(f"{patch}.weight", d, cfg.patch_size, f"{patch}.bias" if cfg.has_patch_bias else None)
    if cfg.has_cls:
        recipe.take("embed.cls_token", f"{prefix}cls_token", (1, 1, d), lambda x: x[0, 0])
    if cfg.n_registers:
        recipe.take("embed.registers", f"{prefix}reg_token", (1, cfg.n_registers, d), lambda x: x[0])
    _positions(recipe, cfg, f"{prefix}pos_embed", tensors)
    if cfg.has_ln_pre:
        recipe.norm("ln_pre", f"{prefix}norm_pre", d)
    has_layer_scale = any(name.endswith("ls1.gamma") for name in tensors)
    for layer in range(cfg.n_layers):
        source, target = f"{prefix}blocks.{layer}", f"blocks.{layer}"
        gains = [recipe.gain(f"{source}.ls{i}.gamma", d) if has_layer_scale else None for i in (1, 2)]
        recipe.norm(f"{target}.ln1", f"{source}.norm1", d)
        recipe.norm(f"{target}.ln2", f"{source}.norm2", d)
        names = f"{source}.attn.qkv.weight", f"{source}.attn.qkv.bias"
        for part, letter in enumerate("QKV"):
            recipe.projection(f"{target}.attn.{letter}", names, heads, d, part, 3)
        recipe.output(f"{target}.attn", f"{source}.attn.proj", heads, d, gains[0])
        recipe.mlp(f"{target}.mlp", f"{source}.mlp.fc1", f"{source}.mlp.fc2", d, cfg.d_mlp, gains[1])
    recipe.norm("ln_final", f"{prefix}{'fc_norm' if cfg.ln_final == 'after_pool' else 'norm'}", d)
    if cfg.attn_pool is not None:
        _latent_pool(recipe, cfg, cfg.attn_pool, f"{prefix}attn_pool")
    if cfg.has_proj:
        head = "head.proj" if "head.proj.weight" in tensors else f"{prefix}head"
        recipe.take("unembed.W_U", f"{head}.weight", (cfg.d_embed, cfg.d_pooled), lambda x: x.T)
        if cfg.has_proj_bias:
            recipe.take("unembed.b_U", f"{head}.bias", (cfg.d_embed,))
    return recipe


def _positions(recipe: Recipe, cfg: HookedViTConfig, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Positions of every token, or of the patches alone (``no_embed_class``): the others then have none."""
    stored = tensors.get(name)
    if not cfg.n_prefix or stored is None or stored.ndim != 3 or stored.shape[1] != cfg.n_patches:
        recipe.take("pos_embed.W_pos", name, (1, cfg.n_ctx, cfg.d_model), lambda x: x[0])
        return

    def padded(x: Tensor) -> Tensor:
        return torch.cat([x.new_zeros(cfg.n_prefix, cfg.d_model), x[0]])

    recipe.compute("pos_embed.W_pos", {name: (1, cfg.n_patches, cfg.d_model)}, padded)


def _latent_pool(recipe: Recipe, cfg: HookedViTConfig, pool: AttentionPoolConfig, source: str) -> None:
    """SigLIP's MAP head, ``AttentionPoolLatent``."""
    d, heads = pool.d_model, (pool.n_heads, pool.d_head)
    recipe.take("attn_pool.query", f"{source}.latent", (1, 1, d), lambda x: x[0, 0])
    recipe.projection("attn_pool.attn.Q", (f"{source}.q.weight", f"{source}.q.bias"), heads, d)
    for part, letter in enumerate("KV"):
        names = f"{source}.kv.weight", f"{source}.kv.bias"
        recipe.projection(f"attn_pool.attn.{letter}", names, heads, cfg.d_model, part, 2)
    recipe.output("attn_pool.attn", f"{source}.proj", heads, d)
    recipe.norm("attn_pool.ln2", f"{source}.norm", d)
    recipe.mlp("attn_pool.mlp", f"{source}.mlp.fc1", f"{source}.mlp.fc2", d, pool.d_mlp or 0)
