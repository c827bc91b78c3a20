"""The list of hook points is frozen: names, order of firing, shapes; and each is a place to intervene."""

from pathlib import Path

import pytest
import torch
from conftest import open_clip_tower, pooling_config, randomize

GOLDEN = Path(__file__).parent / "data" / "hook_points.txt"
SWITCHES = dict(use_attn_result=True, use_attn_in=True, use_split_qkv_input=True, use_hook_mlp_in=True)


def towers():
    """A two-layer tower of every kind, no two sizes of which are equal."""
    from vit_lens import HookedViT

    plain = dict(width=34, layers=2, heads=2, image_size=21, patch_size=7, mlp_ratio=1.5, output_dim=13)
    yield "class token, ln_pre", HookedViT.from_module(open_clip_tower(**plain))
    yield (
        "mean of patches, no ln_pre",
        HookedViT.from_module(open_clip_tower(**plain, pool_type="avg", final_ln_after_pool=True, no_ln_pre=True)),
    )
    for kind in ("map", "coca"):
        yield f"attention pooling, {kind}", randomize(HookedViT(pooling_config(kind)).double())


def letters(model, shape, batch):
    cfg = model.cfg
    names = {batch: "B", cfg.n_ctx: "T", cfg.n_heads: "H", cfg.d_head: "d_head", cfg.d_model: "d_model",
             cfg.d_mlp: "d_mlp", cfg.d_embed: "d_embed", 1: "1"}  # fmt: skip
    if cfg.attn_pool is not None:
        pool = cfg.attn_pool
        names |= {pool.n_heads: "H_pool", pool.d_head: "d_head_pool", pool.d_mlp: "d_mlp_pool"}
        names |= {} if pool.d_model == cfg.d_model else {pool.d_model: "d_pooled"}
        names |= {} if cfg.d_embed == cfg.d_model else {cfg.d_embed: "d_embed"}
        names |= {cfg.d_model: "d_model"}
    return " ".join(names[size] for size in shape)


