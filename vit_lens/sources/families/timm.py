"""timm's VisionTransformer, by itself or as the trunk of an open_clip tower: SigLIP, SigLIP 2, MobileCLIP2-L."""

__all__ = ["FAMILY", "Timm", "first_output"]

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vit_lens.config import AttentionPoolConfig, HookedViTConfig
from vit_lens.sources.families.family import Blueprint, Family, SupportedTower
from vit_lens.sources.families.plain import activation_of, check_scale, common_eps, patch_of, same_for_all
from vit_lens.sources.recipe import Recipe
from vit_lens.sources.refusals import kind, refuse
from vit_lens.sources.source_tower import SourceTower

_POOL: dict[str, Literal["cls", "avg", "attn"]] = {"token": "cls", "avg": "avg", "map": "attn"}


class Timm(Family):
    """timm's ``VisionTransformer``; in an open_clip model it is the trunk of a ``TimmModel``."""

    towers = "timm's VisionTransformer"
    homes = ("timm",)

    def blueprint(self, tower: Any, image_size: tuple[int, int] | None = None) -> Blueprint:
        trunk = getattr(tower, "trunk", tower)
        _require_plain(trunk)
        blocks = list(trunk.blocks)
        for block in blocks:
            _require_plain_block(block)
        pool = _pool(trunk)
        attn_pool = _pool_sizes(trunk) if pool == "attn" else None
        head = _head(tower, trunk)
        d_model = trunk.embed_dim
        d_pooled = d_model if attn_pool is None else attn_pool.d_model
        has_bias = trunk.patch_embed.proj.bias is not None
        image: tuple[int, int] = tuple(trunk.patch_embed.img_size)
        patch = patch_of(trunk.patch_embed.proj, "patch_embed.proj", image, bias=has_bias)
        d_head = same_for_all("head width", (block.attn.head_dim for block in blocks))
        check_scale((block.attn.scale for block in blocks), d_head)
        cfg = HookedViTConfig(
            n_layers=len(blocks), d_model=d_model, d_head=d_head,
            n_heads=same_for_all("head count", (block.attn.num_heads for block in blocks)),
            d_mlp=same_for_all("MLP width", (block.mlp.fc1.out_features for block in blocks)),
            d_embed=d_pooled if head is None else head.out_features,
            image_size=image, patch_size=patch, has_cls=trunk.cls_token is not None,
            n_registers=getattr(trunk, "num_reg_tokens", 0), has_patch_bias=has_bias,
            act_fn=same_for_all("activation", (activation_of(mlp.act) for mlp in _mlps(trunk))),
            eps=_eps(trunk), has_ln_pre=not isinstance(trunk.norm_pre, nn.Identity), pool=pool, attn_pool=attn_pool,
            ln_final="before_pool" if isinstance(trunk.fc_norm, nn.Identity) else "after_pool",
            has_proj=head is not None, has_proj_bias=head is not None and head.bias is not None,
        )  # fmt: skip
        return Blueprint(cfg, partial(self.recipe, cfg))

    def recipe(self, cfg: HookedViTConfig, tensors: Mapping[str, Tensor]) -> Recipe:
        """Return how a tower of these sizes is converted; the names of ``tensors`` say which optional parts it has."""
        prefix = "trunk." if any(name.startswith("trunk.") for name in tensors) else ""
        steps, d = Recipe(), cfg.d_model
        patch = f"{prefix}patch_embed.proj"
        steps.patches(f"{patch}.weight", d, cfg.patch_size, f"{patch}.bias" if cfg.has_patch_bias else None)
        if cfg.has_cls:
            steps.take("embed.cls_token", f"{prefix}cls_token", (1, 1, d), lambda x: x[0, 0])
        if cfg.n_registers:
            steps.take("embed.registers", f"{prefix}reg_token", (1, cfg.n_registers, d), lambda x: x[0])
        _take_positions(steps, cfg, f"{prefix}pos_embed", tensors)
        if cfg.has_ln_pre:
            steps.norm("ln_pre", f"{prefix}norm_pre", d)
        steps.blocks(
            cfg, f"{prefix}blocks", norms=("norm1", "norm2"), qkv=["attn.qkv."], out="attn.proj",
            mlp=("mlp.fc1", "mlp.fc2"),
            gains=("ls1.gamma", "ls2.gamma") if any(name.endswith("ls1.gamma") for name in tensors) else None,
        )  # fmt: skip
        steps.norm("ln_final", f"{prefix}{'fc_norm' if cfg.ln_final == 'after_pool' else 'norm'}", d)
        if cfg.attn_pool is not None:
            _take_pool(steps, cfg, cfg.attn_pool, f"{prefix}attn_pool")
        if cfg.has_proj:
            head = "head.proj" if "head.proj.weight" in tensors else f"{prefix}head"
            steps.take("unembed.W_U", f"{head}.weight", (cfg.d_embed, cfg.d_pooled), lambda x: x.T)
            if cfg.has_proj_bias:
                steps.take("unembed.b_U", f"{head}.bias", (cfg.d_embed,))
        return steps

    def listen(self, tower: Any) -> SourceTower:
        trunk = getattr(tower, "trunk", tower)
        _require_type(trunk)
        told = f"timm {kind(trunk)}" if trunk is tower else f"open_clip {kind(tower)} ({kind(trunk)})"
        norm = trunk.fc_norm if isinstance(trunk.norm, nn.Identity) else trunk.norm
        return SourceTower(told, tower, first_output, blocks=trunk.blocks, final_norm=norm)

    def table(self) -> list[SupportedTower]:
        return []  # they are listed as open_clip's


