"""Reference means, their stability and their files, against averages taken by hand."""

import math

import pytest
import torch
from conftest import randomize
from test_interventions import attn_pool, images, random_vit

pytestmark = pytest.mark.tl3

TOLERANCE = 1e-11


def kinds(model):
    return {
        "resid_pre": ["blocks.0.hook_resid_pre"],
        "z": [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)],
        "mlp_out": [f"blocks.{layer}.hook_mlp_out" for layer in range(model.cfg.n_layers)],
    }


def single_runs(model, x):
    """The activations of each image, run by itself."""
    caches = [model.run_with_cache(one[None])[1] for one in x]
    return lambda name: torch.cat([cache[name] for cache in caches])


@pytest.mark.parametrize(("positions", "batch_size"), [("readout", 3), ("all", 1), ("all", 64)])
def test_means_and_stability_equal_slow_averages(readout_vit, positions, batch_size):
    from vit_lens import ReferenceMeans

    model, _ = readout_vit
    x = images(model, 13)
    means = ReferenceMeans.from_images(model, x, positions=positions, batch_size=batch_size)
    acts = single_runs(model, x)
    stability = means.stability
    assert (means.n, means.positions, stability.n) == (13, positions, 13)
    assert list(stability.distance) == [6, 3, 1]
    for kind, names in kinds(model).items():
        for layer, name in enumerate(names):
            act = acts(name)
            rows = act if positions == "all" else model.readout_rows(act)
            held = means.resid_pre if kind == "resid_pre" else getattr(means, kind)[layer]
            assert held.shape == rows.shape[1:] and (held - rows.mean(0)).abs().max() < TOLERANCE
            deviations = (rows - rows.mean(0)).flatten(1).norm(dim=-1)
            spread = math.sqrt(float(deviations.square().sum()) / 12)
            for m in (6, 3, 1):
                distance = float((rows[:m].mean(0) - rows.mean(0)).norm())
                assert stability.distance[m][kind][layer] == pytest.approx(distance, rel=1e-6, abs=1e-7)
            halves = float((rows[::2].mean(0) - rows[1::2].mean(0)).norm())
            assert stability.halves[kind][layer] == pytest.approx(halves, rel=1e-6, abs=1e-7)
            constant = spread < 1e-7  # the class token before the first block
            assert stability.spread[kind][layer] == pytest.approx(0 if constant else spread, rel=1e-6)
    ratio = [d / s for d, s in zip(stability.distance[3]["z"], stability.spread["z"], strict=True)]
    assert stability.error("z", "first 3") == pytest.approx(math.sqrt(sum(r * r for r in ratio) / 3))


def test_errors_of_independent_images_are_those_of_chance():
    """A set drawn at random shows the errors that the formulas promise; a sorted one shows more."""
    from vit_lens import ReferenceMeans

    model = random_vit()
    x = images(model, 64)
    stability = ReferenceMeans.from_images(model, x).stability
    for part in ("first 32", "first 8", "halves"):
        for kind in ("z", "mlp_out"):
            assert 0.6 < stability.error(kind, part) / stability.by_chance(part) < 1.6, (part, kind)
    order = model(x)[:, 0].argsort()
    ordered = ReferenceMeans.from_images(model, x[order]).stability
    assert ordered.error("mlp_out", "first 32") > 1.3 * stability.error("mlp_out", "first 32")
    table = stability.frame()
    assert len(table) == (1 + 3 + 3) * 5
    assert set(table.columns) >= {"kind", "layer", "part", "m", "distance", "spread", "error", "by_chance"}
    row = table[(table.kind == "z") & (table.layer == 1) & (table.part == "first 16")].iloc[0]
    assert row.error == pytest.approx(stability.distance[16]["z"][1] / stability.spread["z"][1])
    assert row.by_chance == pytest.approx(math.sqrt(1 / 16 - 1 / 64))
    assert (table[table.kind == "resid_pre"].error == 0).all()  # a constant