def fire(model, names, batch=4):
    """Run with hooks on points; return (name, tensor) in the order of firing."""
    seen = []
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(batch, 3, *model.cfg.image_size, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        model.run_with_hooks(pixels, fwd_hooks=[(names, lambda act, hook: seen.append((hook.name, act)))])
    return seen


def test_the_list_of_hook_points_is_frozen(request):
    lines = []
    for title, model in towers():
        # With inputs split by head, ln1 fires for queries, keys and values in turn, and has an axis of heads.
        everything = fire(model, lambda n: True)
        order = list(dict.fromkeys(name for name, _ in everything))
        assert sorted(order) == sorted(model.hook_dict)
        acts = dict(everything) | dict(fire(model, lambda n: not n.endswith(("_in", "_input"))))
        lines += [f"# {title}", *(f"{name}: {letters(model, acts[name].shape, 4)}" for name in order), ""]
    text = "\n".join(lines)
    if request.config.getoption("--golden"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text(), "run pytest --golden if the change is meant, and say so in the changelog"


@pytest.mark.parametrize("index", range(4))
def test_every_hook_point_is_a_place_to_intervene(index):
    title, model = list(towers())[index]
    pixels = torch.randn(2, 3, *model.cfg.image_size, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        clean = model(pixels)
        for name in model.hook_dict:
            factor = 2 if name.endswith("hook_scale") else 0
            edited = model.run_with_hooks(pixels, fwd_hooks=[(name, lambda act, hook: act * factor)])  # noqa: B023
            assert torch.isfinite(edited).all(), (title, name)
            assert (edited - clean).abs().max() > 1e-9, (title, name)
            kept = model.run_with_hooks(pixels, fwd_hooks=[(name, lambda act, hook: act)])
            assert (kept - clean).abs().max() < 1e-12, (title, name)


def test_switched_on_every_gated_point_is_cached(pooling_vit, pooling_pixels):
    for switch in SWITCHES:
        getattr(pooling_vit, f"set_{switch}")(True)
    out, cache = pooling_vit.run_with_cache(pooling_pixels)
    for switch in SWITCHES:
        getattr(pooling_vit, f"set_{switch}")(False)
    assert list(cache.keys()) and set(cache.keys()) == set(pooling_vit.hook_dict)
    assert (out - pooling_vit(pooling_pixels)).abs().max() < 1e-12


def test_a_pair_of_its_own_is_refused():
    from vit_lens.errors import UnknownHookError
    from vit_lens.hooking import as_pairs

    for hooks in (("hook_embed", lambda act, hook: act), [("hook_embed",)], lambda act, hook: act, "hook_embed"):
        with pytest.raises(UnknownHookError, match=r"hooks are a list of \(name, function\) pairs"):
            as_pairs(hooks)


@pytest.mark.parametrize("start", [0, 1, 2, -1, 3])
def test_a_run_may_start_at_a_layer(vit, pixels, start):
    from vit_lens.errors import PreprocessError, UnfiredHookError, VitLensError

    out, cache = vit.run_with_cache(pixels)
    entering = cache["resid_pre", start] if start != 3 else cache["resid_post", 2]
    assert (vit(entering, start_at_layer=start) - out).abs().max() < 1e-12
    _, part = vit.run_with_cache(entering, start_at_layer=start)
    first = start % 3 if start < 0 else start
    assert all(int(n.split(".")[1]) >= first for n in part.keys() if n.startswith("blocks"))
    assert not any(n.startswith(("hook_embed", "hook_pos", "ln_pre")) for n in part.keys())
    assert all((part[n] - cache[n]).abs().max() < 1e-12 for n in part.keys())
    assert torch.equal(vit(entering, start_at_layer=start, stop_at_layer=start), entering) or start == 3
    with pytest.raises(UnfiredHookError, match=f"cannot fire: start_at_layer={start}"):
        vit.run_with_hooks(entering, start_at_layer=start, fwd_hooks=[("hook_embed", lambda act, hook: act)])
    with pytest.raises(UnfiredHookError, match=f"cannot be cached: start_at_layer={start}"):
        vit.run_with_cache(entering, start_at_layer=start, names_filter="ln_pre.hook_scale")
    with pytest.raises(PreprocessError, match="a residual stream of shape"):
        vit(entering[:, 1:], start_at_layer=start)
    with pytest.raises(VitLensError, match="start_at_layer=2 lies behind stop_at_layer=1"):
        vit(entering, start_at_layer=2, stop_at_layer=1)


def test_stacked_weights_and_circuits(vit):
    for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
        assert torch.equal(getattr(vit, name)[1], getattr(vit.blocks[1].attn, name)), name
    for name in ("W_in", "W_out", "b_in", "b_out"):
        assert torch.equal(getattr(vit, name)[2], getattr(vit.blocks[2].mlp, name)), name
    assert (vit.OV.AB[1, 2] - vit.blocks[1].attn.W_V[2] @ vit.blocks[1].attn.W_O[2]).abs().max() < 1e-12
    assert (vit.QK.AB[0, 3] - vit.blocks[0].attn.W_Q[3] @ vit.blocks[0].attn.W_K[3].T).abs().max() < 1e-12
    assert torch.equal(vit.W_E, vit.embed.W_E) and torch.equal(vit.W_pos, vit.pos_embed.W_pos)
    assert vit.cfg.device == "cpu" and "device" not in vit.cfg.to_dict()


def test_attention_pooling_read_without_hooks(pooling_vit, pooling_pixels):
    """The closed form, in which keys and values stay implicit, is the hooked forward pass."""
    out, cache = pooling_vit.run_with_cache(pooling_pixels)
    last = cache["resid_post", 2]
    assert (pooling_vit.embed_rows(last) - out).abs().max() < 1e-12
    alone = torch.stack([pooling_vit.embed_rows(last[:, [t]]) for t in range(last.shape[1])], 1)
    assert (pooling_vit.embed_rows(last[:, :, None]) - alone).abs().max() < 1e-12
    assert (pooling_vit.embed_pooled(cache["hook_pooled"]) - out).abs().max() < 1e-12


def test_a_caption_needs_a_vocabulary(vit):
    from vit_lens.errors import VitLensError

    assert torch.equal(vit.tokens_to_residual_directions(3), vit.W_U[:, 3])
    assert vit.tokens_to_residual_directions(torch.tensor([[1, 2]])).shape == (1, 2, 35)
    with pytest.raises(VitLensError, match="needs a vocabulary"):
        vit.tokens_to_residual_directions("a cat")
    for wrong, message in ((13, "13 dimensions of the embedding"), (torch.tensor([0.5]), "expected whole numbers")):
        with pytest.raises(VitLensError, match=message):
            vit.tokens_to_residual_directions(wrong)


def test_the_config_says_where_the_weights_are():
    from vit_lens import HookedViT
    from vit_lens.errors import VitLensError

    model = HookedViT(pooling_config("map"))
    assert model.cfg.device == "cpu"
    model.to("meta")
    assert (
        model.cfg.device == "meta" and model.attn_pool.attn.cfg is model.cfg and model.blocks[1].attn.cfg is model.cfg
    )
    with pytest.raises(VitLensError, match="on the meta device have no content"):
        print(model.fingerprint)
