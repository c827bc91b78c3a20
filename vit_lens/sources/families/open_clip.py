"""open_clip's vision towers: native ones, CoCa's, and those around a trunk of timm's."""

__all__ = ["FAMILY", "OpenClip", "require_plain_block"]

import functools
import json
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vit_lens.config import AttentionPoolConfig, HookedViTConfig
from vit_lens.errors import CheckpointError, UnsupportedTowerError, expect
from vit_lens.images import PreprocessSpec
from vit_lens.sources import catalogue
from vit_lens.sources.families import timm
from vit_lens.sources.families.family import Blueprint, Family, SupportedTower, Tier
from vit_lens.sources.families.plain import activation_of, check_fused, common_eps, patch_of, same_for_all
from vit_lens.sources.folders import TowerFolder
from vit_lens.sources.recipe import Recipe
from vit_lens.sources.refusals import kind, reason_of, refuse
from vit_lens.sources.source_tower import SourceTower

_POOL: dict[str, Literal["cls", "avg"]] = {"tok": "cls", "avg": "avg"}


class OpenClip(Family):
    """open_clip's models and their ``.visual``."""

    towers = "open_clip's native ones, CoCa and SigLIP"
    homes = ("open_clip",)
    built_from = ("timm",)  # the trunks of SigLIP and MobileCLIP
    prefix = "visual."
    other_prefixes = (
        "text.", "text_decoder.", "transformer.", "token_embedding.", "positional_embedding", "ln_final.",
        "text_projection", "logit_scale", "logit_bias", "attn_mask", "input_resolution", "context_length", "vocab_size",
    )  # fmt: skip
    config_file = "open_clip_config.json"
    weight_files = (
        "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"
    )  # fmt: skip

    def part(self, tower: Any) -> nn.Module:
        return getattr(tower, "visual", tower)

    def blueprint(self, tower: Any, image_size: tuple[int, int] | None = None) -> Blueprint:
        from open_clip.transformer import LayerNorm, LayerNormFp32

        visual: Any = self.part(tower)
        if hasattr(visual, "trunk"):
            return timm.FAMILY.blueprint(visual)
        _require_plain(visual)
        blocks = list(visual.transformer.resblocks)
        for block in blocks:
            require_plain_block(block)
        pooler, attn_pool = visual.attn_pool, _pool_sizes(visual)
        norms = {"ln_post": visual.ln_post}
        if attn_pool is not None:
            norms |= {"attn_pool.ln_q": pooler.ln_q, "attn_pool.ln_k": pooler.ln_k}
        has_ln_pre = not isinstance(visual.ln_pre, nn.Identity)
        if has_ln_pre:
            norms["ln_pre"] = visual.ln_pre
        image = tuple(visual.image_size)
        d_model = visual.conv1.out_channels
        d_pooled = d_model if attn_pool is None else attn_pool.d_model
        n_heads = same_for_all("head count", (block.attn.num_heads for block in blocks))
        after_pool = visual.final_ln_after_pool and attn_pool is None  # open_clip ignores the switch for the pooler
        cfg = HookedViTConfig(
            n_layers=len(blocks), d_model=d_model, n_heads=n_heads, d_head=d_model // n_heads,
            d_mlp=same_for_all("MLP width", (block.mlp.c_fc.out_features for block in blocks)),
            d_embed=d_pooled if visual.proj is None else visual.proj.shape[1],
            image_size=image, patch_size=patch_of(visual.conv1, "conv1", image), has_cls=True, n_registers=0,
            has_patch_bias=False, has_ln_pre=has_ln_pre,
            act_fn=same_for_all("activation", (activation_of(block.mlp.gelu) for block in blocks)),
            eps=common_eps(norms, "resblocks", blocks, ("ln_1", "ln_2"), LayerNorm, LayerNormFp32),
            pool=_POOL[visual.pool_type] if attn_pool is None else "attn",
            attn_pool=attn_pool, ln_final="after_pool" if after_pool else "before_pool",
            has_proj=visual.proj is not None, has_proj_bias=False,
        )  # fmt: skip
        return Blueprint(cfg, partial(self.recipe, cfg))

    def recipe(self, cfg: HookedViTConfig, tensors: Mapping[str, Tensor]) -> Recipe:
        """Return how a tower of these sizes is converted; the names of ``tensors`` say which optional parts it has."""
        steps, d = Recipe(), cfg.d_model
        steps.patches("conv1.weight", d, cfg.patch_size, None)
        steps.take("embed.cls_token", "class_embedding", (d,))
        steps.take("pos_embed.W_pos", "positional_embedding", (cfg.n_ctx, d))
        if cfg.has_ln_pre:
            steps.norm("ln_pre", "ln_pre", d)
        steps.blocks(
            cfg, "transformer.resblocks", norms=("ln_1", "ln_2"), qkv=["attn.in_proj_"], out="attn.out_proj",
            mlp=("mlp.c_fc", "mlp.c_proj"),
            gains=("ls_1.gamma", "ls_2.gamma") if any(name.endswith("ls_1.gamma") for name in tensors) else None,
        )  # fmt: skip
        if cfg.attn_pool is None:
            steps.norm("ln_final", "ln_post", d)
        else:
            _take_pool(steps, cfg, cfg.attn_pool, tensors)
        if cfg.has_proj:
            steps.take("unembed.W_U", "proj", (cfg.d_pooled, cfg.d_embed))
        return steps

    def listen(self, tower: Any) -> SourceTower:
        visual: Any = self.part(tower)
        if hasattr(visual, "trunk"):
            return timm.FAMILY.listen(visual)
        _require_type(visual)
        pool = visual.attn_pool  # CoCa norms the tokens inside its pooler; its ln_post comes after pooling
        return SourceTower(
            f"open_clip {kind(visual)}",
            visual,
            timm.first_output,
            blocks=visual.transformer.resblocks,
            final_norm=visual.ln_post if pool is None else pool.ln_k,
            is_folded=pool is not None,
            tokens_first=not getattr(visual.transformer, "batch_first", False),
        )

    def spec(self, tower: Any) -> PreprocessSpec | None:
        """Return the preprocessing that open_clip's factory left on the tower, or None."""
        visual: Any = self.part(tower)
        cfg: dict[str, Any] | None = getattr(visual, "preprocess_cfg", None)
        if cfg is not None:
            return PreprocessSpec.from_open_clip_cfg(cfg)
        mean, std = getattr(visual, "image_mean", None), getattr(visual, "image_std", None)
        if mean is None or std is None:
            return None
        # Versions of open_clip that leave only these two evaluate with bicubic, shortest side, always.
        return PreprocessSpec.from_open_clip_cfg({"size": tuple(visual.image_size), "mean": mean, "std": std})

    def reads(self, config: Mapping[str, Any]) -> bool:
        return True

    def build(self, config: Mapping[str, Any], path: Path, names: Collection[str] = ()) -> nn.Module:
        expect(config.get("model_cfg"), dict, f"model_cfg in {path}", CheckpointError, "sizes of a model")
        return catalogue.build_visual(config["model_cfg"], path)

    def stored_spec(self, folder: TowerFolder, config: Mapping[str, Any]) -> PreprocessSpec | None:
        path = Path(folder.label, self.config_file)
        tower, given = self.build(config, path), config.get("preprocess_cfg", {})
        expect(given, dict, f"preprocess_cfg in {path}", CheckpointError, "how images become pixels")
        return catalogue.spec_of(given, self.blueprint(tower).cfg.image_size)

    def load(self, folder: TowerFolder, config: Mapping[str, Any]) -> nn.Module:
        from open_clip.factory import load_state_dict

        tower = catalogue.build_visual(config["model_cfg"], folder.label, device="cpu")
        stored: Any = load_state_dict(str(folder.weights(self.weight_files)[0]))
        own = [name for name in stored if name.startswith(self.prefix)]
        tower.load_state_dict({name.removeprefix(self.prefix): stored[name] for name in own})
        return tower

    def table(self) -> list[SupportedTower]:
        rows = []
        for name in catalogue.known_models():
            tier, reason = _verdict(json.dumps(catalogue.model_config(name), sort_keys=True, default=str))
            tags = tuple(catalogue.tags_of(name))
            rows.append(SupportedTower(name=name, library="open_clip", tier=tier, reason=reason, tags=tags))
        return rows


