"""Hostile input to lenses: nothing silent, no bare error, nothing shared."""

import numpy as np
import pytest
import torch
from faults import outcomes, pickled

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture
def cache(vit, pixels):
    """One of its own for each test: some spoil it."""
    return vit.run_with_cache(pixels)[1]


@pytest.fixture(scope="module")
def means(vit, pixels):
    from vit_lens import ReferenceMeans

    return ReferenceMeans.from_images(vit, pixels)


def spoilt(cache, name, value=torch.nan, image=1):
    cache.cache_dict[name] = cache.cache_dict[name].clone()
    cache.cache_dict[name][image, ..., 3] = value
    return cache


# ---- H7: what is not finite passes no lens ---------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_refused_with_site_image_and_hook_point(cache, means, value, errors):
    from vit_lens import DiffusionLens, DiffusionSteeringLens

    spoilt(cache, "blocks.1.hook_mlp_out", value)
    lenses = [DiffusionLens(), DiffusionSteeringLens(alpha=2), DiffusionSteeringLens(share=1, anchor="mean",
              reference=means)]  # fmt: skip
    for lens in lenses:
        with pytest.raises(
            errors.LensError, match=r"L1\.mlp reads as nan or infinity for image 1: so is blocks\.1\.hook_m"
        ):
            lens.embed(cache, ["L0.mlp", "L1.mlp"])
        assert lens.embed(cache, ["L0.mlp", "L2H1"]).isfinite().all()  # what does not hold it is read
    with pytest.raises(errors.LensError, match=r"L1\.mlp reads as nan"):
        lenses[0].placebo(cache, "L1.mlp", generator=torch.Generator().manual_seed(0))
    with pytest.raises(errors.LensError, match=r"nan|writes nothing"):
        lenses[0].other_image(cache, "L1.mlp")


def test_a_lens_of_ones_own_passes_nothing_that_is_not_finite(vit, cache, errors):
    from vit_lens import Condition, Lens
    from vit_lens.lenses import checked_clean, checked_read

    class Own(Lens):
        """One over what is zero."""

        def reads(self, site):
            return True

        def read(self, cache, sites):
            return Condition(pooled=torch.ones(3, 1, 13) / 0)

    own, said = Own(), "Own read pooled that hold nan or infinity"
    cases = {
        "embed": (lambda: own.embed(cache, "L0H0"), "LensError", said),
        "read": (lambda: checked_read(own, own.read(cache, "L0H0"), 3, 1), "LensError", said),
        "clean": (lambda: checked_clean(own, own.clean(vit.b_U[None] / 0, cache), 1), "LensError", said),
    }
    assert not outcomes(errors, cases)


def test_a_strength_that_overflows_is_refused_though_the_embedding_would_be_finite(cache, errors):
    """A LayerNorm divides by an infinite scale then, and reads nothing but its bias."""
    from vit_lens import DiffusionSteeringLens

    for strength in ({"alpha": 1e20}, {"share": -1e300}, {"alpha": 10**30}):
        with pytest.raises(
            errors.LensError, match=r"at most 1e\+12: in float32 the LayerNorm's squares would overflow"
        ):
            DiffusionSteeringLens(**strength)
    far, further = (DiffusionSteeringLens(alpha=alpha).embed(cache, "L0H0") for alpha in (1e9, -1e12))
    expected = 2 * (cache.model.b_U + bias_of(cache.model))
    torch.testing.assert_close(far + further, expected.expand_as(far), atol=1e-6, rtol=1e-6)


def bias_of(model):
    """What the read-out makes of nothing: the last LayerNorm's bias."""
    return model.ln_final.b @ model.W_U


def test_weights_of_the_read_out_that_are_not_finite_are_named(vit, pixels, errors):
    import copy

    from vit_lens import DiffusionLens

    cache = vit.run_with_cache(pixels)[1]
    cache.model = copy.deepcopy(vit)
    cache.model.ln_final.w.data[0] = torch.nan
    with pytest.raises(errors.LensError, match=r"L0H0 reads as nan.*weights of the read-out"):
        DiffusionLens().embed(cache, "L0H0")


# ---- H2, H3: what hooks put into a run is theirs ----------------------------------------------------------------


def test_hooks_hand_out_no_cached_tensor(cache):
    """Called as a hook is: what comes back may be edited in place without the cache changing."""
    from vit_lens import DiffusionLens, DiffusionSteeringLens

    lenses = (DiffusionLens(), DiffusionSteeringLens(alpha=2))
    before = {name: value.clone() for name, value in cache.cache_dict.items()}
    for site in ("L1H2", "L1.mlp", "L0.attn"):
        for name, hook in [pair for lens in lenses for pair in lens.hooks(cache, site)]:
            point = cache.model.hook_dict[name]
            hook(cache[name].clone(), hook=point).mul_(0)
    assert all(torch.equal(value, before[name]) for name, value in cache.cache_dict.items())