def first_output(tower: Any, pixels: Tensor) -> Tensor:
    """Run a tower that gives an embedding; asked for tokens, open_clip's return these too."""
    out = tower(pixels)
    return out[0] if isinstance(out, tuple) else out


def _take_positions(steps: Recipe, cfg: HookedViTConfig, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Positions of every token, or of the patches alone (``no_embed_class``): the others then have none."""
    stored = tensors.get(name)
    if not cfg.n_prefix or stored is None or stored.ndim != 3 or stored.shape[1] != cfg.n_patches:
        steps.take("pos_embed.W_pos", name, (1, cfg.n_ctx, cfg.d_model), lambda x: x[0])
        return

    def padded(x: Tensor) -> Tensor:
        return torch.cat([x.new_zeros(cfg.n_prefix, cfg.d_model), x[0]])

    steps.compute("pos_embed.W_pos", {name: (1, cfg.n_patches, cfg.d_model)}, padded)


def _take_pool(steps: Recipe, cfg: HookedViTConfig, pool: AttentionPoolConfig, source: str) -> None:
    """SigLIP's MAP head, ``AttentionPoolLatent``."""
    d, heads = pool.d_model, (pool.n_heads, pool.d_head)
    steps.take("attn_pool.query", f"{source}.latent", (1, 1, d), lambda x: x[0, 0])
    steps.projection("attn_pool.attn.Q", (f"{source}.q.weight", f"{source}.q.bias"), heads, d)
    for part, letter in enumerate("KV"):
        names = f"{source}.kv.weight", f"{source}.kv.bias"
        steps.projection(f"attn_pool.attn.{letter}", names, heads, cfg.d_model, part, 2)
    steps.output("attn_pool.attn", f"{source}.proj", heads, d)
    steps.norm("attn_pool.ln2", f"{source}.norm", d)
    steps.mlp("attn_pool.mlp", f"{source}.mlp.fc1", f"{source}.mlp.fc2", d, pool.d_mlp or 0)


def _require_type(trunk: Any) -> None:
    from timm.models.vision_transformer import VisionTransformer

    if type(trunk) is not VisionTransformer:
        refuse(f"a timm trunk ({kind(trunk)})")


def _require_plain(trunk: Any) -> None:
    from timm.layers.patch_embed import PatchEmbed

    _require_type(trunk)
    embed = trunk.patch_embed
    if type(embed) is not PatchEmbed or not isinstance(embed.norm, nn.Identity):
        refuse(f"a timm trunk with a patch embedding of type {kind(embed)}, or one with a norm")
    if not embed.flatten or getattr(embed, "dynamic_img_pad", False) or trunk.dynamic_img_size:
        refuse("a timm trunk with dynamic_img_size or dynamic_img_pad")
    if trunk.pos_embed is None:
        refuse("a timm trunk without learned positions (pos_embed)")
    norms = [not isinstance(norm, nn.Identity) for norm in (trunk.norm, trunk.fc_norm)]
    if sum(norms) != 1:
        refuse("a timm trunk with both norm and fc_norm" if all(norms) else "a timm trunk without a final norm")


def _require_plain_block(block: Any) -> None:
    from timm.layers.mlp import Mlp
    from timm.models.vision_transformer import Attention, Block, LayerScale  # pyright: ignore[reportPrivateImportUsage]

    if type(block) is not Block:
        refuse(f"timm blocks of type {kind(block)}")
    attn, mlp = block.attn, block.mlp
    if type(attn) is not Attention:
        refuse(f"timm attention of type {kind(attn)}")
    for name in ("q_norm", "k_norm", "norm"):
        if not isinstance(getattr(attn, name, nn.Identity()), nn.Identity):
            refuse(f"timm attention with a norm inside ({name})")
    if getattr(attn, "gate", None) is not None:
        refuse("timm attention with a gate")
    if attn.qkv.bias is None or attn.proj.bias is None:
        refuse("timm attention without biases (qkv_bias, proj_bias)")
    if attn.qkv.out_features != 3 * attn.num_heads * attn.head_dim:
        refuse("timm attention whose queries, keys and values differ in width")
    if type(mlp) is not Mlp or not isinstance(mlp.norm, nn.Identity):
        refuse(f"a timm MLP of type {kind(mlp)}, or one with a norm inside")
    if mlp.fc1.bias is None or mlp.fc2.bias is None:
        refuse("a timm MLP without biases")
    for name in ("ls1", "ls2"):
        if type(getattr(block, name)) not in (nn.Identity, LayerScale):
            refuse(f"{name} of type {kind(getattr(block, name))}")
    if isinstance(block.ls1, nn.Identity) != isinstance(block.ls2, nn.Identity):
        refuse("LayerScale on one half of a block (ls1, ls2)")


def _pool(trunk: Any) -> Literal["cls", "avg", "attn"]:
    if trunk.global_pool not in _POOL:
        refuse(f"a timm trunk with global_pool={trunk.global_pool!r}; expected {' or '.join(map(repr, _POOL))}")
    pool = _POOL[trunk.global_pool]
    n_prefix, with_prefix = trunk.num_prefix_tokens, getattr(trunk, "pool_include_prefix", False)
    if n_prefix and with_prefix != (pool == "attn") and pool != "cls":
        what = "including" if with_prefix else "without"
        refuse(f"a timm trunk with global_pool={trunk.global_pool!r} {what} its {n_prefix} prefix tokens")
    if (pool == "attn") != (trunk.attn_pool is not None):
        refuse(f"a timm trunk with global_pool={trunk.global_pool!r} and attn_pool of type {kind(trunk.attn_pool)}")
    return pool


def _pool_sizes(trunk: Any) -> AttentionPoolConfig:
    from timm.layers.attention_pool import AttentionPoolLatent
    from timm.layers.mlp import Mlp

    pool: Any = trunk.attn_pool
    if type(pool) is not AttentionPoolLatent:
        refuse(f"attention pooling of type {kind(pool)}")
    if not isinstance(trunk.fc_norm, nn.Identity):
        refuse("attention pooling followed by fc_norm")
    if pool.latent_len != 1 or pool.pool != "token":
        refuse(f"attention pooling with {pool.latent_len} queries, pooled by {pool.pool!r}")
    if pool.pos_embed is not None:
        refuse("attention pooling with positions of its own (attn_pool.pos_embed)")
    for name in ("q_norm", "k_norm"):
        if not isinstance(getattr(pool, name), nn.Identity):
            refuse(f"attention pooling with a norm inside (attn_pool.{name})")
    for name in ("q", "kv", "proj"):
        if type(getattr(pool, name)) is not nn.Linear or getattr(pool, name).bias is None:
            refuse(f"attention pooling whose {name} is not a linear map with bias")
    if type(pool.mlp) is not Mlp or isinstance(pool.norm, nn.Identity):
        refuse("attention pooling without a norm and an MLP")
    if pool.latent_dim != pool.proj.out_features:
        refuse(f"attention pooling from a query of width {pool.latent_dim} to width {pool.proj.out_features}")
    check_scale([pool.scale], pool.head_dim)
    hidden: Any = pool.mlp.fc1
    return AttentionPoolConfig(
        n_heads=pool.num_heads,
        d_head=pool.head_dim,
        d_model=int(pool.latent_dim),
        d_mlp=hidden.out_features,
        has_ln_post=False,
    )


def _head(tower: Any, trunk: Any) -> nn.Linear | None:
    """Return the one linear map behind pooling, in the trunk or in open_clip's adapter; None where there is none."""
    heads = [] if isinstance(trunk.head, nn.Identity) else [trunk.head]
    if trunk is not tower:
        heads += [part for part in tower.head if not isinstance(part, nn.Dropout)]
    if not heads:
        return None
    if len(heads) > 1 or type(heads[0]) is not nn.Linear:
        refuse(f"a timm tower with a head of {', '.join(kind(part) for part in heads)}; expected one linear map")
    return heads[0]


def _mlps(trunk: Any) -> list[Any]:
    return [block.mlp for block in trunk.blocks] + ([trunk.attn_pool.mlp] if trunk.attn_pool is not None else [])


def _eps(trunk: Any) -> float:
    from timm.layers import norm as timm_norms

    norms = {"norm": trunk.norm, "fc_norm": trunk.fc_norm, "norm_pre": trunk.norm_pre}
    norms = {name: norm for name, norm in norms.items() if not isinstance(norm, nn.Identity)}
    if trunk.attn_pool is not None:
        norms["attn_pool.norm"] = trunk.attn_pool.norm
    kinds = [getattr(timm_norms, name) for name in ("LayerNorm", "LayerNormFp32") if hasattr(timm_norms, name)]
    return common_eps(norms, "blocks", trunk.blocks, ("norm1", "norm2"), *kinds)


FAMILY = Timm()