def _take_pool(steps: Recipe, cfg: HookedViTConfig, pool: AttentionPoolConfig, tensors: Mapping[str, Tensor]) -> None:
    """CoCa's pooler: the first of its queries is the one that the embedding is read from."""
    d, width, heads = cfg.d_model, pool.d_model, (pool.n_heads, pool.d_head)
    queries = tensors.get("attn_pool.query")
    n_queries = len(queries) if queries is not None and queries.ndim == 2 else 1

    def normed(query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(query[0], (width,), weight, bias, cfg.eps)

    sources = {"attn_pool.query": (n_queries, width)}
    sources |= {f"attn_pool.ln_q.{name}": (width,) for name in ("weight", "bias")}
    steps.norm("ln_final", "attn_pool.ln_k", d)
    steps.compute("attn_pool.query", sources, normed)
    is_fused = "attn_pool.attn.in_proj_weight" in tensors  # torch fuses the three where their widths are equal
    bias = "attn_pool.attn.in_proj_bias"
    for part, letter in enumerate("QKV"):
        d_in, target = width if letter == "Q" else d, f"attn_pool.attn.{letter}"
        if is_fused:
            steps.projection(target, ("attn_pool.attn.in_proj_weight", bias), heads, d_in, part, 3)
        else:
            _separate(steps, target, f"attn_pool.attn.{letter.lower()}_proj_weight", bias, heads, d_in, part)
    steps.output("attn_pool.attn", "attn_pool.attn.out_proj", heads, width)
    steps.norm("attn_pool.ln_post", "ln_post", width)


def _separate(steps: Recipe, target: str, weight: str, bias: str, heads: tuple[int, int], d_in: int, part: int) -> None:
    """Weights in three tensors, biases in one."""
    width = heads[0] * heads[1]
    where, letter = target.rsplit(".", 1)
    steps.take(f"{where}.W_{letter}", weight, (width, d_in), lambda x: x.unflatten(0, heads).transpose(1, 2))
    steps.take(
        f"{where}.b_{letter}", bias, (3 * width,), lambda x: x.narrow(0, part * width, width).unflatten(0, heads)
    )


def _require_type(visual: Any) -> None:
    from open_clip.transformer import VisionTransformer

    if type(visual) is not VisionTransformer:
        refuse(f"a vision tower of type {kind(visual)}")


def _require_plain(visual: Any) -> None:
    from open_clip.transformer import Transformer

    _require_type(visual)
    if getattr(visual, "attn_pool_contrastive", None) is not None:
        refuse(f"attentional pooling of type {visual.attn_pool_type!r} (attn_pool_contrastive)")
    if visual.pool_type not in _POOL:
        refuse(f"pool_type={visual.pool_type!r}; expected {' or '.join(map(repr, _POOL))}")
    if type(visual.transformer) is not Transformer:
        refuse(f"a transformer of type {kind(visual.transformer)}")
    if isinstance(visual.ln_post, nn.Identity):
        refuse("a tower without ln_post")


def _pool_sizes(visual: Any) -> AttentionPoolConfig | None:
    """Return the sizes of CoCa's attention pooling, of which the embedding reads the first query."""
    from open_clip.transformer import AttentionalPooler

    pooler = visual.attn_pool
    if pooler is None:
        return None
    if type(pooler) is not AttentionalPooler:
        refuse(f"attention pooling of type {kind(pooler)}")
    if visual.pool_type != "tok":
        refuse(f"attentional pooling with pool_type={visual.pool_type!r}, which reads more than the first query")
    attn = pooler.attn
    if type(attn) is not nn.MultiheadAttention or attn.in_proj_bias is None or attn.bias_k is not None:
        refuse("attentional pooling whose attention has no biases, or added keys")
    if attn.add_zero_attn:
        refuse("attentional pooling whose attention has added keys")
    return AttentionPoolConfig(
        n_heads=attn.num_heads, d_head=attn.head_dim, d_model=attn.embed_dim, d_mlp=None, has_ln_post=True
    )


def require_plain_block(block: Any) -> None:
    """Raise unless a block of open_clip's is pre-norm attention and an MLP, with LayerScale or without.

    Raises:
        UnsupportedTowerError: It is not; the message names the part.
    """
    from open_clip.transformer import CustomResidualAttentionBlock, LayerScale, ResidualAttentionBlock

    if isinstance(block, CustomResidualAttentionBlock):
        options = [name for name, part in catalogue.CUSTOM_OPTIONS.items() if _is_on(block, part)]
        refuse(f"custom residual blocks ({', '.join(options) or 'block_type=custom'})")
    if type(block) is not ResidualAttentionBlock:
        refuse(f"residual blocks of type {kind(block)}")
    attn = block.attn
    if type(attn) is not nn.MultiheadAttention:
        refuse(f"attention of type {kind(attn)}")
    check_fused(attn, "attention")
    if list(dict(block.mlp.named_children())) != ["c_fc", "gelu", "c_proj"]:
        refuse(f"an MLP made of {', '.join(dict(block.mlp.named_children()))}")
    if hasattr(block, "ln_1_kv"):
        refuse("cross attention")
    for name in ("ls_1", "ls_2"):
        if type(getattr(block, name)) not in (nn.Identity, LayerScale):
            refuse(f"{name} of type {kind(getattr(block, name))}")


def _is_on(block: Any, part: str) -> bool:
    for name in part.split("."):
        block = getattr(block, name, None)
    return block is not None and not isinstance(block, nn.Identity)


@functools.cache
def _verdict(config: str) -> tuple[Tier | None, str]:
    model_cfg: dict[str, Any] = json.loads(config)
    reason = catalogue.obstacle(model_cfg["vision_cfg"])
    if reason:
        return None, reason
    if not catalogue.is_timm(model_cfg):
        return "B" if model_cfg["vision_cfg"].get("attentional_pool") else "A", ""
    try:
        cfg = FAMILY.blueprint(catalogue.build_visual(model_cfg, "open_clip", quick_gelu=False)).cfg
    except UnsupportedTowerError as error:
        return None, reason_of(error)
    return _tier(cfg), ""


def _tier(cfg: HookedViTConfig) -> Tier:
    plain = cfg.has_cls and not cfg.n_registers and not cfg.has_patch_bias and cfg.attn_pool is None
    return "A" if plain and cfg.act_fn != "gelu_pytorch_tanh" else "B"


FAMILY = OpenClip()
