"""Ablation, patching and path patching agree with a forward pass that is written out by hand, head by head."""

import inspect
import math
import re
from pathlib import Path

import pytest
import torch
from conftest import open_clip_tower

pytestmark = pytest.mark.tl3

TOLERANCE = 1e-10  # float64


def random_vit(**changes):
    """A HookedViT in float64 with random weights: 3 layers, 3 heads of width 5, 2 x 3 patches."""
    from vit_lens import HookedViT, HookedViTConfig

    sizes = dict(
        n_layers=3, d_model=11, n_heads=3, d_head=5, d_mlp=13, d_embed=7, image_size=(8, 15), patch_size=(4, 5),
        has_cls=True, n_registers=2, has_patch_bias=True, act_fn="gelu", eps=1e-5, has_ln_pre=True, pool="cls",
        attn_pool=None, ln_final="before_pool", has_proj=True, has_proj_bias=False,
    )  # fmt: skip
    model = HookedViT(HookedViTConfig(**(sizes | changes))).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
        if name.endswith(".w"):
            parameter.add_(1)
    return model


def attn_pool(**changes):
    from vit_lens.config import AttentionPoolConfig

    sizes = dict(n_heads=2, d_head=4, d_model=9, d_mlp=8, has_ln_post=True)
    return AttentionPoolConfig(**(sizes | changes))


@pytest.fixture(
    scope="module",
    params=["cls", "avg_patches", "avg_pooled", "registers", "attn"],
)
def model(request):
    """Every kind of read-out, and registers."""
    from vit_lens import HookedViT

    overrides = {
        "cls": dict(),
        "avg_patches": dict(pool_type="avg"),
        "avg_pooled": dict(pool_type="avg", final_ln_after_pool=True, no_ln_pre=True),
    }
    if request.param in overrides:
        return HookedViT.from_module(open_clip_tower(**overrides[request.param])).requires_grad_(False)
    if request.param == "attn":
        return random_vit(has_cls=False, n_registers=0, pool="attn", attn_pool=attn_pool())
    return random_vit()


def images(model, n=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, *model.cfg.image_size, dtype=torch.float64, generator=generator)


def norm(module, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + module.eps).sqrt() * module.w + module.b


def slow(model, x, edit=None):
    """The tower without hooks, one head after the other; ``edit(place, value)`` may change what passes a place.

    Places: (layer, "resid_pre" | "resid_mid" | "resid_post" | "attn" | "mlp" | "mlp_in"), (layer, "neurons"),
    (layer, "head" | "q" | "k" | "v", head).
    """
    edit = edit or (lambda place, value: value)
    resid = model(x, stop_at_layer=0)
    for layer, block in enumerate(model.blocks):
        attn = block.attn
        resid = edit((layer, "resid_pre"), resid)
        attn_out = attn.b_O.clone()
        for head in range(model.cfg.n_heads):
            reads = (norm(block.ln1, edit((layer, fork, head), resid)) for fork in "qkv")
            q, k, v = (
                read @ getattr(attn, f"W_{name}")[head] + getattr(attn, f"b_{name}")[head]
                for read, name in zip(reads, "QKV", strict=True)
            )
            pattern = (q @ k.transpose(1, 2) / math.sqrt(model.cfg.d_head)).softmax(-1)
            attn_out = attn_out + edit((layer, "head", head), pattern @ v) @ attn.W_O[head]
        resid = edit((layer, "resid_mid"), resid + edit((layer, "attn"), attn_out))
        pre = norm(block.ln2, edit((layer, "mlp_in"), resid)) @ block.mlp.W_in + block.mlp.b_in
        post = torch.nn.functional.gelu(pre) if model.cfg.act_fn == "gelu" else pre * torch.sigmoid(1.702 * pre)
        mlp_out = edit((layer, "mlp"), edit((layer, "neurons"), post) @ block.mlp.W_out + block.mlp.b_out)
        resid = edit((layer, "resid_post"), resid + mlp_out)
    return model.embed_rows(model.readout_rows(resid))


def recorded(model, x):
    """What passes every place of the slow pass."""
    seen = {}
    slow(model, x, lambda place, value: seen.setdefault(place, value))
    return seen


def close(a, b):
    assert a.shape == b.shape
    assert (a - b).abs().max() < TOLERANCE


SITES = {
    "L1H2": [(1, "head", 2)],
    "L1.attn": [(1, "attn")],
    "L0.mlp": [(0, "mlp")],
    "L2.resid_pre": [(2, "resid_pre")],
    "L1.resid_mid": [(1, "resid_mid")],
    "L1.resid_post": [(1, "resid_post")],
    "L1": [(1, "attn"), (1, "mlp")],
    "L0H1,L0H2,L2.mlp": [(0, "head", 1), (0, "head", 2), (2, "mlp")],
}


def edit_at(places, change):
    return lambda place, value: change(place, value) if place in places else value


OTHERS = ["avg_patches", "avg_pooled", "registers"]


@pytest.mark.parametrize(
    ("model", "site"),
    [*((kind, site) for kind in ("cls", "attn") for site in SITES), *((kind, "L1H2") for kind in OTHERS)],
    indirect=["model"],
)
def test_hooks_equal_a_slow_pass_for_every_kind_of_site(model, site):
    from vit_lens import ReferenceMeans, interventions

    x, others = images(model, 3), images(model, 3, seed=1)
    _, cache = model.run_with_cache(others)
    means = ReferenceMeans.from_images(model, others, positions="all")
    donors = recorded(model, others)
    order = interventions.derangement(3, seed=4)
    found = {
        "zero": (interventions.zero(model, site), lambda place, value: value * 0),
        "mean": (
            interventions.mean(model, site, means),
            lambda place, value: donors[place].mean(0).expand_as(value),
        ),
        "patch": (interventions.patch(model, site, cache), lambda place, value: donors[place]),
        "images": (
            interventions.patch(model, site, cache, images=[2, 2, 0]),
            lambda place, value: donors[place][[2, 2, 0]],
        ),
        "one": (
            interventions.patch(model, site, cache, images=1),
            lambda place, value: donors[place][[1, 1, 1]],
        ),
        "resample": (
            interventions.resample(model, site, cache, seed=4),
            lambda place, value: donors[place][order],
        ),
    }
    clean = model(x)
    for name, (hooks, change) in found.items():
        embeds = model.run_with_hooks(x, fwd_hooks=hooks)
        close(embeds, slow(model, x, edit_at(SITES[site], change)))
        assert (embeds - clean).abs().max() > 1e-3, name


