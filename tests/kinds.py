"""One small tower for every kind of read-out, and what their tests share; vit_lens is imported inside."""

import torch
from conftest import POOLING, pooling_config, randomize

OPEN_CLIP = {
    "cls": dict(),
    "avg_patches": dict(pool_type="avg"),
    "avg_pooled": dict(pool_type="avg", final_ln_after_pool=True, no_ln_pre=True),
}
OWN = ("registers", *POOLING)  # built from sizes alone
KINDS = (*OPEN_CLIP, "hf", *OWN)
LINEAR = (*OPEN_CLIP, "hf", "registers")  # from stream to embedding, at a frozen scale


def own_tower(kind):
    """A HookedViT that no module in memory has: attention pooling, or registers and a projection with a bias."""
    from vit_lens import HookedViT
    from vit_lens.config import HookedViTConfig

    registers = dict(
        n_layers=3, d_model=14, n_heads=3, d_head=5, d_mlp=19, d_embed=12, image_size=(21, 15), patch_size=(7, 7),
        has_cls=True, n_registers=2, has_patch_bias=False, act_fn="gelu", eps=1e-5, has_ln_pre=True, pool="cls",
        attn_pool=None, ln_final="before_pool", has_proj=True, has_proj_bias=True,
    )  # fmt: skip
    cfg = pooling_config(kind) if kind in POOLING else HookedViTConfig(**registers)
    return randomize(HookedViT(cfg).double())


def images(model, n=3, seed=7):
    """Random images for a model."""
    size = (n, 3, *model.cfg.image_size)
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(a, b, tol=1e-10):
    """Hold two tensors of one shape to each other."""
    assert a.shape == b.shape, (a.shape, b.shape)
    assert not a.numel() or (a - b).abs().max() < tol