def test_stability_is_told(errors):
    from vit_lens import ReferenceMeans

    model = random_vit()
    text = repr(ReferenceMeans.from_images(model, images(model, 8), positions="all"))
    assert "n=8, at every position" in text and "halves" in text and "first 4" in text
    one = ReferenceMeans.from_images(model, images(model, 1))
    assert "nothing to compare" in repr(one) and len(one.stability.frame()) == 0
    with pytest.raises(errors.VitLensError, match="no part"):
        one.stability.error("z")
    with pytest.raises(errors.VitLensError, match="no kind 'q'"):
        one.stability.error("q")
    with pytest.raises(errors.VitLensError, match="positions='every'"):
        ReferenceMeans.from_images(model, images(model, 1), positions="every")


@pytest.mark.parametrize("kind", ["resid_pre", "resid_mid", "resid_post"])
def test_mean_residual_at_every_place(readout_vit, kind):
    """The residual stream is a sum, so its mean is that of the parts."""
    from vit_lens import ReferenceMeans, Site

    model, _ = readout_vit
    x = images(model, 5)
    acts = single_runs(model, x)
    for positions in ("readout", "all"):
        means = ReferenceMeans.from_images(model, x, positions=positions)
        for layer in range(3):
            act = acts(f"blocks.{layer}.hook_{kind}").mean(0, keepdim=True)
            expected = (act if positions == "all" else model.readout_rows(act))[0]
            assert (means.resid(model, layer, kind) - expected).abs().max() < TOLERANCE
            assert torch.equal(means.resid(model, layer - 3, kind), means.output(model, Site(layer, kind)))
    assert torch.equal(means.last_state(model), means.resid(model, 2))


def test_mean_outputs_of_every_site(readout_vit):
    from vit_lens import ReferenceMeans, Site

    model, _ = readout_vit
    x = images(model, 5)
    _, cache = model.run_with_cache(x, names_filter=lambda name: "hook_result" in name or "_out" in name)
    means = ReferenceMeans.from_images(model, x, positions="all")
    for layer in range(3):
        assert (means.output(model, Site(layer, "attn")) - cache["attn_out", layer].mean(0)).abs().max() < TOLERANCE
        assert (means.output(model, Site(layer, "mlp")) - cache["mlp_out", layer].mean(0)).abs().max() < TOLERANCE
        result = cache["result", layer].mean(0)
        for head in range(3):
            assert (means.output(model, Site(layer, "head", head)) - result[:, head]).abs().max() < TOLERANCE


@pytest.mark.parametrize("d_mlp", [8, None])
def test_means_of_attention_pooling(d_mlp, errors):
    from vit_lens import ReferenceMeans, Site

    model = random_vit(has_cls=False, n_registers=0, pool="attn", attn_pool=attn_pool(d_mlp=d_mlp))
    x = images(model, 5)
    _, cache = model.run_with_cache(x)
    means = ReferenceMeans.from_images(model, x)
    attn_out = cache["attn_pool.hook_attn_out"].mean(0)
    assert (means.output(model, Site.parse("pool.attn")) - attn_out).abs().max() < TOLERANCE
    heads = sum(means.output(model, Site.parse(f"poolH{head}")) for head in range(2)) + model.attn_pool.attn.b_O
    assert (heads - attn_out).abs().max() < TOLERANCE
    total = attn_out if d_mlp is None else attn_out + cache["attn_pool.hook_mlp_out"].mean(0)
    assert (means.last_state(model, pooled=True) - total).abs().max() < TOLERANCE
    assert (means.pool_mlp_out is None) == (d_mlp is None)
    with pytest.raises(errors.UnknownSiteError):
        means.last_state(random_vit(), pooled=True)


def test_files_keep_everything(readout_vit, tmp_path):
    from vit_lens import ReferenceMeans

    model, _ = readout_vit
    pooled = random_vit(has_cls=False, n_registers=0, pool="attn", attn_pool=attn_pool())
    for owner, positions in ((model, "readout"), (model, "all"), (pooled, "readout")):
        means = ReferenceMeans.from_images(owner, images(owner, 9), positions=positions)
        loaded = ReferenceMeans.load(means.save(tmp_path / "means.safetensors"))
        assert (loaded.n, loaded.positions, loaded.fingerprint) == (9, positions, owner.fingerprint)
        assert loaded.stability == means.stability and loaded.content == means.content
        assert torch.equal(loaded.z, means.z) and repr(loaded) == repr(means)
    assert torch.equal(loaded.pool_z, means.pool_z) and torch.equal(loaded.pool_mlp_out, means.pool_mlp_out)


