"""Averaged Jacobians against finite differences and explicit derivatives, in parts, resumed, saved and damaged."""

import pytest
import torch
from test_interventions import attn_pool, images, norm, random_vit, slow

pytestmark = pytest.mark.tl3

EXACT = 1e-11  # float64, products of some thirty matrices of order 1
KINDS = {
    "cls": dict(),
    "patches": dict(pool="avg"),
    "pooled": dict(pool="avg", ln_final="after_pool", n_registers=0, has_cls=False),
    "attn": dict(pool="attn", attn_pool=attn_pool, n_registers=0),
}


@pytest.fixture(scope="module", params=list(KINDS))
def model(request):
    """Every kind of read-out; class token, registers and patches, or fewer; frozen weights."""
    given = {name: one() if callable(one) else one for name, one in KINDS[request.param].items()}
    return random_vit(**given)


def last_of(model, resid):
    """What the output is read from, by the definitions: one row, the mean row, or what is pooled of normed rows."""
    if model.cfg.pool == "cls":
        return resid[:, 0]
    patches = slice(model.cfg.n_prefix, None)
    if model.cfg.ln_final == "after_pool":
        return resid[:, patches].mean(1)
    normed = norm(model.ln_final, resid)
    return normed[:, patches].mean(1) if model.cfg.pool == "avg" else model.attn_pool(normed)


def places(model):
    """The places of Jacobians as those of the slow pass."""
    behind = [(layer, at) for layer in range(model.cfg.n_layers) for at in ("resid_mid", "resid_post")]
    return [(0, "resid_pre"), *behind]


def last_with(model, x, place, added):
    """What the output is read from when something is added at a place, in a pass that uses no hooks."""
    seen = {}

    def edit(at, value):
        return seen.setdefault(at, value + added if at == place else value)

    slow(model, x, edit)
    return last_of(model, seen[model.cfg.n_layers - 1, "resid_post"])


def test_every_row_equals_central_differences(model):
    """Along random changes of all rows at every place."""
    from vit_lens.reference import fit_jacobians

    x, step = images(model, 2, seed=3), 1e-5
    found = fit_jacobians(model, x, per_row=True, batch_size=1).values
    generator = torch.Generator().manual_seed(0)
    ways = torch.randn(7, model.cfg.n_ctx, model.cfg.d_model, dtype=torch.float64, generator=generator)
    for index, place in enumerate(places(model)):
        slopes = []
        for one in x[:, None]:
            both = torch.cat([step * ways, -step * ways])
            ends = last_with(model, one.expand(len(both), -1, -1, -1), place, both)
            slopes.append((ends[: len(ways)] - ends[len(ways) :]) / (2 * step))
        mean = torch.stack(slopes).mean(0)
        along = torch.einsum("roi,wri->wo", found[index], ways)
        assert mean.abs().max() > 1e-3
        assert (along - mean).abs().max() < 1e-6, place


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_groups_equal_means_of_explicit_jacobians(model, batch_size, monkeypatch):
    """Rows of a group are averaged, images are; whatever the batch, and however few products one pass takes."""
    from vit_lens.reference import backward, fit_jacobians

    monkeypatch.setattr(backward, "_chunk", lambda model, n: 4)  # 11 and 9 numbers are no multiple of it
    x = images(model, 3, seed=5)
    made = fit_jacobians(model, x, batch_size=batch_size)
    groups = [range(int(model.cfg.has_cls)), range(model.cfg.n_registers), range(model.cfg.n_patches)]
    firsts = [0, int(model.cfg.has_cls), model.cfg.n_prefix]
    groups = [[first + row for row in rows] for first, rows in zip(firsts, groups, strict=True) if len(rows)]
    assert [sorted((made.groups == index).nonzero()[:, 0].tolist()) for index in range(len(groups))] == groups
    for index, place in enumerate(places(model)):
        if index % 3 == batch_size % 3:  # a third of the places, others for other batches
            continue
        explicit = [
            torch.autograd.functional.jacobian(
                lambda added, one=one, place=place: last_with(model, one, place, added)[0],
                torch.zeros(model.cfg.n_ctx, model.cfg.d_model, dtype=torch.float64),
            )
            for one in x[:, None]
        ]
        per_row = torch.stack(explicit).mean(0).transpose(0, 1)  # [row d_last d_model]
        for group, rows in enumerate(groups):
            assert (made.values[index, group] - per_row[rows].mean(0)).abs().max() < EXACT, (place, group)


