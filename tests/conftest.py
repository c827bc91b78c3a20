"""Small models with random weights and biases; vit_lens is imported inside, after the shape checks are on."""

import os
import sys

import pytest
import torch
import towers


def pytest_configure(config):
    if hasattr(config, "workerinput"):  # several processes at once (-n): one thread each, also of those that they start
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"


def pytest_addoption(parser):
    parser.addoption("--golden", action="store_true", help="write the golden files anew")


def randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Fill every parameter at random, so that no bias or gain is left at a value that hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            is_gain = name.endswith(("weight", ".w")) and parameter.ndim == 1
            scale = 0.3 if parameter.ndim <= 1 else 0.9 / parameter.flatten(1).shape[1] ** 0.5
            parameter.copy_(noise * scale + (1.0 if is_gain else 0.0))
    return module


@pytest.fixture(scope="session")
def hf_tower():
    """A Hugging Face CLIP vision tower in float64: 3 layers, 5 heads of width 7, 2 x 3 patches."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=35, intermediate_size=44, num_hidden_layers=3, num_attention_heads=5, image_size=22,
        patch_size=11, projection_dim=13, hidden_act="quick_gelu",
    )  # fmt: skip
    return randomize(CLIPVisionModelWithProjection(config).double().eval())


@pytest.fixture(scope="session")
def vit(hf_tower):
    """The same tower as a HookedViT."""
    from vit_lens import HookedViT

    return HookedViT.from_module(hf_tower).requires_grad_(False)


@pytest.fixture(scope="session")
def pixels():
    """Three random images for ``vit``."""
    return torch.randn(3, 3, 22, 22, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def open_clip_tower(**overrides):
    """An open_clip tower in float64 with random weights, layer scale included."""
    from open_clip.transformer import VisionTransformer

    sizes = dict(
        image_size=21,
        patch_size=7,
        width=33,
        layers=3,
        heads=3,
        mlp_ratio=1.7,
        output_dim=10,
        ls_init_value=0.1,
    )
    return randomize(VisionTransformer(**(sizes | overrides)).double().eval())


@pytest.fixture(
    scope="session",
    params=[
        dict(),
        dict(pool_type="avg"),
        dict(pool_type="avg", final_ln_after_pool=True, no_ln_pre=True),
    ],
    ids=["cls", "avg_patches", "avg_pooled"],
)
def readout_vit(request):
    """One HookedViT for each kind of read-out, with the open_clip tower that it came from."""
    from vit_lens import HookedViT

    tower = open_clip_tower(**request.param)
    return HookedViT.from_module(tower).requires_grad_(False), tower


_POOLING = dict(
    n_layers=3, d_model=30, n_heads=3, d_head=10, d_mlp=41, image_size=(23, 21), patch_size=(7, 7), has_cls=False,
    n_registers=0, has_patch_bias=True, act_fn="gelu_pytorch_tanh", eps=1e-6, has_ln_pre=False, pool="attn",
    ln_final="before_pool",
)  # fmt: skip
POOLING = {
    "map": dict(
        attn_pool=dict(n_heads=5, d_head=6, d_model=30, d_mlp=17, has_ln_post=False), has_proj=False, d_embed=30
    ),
    "coca": dict(
        attn_pool=dict(n_heads=2, d_head=7, d_model=14, d_mlp=None, has_ln_post=True), has_proj=True, d_embed=11,
        has_cls=True, n_registers=2, has_ln_pre=True, has_proj_bias=True,
    ),
}  # fmt: skip


def pooling_config(kind: str):
    """A tower that pools by attention: with an MLP (as SigLIP) or a LayerNorm after it (as CoCa), and odd sizes."""
    from vit_lens.config import AttentionPoolConfig, HookedViTConfig

    sizes = {**_POOLING, "has_proj_bias": False, **POOLING[kind]}
    return HookedViTConfig(**{**sizes, "attn_pool": AttentionPoolConfig(**sizes["attn_pool"])})


@pytest.fixture(scope="session", params=list(POOLING))
def pooling_vit(request):
    """One HookedViT for each kind of attention pooling, in float64, with random weights and biases."""
    from vit_lens import HookedViT

    model = randomize(HookedViT(pooling_config(request.param)).double())
    model.pos_embed.W_pos.data[1 : model.cfg.n_prefix] = 0
    return model.requires_grad_(False)


@pytest.fixture(scope="session")
def pooling_pixels():
    """Three random images for ``pooling_vit``."""
    return torch.randn(3, 3, 23, 21, dtype=torch.float64, generator=torch.Generator().manual_seed(8))


@pytest.fixture
def vit_lens(monkeypatch, capsys):
    """Run a command in this process; return its status, output and error output."""

    def run(*arguments):
        from vit_lens.cli import main

        monkeypatch.setattr(sys, "argv", ["vit-lens", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code or 0
        out = capsys.readouterr()
        return status, out.out, out.err

    return run


@pytest.fixture
def unchecked(monkeypatch):
    """As users call: without the type checks of this suite."""
    from jaxtyping import config

    monkeypatch.setattr(config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def pre():
    import vit_lens.sources

    return vit_lens.sources


@pytest.fixture(scope="module")
def errors():
    import vit_lens.errors

    return vit_lens.errors


@pytest.fixture
def small_registry(monkeypatch):
    return towers.shrink_registry(monkeypatch)


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    return towers.record_downloads(monkeypatch, tmp_path)