# ---- H5: what a draw depends on ---------------------------------------------------------------------------------


def test_draws_depend_on_no_default_device_or_dtype(vit, pixels, cache):
    """Of lenses, interventions and readers: what a user has set for a session changes no number."""
    from vit_lens import DiffusionLens
    from vit_lens import interventions as iv
    from vit_lens import readers as ro

    def draws():
        seeded = torch.Generator().manual_seed(3)
        swept = iv.ablate_each(vit, pixels, iv.cosine_to(vit(pixels)), "heads", replacement="resample", seed=1)
        patched = iv.patch_each(vit, pixels, pixels.flip(0), iv.cosine_to(vit(pixels)), "L1.attn", each="patch")
        other = iv.resample(vit, "L0H1", cache, n_images=3)
        read = ro.site_embeddings(cache, "heads", controls=["random"])
        return [
            DiffusionLens().placebo(cache, "L0H0,L1.mlp", generator=seeded), swept.values, patched.maps(),
            iv.derangement(7, seed=2), vit.run_with_hooks(pixels, fwd_hooks=other), read.values["random"],
            ro.SiteMeans.from_images(vit, pixels, "heads").values,
        ]  # fmt: skip

    expected = draws()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            found = draws()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_autocast_changes_no_number_that_is_kept_or_read(vit, pixels):
    """It rounds float32 to bfloat16, of which a file that holds float32 says nothing."""
    import copy

    from PIL import Image

    from vit_lens import DiffusionLens, PreprocessSpec
    from vit_lens import readers as ro

    model, seen = copy.deepcopy(vit).float(), pixels.float()
    model.preprocess_spec = PreprocessSpec(
        size=(22, 22), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", resize_mode="shortest"
    )
    cache, picture = model.run_with_cache(seen)[1], Image.new("RGB", (22, 22), "red")

    def numbers():
        return [
            DiffusionLens().embed(cache, "heads"), ro.SiteMeans.from_images(model, seen, "heads").values,
            ro.SiteMeans.from_images(model, seen, "resid_post", patches=True).values,
            ro.Gallery.from_images(model, [picture]).embeds,
        ]  # fmt: skip

    expected = numbers()
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(seen) - model(seen).float()).dtype == torch.float32 and model(seen).dtype == torch.bfloat16
        found = numbers()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_model_without_numbers_has_no_means(vit, pixels, errors):
    import copy

    from vit_lens.readers import SiteMeans

    with pytest.raises(errors.VitLensError, match="meta device"):
        SiteMeans.from_images(copy.deepcopy(vit).to("meta"), pixels.to("meta"), "heads")


# ---- pickle: spawned processes take lenses and their hooks along ------------------------------------------------


@pytest.mark.parametrize("rows", ["all", "readout"])
def test_lenses_and_their_hooks_go_through_pickle(vit, pixels, means, rows):
    from vit_lens import DiffusionLens, DiffusionSteeringLens

    cache = vit.run_with_cache(pixels, rows=rows)[1]
    lenses = [DiffusionLens(), DiffusionSteeringLens(alpha=2), DiffusionSteeringLens(alpha=2, anchor="mean",
              reference=means)]  # fmt: skip
    for lens in lenses:
        again = pickled(lens)
        assert again.describe() == lens.describe()
        for site in ("L1H2", "L1.mlp"):
            hooks = pickled(lens.hooks(cache, site))
            assert torch.equal(again.embed(cache, site), lens.embed(cache, site))
            found = vit.run_with_hooks(pixels, fwd_hooks=hooks)
            torch.testing.assert_close(found, lens.embed(cache, site)[:, 0], atol=1e-9, rtol=1e-9)


# ---- arguments --------------------------------------------------------------------------------------------------


def test_strengths_are_numbers_of_any_kind(cache):
    from vit_lens import DiffusionSteeringLens

    expected = DiffusionSteeringLens(alpha=5.0)
    for alpha in (np.float32(5), np.int64(5), torch.tensor(5.0), np.array(5.0)):
        lens = DiffusionSteeringLens(alpha=alpha)
        assert type(lens.alpha) is float and lens.describe() == expected.describe()
    assert DiffusionSteeringLens(alpha=5).settings()["alpha"] == 5