def test_means_are_those_of_rows_and_of_every_site(model):
    from vit_lens import Site
    from vit_lens.reference import fit_jacobians

    x = images(model, 5, seed=6)
    made = fit_jacobians(model, x, batch_size=2)
    _, cache = model.run_with_cache(x)
    seen = {}
    slow(model, x, lambda place, value: seen.setdefault(place, value))
    assert (made.means.last - last_of(model, seen[2, "resid_post"]).mean(0)).abs().max() < EXACT
    for name in ("L0.resid_pre", "L1.resid_mid", "L2.resid_post", "L1.mlp", "L2.attn", "L1H2"):
        site = Site.parse(name)
        own = seen[(site.layer, site.kind) if site.head is None else (site.layer, "head", site.head)]
        if site.head is not None:
            own = own @ model.blocks[site.layer].attn.W_O[site.head]
        for group in range(made.values.shape[1]):
            summed = own[:, made.groups == group].sum(1)
            assert (made.written(cache, site)[:, group] - summed).abs().max() < EXACT
            assert (made.mean_written(model, site)[group] - summed.mean(0)).abs().max() < EXACT


def test_transport_is_the_derivative_of_patching(model):
    """A small part of a true change, of one image, is what its own Jacobian says; every site, rows summed."""
    from vit_lens import Site
    from vit_lens.reference import fit_jacobians

    x, step = images(model, 2, seed=8), 1e-5
    made = fit_jacobians(model, x[:1], per_row=True)
    _, cache = model.run_with_cache(x)
    names = {"L0H2": (0, "head", 2), "L0.attn": (0, "attn"), "L1.mlp": (1, "mlp"), "L2.resid_pre": (2, "resid_pre")}
    seen = {}
    slow(model, x, lambda place, value: seen.setdefault(place, value))
    for name, place in names.items():
        site, change = Site.parse(name), seen[place][1] - seen[place][0]
        ends = [last_with(model, x[:1], place, sign * step * change) for sign in (1, -1)]
        slope = (ends[0] - ends[1])[0] / (2 * step)
        written = made.written(cache, site)
        moved = made.transport(written[1] - written[0], site)
        assert slope.abs().max() > 1e-3 and (moved - slope).abs().max() < 1e-6, name


def test_frozen_half_precision_and_gradients(model):
    """Weights that want gradients get none; half precision is computed with as the same weights in float32 are."""
    from vit_lens import HookedViT
    from vit_lens.reference import fit_jacobians

    x = images(model, 2)
    frozen = fit_jacobians(model, x)
    wanting = HookedViT(model.cfg).double()
    wanting.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(fit_jacobians(wanting, x).values, frozen.values)
    assert all(one.requires_grad and one.grad is None for one in wanting.parameters())
    assert not any(one.requires_grad for one in model.parameters())
    half = HookedViT(model.cfg).double()
    half.load_state_dict(model.state_dict())
    half = half.to(torch.bfloat16).requires_grad_(False)
    wide = HookedViT(model.cfg)
    wide.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
    found = fit_jacobians(half, x.bfloat16())
    assert found.values.dtype == torch.float32 and half.dtype == torch.bfloat16
    assert torch.equal(found.values, fit_jacobians(wide, x.bfloat16().float()).values)
    assert found.check(half).weights.startswith("bfloat16:")


# ---- parts, interruption, files ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    return random_vit(n_layers=2, d_mlp=9)


