"""open_clip's native VisionTransformer, with CoCa's attention pooling."""

__all__ = ["from_open_clip", "open_clip_recipe"]

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from vit_lens.config import AttentionPoolConfig, HookedViTConfig
from vit_lens.convert.recipe import Recipe, StateDict, build


def from_open_clip(state_dict: Mapping[str, Tensor], cfg: HookedViTConfig, *, copy: bool = True) -> StateDict:
    """Convert the state dict of open_clip's ``VisionTransformer`` (names without ``visual.``).

    LayerScale is folded into ``W_O``, ``b_O``, ``W_out`` and ``b_out``. The dtype is kept.

    Args:
        state_dict: Every tensor of the tower, and no other.
        cfg: The tower's sizes.
        copy: False makes the result share memory with the source.

    Raises:
        CheckpointError: Tensors are missing, extra or misshapen, and the message lists them; or memory cannot be
            shared.
    """
    recipe = open_clip_recipe(cfg, state_dict)
    recipe.check(state_dict)
    return build(recipe, state_dict, copy=copy)


def open_clip_recipe(cfg: HookedViTConfig, tensors: Mapping[str, Tensor]) -> Recipe:
    """Return how a tower of these sizes is converted; ``tensors`` says by its names which optional parts there are."""
    recipe, d, heads = Recipe(), cfg.d_model, (cfg.n_heads, cfg.d_head)
    has_layer_scale = any(name.endswith("ls_1.gamma") for name in tensors)
    recipe.patches("conv1.weight", d, cfg.patch_size, None)
    recipe.take("embed.cls_token", "class_embedding", (d,))
    recipe.take("pos_embed.W_pos", "positional_embedding", (cfg.n_ctx, d))
    if cfg.has_ln_pre:
        recipe.norm("ln_pre", "ln_pre", d)
    for layer in range(cfg.n_layers):
        source, target = f"transformer.resblocks.{layer}", f"blocks.{layer}"
        gains = [recipe.gain(f"{source}.ls_{i}.gamma", d) if has_layer_scale else None for i in (1, 2)]
        recipe.norm(f"{target}.ln1", f"{source}.ln_1", d)
        recipe.norm(f"{target}.ln2", f"{source}.ln_2", d)
        for part, letter in enumerate("QKV"):
            names = f"{source}.attn.in_proj_weight", f"{source}.attn.in_proj_bias"
            recipe.projection(f"{target}.attn.{letter}", names, heads, d, part, 3)
        recipe.output(f"{target}.attn", f"{source}.attn.out_proj", heads, d, gains[0])
        recipe.mlp(f"{target}.mlp", f"{source}.mlp.c_fc", f"{source}.mlp.c_proj", d, cfg.d_mlp, gains[1])
    if cfg.attn_pool is None:
        recipe.norm("ln_final", "ln_post", d)
    else:
        _pooler(recipe, cfg, cfg.attn_pool, tensors)
    if cfg.has_proj:
        recipe.take("unembed.W_U", "proj", (cfg.d_pooled, cfg.d_embed))
    return recipe


def _pooler(recipe: Recipe, cfg: HookedViTConfig, pool: AttentionPoolConfig, tensors: Mapping[str, Tensor]) -> None:
    """CoCa's pooler: the first of its queries is the one that the embedding is read from."""
    d, width, heads = cfg.d_model, pool.d_model, (pool.n_heads, pool.d_head)
    queries = tensors.get("attn_pool.query")
    n_queries = len(queries) if queries is not None and queries.ndim == 2 else 1

    def normed(query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(query[0], (width,), weight, bias, cfg.eps)

    sources = {"attn_pool.query": (n_queries, width)}
    sources |= {f"attn_pool.ln_q.{name}": (width,) for name in ("weight", "bias")}
    recipe.norm("ln_final", "attn_pool.ln_k", d)
    recipe.compute("attn_pool.query", sources, normed)
    is_fused = "attn_pool.attn.in_proj_weight" in tensors  # torch fuses the three where their widths are equal
    bias = "attn_pool.attn.in_proj_bias"
    for part, letter in enumerate("QKV"):
        d_in, target = width if letter == "Q" else d, f"attn_pool.attn.{letter}"
        if is_fused:
            recipe.projection(target, ("attn_pool.attn.in_proj_weight", bias), heads, d_in, part, 3)
        else:
            _separate(recipe, target, f"attn_pool.attn.{letter.lower()}_proj_weight", bias, heads, d_in, part)
    recipe.output("attn_pool.attn", "attn_pool.attn.out_proj", heads, width)
    recipe.norm("attn_pool.ln_post", "ln_post", width)


def _separate(
    recipe: Recipe, target: str, weight: str, bias: str, heads: tuple[int, int], d_in: int, part: int
) -> None:
    """Weights in three tensors, biases in one."""
    width = heads[0] * heads[1]
    where, letter = target.rsplit(".", 1)
    recipe.take(f"{where}.W_{letter}", weight, (width, d_in), lambda x: x.unflatten(0, heads).transpose(1, 2))
    recipe.take(
        f"{where}.b_{letter}", bias, (3 * width,), lambda x: x.narrow(0, part * width, width).unflatten(0, heads)
    )