def test_site_outputs_takes_sites_as_written(cache):
    from vit_lens.addresses import Site
    from vit_lens.lenses import site_outputs

    expected = site_outputs(cache, Site.resolve("L1H2,L1.mlp", cache.model.cfg))
    assert torch.equal(site_outputs(cache, "L1H2, L1.mlp"), expected)
    assert torch.equal(site_outputs(cache, ["L1H2", "L1.mlp"]), expected)
    twice = site_outputs(cache, ["L1H2", "L1.mlp", "L1H2"])  # two lenses may read one site
    assert torch.allclose(twice, expected[:, [0, 1, 0]], atol=1e-13)  # three at once round otherwise on some machines


def test_one_lens_may_be_run_for(vit, pixels):
    from vit_lens import DiffusionLens
    from vit_lens.lenses import run_for

    assert run_for(vit, pixels, DiffusionLens())[1].rows == "readout"


def test_wrong_arguments_are_refused_in_words(vit, pixels, cache, errors):
    from vit_lens import DiffusionLens, DiffusionSteeringLens
    from vit_lens import lenses as ls

    lens, steering = DiffusionLens(), DiffusionSteeringLens
    text = "such as 'dsl:alpha=10'"
    cases = {
        "alpha of text": (lambda: steering(alpha="5"), "LensError", "alpha='5'; expected a finite number"),
        "alpha True": (lambda: steering(alpha=True), "LensError", "alpha=True; expected a finite number"),
        "alpha complex": (lambda: steering(alpha=1j), "LensError", "alpha=1j; expected"),
        "alpha complex tensor": (lambda: steering(alpha=torch.tensor(1j)), "LensError", "expected a finite number"),
        "alpha meta": (lambda: steering(alpha=torch.ones((), device="meta")), "LensError", "expected a finite number"),
        "alpha vector": (lambda: steering(alpha=torch.ones(2)), "LensError", "expected a finite number"),
        "alpha of 400 digits": (lambda: steering(alpha=10**400), "LensError", "expected a finite number"),
        "share nan": (lambda: steering(share=float("nan")), "LensError", "share=nan; expected a finite number"),
        "generator 0": (lambda: lens.placebo(cache, "L0H0", generator=0), "LensError", "expected Generator"),
        "generator None": (lambda: lens.placebo(cache, "L0H0", generator=None), "LensError", "expected Generator"),
        "generator of numpy": (lambda: lens.placebo(cache, "L0H0", generator=np.random.default_rng(0)), "LensError",
                               "torch.Generator().manual_seed(0)"),
        "hooks of a dict": (lambda: lens.hooks(dict(cache), "L0H0"), "LensError", "not dict"),
        "steering of a dict": (lambda: steering(alpha=2).hooks(dict(cache), "L0H0"), "LensError", "not dict"),
        "hooks of none": (lambda: lens.hooks(None, "L0H0"), "LensError", "not NoneType"),
        "outputs of a dict": (lambda: ls.site_outputs(dict(cache), "L0H0"), "LensError", "not dict"),
        "outputs of no site": (lambda: ls.site_outputs(cache, []), "UnknownSiteError", "no sites given"),
        "outputs out of range": (lambda: ls.site_outputs(cache, "L9H0"), "UnknownSiteError", "layers L0 to L2"),
        "sites of a name": (lambda: lens.check_sites("mini", "L0H0"), "LensError", "expected a HookedViT, not str"),
        "sites of nothing": (lambda: steering(alpha=1).check_sites(None, "L0H0"), "LensError", "not NoneType"),
        "run for texts": (lambda: ls.run_for(vit, pixels, ["diffusion"]), "LensError", "'diffusion' is not a lens"),
        "run for a text": (lambda: ls.run_for(vit, pixels, "dsl"), "LensError", "is not a lens"),
        "run for a class": (lambda: ls.run_for(vit, pixels, [DiffusionLens]), "LensError", "is not a lens"),
        "spelling None": (lambda: ls.parse_lens(None, None), "LensError", text),
        "spelling 3": (lambda: ls.check_spelling(3), "LensError", text),
        "spelling of bytes": (lambda: ls.parse_lens(b"dsl", None), "LensError", text),
        "no site": (lambda: lens.embed(cache, []), "UnknownSiteError", "no sites given"),
        "sites None": (lambda: lens.embed(cache, None), "UnknownSiteError", "None is no site"),
        "sites of bytes": (lambda: lens.embed(cache, b"L0H0"), "UnknownSiteError", "a site is a Site or a text"),
        "one image": (lambda: lens.other_image(vit.run_with_cache(pixels[:1])[1], "L0H0"), "LensError", "another im"),
        "fewer images": (lambda: vit.run_with_hooks(pixels[:2], fwd_hooks=lens.hooks(cache, "L0H0")), "LensError",
                         "the cache holds 3 images, this run has 2"),
    }  # fmt: skip
    assert not outcomes(errors, cases)