@pytest.mark.parametrize("tokens", ["cls", (1, 2), "patch4", 3, [(0, 1), 4], "patches", "register1", "registers"])
def test_hooks_act_on_the_named_tokens_alone(tokens):
    from vit_lens import ReferenceMeans, interventions

    model = random_vit()  # class token, two registers, then 2 x 3 patches
    positions = {
        "cls": [0], (1, 2): [8], "patch4": [7], 3: [3], "patches": range(3, 9), "register1": [2], "registers": [1, 2]
    }.get(tokens if not isinstance(tokens, list) else None, [4])  # fmt: skip
    positions = list(positions)
    x, others = images(model), images(model, seed=1)
    _, cache = model.run_with_cache(others)
    means = ReferenceMeans.from_images(model, others, positions="all")
    donors = recorded(model, others)

    def at(new):
        def change(place, value):
            out = value.clone()
            out[:, positions] = new(place, value)[:, positions]
            return out

        return change

    for site, places in {k: SITES[k] for k in ("L1H2", "L0.mlp", "L1.resid_mid", "L1")}.items():
        for hooks, new in [
            (interventions.zero(model, site, tokens=tokens), lambda p, v: v * 0),
            (interventions.mean(model, site, means, tokens=tokens), lambda p, v: donors[p].mean(0).expand_as(v)),
            (interventions.patch(model, site, cache, tokens=tokens), lambda p, v: donors[p]),
        ]:
            close(model.run_with_hooks(x, fwd_hooks=hooks), slow(model, x, edit_at(places, at(new))))


def test_a_mask_of_the_grid_names_patches():
    from vit_lens.tokens import resolve_tokens

    cfg = random_vit().cfg
    mask = torch.tensor([[False, True, False], [False, False, True]])
    assert resolve_tokens(mask, cfg) == [4, 8] == resolve_tokens([(0, 1), (1, 2), "patch1"], cfg)
    assert resolve_tokens((1, 0), cfg) == [6] and resolve_tokens([1, 0], cfg) == [1, 0]
    without = random_vit(has_cls=False, n_registers=0, pool="avg").cfg
    assert resolve_tokens((1, 0), without) == [3] and resolve_tokens("patches", without) == list(range(6))


def test_one_neuron_can_be_replaced(model):
    from vit_lens import interventions

    x, others = images(model), images(model, seed=1)
    _, cache = model.run_with_cache(others)
    donors = recorded(model, others)

    def change(place, value):
        out = value.clone()
        out[..., [4, 7]] = donors[place][..., [4, 7]]
        return out

    hooks = interventions.patch(model, ["L1N4", "L1N7"], cache)
    close(model.run_with_hooks(x, fwd_hooks=hooks), slow(model, x, edit_at([(1, "neurons")], change)))


def test_sites_of_attention_pooling(errors):
    """Heads of the pool add up to its attention: replacing all heads is replacing it."""
    from vit_lens import ReferenceMeans, interventions

    model = random_vit(has_cls=False, n_registers=0, pool="attn", attn_pool=attn_pool())
    x, others = images(model), images(model, seed=1)
    embeds, cache = model.run_with_cache(others)
    means = ReferenceMeans.from_images(model, others)  # its read-out rows are all tokens
    for make in (
        lambda site: interventions.patch(model, site, cache),
        lambda site: interventions.mean(model, site, means),
    ):
        heads = model.run_with_hooks(x, fwd_hooks=make("poolH0,poolH1"))
        close(heads, model.run_with_hooks(x, fwd_hooks=make("pool.attn")))
        assert (heads - model.run_with_hooks(x, fwd_hooks=make("poolH0"))).abs().max() > 1e-3
    close(model.run_with_hooks(x, fwd_hooks=interventions.patch(model, "pool.attn", cache)), embeds)

    def by_hand(act, hook):
        out = act.clone()
        out[:, :, 1] = cache["attn_pool.attn.hook_z"].mean(0)[:, 1]
        return out

    hooked = model.run_with_hooks(x, fwd_hooks=[("attn_pool.attn.hook_z", by_hand)])
    close(model.run_with_hooks(x, fwd_hooks=interventions.mean(model, "poolH1", means)), hooked)
    zeroed = model.run_with_hooks(x, fwd_hooks=[("attn_pool.hook_mlp_out", lambda act, hook: act * 0)])
    close(model.run_with_hooks(x, fwd_hooks=interventions.zero(model, "pool.mlp")), zeroed)
    with pytest.raises(errors.InterventionError, match="attention pooling has one row"):
        interventions.zero(model, "poolH1", tokens=(0, 0))


def test_interventions_compose_with_contexts_caches_and_lenses(vit, pixels):
    from vit_lens import DiffusionLens, interventions

    with vit.hooks(fwd_hooks=interventions.zero(vit, "L0H1", tokens="cls")):
        embeds, cache = vit.run_with_cache(pixels)
    assert (cache["z", 0][:, 0, 1] == 0).all() and (cache["z", 0][:, 1:, 1] != 0).all()
    close(DiffusionLens().embed(cache, "L2.resid_post")[:, 0], embeds)