def same(a, b):
    ours, theirs = ({"values": one.values, **one.means.tensors()} for one in (a, b))
    return all(torch.equal(ours[name], theirs[name]) for name in ours) and a.images == b.images


def test_merged_parts_are_the_whole(small):
    from vit_lens import JacobianLens

    x = images(small, 7)
    whole = JacobianLens.fit(small, x, test=False).jacobians
    parts = [JacobianLens.fit(small, x[rows], test=False) for rows in ([0, 3, 6], [1], [2, 4, 5])]
    merged = JacobianLens.merge(parts, alpha=3)
    assert merged.alpha == 3 and merged.jacobians.n == 7 and set(merged.jacobians.images) == set(whole.images)
    assert (merged.jacobians.values - whole.values).abs().max() < 1e-13
    for name, mean in whole.means.tensors().items():
        assert (merged.jacobians.means.tensors()[name] - mean).abs().max() < 1e-13, name
    assert (parts[0].jacobians.values - whole.values).abs().max() > 1e-3  # or weights would not show


def test_an_interrupted_fit_goes_on_to_the_same_bits(small, tmp_path, monkeypatch, errors):
    from vit_lens import JacobianLens
    from vit_lens.reference import fitting

    x, held, out = images(small, 7), images(small, 3, seed=9), tmp_path / "j.safetensors"
    how = dict(batch_size=2, held_out=held)
    whole = JacobianLens.fit(small, x, **how).jacobians
    real, runs = fitting.sums_of_batch, []

    def stopping(model, pixels, groups):
        if len(runs) == 2:
            raise KeyboardInterrupt
        runs.append(len(pixels))
        return real(model, pixels, groups)

    monkeypatch.setattr(fitting, "sums_of_batch", stopping)
    with pytest.raises(KeyboardInterrupt):
        JacobianLens.fit(small, x, out=out, **how)
    partial = tmp_path / "j.safetensors.partial"
    assert partial.is_file() and not out.exists()
    monkeypatch.setattr(fitting, "sums_of_batch", lambda *given: runs.append(len(given[1])) or real(*given))
    for other in (dict(batch_size=3), dict(per_row=True)):
        with pytest.raises(errors.LensError, match="begun with other"):
            JacobianLens.fit(small, x, out=out, **how | other)
    with pytest.raises(errors.LensError, match="begun with other images"):
        JacobianLens.fit(small, x[:6], out=out, **how)
    with pytest.raises(errors.LensError, match="begun with other encoder_id, fingerprint, weights"):
        JacobianLens.fit(random_vit(n_layers=2, d_mlp=8), x, out=out, **how)
    assert len(runs) == 2
    again = JacobianLens.fit(small, x, out=out, **how).jacobians
    assert runs == [2, 2, 2, 1] and not partial.exists()
    assert same(again, whole) and again.error == whole.error and same(JacobianLens.load(out).jacobians, whole)
    assert JacobianLens.fit(small, x, out=out, **how).jacobians.error == whole.error and len(runs) == 4  # it is there


def test_what_is_fitted_is_tested_later(small, tmp_path, monkeypatch, errors):
    """An interruption between the two, and joined parts: the file is there, its error is not."""
    from vit_lens import JacobianLens
    from vit_lens.reference import making

    x, held = images(small, 4), images(small, 3, seed=9)
    parts = [JacobianLens.fit(small, x[rows], test=False) for rows in ([1, 3], [0, 2])]
    out = JacobianLens.merge(parts).save(tmp_path / "j.safetensors")
    monkeypatch.setattr(making, "fit_jacobians", lambda *a, **k: pytest.fail("fitted again"))
    lens = JacobianLens.fit(small, x, held_out=held, out=out)
    assert lens.jacobians.error.n == 3 and JacobianLens.load(out).jacobians.error == lens.jacobians.error
    assert lens.jacobians.error == JacobianLens.merge(parts).measure(small, held).jacobians.error
    with pytest.raises(errors.LensError, match="is there already, with 4 other images"):
        JacobianLens.fit(small, x[:3], held_out=held, out=out)
    with pytest.raises(errors.LensError, match="is there already, with other groups"):
        JacobianLens.fit(small, x, held_out=held, out=out, per_row=True)
    with pytest.raises(errors.LensError, match="an error on 3 other held-out images"):
        JacobianLens.fit(small, x, held_out=held[:2], out=out)


