"""The list of hook points is frozen: names, order of firing, shapes; and each is a place to intervene."""

from pathlib import Path

import pytest
import torch
from conftest import open_clip_tower, pooling_config, randomize

pytestmark = pytest.mark.tl3

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
    from vit_lens.hooking.guard import as_pairs

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
    assert (pooling_vit.readout.read_pooled(cache["hook_pooled"]) - out).abs().max() < 1e-12


def test_a_caption_needs_a_vocabulary(vit):
    from vit_lens.errors import VitLensError

    assert torch.equal(vit.tokens_to_residual_directions(3), vit.W_U[:, 3])
    assert vit.tokens_to_residual_directions(torch.tensor([[1, 2]])).shape == (1, 2, 35)
    with pytest.raises(VitLensError, match="needs a vocabulary"):
        vit.tokens_to_residual_directions("a cat")
    for wrong, message in (
        (13, "13 dimensions of the embedding"),
        (torch.tensor([0.5]), "expected a caption, or whole numbers"),
    ):
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
        _ = model.fingerprint


# ---- edits in place, masks, and what is refused --------------------------------------------------------------


def in_place(act, hook):
    act[:, -1] = 0.25


def returned(act, hook):
    out = act.clone()
    out[:, -1] = 0.25
    return out


def test_an_edit_in_place_is_the_edit_that_is_returned(pooling_vit, pooling_pixels):
    """At every point, and it reaches neither weights nor what was cached before."""
    model = pooling_vit
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for name in model.hook_dict:
        edited, cache = run_edited(model, pooling_pixels, name, in_place)
        expected, clean_cache = run_edited(model, pooling_pixels, name, returned)
        assert torch.equal(edited, expected), name
        assert all(torch.equal(cache[n], clean_cache[n]) for n in cache.keys()), name
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def run_edited(model, pixels, name, edit):
    with model.hooks([(name, edit)]):
        return model.run_with_cache(pixels)


def test_an_edit_in_place_leaves_the_given_stream_alone(vit, pixels):
    _, cache = vit.run_with_cache(pixels)
    given = cache["resid_pre", 1].clone()
    vit.run_with_hooks(cache["resid_pre", 1], start_at_layer=1, fwd_hooks=[("blocks.1.hook_resid_pre", in_place)])
    assert torch.equal(cache["resid_pre", 1], given)


def test_a_mask_is_bool_and_whole(vit, pixels):
    from vit_lens.errors import VitLensError

    whole = torch.ones(5, 5, dtype=torch.bool).tril()
    expected = vit(pixels, mask=whole[None, None])
    assert torch.equal(vit(pixels, mask=whole), expected)
    per_head = whole.expand(1, 5, 5, 5).clone()
    per_head[0, 3] = True
    assert (vit(pixels, mask=per_head) - expected).abs().max() > 1e-6
    empty = whole.clone()
    empty[3] = False
    for wrong, message in (
        (whole.double(), "torch.float64; expected bool"),
        (whole.expand(5, 5, 5), r"mask of \(5, 5, 5\)"),
        (whole[:4], r"mask of \(4, 5\)"),
        (whole.expand(2, 1, 5, 5), r"\(3 or 1, 5 or 1, 5, 5\)"),
        (empty, "leaves a query no key"),
    ):
        with pytest.raises(VitLensError, match=message):
            vit(pixels, mask=wrong)


def test_the_gradient_of_a_mean_row_is_that_of_the_row():
    from vit_lens import HookedViT

    tower = open_clip_tower(pool_type="avg", final_ln_after_pool=True, no_ln_pre=True)
    model = HookedViT.from_module(tower)
    x = torch.randn(2, 3, 21, 21, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, cache = model.run_with_cache(x, rows="readout", incl_bwd=True)
    row = cache["resid_post", 2].requires_grad_(True)
    model.embed_rows(row).sum().backward()
    assert (cache["blocks.2.hook_resid_post_grad"] - row.grad).abs().max() < 1e-12


def test_runs_that_cannot_keep_gradients_say_so(vit, pixels):
    from vit_lens.errors import VitLensError

    with torch.no_grad(), pytest.raises(VitLensError, match="gradients, and they are switched off"):
        vit.run_with_cache(pixels, incl_bwd=True)
    with pytest.raises(VitLensError, match="nothing requires a gradient"):
        vit.run_with_cache(pixels, incl_bwd=True)


def test_positions_and_layers_are_whole_numbers_in_range(vit, pixels):
    import numpy as np

    from vit_lens.errors import VitLensError

    _, cache = vit.run_with_cache(pixels, pos_slice=np.int64(2))
    assert cache["resid_post", 1].shape == (3, 1, 35)
    assert torch.equal(vit(pixels, stop_at_layer=np.int64(1)), vit(pixels, stop_at_layer=1))
    for wrong in (17, [0, 99], "cls", 1.5, []):
        with pytest.raises(VitLensError):
            vit.run_with_cache(pixels, pos_slice=wrong)
    with pytest.raises(VitLensError, match="expected a whole number"):
        vit(pixels, stop_at_layer=True)
    for call in (lambda: vit.accumulated_bias(4), lambda: vit.accumulated_bias(3, mlp_input=True)):
        with pytest.raises(VitLensError):
            call()
    with pytest.raises(VitLensError, match="token -1"):
        vit.tokens_to_residual_directions(torch.tensor([-1, 1]))


def test_a_cache_may_live_elsewhere(vit, pixels):
    _, cache = vit.run_with_cache(pixels, device="meta")
    assert all(value.is_meta for value in cache.values())


def test_an_edited_model_says_so(hf_tower):
    import copy

    from vit_lens import HookedViT, TextBank

    model = HookedViT.from_module(hf_tower, encoder_id="test/tower")
    bank = TextBank(
        captions=("a", "b"), embeds=torch.randn(2, 13), logit_scale=2.0, logit_bias=None, encoder_id="test/tower"
    )
    model.vocabulary = bank
    assert not model.edited and not model.float().edited and not copy.deepcopy(model).float().edited
    with torch.no_grad():
        model.blocks[0].mlp.b_out.add_(1)
    assert model.edited and model.double().edited and copy.deepcopy(model).edited
    with pytest.warns(UserWarning, match="changed since it was loaded as test/tower"):
        model.vocabulary = bank


def test_a_logit_lens_of_an_edited_read_out_is_refused(vit, pixels):
    from vit_lens import TextBank
    from vit_lens.errors import LensError

    bank = TextBank(
        captions=("a", "b"), embeds=torch.randn(2, 13), logit_scale=2.0, logit_bias=None, encoder_id=vit.encoder_id
    )
    with vit.hooks([("hook_image_embeds", lambda act, hook: act + 1)]):
        _, cache = vit.run_with_cache(pixels)
    with pytest.raises(LensError, match="edited behind its last block"):
        cache.logit_lens(bank)
    assert cache.logit_lens(bank, layers=[0]).shape == (1, 3, 2)


def test_the_control_of_another_image_needs_a_site_that_speaks(vit, pixels):
    from vit_lens import DiffusionLens
    from vit_lens.errors import LensError

    def silence(z, hook):
        z[:, :, 3] = 0

    with vit.hooks([("blocks.1.attn.hook_z", silence)]):
        _, cache = vit.run_with_cache(pixels)
    with pytest.raises(LensError, match="site L1H3 writes nothing"):
        DiffusionLens().other_image(cache, ["L1H2", "L1H3"])