def test_readout_caches_and_means_serve_their_own_rows(vit, pixels, errors):
    from vit_lens import ReferenceMeans, interventions

    _, whole = vit.run_with_cache(pixels)
    _, rows = vit.run_with_cache(pixels, rows="readout")
    means = ReferenceMeans.from_images(vit, pixels)
    every = ReferenceMeans.from_images(vit, pixels, positions="all")
    x = pixels.flip(0) * 0.7
    for site in ("L1H2", "L1.attn", "L2.mlp", "L2.resid_mid"):
        by_rows = vit.run_with_hooks(x, fwd_hooks=interventions.patch(vit, site, rows, tokens="cls"))
        close(by_rows, vit.run_with_hooks(x, fwd_hooks=interventions.patch(vit, site, whole, tokens="cls")))
        by_rows = vit.run_with_hooks(x, fwd_hooks=interventions.mean(vit, site, means, tokens="cls"))
        close(by_rows, vit.run_with_hooks(x, fwd_hooks=interventions.mean(vit, site, every, tokens="cls")))
    for tokens in (None, "patches", ["cls", (0, 0)]):
        with pytest.raises(errors.InterventionError, match="the class token alone"):
            interventions.mean(vit, "L1H2", means, tokens=tokens)
        with pytest.raises(errors.InterventionError, match="the class token alone"):
            interventions.patch(vit, "L1H2", rows, tokens=tokens)


def test_readout_rows_that_are_patches_serve_single_patches(errors):
    from vit_lens import ReferenceMeans, interventions

    model = random_vit(pool="avg")
    x, others = images(model), images(model, seed=1)
    _, whole = model.run_with_cache(others)
    _, rows = model.run_with_cache(others, rows="readout")
    means = ReferenceMeans.from_images(model, others)
    every = ReferenceMeans.from_images(model, others, positions="all")
    for tokens in ("patches", (1, 1), [(0, 2), (1, 0)]):
        for make, held, all_ in (
            (interventions.patch, rows, whole),
            (interventions.mean, means, every),
        ):
            edited = model.run_with_hooks(x, fwd_hooks=make(model, "L1H2,L0.mlp", held, tokens=tokens))
            close(edited, model.run_with_hooks(x, fwd_hooks=make(model, "L1H2,L0.mlp", all_, tokens=tokens)))
    for tokens in (None, "cls", ["register0", (0, 0)]):
        with pytest.raises(errors.InterventionError, match="hold the patches alone"):
            interventions.mean(model, "L1H2", means, tokens=tokens)


def test_pooled_rows_are_no_tokens(errors):
    from vit_lens import ReferenceMeans, interventions

    model = random_vit(pool="avg", ln_final="after_pool")
    means = ReferenceMeans.from_images(model, images(model))
    for tokens in (None, "patches", (0, 0)):
        with pytest.raises(errors.InterventionError, match="mean of the patches alone"):
            interventions.mean(model, "L1H2", means, tokens=tokens)


def test_derangements_move_every_image_and_are_all_equally_likely():
    from vit_lens.interventions import derangement

    drawn = [tuple(derangement(4, seed=seed).tolist()) for seed in range(900)]
    assert all(order[i] != i for order in drawn for i in range(4))
    counts = [drawn.count(order) for order in set(drawn)]
    assert len(counts) == 9 and min(counts) > 60 and max(counts) < 145  # expected 100, deviation 9.4
    assert torch.equal(derangement(30, seed=3), derangement(30, seed=3))


def test_resampling_from_other_images_draws_with_replacement(vit, pixels):
    from vit_lens import interventions

    _, cache = vit.run_with_cache(pixels)
    x = torch.cat([pixels, pixels]) * 0.5
    donors = torch.randint(3, (6,), generator=torch.Generator().manual_seed(2))
    hooks = interventions.resample(vit, "L1.mlp", cache, seed=2, n_images=6)
    expected = interventions.patch(vit, "L1.mlp", cache, images=donors)
    assert torch.equal(vit.run_with_hooks(x, fwd_hooks=hooks), vit.run_with_hooks(x, fwd_hooks=expected))
    cache.cache_dict = {"note": torch.zeros(1), **cache.cache_dict}  # what a user adds counts for nothing
    again = interventions.resample(vit, "L1.mlp", cache, seed=2, n_images=6)
    assert torch.equal(vit.run_with_hooks(x, fwd_hooks=again), vit.run_with_hooks(x, fwd_hooks=expected))