def test_a_full_disk_loses_nothing(small, tmp_path, monkeypatch, errors):
    """Of the sums: those before stay; of the file: the sums do."""
    from vit_lens import JacobianLens, files
    from vit_lens.reference import fitting

    x, out = images(small, 6), tmp_path / "j.safetensors"
    partial, how = tmp_path / "j.safetensors.partial", dict(batch_size=2, test=False)
    whole = JacobianLens.fit(small, x, **how).jacobians
    real, full, written = files.write_atomic, set(), []

    def write(path, data):
        written.append(path.name)
        if path.name in full or len(written) in full:
            raise errors.OutputError("no space left")
        return real(path, data)

    monkeypatch.setattr(files, "write_atomic", write)
    full.update({2, 3})  # the second checkpoint, and the attempt that follows
    with pytest.raises(errors.OutputError, match="no space left"):
        JacobianLens.fit(small, x, out=out, **how)
    assert partial.exists() and not out.exists()
    full.clear()
    full.add(out.name)
    with pytest.raises(errors.OutputError, match="no space left"):
        JacobianLens.fit(small, x, out=out, **how)
    assert partial.exists() and not out.exists()
    full.clear()
    monkeypatch.setattr(fitting, "sums_of_batch", lambda *a: pytest.fail("what was summed is lost"))
    assert same(JacobianLens.fit(small, x, out=out, **how).jacobians, whole) and not partial.exists()