def test_files_of_the_first_format_load(vit, pixels, tmp_path, errors):
    from vit_lens import ReferenceMeans
    from vit_lens.files import save_tensors

    means = ReferenceMeans.from_images(vit, pixels)
    tensors = {"resid_pre": means.resid_pre, "z": means.z, "mlp_out": means.mlp_out}
    meta = {
        "format": "vit_lens.reference_means.1",
        "encoder_id": vit.encoder_id,
        "fingerprint": vit.fingerprint,
        "n": "3",
    }
    old = ReferenceMeans.load(save_tensors(tensors, tmp_path / "old.safetensors", meta))
    assert (old.n, old.positions, old.stability, old.content) == (3, "readout", None, means.content)
    assert "stability unknown" in repr(old)
    assert old.check(vit) is old
    with pytest.raises(errors.VitLensError, match="format 'other'"):
        ReferenceMeans.load(save_tensors(tensors, tmp_path / "x.safetensors", meta | {"format": "other"}))
    for damage in ({"n": None}, {"n": "many"}, {"fingerprint": None}):
        short = {name: value for name, value in (meta | damage).items() if value is not None}
        with pytest.raises(errors.VitLensError, match="not a whole safetensors file of reference means"):
            ReferenceMeans.load(save_tensors(tensors, tmp_path / "x.safetensors", short))
    with pytest.raises(errors.VitLensError, match="cannot be read"):
        ReferenceMeans.load(save_tensors(tensors, tmp_path / "x.safetensors", meta | {"stability": "{}"}))


def test_shipped_means_load():
    from vit_lens import ReferenceMeans

    means = ReferenceMeans.load("mini")
    assert (means.n, means.positions, means.z.shape) == (512, "readout", (8, 1, 8, 16))


def test_positions_are_not_mixed_up(readout_vit, errors):
    """A lens reads the read-out rows: means of every position must be cut first."""
    from vit_lens import DiffusionSteeringLens, ReferenceMeans

    model, _ = readout_vit
    x = images(model, 4)
    rows = ReferenceMeans.from_images(model, x)
    every = ReferenceMeans.from_images(model, x, positions="all")
    cut = every.at_readout(model)
    for name in ("resid_pre", "z", "mlp_out"):
        assert (getattr(cut, name) - getattr(rows, name)).abs().max() < TOLERANCE
    assert rows.at_readout(model) is rows and cut.stability is None
    _, cache = model.run_with_cache(x)
    lens = DiffusionSteeringLens(alpha=3, anchor="mean", reference=cut)
    expected = DiffusionSteeringLens(alpha=3, anchor="mean", reference=rows).embed(cache, "L1H1")
    assert (lens.embed(cache, "L1H1") - expected).abs().max() < TOLERANCE
    with pytest.raises(errors.VitLensError, match=r"at_readout\(model\)"):
        DiffusionSteeringLens(alpha=3, anchor="mean", reference=every).embed(cache, "L1H1")
    with pytest.raises(errors.VitLensError, match="positions='all'"):
        rows.check(model, "all")


def test_another_models_means_are_refused(vit, pixels, errors):
    from vit_lens import HookedViT, ReferenceMeans

    means = ReferenceMeans.from_images(vit, pixels, positions="all")
    other = HookedViT(vit.cfg).double()
    randomize(other, seed=3)
    for use in (lambda: means.check(other), lambda: means.at_readout(other)):
        with pytest.raises(errors.ReferenceMismatchError, match=r"n=3.*were made with"):
            use()
    with vit.hooks(fwd_hooks=[("hook_embed", lambda act, hook: act)]):
        vit(pixels)
        with pytest.raises(errors.VitLensError, match="hooks are"):
            ReferenceMeans.from_images(vit, pixels)
    with pytest.raises(errors.VitLensError, match="at least one image"):
        ReferenceMeans.from_images(vit, [])
    with pytest.raises(errors.VitLensError, match="layers are 0 to 2"):
        means.resid(vit, 3)
    with pytest.raises(errors.VitLensError, match="kinds"):
        means.resid(vit, 0, "mlp")