def test_what_cannot_be_done_is_refused(vit, pixels, errors, readout_vit):
    from vit_lens import interventions
    from vit_lens.interventions import patch, resample, zero
    from vit_lens.interventions.replacing import check_cache

    _, cache = vit.run_with_cache(pixels)
    unknown, wrong = errors.UnknownSiteError, errors.InterventionError
    for site in ("L3H0", "L0H5", "L3", "L0N44", "L7N0", "head", "poolH0", []):
        with pytest.raises(unknown):
            zero(vit, site)
    tokens = {
        (2, 0): "outside the grid", (0, 2): "outside the grid", (-1, 0): "outside", "patch4": "out of range",
        5: "out of range", -1: "out of range", "register0": "out of range", "registers": "has none", "clss": "expected",
        True: "expected", (0, 1, 1): "expected",
    }  # fmt: skip
    for token, message in tokens.items():
        with pytest.raises(wrong, match=message):
            zero(vit, "L0H0", tokens=token)
    with pytest.raises(wrong, match="selects nothing"):
        zero(vit, "L0H0", tokens=[])
    with pytest.raises(wrong, match="grid's shape"):
        zero(vit, "L0H0", tokens=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(wrong, match="False everywhere"):
        zero(vit, "L0H0", tokens=torch.zeros(2, 2, dtype=torch.bool))
    for sites in (["L1H0", "L1.attn"], ["L1N0", "L1.mlp"], ["L0H0", "L1.resid_pre"], ["L1.mlp", "L1.resid_post"]):
        with pytest.raises(wrong, match="would have no effect"):
            zero(vit, sites)
    zero(vit, ["L0H0", "L1.resid_mid"], tokens="cls")  # other tokens carry the first on
    other, _ = readout_vit
    with pytest.raises(wrong, match="the cache is of"):
        patch(other, "L0H0", cache)
    with pytest.raises(wrong, match="there are activations for 3 images, and the run has 2"):
        vit.run_with_hooks(pixels[:2], fwd_hooks=patch(vit, "L0H0", cache))
    single = cache.apply_slice_to_batch_dim([1])
    with pytest.raises(wrong, match="activations for 1 images, and the run has 3"):
        vit.run_with_hooks(pixels, fwd_hooks=patch(vit, "L0H0", single))
    with pytest.raises(wrong, match=r"images=\[3\]: the cache holds 3"):
        patch(vit, "L0H0", cache, images=[0, 3, 1])
    with pytest.raises(wrong, match="its own donor"):
        resample(vit, "L0H0", single)
    with pytest.raises(wrong, match="not dict"):
        inspect.unwrap(check_cache)(vit, dict(cache.cache_dict))
    with pytest.raises(wrong, match="no batch axis"):
        patch(vit, "L0H0", vit.run_with_cache(pixels[:1], remove_batch_dim=True)[1])
    with pytest.raises(wrong, match="pos_slice"):
        patch(vit, "L0H0", vit.run_with_cache(pixels, pos_slice=[0, 1])[1])
    with pytest.raises(errors.UnknownHookError, match="does not hold"):
        patch(vit, "L0.mlp", vit.run_with_cache(pixels, names_filter="blocks.0.attn.hook_z")[1])
    from vit_lens import ReferenceMeans

    means = ReferenceMeans.from_images(vit, pixels, positions="all")
    with pytest.raises(errors.ReferenceMismatchError):
        interventions.mean(other, "L0H0", means)
    with pytest.raises(wrong, match="hold no neurons"):
        interventions.mean(vit, "L0N1", means)


# ---- sweeps --------------------------------------------------------------------------------------------------


def test_many_runs_equal_single_runs(model, errors):
    from vit_lens.interventions import run_many, zero

    x = images(model, 3)
    sets = [
        zero(model, "L2H1"), [], zero(model, "L0.attn"), zero(model, "L2H0") + zero(model, "L1.mlp"),
        [("hook_embed", lambda act, hook: act * 1.1), ("hook_pos_embed_raw", lambda act, hook: act * 0)],
        [("ln_final.hook_scale", lambda act, hook: act * 2)], zero(model, "L2.mlp"),
        [("blocks.1.hook_resid_mid", hook) for hook in (lambda act, hook: None, lambda act, hook: act.flip(0))],
    ]  # fmt: skip
    naive = torch.stack([model.run_with_hooks(x, fwd_hooks=hooks) for hooks in sets])
    for batch_size in (1, 7, 64):
        close(run_many(model, x, sets, batch_size=batch_size), naive)
    with pytest.raises(errors.HookShapeError):
        run_many(model, x, [[("blocks.0.hook_mlp_out", lambda act, hook: act[:1])]])
    for wrong in (lambda act, hook: act.float(), lambda act, hook: 3.0):
        with pytest.raises(errors.HookShapeError, match=r"the hook on 'blocks\.0\.hook_mlp_out' returned"):
            run_many(model, x, [[("blocks.0.hook_mlp_out", wrong)]])
    with pytest.raises(errors.InterventionError, match="plain names"):
        run_many(model, x, [[(lambda name: True, lambda act, hook: act)]])
    with pytest.raises(errors.InterventionError, match="no sets"):
        run_many(model, x, [])
    with pytest.raises(errors.UnknownHookError):
        run_many(model, x, [[("blocks.0.hook_nothing", lambda act, hook: act)]])
    with model.hooks(fwd_hooks=zero(model, "L0H0")):
        model(x)
        with pytest.raises(errors.VitLensError, match="hooks are on"):
            run_many(model, x, sets)


def test_a_set_starts_at_its_own_layer(vit, pixels, monkeypatch):
    """The prefix is computed once: block 0 runs once for the shared stream, and for the sets that touch it."""
    from vit_lens.interventions import run_many, zero

    calls = []
    for i, block in enumerate(vit.blocks):  # no hooks: with these on a model, sweeps refuse to run
        run = block.forward
        monkeypatch.setattr(block, "forward", lambda *given, i=i, run=run: (calls.append(i), run(*given))[1])
    run_many(vit, pixels, [zero(vit, f"L{layer}H{head}") for layer in range(3) for head in range(5)])
    assert [calls.count(layer) for layer in range(3)] == [2, 3, 3]


@pytest.mark.parametrize(
    ("model", "each"),
    [("cls", "token"), ("attn", "patch"), ("registers", "token"), ("registers", "patch"), ("avg_pooled", "site")],
    indirect=["model"],
)
def test_patching_sweep_equals_a_slow_loop(model, each):
    from vit_lens import Site
    from vit_lens.interventions import cosine_to, patch_each

    base, source = images(model, 2), images(model, 2, seed=1)
    target = torch.randn(model.cfg.d_embed, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    sites = [s for s in Site.heads(model) + Site.mlps(model) + Site.residuals(model, "resid_mid") if not s.is_pool]
    found = patch_each(model, base, source, cosine_to(target), sites, each=each, batch_size=9)
    donors, cfg = recorded(model, source), model.cfg
    positions = {"site": [None], "token": range(cfg.n_ctx), "patch": range(cfg.n_prefix, cfg.n_ctx)}[each]
    assert found.values.shape == (len(sites), len(positions), 2)

    def cosine(embeds):
        return (embeds @ target) / embeds.norm(dim=-1) / target.norm()

    for row, site in enumerate(sites):
        place = (site.layer, site.kind) if site.head is None else (site.layer, "head", site.head)
        for column, position in enumerate(positions):

            def edit(at, value, place=place, position=position):
                if at != place:
                    return value
                out = value.clone()
                where = slice(None) if position is None else position
                out[:, where] = donors[at][:, where]
                return out

            if row % 4 == 0:
                close(found.values[row, column], cosine(slow(model, base, edit)))
    close(found.base, cosine(model(base)))
    close(found.source, cosine(model(source)))
    close(found.recovered, (found.values - found.base) / (found.source - found.base))
    own = {"site": (), "token": (cfg.n_ctx,), "patch": (cfg.n_patches,)}[each]
    assert found.tensor("head").shape == (3, cfg.n_heads, *own, 2)
    assert found.tensor("mlp").shape == (3, *own, 2)
    assert torch.equal(found.tensor("head")[2, 1], found.effect[2 * cfg.n_heads + 1].reshape(*own, 2))
    if each != "site":
        maps = found.maps("mlp")
        assert maps.shape == (3, *cfg.grid, 2)
        row, column = cfg.grid[0] - 1, 1
        index = row * cfg.grid[1] + column + (cfg.n_prefix if each == "token" else 0)
        assert torch.equal(maps[1, row, column], found.tensor("mlp")[1, index])
    table = found.frame()
    assert len(table) == found.values.numel()
    last = table.iloc[-1]
    assert (last["site"], last["image"]) == ("L2.resid_mid", 1)
    assert last["effect"] == pytest.approx(float(found.effect[-1, -1, -1]))
    assert last["recovered"] == pytest.approx(float(found.recovered[-1, -1, -1]))
    if each != "site":
        assert last["token"] == str((cfg.grid[0] - 1, cfg.grid[1] - 1)) and last["pos"] == cfg.n_ctx - 1


def test_sweeps_with_a_scalar_metric_and_chosen_tokens(vit, pixels, errors):
    from vit_lens.interventions import patch_each

    source = pixels.roll(1, 0)
    found = patch_each(vit, pixels, source, lambda e: e.square().mean(), "heads", each="token", tokens=["cls", (1, 0)])
    assert found.values.shape == (15, 2) and found.base.shape == () and found.positions == (0, 3)
    assert "image" not in found.frame() and list(found.frame().head(2)["token"]) == ["cls", "(1, 0)"]
    with pytest.raises(errors.InterventionError, match="maps need every patch"):
        found.maps()
    whole = patch_each(vit, pixels, source, lambda e: e[:, 0], "resid_post", tokens="patches")
    assert whole.tensor().shape == (3, 3)
    everything = patch_each(vit, pixels, source, lambda e: e[:, 0], "resid_post")
    close(everything.recovered, torch.ones(3, 1, 3, dtype=torch.float64))


def test_ablation_sweep_equals_single_runs(model):
    from vit_lens import ReferenceMeans, Site, interventions

    x, others = images(model, 3), images(model, 4, seed=1)
    means = ReferenceMeans.from_images(model, others, positions="all")
    _, cache = model.run_with_cache(others)
    _, own = model.run_with_cache(x)

    def metric(embeds):
        return embeds[:, 1]

    makers = {
        "zero": ("zero", lambda site: interventions.zero(model, site)),
        "mean": (means, lambda site: interventions.mean(model, site, means)),
        "cache": (cache, lambda site: interventions.resample(model, site, cache, seed=3, n_images=3)),
        "resample": ("resample", lambda site: interventions.resample(model, site, own, seed=3)),
    }
    for name, (replacement, hooks) in makers.items():
        found = interventions.ablate_each(model, x, metric, "heads", replacement=replacement, seed=3)
        naive = torch.stack([metric(model.run_with_hooks(x, fwd_hooks=hooks(site))) for site in Site.heads(model)])
        close(found.values[:, 0], naive), name
        assert found.tensor("head").shape == (3, model.cfg.n_heads, 3) and found.source is None
    assert "recovered" not in found.frame()


def test_sweeps_refuse_what_they_cannot_do(vit, pixels, errors):
    from vit_lens.interventions import ablate_each, cosine_to, patch_each, patch_paths

    metric = cosine_to(torch.ones(13, dtype=torch.float64))
    wrong = errors.InterventionError
    with pytest.raises(wrong, match="base holds 3 images, source 2"):
        patch_each(vit, pixels, pixels[:2], metric)
    with pytest.raises(wrong, match="base holds 3 images, source 2"):
        patch_paths(vit, pixels, pixels[:2], metric)
    with pytest.raises(wrong, match="each='tokens'"):
        patch_each(vit, pixels, pixels, metric, each="tokens")
    with pytest.raises(wrong, match="holds no patch"):
        patch_each(vit, pixels, pixels, metric, each="patch", tokens="cls")
    with pytest.raises(wrong, match="replacement='median'"):
        ablate_each(vit, pixels, metric, replacement="median")
    with pytest.raises(wrong, match="its own donor"):
        ablate_each(vit, pixels[:1], metric, replacement="resample")
    for bad in (lambda e: e, lambda e: 1.0, lambda e: e[:2, 0]):
        with pytest.raises(wrong, match="the metric returned"):
            ablate_each(vit, pixels, bad, "L0H0", replacement="zero")
    found = ablate_each(vit, pixels, metric, ["L0H0", "L1H1", "L1.mlp"], replacement="zero")
    with pytest.raises(wrong, match="several kinds"):
        found.tensor()
    with pytest.raises(wrong, match="do not fill a grid"):
        found.tensor("head")
    with pytest.raises(wrong, match="no sites of kind"):
        found.tensor("attn")
    with pytest.raises(wrong, match="recovered is defined for patching"):
        found.tensor("mlp", "recovered")
    with pytest.raises(wrong, match="what='share'"):
        found.tensor("mlp", "share")


def test_metrics():
    from vit_lens.interventions import cosine_to, logit_difference

    def numbers(*values):
        return torch.tensor(values, dtype=torch.float64)

    embeds = numbers([3.0, 4.0], [0.0, 2.0])
    close(cosine_to(numbers(5.0, 0.0))(embeds), numbers(0.6, 0.0))
    close(cosine_to(embeds * 7)(embeds), numbers(1, 1))
    close(logit_difference(numbers(2.0, 0.0), numbers(0.0, 9.0), 100)(embeds), numbers(-20.0, -100.0))


# ---- paths ---------------------------------------------------------------------------------------------------

SENDERS = {
    "L0H1": ((0, "head", 1), 1),
    "L1.attn": ((1, "attn"), 3),
    "L0.mlp": ((0, "mlp"), 2),
    "L0.resid_pre": ((0, "resid_pre"), 0),
    "L2H0": ((2, "head", 0), 5),
}
RECEIVERS = {
    "L1H2.q": {(1, "q", 2): 2},
    "L2H0.k": {(2, "k", 0): 4},
    "L2H1.v": {(2, "v", 1): 4},
    "L1H0": {(1, fork, 0): 2 for fork in "qkv"},
    "L2.attn.v": {(2, "v", head): 4 for head in range(3)},
    "L1.mlp": {(1, "mlp_in"): 3},
    "L1H0.q + L2H2.k": {(1, "q", 0): 2, (2, "k", 2): 4},
    "final": {(2, "resid_post"): 6},
}


def slow_path(model, base, source, sender, receiver, through_mlps):
    """Wang et al.: freeze everything but the sender, record what the receiver reads, put it into a clean run."""
    place, _ = SENDERS[sender]
    reads = RECEIVERS[receiver]
    ours, theirs = recorded(model, base), recorded(model, source)
    seen = {}

    def frozen(at, value):
        if at in reads:
            seen[at] = value
        if at == place:
            return theirs[at]
        if at[1] == "head" or (at[1] == "mlp" and not through_mlps):
            return ours[at]
        return value

    slow(model, base, frozen)
    return slow(model, base, lambda at, value: seen[at] if at in reads else value)


@pytest.mark.parametrize("through_mlps", [False, True])
@pytest.mark.parametrize(
    ("model", "sender"),
    [*(("cls", sender) for sender in SENDERS), ("attn", "L0.resid_pre"), *((kind, "L0H1") for kind in OTHERS)],
    indirect=["model"],
)
def test_paths_equal_the_published_algorithm_run_slowly(model, sender, through_mlps):
    from vit_lens.interventions import patch_paths, path

    base, source = images(model, 2), images(model, 2, seed=1)
    clean, ours = model.run_with_cache(base)
    _, theirs = model.run_with_cache(source)
    found = patch_paths(
        model, base, source, lambda e: e[:, 1], sender, list(RECEIVERS), through_mlps=through_mlps, batch_size=3
    )
    _, written = SENDERS[sender]
    for column, (receiver, reads) in enumerate(RECEIVERS.items()):
        if min(reads.values()) < written:
            assert (found.effect[0, column] == 0).all(), receiver
            continue
        expected = slow_path(model, base, source, sender, receiver, through_mlps)
        hooks = path(model, sender, receiver, ours, theirs, through_mlps=through_mlps)
        close(model.run_with_hooks(base, fwd_hooks=hooks), expected)
        close(found.values[0, column], expected[:, 1])
        if (sender, receiver) != ("L0.resid_pre", "final"):  # the class token enters alike for every image
            assert (expected - clean).abs().max() > 1e-6, receiver


def test_paths_of_some_tokens(vit, pixels):
    from vit_lens.interventions import path

    source = pixels.flip(0) * 1.3
    _, ours = vit.run_with_cache(pixels)
    _, theirs = vit.run_with_cache(source)
    delta = (theirs["z", 0] - ours["z", 0])[:, :, 3] @ vit.blocks[0].attn.W_O[3]

    def add(act, hook):
        out = act.clone()
        out[:, 3, 2] += delta[:, 3]
        return out

    expected = vit.run_with_hooks(pixels, fwd_hooks=[("blocks.2.hook_v_input", add)])
    hooks = path(vit, "L0H3", "L2H2.v", ours, theirs, tokens=(1, 0))
    close(vit.run_with_hooks(pixels, fwd_hooks=hooks), expected)


def test_direct_paths_to_the_end_add_up_to_the_other_image(model):
    """What all senders write more is the whole difference of the last residual streams."""
    from vit_lens import Site
    from vit_lens.interventions import path

    base, source = images(model, 2), images(model, 2, seed=1)
    _, ours = model.run_with_cache(base)
    other, theirs = model.run_with_cache(source)
    name = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    total = ours[name].clone()
    for site in ["L0.resid_pre", *Site.heads(model), *Site.mlps(model)]:
        if not getattr(site, "is_pool", False):
            ((at, hook),) = path(model, site, "final", ours, theirs)
            assert at == name
            total += hook(ours[name], model.hook_dict[name]) - ours[name]
    close(total, theirs[name])
    close(model.embed_rows(model.readout_rows(total)), other)


def test_equal_images_have_no_paths(vit, pixels):
    from vit_lens.interventions import patch_each, patch_paths

    def metric(embeds):
        return embeds[:, 0]

    found = patch_paths(vit, pixels, pixels, metric, ["heads", "mlp"], ["final", "L2H0.q", "L1.mlp"])
    assert found.effect.abs().max() < TOLERANCE
    assert patch_each(vit, pixels, pixels, metric, ["heads", "resid_mid"]).effect.abs().max() < TOLERANCE


def test_path_results_are_labelled(vit, pixels, errors):
    from vit_lens.interventions import patch_paths

    found = patch_paths(vit, pixels, pixels.flip(0), lambda e: e[:, 0], "heads", ["final", "L2H1.q"])
    assert found.tensor("final").shape == (3, 5, 3)
    assert torch.equal(found.tensor("L2H1.q", what="value")[1, 4], found.values[9, 1])
    effect = found.tensor("L2H1.q")
    assert (effect[2] == 0).all() and (effect[:2, :, [0, 2]] != 0).all()  # image 1 is its own partner
    table = found.frame()
    assert len(table) == 15 * 2 * 3 and tuple(table.iloc[-1][["sender", "receiver", "image"]]) == ("L2H4", "L2H1.q", 2)
    with pytest.raises(errors.InterventionError, match="receiver=None"):
        found.tensor()


def test_paths_that_cannot_be_are_refused(vit, pixels, errors):
    from vit_lens.interventions import patch_paths, path

    _, cache = vit.run_with_cache(pixels)
    _, rows = vit.run_with_cache(pixels, rows="readout")
    wrong = errors.InterventionError
    for sender, receiver in [("L1H0", "L1H1.q"), ("L2H0", "L1.mlp"), ("L1.mlp", "L1.mlp"), ("L0.mlp", "L0H1 + final")]:
        with pytest.raises(wrong, match=r"no path|stands alone"):
            path(vit, sender, receiver, cache, cache)
    with pytest.raises(wrong, match="no path"):
        path(vit, "L1H0", "L0H1.q + L2H1.q", cache, cache)
    for receiver in ("L1.resid_mid", "L1H0.w", "end", "heads"):
        with pytest.raises((wrong, errors.UnknownSiteError)):
            path(vit, "L0H0", receiver, cache, cache)
    with pytest.raises(wrong, match="caches of every token"):
        path(vit, "L0H0", "final", rows, cache)
    with pytest.raises(wrong, match="as many images"):
        path(vit, "L0H0", "final", cache, cache.apply_slice_to_batch_dim([0, 1]))
    with pytest.raises(wrong, match="the caches hold 3 images, the run has 2"):
        vit.run_with_hooks(pixels[:2], fwd_hooks=path(vit, "L0H0", "L1.mlp", cache, cache))
    with vit.hooks(fwd_hooks=[("hook_embed", lambda act, hook: act)]):
        vit(pixels)
        with pytest.raises(errors.VitLensError, match="hooks are on"):
            path(vit, "L0H0", "final", cache, cache, through_mlps=True)
    pooled = random_vit(has_cls=False, n_registers=0, pool="attn", attn_pool=attn_pool())
    x = images(pooled)
    assert len(patch_paths(pooled, x, x.flip(0), lambda e: e[:, 0], "heads").senders) == 9
    with pytest.raises(wrong, match="behind the residual stream"):
        patch_paths(pooled, x, x, lambda e: e[:, 0], "poolH0")
    with pytest.raises(wrong, match="is 'final'"):
        patch_paths(pooled, x, x, lambda e: e[:, 0], "L0H0", "pool.attn")


# ---- TransformerLens' own functions, with image inputs --------------------------------------------------------


def test_upstream_patching_agrees(vit, pixels):
    import pandas as pd
    from transformer_lens import patching

    from vit_lens.interventions import patch_each

    source = pixels.flip(0)
    _, clean = vit.run_with_cache(source)

    def metric(embeds):
        return embeds[:, 2].mean()

    heads = patching.get_act_patch_attn_head_out_all_pos(vit, pixels, clean, metric)
    ours = patch_each(vit, pixels, source, metric, "heads").tensor(what="value")
    assert (heads - ours).abs().max() < 1e-6  # upstream keeps results in float32
    index = pd.DataFrame([(layer, pos) for layer in range(3) for pos in range(5)], columns=["layer", "pos"])
    by_hand = patching.generic_activation_patch(
        vit, pixels, clean, metric, patching.layer_pos_patch_setter, "resid_pre", index_df=index
    )
    ours = patch_each(vit, pixels, source, metric, "resid_pre", each="token").tensor(what="value")
    assert (by_hand.reshape(3, 5) - ours).abs().max() < 1e-6


def test_upstream_direct_path_patching_agrees(vit, pixels, errors, monkeypatch):
    from transformer_lens import patching

    from vit_lens.interventions import patch_paths

    if not hasattr(patching, "get_act_patch_direct_path"):
        pytest.skip("TransformerLens 3 has no direct path patching")
    source = pixels.flip(0)
    _, ours = vit.run_with_cache(pixels)
    _, theirs = vit.run_with_cache(source)

    def metric(embeds):
        return embeds[:, 2].mean()

    with pytest.raises(errors.UnknownHookError, match=r"no hook point 'blocks.1.attn.hook_q_input'"):
        patching.get_act_patch_direct_path(vit, pixels, theirs, ours, metric, 0, 3, verbose=False)
    run = vit.run_with_hooks  # upstream's bridge keeps these hook points inside attention

    def renamed(x, fwd_hooks):
        return run(x, fwd_hooks=[(name.replace(".attn.", "."), hook) for name, hook in fwd_hooks])

    monkeypatch.setattr(vit, "run_with_hooks", renamed)
    upstream = {
        fork: patching.get_act_patch_direct_path(vit, pixels, theirs, ours, metric, 0, 3, fork, verbose=False)
        for fork in "qkv"
    }
    monkeypatch.undo()
    for fork, expected in upstream.items():
        receivers = [f"L{layer}H{head}.{fork}" for layer in (1, 2) for head in range(5)]
        found = patch_paths(vit, pixels, source, metric, "L0H3", receivers)
        assert (expected[1:].flatten() - found.values[0]).abs().max() < 1e-6


def test_upstream_positions_come_from_the_image_width():
    """Why the docs ask for ``index_df``: 27 tokens, 6 pixel columns: 21 tokens are left out in silence."""
    from transformer_lens import patching

    model = random_vit(image_size=(8, 6), patch_size=(1, 2), n_layers=1)
    x = images(model)
    _, cache = model.run_with_cache(x)
    assert model.cfg.n_ctx == 27
    assert patching.get_act_patch_resid_pre(model, x, cache, lambda e: e.mean()).shape == (1, 6)


def test_the_guide_runs_as_written(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parent.parent / "docs" / "interventions.md").read_text()
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), "interventions.md", "exec"), names)
    assert "n=64, at every position" in capsys.readouterr().out
    assert names["ablated"].tensor().shape == (8, 8, 2)
    assert names["by_patch"].maps().shape == (8, 4, 4, 1)
    assert names["paths"].tensor("final").shape == (8, 8, 1)