def test_files_keep_everything_and_damage_is_told(small, tmp_path, errors):
    from vit_lens import JacobianLens
    from vit_lens.files import save_tensors
    from vit_lens.reference import Jacobians

    lens = JacobianLens.fit(small, images(small, 3), held_out=images(small, 2, seed=4))
    path = lens.save(tmp_path / "j.safetensors")
    back = Jacobians.load(path)
    assert same(back, lens.jacobians) and back.error == lens.jacobians.error and back.content == lens.jacobians.content
    assert (back.weights, back.preprocess, back.encoder_id) == (small.exact_fingerprint(), {}, small.encoder_id)
    assert back.check(small) is back and repr(back) == repr(lens.jacobians)
    whole = path.read_bytes()
    cases = {
        "cut": whole[: len(whole) // 2], "flipped": whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:], "empty": b"",
        "no file of this kind": b"JPEG" * 100,
    }  # fmt: skip
    for name, data in cases.items():
        (tmp_path / "bad.safetensors").write_bytes(data)
        with pytest.raises(errors.LensError, match=r"jacobian IMAGES"):
            Jacobians.load(tmp_path / "bad.safetensors")
        assert name
    other = save_tensors({"x": torch.zeros(2)}, tmp_path / "other.safetensors", {"format": "other.1"})
    with pytest.raises(errors.LensError, match="does not hold Jacobians"):
        Jacobians.load(other)
    with pytest.raises(errors.LensError, match="no Jacobians at"):
        Jacobians.load(tmp_path / "none.safetensors")
    (tmp_path / "j2.safetensors.partial").write_bytes(whole)
    with pytest.raises(errors.LensError, match="does not hold sums of Jacobians"):
        JacobianLens.fit(small, images(small, 3), test=False, out=tmp_path / "j2.safetensors")


# ---- the error against patching ------------------------------------------------------------------------------------


def test_the_error_is_that_of_patching(model, errors):
    """Against interventions.patch, and predictions summed row by row."""
    from vit_lens import JacobianLens, Site, interventions

    x, held = images(model, 4, seed=1), images(model, 3, seed=2)
    lens = JacobianLens.fit(model, x, test=False, per_row=True)
    sites = ["L0.attn", "L1.mlp", "L2.mlp", "L1H2", "L1.resid_post"]
    table = lens.measure(model, held, sites=sites, batch_size=2).jacobians.error.frame()
    assert list(table.site.unique()) == sites and len(table) == 4 * len(sites)
    table = table.set_index(["site", "of", "by"])
    clean, cache = model.run_with_cache(held)
    for name in sites:
        site = Site.parse(name)
        hooks = interventions.patch(model, name, cache, images=[1, 2, 0])
        patched, after = model.run_with_cache(held, names_filter="blocks.2.hook_resid_post")
        with model.hooks(fwd_hooks=hooks):
            patched, after = model.run_with_cache(held)
        end = "blocks.2.hook_resid_post"
        true = last_of(model, after[end]) - last_of(model, cache[end])
        out = cache[site.hook_name]
        out = out if site.head is None else out[:, :, site.head] @ model.blocks[1].attn.W_O[site.head]
        change = out.roll(-1, 0) - out
        place = 2 * site.layer + (1 if site.kind in ("head", "attn") else 2)
        for by, jacobian in (("jacobian", lens.jacobians.values[place]), ("direct", lens.jacobians.values[-1])):
            moved = torch.stack([
                sum(jacobian[row] @ change[image, row] for row in range(model.cfg.n_ctx)) for image in range(3)
            ])  # fmt: skip
            read = lens.read_last(model, last_of(model, cache[end]) + moved) - clean
            for of, told, real in (("last", moved, true), ("embed", read, patched - clean)):
                row = table.loc[name, of, by]
                assert row.error == pytest.approx(float((told - real).norm() / real.norm()), rel=1e-8, abs=1e-10)
                cosines = torch.nn.functional.cosine_similarity(told, real, dim=-1)
                assert row.cosine == pytest.approx(float(cosines.mean()), abs=1e-9)
                assert row.effect == pytest.approx(float(real.norm(dim=-1).mean()), rel=1e-8)
                assert row.error_low <= row.error + 1e-12 and row.error <= row.error_high + 1e-12
    assert table.loc["L1.mlp", "last", "jacobian"].error > 1e-3


def test_the_direct_prediction_is_the_site_added_to_the_last_residual(small):
    """At the class token nothing else; and behind the last block it is all there is."""
    from vit_lens import JacobianLens

    lens = JacobianLens.fit(small, images(small, 3), test=False)
    direct = lens.jacobians.values[-1]
    assert torch.equal(direct[0], torch.eye(11, dtype=torch.float64)) and not direct[1:].any()
    table = lens.measure(small, images(small, 4, seed=2)).jacobians.error.frame().set_index(["site", "of", "by"])
    assert (table.loc["L1.mlp"].error < 1e-12).all() and (table.loc["L0.mlp"].error > 1e-3).all()
    told = str(lens.measure(small, images(small, 4, seed=2)).jacobians.error).splitlines()
    assert len(told) == 3 + 4 and told[0].startswith("error against patching on 4 pairs")
    assert told[-1].split()[:2] == ["L1.mlp", "0.00"]


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_fitted_or_joined_is_refused(small, errors, tmp_path):
    from faults import outcomes

    from vit_lens import HookedTextEncoder, JacobianLens, Site
    from vit_lens.reference import Jacobians, measure_error, split_held_out

    x = images(small, 4)
    lens = JacobianLens.fit(small, x[:2], test=False)
    other = random_vit(n_layers=2, d_mlp=8)
    theirs, more = JacobianLens.fit(other, x[2:], test=False), JacobianLens.fit(small, x[1:], test=False)
    per_row = JacobianLens.fit(small, x[2:], test=False, per_row=True)
    text, made = HookedTextEncoder.from_pretrained("mini"), lens.jacobians
    deep = Site.parse("L2.mlp")
    hooked = random_vit(n_layers=2, d_mlp=9)
    hooked.add_hook("blocks.0.hook_mlp_out", lambda act, hook: act * 2)
    cases = {
        "text": (lambda: JacobianLens.fit(text, ["a star"] * 9), "LensError", "expected HookedViT"),
        "text cost": (lambda: JacobianLens.cost(text, 9), "LensError", "expected HookedViT"),
        "no model": (lambda: JacobianLens.fit("mini", x), "LensError", "expected a HookedViT, not str"),
        "no images": (lambda: JacobianLens.fit(small, [], test=False), "LensError", "at least one image"),
        "no pixels": (lambda: JacobianLens.fit(small, x[:0], test=False), "LensError", "at least one image"),
        "few images": (lambda: JacobianLens.fit(small, x), "LensError", "1 of 4 images held out"),
        "one held out": (lambda: JacobianLens.fit(small, x[:2], held_out=x[2:3]), "LensError", "at least two"),
        "all held out": (lambda: split_held_out(x, 4), "LensError", "4 of 4 images held out"),
        "test nothing": (lambda: JacobianLens.fit(small, x[:2], held_out=x[2:], test=False), "LensError", "leave one"),
        "twice": (lambda: JacobianLens.fit(small, x[[0, 1, 0]], test=False), "LensError", "0 and 2 are the same"),
        "fitted on": (lambda: lens.measure(small, x[1:]), "LensError", "1 of the held-out images were fitted on"),
        "held out twice": (lambda: lens.measure(small, x[[2, 2]]), "LensError", "are the same picture"),
        "hooked": (lambda: JacobianLens.fit(hooked, x, test=False), "VitLensError", "hook"),
        "batch": (lambda: JacobianLens.fit(small, x, test=False, batch_size=0), "VitLensError", "batch_size=0"),
        "layer": (lambda: made.place(deep), "LensError", "have layers L0 to L1"),
        "layer of model": (lambda: lens.measure(small, x[2:], sites="L2.mlp"), "UnknownSiteError", "L0 to L1"),
        "pool": (lambda: made.place(Site.parse("pool.attn")), "LensError", "behind the last residual"),
        "other model": (lambda: made.check(other), "ReferenceMismatchError", "vit-lens jacobian"),
        "other measured": (lambda: measure_error(made, other, x[2:]), "ReferenceMismatchError", "were made with"),
        "nothing": (lambda: JacobianLens.merge([]), "LensError", "no parts"),
        "overlap": (lambda: JacobianLens.merge([lens, more]), "LensError", "parts 0 and 1 share 1 image"),
        "itself": (lambda: JacobianLens.merge([lens, lens]), "LensError", "share 2 images"),
        "models": (lambda: JacobianLens.merge([lens, theirs]), "ReferenceMismatchError", "made with other weights"),
        "groups": (lambda: JacobianLens.merge([lens, per_row]), "LensError", "part 1 has 9 groups of rows"),
        "no lens": (lambda: JacobianLens.merge([lens, 3]), "LensError", "part 1 is of type int"),
        "a path": (lambda: Jacobians.load(3), "LensError", "path is of type int"),
        "no folder": (lambda: lens.save(tmp_path), "OutputError", "cannot write"),
    }  # fmt: skip
    assert not outcomes(errors, cases)


def test_another_preprocessing_is_refused(errors):
    from dataclasses import replace

    import numpy as np

    from vit_lens import PreprocessSpec
    from vit_lens.reference import fit_jacobians

    plain = dict(size=(8, 15), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", resize_mode="squash")
    model = random_vit(n_layers=1)
    model.preprocess_spec = PreprocessSpec(**plain)
    picture = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    made = fit_jacobians(model, [picture])
    assert made.check(model).preprocess["resize_mode"] == "squash"
    model.preprocess_spec = replace(model.preprocess_spec, mean=(0.4,) * 3)
    with pytest.raises(errors.ReferenceMismatchError, match="preprocessed with mean"):
        made.check(model)
