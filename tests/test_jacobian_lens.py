"""The Jacobian lens: closed form, hooks, anchors and controls; sweeps, records and the command line."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_interventions import attn_pool, images, random_vit
from test_jacobians import KINDS, last_of

pytestmark = pytest.mark.tl3

EXACT = 1e-11  # float64
SITES = ["L0.resid_pre", "L0H1", "L1.attn", "L1.resid_mid", "L2.mlp", "L2.resid_post"]


@pytest.fixture(scope="module", params=list(KINDS))
def fitted(request):
    """A model of every kind of read-out, with a lens fitted on random images."""
    from vit_lens import JacobianLens

    given = {name: one() if callable(one) else one for name, one in KINDS[request.param].items()}
    model = random_vit(**given)
    return model, JacobianLens.fit(model, images(model, 3, seed=11), test=False, alpha=1.7)


@pytest.fixture(scope="module")
def small():
    from vit_lens import JacobianLens

    model = random_vit(n_layers=2)
    return model, JacobianLens.fit(model, images(model, 3, seed=11), test=False)


def written(model, cache, name):
    """What a site holds or writes at every row."""
    from vit_lens import Site

    site = Site.parse(name)
    act = cache[site.hook_name]
    return act if site.head is None else act[:, :, site.head] @ model.blocks[site.layer].attn.W_O[site.head]


def moved(model, lens, name, outputs):
    """sum over rows of J[group of the row] h(row), row by row."""
    made = lens.jacobians
    layer, at = int(name[1]), name[2:]
    place = 2 * layer + {".resid_pre": 0, ".attn": 1, ".resid_mid": 1, ".mlp": 2, ".resid_post": 2}.get(at, 1)
    return sum(outputs[:, row] @ made.values[place, made.groups[row]].T for row in range(model.cfg.n_ctx))


def read(model, last):
    """The embedding of what the output is read from, by the definitions."""
    if model.cfg.pool == "cls" or model.cfg.ln_final == "after_pool":
        last = torch.nn.functional.layer_norm(last, last.shape[-1:], model.ln_final.w, model.ln_final.b, model.cfg.eps)
    return last @ model.W_U + model.b_U


def test_three_anchors_from_the_definitions_and_by_hooks(fitted):
    from vit_lens import JacobianLens

    model, lens = fitted
    x, others, start = images(model, 2, seed=4), images(model, 3, seed=11), images(model, 2, seed=5)
    _, cache = model.run_with_cache(x)
    end = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    lenses = {
        "mean": (lens, others), "one image": (lens.at(model, start[:1]), start[:1]),
        "two": (lens.at(model, start), start),
        "raw": (JacobianLens(jacobians=lens.jacobians, alpha=None), None),
    }  # fmt: skip
    for which, (one, origin) in lenses.items():
        closed = one.embed(cache, SITES)
        for index, name in enumerate(SITES):
            state = moved(model, lens, name, written(model, cache, name))
            if origin is not None:
                _, theirs = model.run_with_cache(origin)
                there = moved(model, lens, name, written(model, theirs, name)).mean(0)
                state = last_of(model, theirs[end]).mean(0) + 1.7 * (state - there)
            assert (closed[:, index] - read(model, state)).abs().max() < EXACT, (which, name)
            hooked = model.run_with_hooks(x, fwd_hooks=one.hooks(cache, name))
            assert (hooked - closed[:, index]).abs().max() < EXACT, (which, name)
        assert (one.embed(cache, SITES[::-1]) - closed.flip(1)).abs().max() < EXACT
    edited = [("blocks.0.hook_mlp_out", lambda act, hook: act * 0.5)]  # what is written in the run is what is read
    with model.hooks(fwd_hooks=edited):
        live = model.run_with_hooks(x, fwd_hooks=lens.hooks(cache, "L1.attn"))
        _, after = model.run_with_cache(x)
    assert (live - lens.embed(after, "L1.attn")[:, 0]).abs().max() < EXACT
    assert (live - lens.embed(cache, "L1.attn")[:, 0]).abs().max() > 1e-4


def test_at_the_end_it_is_the_model(fitted):
    """Where the map is exact: the last residual; of pools of normed rows it is a first-order map of these."""
    from dataclasses import replace

    from vit_lens import JacobianLens

    model, lens = fitted
    clean, cache = model.run_with_cache(images(model, 2, seed=4))
    own = replace(lens, alpha=1).embed(cache, "L2.resid_post")[:, 0]
    raw = JacobianLens(jacobians=lens.jacobians, alpha=None).embed(cache, "L2.resid_post")[:, 0]
    is_exact = model.cfg.pool == "cls" or model.cfg.ln_final == "after_pool"
    for found in (own, raw):
        assert ((found - clean).abs().max() < EXACT) == is_exact
    assert (lens.last(cache) - last_of(model, cache["blocks.2.hook_resid_post"])).abs().max() < EXACT
    assert (lens.read_last(model, lens.last(cache)) - clean).abs().max() < EXACT


def test_an_anchored_variant_is_composed_of_three_calls(fitted):
    model, lens = fitted
    x, a = images(model, 2, seed=4), images(model, 1, seed=5)
    _, cache = model.run_with_cache(x)
    _, start = model.run_with_cache(a)
    states = lens.last(start)[:, None] + 1.7 * (lens.transport(cache, SITES) - lens.transport(start, SITES))
    assert (lens.read_last(model, states) - lens.at(model, a).embed(cache, SITES)).abs().max() < EXACT
    itself = lens.at(model, x[:1]).embed(cache, SITES)[0]  # of the anchor itself nothing changes
    assert (itself - model(x[:1])).abs().max() < EXACT


def test_controls_are_as_long_as_what_arrives(fitted):
    from vit_lens.lenses import centred_norm

    model, lens = fitted
    _, cache = model.run_with_cache(images(model, 3, seed=4))
    sites, seen = SITES[1:], []
    plain = type(lens)._embed
    placebo = lens.placebo(cache, sites, generator=torch.Generator().manual_seed(0))
    again = lens.placebo(cache, sites, generator=torch.Generator().manual_seed(0))
    assert torch.equal(placebo, again) and (placebo - lens.embed(cache, sites)).abs().amax(-1).min() > 1e-6
    type(lens)._embed = lambda self, stream, states: seen.append(states) or plain(self, stream, states)
    try:
        (
            lens.embed(cache, sites),
            lens.placebo(cache, sites, generator=torch.Generator()),
            lens.other_image(cache, sites),
        )
    finally:
        type(lens)._embed = plain
    start = lens.jacobians.means.last
    own, random, other = (centred_norm(states - start) for states in seen)
    assert (own - random).abs().max() < EXACT and (own - other).abs().max() < EXACT
    directions = [(states - start)[:, :, 0] for states in seen]
    directions = [x - x.mean(-1, keepdim=True) for x in directions]
    cosine = torch.nn.functional.cosine_similarity(directions[2], directions[0].roll(-1, 0), dim=-1)
    assert (cosine - 1).abs().max() < 1e-9


@pytest.mark.usefixtures("unchecked")
def test_what_it_cannot_read_is_refused(small, errors):
    from faults import outcomes

    from vit_lens import JacobianLens, lenses

    model, lens = small
    made, x = lens.jacobians, images(model, 2)
    other = random_vit(n_layers=2, d_mlp=8)
    _, cache = model.run_with_cache(x)
    _, theirs = other.run_with_cache(x)
    _, readout = model.run_with_cache(x, rows="readout")
    _, cut = model.run_with_cache(x, pos_slice=[0, 1])
    pooling = random_vit(pool="attn", attn_pool=attn_pool(), n_registers=0)
    pooled = JacobianLens.fit(pooling, x, test=False)
    _, its = pooling.run_with_cache(x)
    cases = {
        "readout rows": (lambda: lens.embed(readout, "L0.mlp"), "LensError", "rows='readout'"),
        "cut": (lambda: lens.embed(cut, "L0.mlp"), "LensError", "rows='cut'"),
        "other model": (lambda: lens.embed(theirs, "L0.mlp"), "ReferenceMismatchError", "were made with"),
        "other anchor": (lambda: lens.at(other, x), "ReferenceMismatchError", "were made with"),
        "hooks of another": (lambda: lens.hooks(theirs, "L0.mlp"), "ReferenceMismatchError", "were made with"),
        "no anchor": (lambda: lens.at(model, []), "LensError", "no images to start from"),
        "layer": (lambda: lens.embed(cache, "L2.mlp"), "UnknownSiteError", "L0 to L1"),
        "pool": (lambda: pooled.embed(its, "poolH1"), "LensError", "not defined on poolH1"),
        "two sites": (lambda: lens.hooks(cache, "mlp"), "LensError", "hooks show one"),
        "dict": (lambda: lens.embed(dict(cache), "L0.mlp"), "LensError", "expected the cache"),
        "no file": (lambda: JacobianLens(jacobians="j.safetensors"), "LensError", "JacobianLens.load(path)"),
        "alpha": (lambda: JacobianLens(jacobians=made, alpha="5"), "LensError", "finite"),
        "nan": (lambda: JacobianLens(jacobians=made, alpha=float("nan")), "LensError", "finite"),
        "huge": (lambda: JacobianLens(jacobians=made, alpha=1e13), "LensError", "at most 1e+12"),
        "anchor": (lambda: JacobianLens(jacobians=made, anchor=3), "LensError", "lens.at(model, images)"),
        "raw anchor": (lambda: JacobianLens(jacobians=made, alpha=None, anchor=made.means), "LensError", "no effect"),
        "writes": (lambda: lens.read_writes(cache, "L0.mlp", x), "LensError", "at all rows"),
        "spelt": (lambda: lenses.parse_lens("jacobian:beta=1", None, made), "LensError", "jacobian:alpha=NUMBER"),
        "no Jacobians": (lambda: lenses.parse_lens("jacobian", None), "LensError", "vit-lens jacobian IMAGES"),
        "of texts": (lambda: lenses.parse_text_lenses("jacobian:alpha=5"), "LensError", "is of images"),
    }  # fmt: skip
    assert not outcomes(errors, cases)


def test_it_is_spelt_and_says_which_file_it_goes_by(small):
    from vit_lens.lenses import parse_lenses

    model, lens = small
    found = parse_lenses(["jacobian:alpha=2", "jacobian"], model, jacobians=lens.jacobians)
    assert [one.label for one in found] == ["Jacobian lens, mean-anchored, alpha 2", "Jacobian lens, raw"]
    said = [
        one.describe() for one in (*found, lens.at(model, images(model, 1)), lens.at(model, images(model, 1, seed=3)))
    ]
    assert len({one.id for one in said}) == 4
    assert all(one.settings["jacobian"] == lens.jacobians.content for one in said)
    assert said[0].settings["jacobian_n"] == 3 and "to first order" in said[0].words


# ---- records, and the command line --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from vit_lens.mini import world

    place = tmp_path_factory.mktemp("images")
    for index, pixels in enumerate(world.render(world.sample_scenes(5, np.random.default_rng(0)))):
        Image.fromarray(pixels).save(place / f"{index:02d}.png")
    return place


def test_fitted_divided_joined_and_swept_from_the_command_line(folder, tmp_path, vit_lens):
    """One command fits and prints the error; parts and a merge give the same; records say which file was used."""
    import vit_lens as vl

    whole, joined = tmp_path / "whole.safetensors", tmp_path / "joined.safetensors"
    fit = ("jacobian", folder, "--n-held-out", "2", "--out")
    status, output, errors = vit_lens(*fit, whole, "--plan")
    assert status == 0 and "3 images, 384 vector-Jacobian products" in output and not whole.exists(), errors
    status, output, errors = vit_lens(*fit, whole)
    assert status == 0 and "L7.mlp          0.00 [0.00, 0.00]" in output and "Jacobians of 3 images" in output, errors
    lens = vl.JacobianLens.load(whole)
    assert lens.jacobians.error.n == 2 and lens.jacobians.preprocess["size"] == [64, 64]
    parts = [tmp_path / f"{index}.safetensors" for index in range(2)]
    for index, part in enumerate(parts):
        status, output, errors = vit_lens(*fit, part, "--shard", f"{index}/2")
        assert status == 0 and "(error not measured)" in output, errors
    status, output, errors = vit_lens("merge", *parts, "--out", joined)
    assert status == 0 and "Jacobians of 3 images" in output, errors
    status, output, errors = vit_lens(*fit, joined)
    assert status == 0 and "error against patching on 2 pairs" in output, errors
    found = vl.JacobianLens.load(joined).jacobians
    torch.testing.assert_close(found.values, lens.jacobians.values, rtol=1e-4, atol=1e-5)
    assert set(found.images) == set(lens.jacobians.images) and found.error.images == lens.jacobians.error.images

    sweep = [
        "sweep",
        folder / "00.png",
        "--decoder",
        "none",
        "--sites",
        "L2.mlp,L3H4",
        "--controls",
        "--out",
        tmp_path / "s",
    ]
    status, _, errors = vit_lens(*sweep, "--lens", "jacobian:alpha=5", "--lens", "jacobian", "--jacobian", whole)
    assert status == 0, errors
    record = vl.Record.load(tmp_path / "s")
    frame = record.frame()
    assert set(frame.lens) == {"jacobian"} and set(frame.jacobian) == {lens.jacobians.content} and len(frame) == 8
    model = vl.HookedViT.from_pretrained("mini")
    _, cache = vl.lenses.run_for(model, model.preprocess([folder / "00.png"]), lens)
    own = frame[(frame.alpha == 5) & (frame.control == "")].set_index("site").row
    for site in ("L2.mlp", "L3H4"):
        kept = torch.as_tensor(record.embeddings["lens"][own[site]])
        torch.testing.assert_close(kept, lens.embed(cache, site)[0, 0].detach(), rtol=1e-4, atol=1e-4)
    status, output, errors = vit_lens(
        "readout", folder / "00.png", "--lens", "jacobian:alpha=1", "--jacobian", whole, "--sites",
        "L7.resid_post,L1.mlp", "--reference-images", folder / "01.png", "--controls",
    )  # fmt: skip
    assert status == 0 and "L1.mlp random" not in output.split("\n")[0] and "centred" in output, errors


def test_the_command_line_refuses_in_words(folder, tmp_path, vit_lens):
    import vit_lens as vl

    other = random_vit(n_layers=1)
    theirs = vl.JacobianLens.fit(other, images(other, 2), test=False).save(tmp_path / "theirs.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
    (tmp_path / "empty").mkdir()
    out, picture = ["--out", tmp_path / "o.safetensors"], folder / "00.png"
    lens = ["sweep", picture, "--decoder", "none", "--sites", "L2.mlp", "--out", tmp_path / "s", "--lens", "jacobian"]
    cases = [
        (["jacobian", *out], "no images"),
        (["jacobian", tmp_path / "empty", *out], "no image"),
        (["jacobian", picture, *out], "0 of 1 image held out"),
        (["jacobian", picture, picture, "--n-held-out", "0", *out], "same picture"),
        (["jacobian", folder, "--out", tmp_path / "o.json"], "ends in .safetensors"),
        (["jacobian", folder, "--n-held-out", "2", "--shard", "2/2", *out], "from 0 to 1"),
        (["jacobian", folder, *out], "1 of 5 images held out"),
        (["jacobian", folder, "--n-held-out", "2", "--shard", "7/9", *out], "3 images to divide"),
        (["jacobian", folder, "--shard", "1", *out], "write I/N"),
        (["jacobian", folder, "--n-held-out", "2", "--out", tmp_path / "bad.safetensors"], "not a whole safetensors"),
        (["jacobian", folder, "--n-held-out", "2", "--out", theirs], "were made with"),
        (["jacobian", folder, "--n-held-out", "0", "--out", theirs], "is there already"),
        (["merge", theirs, tmp_path / "s", *out], "files of Jacobians"),
        (["merge", theirs, theirs, *out], "share 2 images"),
        (["merge", theirs, "--out", theirs], "is a file"),
        ([*lens, "--model", "ViT-B-32"], "vit-lens jacobian IMAGES"),  # mini has its own
        ([*lens, "--jacobian", theirs], "were made with"),
        ([*lens, "--jacobian", tmp_path / "bad.safetensors"], "not a whole safetensors file"),
        ([*lens, "--jacobian", tmp_path / "none.safetensors"], "no Jacobians at"),
        ([*lens[:-1], "diffusion", "--jacobian", theirs], "serves the lens jacobian alone"),
        (["sweep", "--prompts", "a star", "--model", "mini-sd", "--lens", "jacobian:alpha=5", *out[:1], tmp_path / "t"],
         "is of images"),
        (["sweep", "--prompts", "a star", "--model", "mini-sd", "--jacobian", theirs, *out[:1], tmp_path / "t"],
         "--jacobian"),
    ]  # fmt: skip
    for words, says in cases:
        status, _, errors = vit_lens(*words)
        assert status == 2 and says in errors and "Traceback" not in errors, (words, errors)