@pytest.mark.parametrize("tokens", ["cls", "patch1", "patches", "(0,1)", "3", "register0"])
def test_a_position_in_the_address_is_that_of_tokens(tokens):
    from vit_lens import interventions as iv
    from vit_lens.addresses import Address

    model = random_vit()
    x, others = images(model), images(model, seed=1)
    _, cache = model.run_with_cache(others)
    for site in ("L1H2", "L0.mlp", "L1", "L1N4", "L1.resid_mid"):
        asked = f"{site}@{tokens}"
        for make in (iv.zero, lambda *given, **options: iv.patch(*given, cache, **options)):
            expected = model.run_with_hooks(x, fwd_hooks=make(model, site, tokens=tokens))
            for hooks in (
                make(model, asked), make(model, Address.parse(asked.lower())), make(model, [asked], tokens=tokens)
            ):  # fmt: skip
                assert torch.equal(model.run_with_hooks(x, fwd_hooks=hooks), expected)


def test_each_site_may_have_a_position_of_its_own(errors):
    from vit_lens import interventions as iv

    model = random_vit()
    x = images(model)
    apart = iv.zero(model, "L1H2", tokens="cls") + iv.zero(model, "L1H0", tokens=(0, 1)) + iv.zero(model, "L2.mlp")
    expected = model.run_with_hooks(x, fwd_hooks=apart)
    assert torch.equal(model.run_with_hooks(x, fwd_hooks=iv.zero(model, "L1H2@cls, L1H0@(0,1),L2.mlp")), expected)
    iv.zero(model, ["L1H2@patches", "L1.attn@cls"])  # another token: neither overwrites the other
    iv.zero(model, ["L1.mlp@cls", "L1.resid_post@patches"])
    for sites in (["L1H2@cls", "L1.attn"], ["L1.mlp@cls", "L1.resid_post@cls"], ["L0H1@cls", "L2.resid_pre"]):
        with pytest.raises(errors.InterventionError, match="would have no effect"):
            iv.zero(model, sites)


def test_positions_that_cannot_be_taken_are_refused(vit, pixels, pooling_vit, errors):
    from vit_lens import interventions as iv

    wrong, unknown = errors.InterventionError, errors.UnknownSiteError
    with pytest.raises(wrong, match="tokens='patches' says others: give one"):
        iv.zero(vit, "L0H1@cls", tokens="patches")
    with pytest.raises(wrong, match="the model has none"):
        iv.zero(vit, 'L0H1@"star"')
    with pytest.raises(wrong, match="out of range"):
        iv.zero(vit, "L0H1@patch99")
    with pytest.raises(wrong, match="attention pooling has one row"):
        iv.zero(pooling_vit, "poolH0@patches")
    for site in ("L0H1~3", "vision:L0H1@cls", "L0.b_O", "L0H1.q", "D0H1", "L0.f3", "pool", "D0", "vision:L0"):
        with pytest.raises(unknown):
            iv.zero(vit, site)
    for site in ("L0H1@cls", ["heads", "L0.mlp@(0,0)"]):
        with pytest.raises(unknown, match="without tower, position or step"):
            iv.ablate_each(vit, pixels, lambda e: e[:, 0], site, replacement="zero")


def test_the_position_of_a_sender(vit, pixels, errors):
    from vit_lens.interventions import patch_paths, path

    _, ours = vit.run_with_cache(pixels)
    _, theirs = vit.run_with_cache(pixels.flip(0))
    runs = [
        vit.run_with_hooks(pixels, fwd_hooks=path(vit, sender, "l2h2.V", ours, theirs, tokens=tokens))
        for sender, tokens in [("L0H3@(1,0)", None), ("L0H3", (1, 0)), ("L0H3", None)]
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    for sender in ("heads", "L1", "L1N3"):
        with pytest.raises(errors.InterventionError, match="expected one head"):
            path(vit, sender, "final", ours, theirs)
    found = patch_paths(vit, pixels, pixels.flip(0), lambda e: e[:, 0], "L0H1", ["FINAL", "l2h1.Q+L2h2.k"])
    assert found.receivers == ("final", "L2H1.q + L2H2.k")
    assert torch.equal(found.tensor("l2H1.q + L2H2.K"), found.tensor("L2H1.q + L2H2.k"))
    for receiver in ("L2H1.q@cls", "embed", "D2H1", "L2.b_O", "L1N2"):
        with pytest.raises((errors.InterventionError, errors.UnknownSiteError)):
            path(vit, "L0H0", receiver, ours, theirs)
