"""Both forms of every lens agree with each other and with a reference that uses nothing of the package."""

import math

import numpy as np
import pytest
import torch
from conftest import randomize

pytestmark = pytest.mark.tl3

TOLERANCE = 1e-11  # float64, activations of order 1, sums of some hundred terms


@pytest.fixture(scope="module")
def means(vit):
    from vit_lens import ReferenceMeans

    others = torch.randn(11, 3, 22, 22, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return ReferenceMeans.from_images(vit, others, batch_size=4)


def lenses(means):
    from vit_lens import DiffusionLens, DiffusionSteeringLens

    return [
        DiffusionLens(),
        DiffusionSteeringLens(alpha=6.5),
        DiffusionSteeringLens(alpha=-0.7),
        DiffusionSteeringLens(share=1.3),
        DiffusionSteeringLens(alpha=4.0, anchor="mean", reference=means),
        DiffusionSteeringLens(share=0.6, anchor="mean", reference=means),
    ]


def submodules(model):
    from vit_lens import Site

    return Site.heads(model) + Site.attns(model) + Site.mlps(model)


@pytest.mark.parametrize("rows", ["all", "readout"])
@pytest.mark.parametrize("which", range(6))
def test_hooks_and_closed_form_agree_for_every_submodule(vit, pixels, means, which, rows):
    lens = lenses(means)[which]
    _, cache = vit.run_with_cache(pixels, rows=rows)
    sites = submodules(vit)
    assert len(sites) == 3 * 5 + 3 + 3
    closed = lens.embed(cache, sites)
    for index, site in enumerate(sites):
        hooked = vit.run_with_hooks(pixels, fwd_hooks=lens.hooks(cache, site))
        assert (hooked - closed[:, index]).abs().max() < TOLERANCE, site


@pytest.mark.parametrize("rows", ["all", "readout"])
def test_every_read_out_kind(readout_vit, rows):
    """CLS, mean pooling after and before the final norm: hooks, closed form and means all agree."""
    from vit_lens import DiffusionLens, ReferenceMeans

    model, _ = readout_vit
    generator = torch.Generator().manual_seed(3)
    x, others = (torch.randn(n, 3, 21, 21, dtype=torch.float64, generator=generator) for n in (2, 5))
    reference = ReferenceMeans.from_images(model, others)
    clean, cache = model.run_with_cache(x, rows=rows)
    for lens in lenses(reference):
        sites = submodules(model)
        closed = lens.embed(cache, sites)
        for index, site in enumerate(sites):
            hooked = model.run_with_hooks(x, fwd_hooks=lens.hooks(cache, site))
            assert (hooked - closed[:, index]).abs().max() < TOLERANCE, (lens.describe(), site)
    last = DiffusionLens().embed(cache, "L2.resid_post")[:, 0]
    assert (last - clean).abs().max() < TOLERANCE


@pytest.mark.parametrize("rows", ["all", "readout"])
def test_attention_pooling_and_its_own_sites(pooling_vit, pooling_pixels, rows):
    """Blocks are read through the pooling, its own heads and MLP at the pooled vector: hooks and closed form agree."""
    from vit_lens import DiffusionLens, ReferenceMeans, Site

    model = pooling_vit
    others = torch.randn(5, 3, 23, 21, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    reference = ReferenceMeans.from_images(model, others)
    clean, cache = model.run_with_cache(pooling_pixels, rows=rows)
    sites = [Site.parse(name) for name in ("L0H1", "poolH1", "L1.mlp", "pool.attn", "L2.attn")]
    sites += [site for site in Site.mlps(model) if site.is_pool]
    for lens in lenses(reference):
        closed = lens.embed(cache, sites)
        for index, site in enumerate(sites):
            hooked = model.run_with_hooks(pooling_pixels, fwd_hooks=lens.hooks(cache, site))
            assert (hooked - closed[:, index]).abs().max() < TOLERANCE, (lens.describe(), site)
        assert (lens.embed(cache, list(reversed(sites))) - closed.flip(1)).abs().max() < TOLERANCE
        placebo = lens.placebo(cache, sites, generator=torch.Generator().manual_seed(0))
        assert torch.isfinite(placebo).all() and (placebo - closed).abs().amax(-1).min() > 1e-6
    last = DiffusionLens().embed(cache, "L2.resid_post")[:, 0]
    assert (last - clean).abs().max() < TOLERANCE


def test_attention_pooling_heads_from_the_equations(pooling_vit, pooling_pixels):
    """D1 on a head of attention pooling, by plain arithmetic on its pattern and values."""
    from vit_lens import DiffusionSteeringLens

    model, attn = pooling_vit, pooling_vit.attn_pool.attn
    _, cache = model.run_with_cache(pooling_pixels)
    for head in range(model.cfg.attn_pool.n_heads):
        pattern = cache["attn_pool.attn.hook_pattern"][:, head, 0]
        written = torch.stack([p @ v[:, head] for p, v in zip(pattern, cache["attn_pool.attn.hook_v"], strict=True)])
        steered = cache["attn_pool.hook_attn_out"][:, 0] + 2.5 * (written @ attn.W_O[head])
        if model.attn_pool.mlp is not None:
            steered = steered + cache["attn_pool.hook_mlp_out"][:, 0]
        else:
            norm = model.attn_pool.ln_post
            steered = torch.nn.functional.layer_norm(steered, norm.w.shape, norm.w, norm.b, 1e-6)
        expected = steered @ model.W_U + model.b_U
        found = DiffusionSteeringLens(alpha=3.5).embed(cache, f"poolH{head}")[:, 0]
        assert (found - expected).abs().max() < TOLERANCE


def brute_force(tower, pixels):
    """Final LayerNorm, projection and every output of a Hugging Face tower, by plain forward hooks."""
    store = {}
    handles = []
    for n, layer in enumerate(tower.vision_model.encoder.layers):

        def keep(module, args, out, key):
            store[key] = args[0].detach() if key[0] == "z" else out.detach()

        for key, module in (("z", layer.self_attn.out_proj), ("attn", layer.self_attn.out_proj), ("mlp", layer.mlp)):
            handles.append(module.register_forward_hook(lambda m, a, o, key=(key, n), keep=keep: keep(m, a, o, key)))
    out = tower(pixels, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    store["resid"] = [h.detach() for h in out.hidden_states]

    def head(v):
        v = (v - v.mean(-1, keepdim=True)) / (v.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        norm = tower.vision_model.post_layernorm
        return (v * norm.weight + norm.bias) @ tower.visual_projection.weight.T

    def head_output(layer, k):
        weight = tower.vision_model.encoder.layers[layer].self_attn.out_proj.weight
        part = slice(7 * k, 7 * k + 7)
        return store["z", layer][:, 0, part] @ weight[:, part].T

    return store, head, head_output


def test_against_plain_pytorch_on_the_source_tower(hf_tower, vit, pixels):
    """D1, its norm-matched form and the Diffusion Lens from the equations, on Hugging Face's own activations."""
    from vit_lens import DiffusionLens, DiffusionSteeringLens

    with torch.no_grad():
        store, head, head_output = brute_force(hf_tower, pixels)
        _, cache = vit.run_with_cache(pixels, rows="readout")
        final = store["resid"][-1][:, 0]
        outputs = {f"L{n}H{k}": head_output(n, k) for n in range(3) for k in range(5)}
        outputs |= {f"L{n}.{kind}": store[kind, n][:, 0] for n in range(3) for kind in ("attn", "mlp")}
        for site, h in outputs.items():
            got = DiffusionLens().embed(cache, site)[:, 0]
            assert (got - head(h)).abs().max() < TOLERANCE, site
            got = DiffusionSteeringLens(alpha=9.0).embed(cache, site)[:, 0]
            assert (got - head(final + 8.0 * h)).abs().max() < TOLERANCE, site
            ratio = (final - final.mean(-1, keepdim=True)).norm(dim=-1) / (h - h.mean(-1, keepdim=True)).norm(dim=-1)
            got = DiffusionSteeringLens(share=2.0).embed(cache, site)[:, 0]
            assert (got - head(final + 2.0 * ratio[:, None] * h)).abs().max() < TOLERANCE, site
        for n in range(3):
            for kind, state in (("resid_pre", store["resid"][n]), ("resid_post", store["resid"][n + 1])):
                got = DiffusionLens().embed(cache, f"L{n}.{kind}")[:, 0]
                assert (got - head(state[:, 0])).abs().max() < TOLERANCE


def test_mean_anchor_against_plain_pytorch(hf_tower, vit, pixels, means):
    from vit_lens import DiffusionSteeringLens

    others = torch.randn(11, 3, 22, 22, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        _, _, ref_head = brute_force(hf_tower, others)
        ref_store, _, _ = brute_force(hf_tower, others)
        _, head, head_output = brute_force(hf_tower, pixels)
        mu_final = ref_store["resid"][-1][:, 0].mean(0)
        _, cache = vit.run_with_cache(pixels)
        for layer, k in ((0, 0), (1, 3), (2, 4)):
            deviation = head_output(layer, k) - ref_head(layer, k).mean(0)
            got = DiffusionSteeringLens(alpha=5.0, anchor="mean", reference=means).embed(cache, f"L{layer}H{k}")
            assert (got[:, 0] - head(mu_final + 5.0 * deviation)).abs().max() < TOLERANCE


def test_deviations_from_the_means_add_up_to_the_image(vit, pixels, means):
    """The final residual is mu_L plus the deviations of every head and MLP (methods 10.3)."""
    from vit_lens import Site
    from vit_lens.lenses.residual import site_outputs

    _, cache = vit.run_with_cache(pixels, rows="readout")
    sites = Site.heads(vit) + Site.mlps(vit)
    total = sum(
        site_outputs(cache, [s])[:, 0] - (means.output(vit, s) if s.kind == "head" else means.mlp_out[s.layer])
        for s in sites
    )
    final = cache.readout("blocks.2.hook_resid_post")
    assert (means.last_state(vit) + total - final).abs().max() < TOLERANCE


def test_limits_of_the_steering_lens(vit, pixels, means):
    """Strength 1 is the clean run, 0 removes the site, infinite strength is the Diffusion Lens (methods 3.7)."""
    from vit_lens import DiffusionLens, DiffusionSteeringLens

    clean, cache = vit.run_with_cache(pixels)
    sites = submodules(vit)
    one = DiffusionSteeringLens(alpha=1.0).embed(cache, sites)
    assert (one - clean[:, None]).abs().max() < TOLERANCE
    zero = DiffusionSteeringLens(alpha=0.0, anchor="mean", reference=means).embed(cache, sites)
    assert (zero - zero[:1, :1]).abs().max() < TOLERANCE
    huge = DiffusionSteeringLens(alpha=1e9).embed(cache, sites)
    alone = DiffusionLens().embed(cache, sites)
    # eps = 1e-5 is felt by the lens on a short h alone, hence the loose bound
    assert torch.nn.functional.cosine_similarity(huge, alone, dim=-1).min() > 0.999


def test_hooks_compose_with_the_users_own(vit, pixels):
    """An edit before the site shows through the residual lens, as if the edited run had been read."""
    from vit_lens import DiffusionLens

    def remove_head(z, hook):
        z = z.clone()
        z[:, :, 2] = 0
        return z

    mine = [("blocks.0.attn.hook_z", remove_head)]
    _, cache = vit.run_with_cache(pixels)
    through = vit.run_with_hooks(pixels, fwd_hooks=mine + DiffusionLens().hooks(cache, "L1.resid_post"))
    with vit.hooks(mine):
        _, edited = vit.run_with_cache(pixels)
    expected = DiffusionLens().embed(edited, "L1.resid_post")[:, 0]
    unedited = DiffusionLens().embed(cache, "L1.resid_post")[:, 0]
    assert (through - expected).abs().max() < TOLERANCE
    assert (through - unedited).abs().max() > 1e-3


def test_steering_a_run_that_is_not_the_cached_one_raises(vit, pixels, means):
    """Another image, or an edit before the site, would mix two runs; with a cache of the same run all is well."""
    from vit_lens import DiffusionSteeringLens
    from vit_lens.errors import LensError

    def remove_head(z, hook):
        z = z.clone()
        z[:, :, 2] = 0
        return z

    edit = [("blocks.0.attn.hook_z", remove_head)]
    lens = DiffusionSteeringLens(alpha=5.0)
    _, cache = vit.run_with_cache(pixels, rows="readout")
    for site in ("L2H1", "L2.mlp"):
        with pytest.raises(LensError, match="differs between this run and the cached one"):
            vit.run_with_hooks(pixels.flip(0), fwd_hooks=lens.hooks(cache, site))
        with pytest.raises(LensError, match="an edit before the site"):
            vit.run_with_hooks(pixels, fwd_hooks=edit + lens.hooks(cache, site))
        with vit.hooks(edit):
            _, edited = vit.run_with_cache(pixels, rows="readout")
        for each in lenses(means):
            hooked = vit.run_with_hooks(pixels, fwd_hooks=edit + each.hooks(edited, site))
            assert (hooked - each.embed(edited, site)[:, 0]).abs().max() < TOLERANCE


@pytest.mark.parametrize("site", ["L2H1", "L2.mlp", "L1.attn"])
def test_other_images_than_the_cached_ones_are_told(vit, pixels, means, site):
    """Where everything is set to what is cached, the result would be that of the cached images."""
    from vit_lens.errors import LensError

    _, cache = vit.run_with_cache(pixels)
    for each in lenses(means):
        hooks = each.hooks(cache, site)
        vit.run_with_hooks(pixels, fwd_hooks=hooks)
        with pytest.raises(LensError, match="differs between this run and the cached one: other images"):
            vit.run_with_hooks(pixels.flip(0), fwd_hooks=hooks)


def test_one_cached_image_is_not_taken_for_a_mean(vit, pixels, means):
    from vit_lens.errors import LensError

    _, cache = vit.run_with_cache(pixels[:1], rows="readout")
    for lens in lenses(means):
        with pytest.raises(LensError, match="the cache holds 1 images, this run has 3"):
            vit.run_with_hooks(pixels, fwd_hooks=lens.hooks(cache, "L1H2"))


def test_saved_means_do_not_hide_hooks(vit, pixels):
    from vit_lens import ReferenceMeans
    from vit_lens.errors import VitLensError

    with vit.hooks([("blocks.0.hook_mlp_out", lambda act, hook: act * 0)]):
        vit(pixels)
        with pytest.raises(VitLensError, match=r"hooks are on \['blocks.0.hook_mlp_out'\], and saved means could not"):
            ReferenceMeans.from_images(vit, pixels)


def test_placebo_has_the_norm_of_the_site_and_none_of_its_direction(vit, pixels, means):
    from vit_lens.lenses.residual import centred_norm, site_outputs

    _, cache = vit.run_with_cache(pixels, rows="readout")
    sites = submodules(vit)
    for lens in lenses(means):
        seen = {}

        def spy(outputs, origin, sites, outputs_of, seen=seen):
            seen["real"] = outputs if origin is None else outputs - origin
            return outputs

        lens.read_changed(cache, sites, spy)
        original, lens_read = lens._read, {}

        def read(cache, sites, outputs, original=original, lens=lens, lens_read=lens_read):
            origin = lens._origin(cache, sites)
            lens_read["placebo"] = outputs if origin is None else outputs - origin
            return original(cache, sites, outputs)

        object.__setattr__(lens, "_read", read)
        drawn = lens.placebo(cache, sites, generator=torch.Generator().manual_seed(1))
        again = lens.placebo(cache, sites, generator=torch.Generator().manual_seed(1))
        assert torch.equal(drawn, again)
        real, placebo = centred_norm(seen["real"]), centred_norm(lens_read["placebo"])
        assert (real / placebo - 1).abs().max() < 1e-9
        cosines = torch.nn.functional.cosine_similarity(
            seen["real"].flatten(2), lens_read["placebo"].flatten(2), dim=-1
        )
        assert cosines.abs().mean() < 0.3
    assert site_outputs(cache, lens.check_sites(cache.model, ["L0H1"])).shape == (3, 1, 1, 35)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(), "exactly one of alpha=None and share=None"),
        (dict(alpha=2.0, share=1.0), "exactly one"),
        (dict(alpha=math.nan), "alpha=nan; expected a finite number"),
        (dict(share=math.inf), "share=inf"),
        (dict(alpha=True), "alpha=True"),
        (dict(alpha=1.0, anchor="median"), "expected 'clean' or 'mean'"),
        (dict(alpha=1.0, anchor="mean"), "needs reference="),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    from vit_lens import DiffusionSteeringLens
    from vit_lens.errors import LensError

    with pytest.raises(LensError, match=message):
        DiffusionSteeringLens(**settings)


def test_a_reference_that_would_do_nothing_is_refused(means):
    from vit_lens import DiffusionSteeringLens
    from vit_lens.errors import LensError

    with pytest.raises(LensError, match="would have no effect"):
        DiffusionSteeringLens(alpha=2.0, reference=means)


def test_steering_refuses_the_residual_stream(vit, pixels):
    from vit_lens import DiffusionSteeringLens
    from vit_lens.errors import LensError

    _, cache = vit.run_with_cache(pixels, rows="readout")
    with pytest.raises(LensError, match=r"L1\.resid_post is the stream itself: read it with DiffusionLens"):
        DiffusionSteeringLens(alpha=2.0).embed(cache, ["L0H0", "L1.resid_post"])
    with pytest.raises(LensError, match="DiffusionLens"):
        DiffusionSteeringLens(alpha=2.0).hooks(cache, "L1.resid_mid")


def test_a_silent_site_has_no_direction_to_match(hf_tower, pixels):
    from vit_lens import DiffusionSteeringLens, HookedViT
    from vit_lens.errors import LensError

    model = HookedViT.from_module(hf_tower).requires_grad_(False)
    model.blocks[1].attn.W_O[3] = 0
    _, cache = model.run_with_cache(pixels, rows="readout")
    with pytest.raises(LensError, match="site L1H3 writes nothing for image 0"):
        DiffusionSteeringLens(share=1.0).embed(cache, ["L0H0", "L1H3"])
    assert torch.isfinite(DiffusionSteeringLens(alpha=3.0).embed(cache, "L1H3")).all()


def test_a_deviation_of_rounding_has_no_direction_to_match(vit, pixels):
    """The reference is the image itself: what is left of h - mu_h is noise, and is not amplified."""
    from vit_lens import DiffusionSteeringLens, ReferenceMeans
    from vit_lens.errors import LensError

    own = ReferenceMeans.from_images(vit, pixels[:1])
    _, cache = vit.run_with_cache(pixels[:1], rows="readout")
    for site in ("L0H0", "L1.attn", "L2.mlp"):
        with pytest.raises(LensError, match="writes nothing for image 0"):
            DiffusionSteeringLens(share=1.0, anchor="mean", reference=own).embed(cache, site)


def test_an_edit_of_the_residual_itself_is_read(vit, pixels):
    """Closed form and hooks agree about a residual that the user's own hook has changed."""
    from vit_lens import DiffusionLens

    def shift(resid, hook):
        return resid + torch.linspace(-1, 1, resid.shape[-1], dtype=resid.dtype) ** 3

    mine = [("blocks.2.hook_resid_pre", shift)]
    for rows in ("all", "readout"):
        with vit.hooks(mine):
            _, cache = vit.run_with_cache(pixels, rows=rows)
        closed = DiffusionLens().embed(cache, "L2.resid_pre")[:, 0]
        hooked = vit.run_with_hooks(pixels, fwd_hooks=mine + DiffusionLens().hooks(cache, "L2.resid_pre"))
        assert (hooked - closed).abs().max() < TOLERANCE
        unedited = DiffusionLens().embed(vit.run_with_cache(pixels)[1], "L2.resid_pre")[:, 0]
        assert (closed - unedited).abs().max() > 1e-3


def test_hooks_refuse_another_batch(vit, pixels):
    from vit_lens import DiffusionSteeringLens
    from vit_lens.errors import LensError

    _, cache = vit.run_with_cache(pixels)
    hooks = DiffusionSteeringLens(alpha=2.0).hooks(cache, "L0H0")
    with pytest.raises(LensError, match="the cache holds 3 images, this run has 1"):
        vit.run_with_hooks(pixels[:1], fwd_hooks=hooks)
    _, sliced = vit.run_with_cache(pixels, pos_slice=0)
    with pytest.raises(LensError, match="without pos_slice"):
        vit.run_with_hooks(pixels, fwd_hooks=DiffusionSteeringLens(alpha=2.0).hooks(sliced, "L0H0"))


def test_reference_means_round_trip_and_refuse_other_weights(vit, hf_tower, pixels, means, tmp_path):
    from vit_lens import DiffusionSteeringLens, HookedViT, PreprocessSpec, ReferenceMeans
    from vit_lens.errors import ReferenceMismatchError, VitLensError

    loaded = ReferenceMeans.load(means.save(tmp_path / "means.safetensors"))
    assert loaded.n == 11 and torch.equal(loaded.z, means.z) and loaded.fingerprint == vit.fingerprint
    other = HookedViT.from_module(randomize(type(hf_tower)(hf_tower.config).double(), seed=9)).requires_grad_(False)
    _, cache = other.run_with_cache(pixels)
    with pytest.raises(ReferenceMismatchError, match="were made with"):
        DiffusionSteeringLens(alpha=2.0, anchor="mean", reference=loaded).embed(cache, "L0H0")
    one = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    spec = PreprocessSpec(
        size=(22, 22), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", resize_mode="shortest"
    )
    vit.preprocess_spec = spec
    assert ReferenceMeans.from_images(vit, one).n == 1
    assert torch.equal(ReferenceMeans.from_images(vit, one).z, ReferenceMeans.from_images(vit, [one]).z)
    vit.preprocess_spec = None
    with pytest.raises(VitLensError, match="no reference means at"):
        ReferenceMeans.load(tmp_path / "absent.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "means.safetensors").read_bytes()[:-100])
    with pytest.raises(VitLensError, match="not a whole safetensors file"):
        ReferenceMeans.load(tmp_path / "cut.safetensors")


def test_means_do_not_depend_on_the_batch_size(vit, means):
    from vit_lens import ReferenceMeans

    others = torch.randn(11, 3, 22, 22, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    whole = ReferenceMeans.from_images(vit, others, batch_size=11)
    assert (whole.z - means.z).abs().max() < 1e-13 and (whole.resid_pre - means.resid_pre).abs().max() < 1e-13


def test_many_sites_are_read_in_parts(vit, pixels, means, monkeypatch):
    """The sites are chunked for memory; the parts join to the same answer."""
    import vit_lens.lenses.residual as module

    _, cache = vit.run_with_cache(pixels, rows="readout")
    for lens in lenses(means):
        whole = lens.embed(cache, submodules(vit))
        monkeypatch.setattr(module, "_CHUNK_NUMBERS", 4 * cache["blocks.0.hook_resid_pre"].numel())
        assert (lens.embed(cache, submodules(vit)) - whole).abs().max() < 1e-13
        monkeypatch.undo()


def test_one_run_serves_every_site(vit, pixels, means, monkeypatch):
    """All sites of all lenses come from the cached run; the model is not run again."""
    _, cache = vit.run_with_cache(pixels, rows="readout")
    monkeypatch.setattr(type(vit), "forward", None)
    for lens in lenses(means):
        assert lens.embed(cache, submodules(vit)).shape == (3, 21, 13)


def test_half_precision_is_read_in_float32(hf_tower):
    from vit_lens import DiffusionSteeringLens, HookedViT
    from vit_lens.towers.cache import ViTActivationCache

    model = HookedViT.from_module(hf_tower).requires_grad_(False).bfloat16()
    x = torch.randn(2, 3, 22, 22, generator=torch.Generator().manual_seed(0)).bfloat16()
    _, cache = model.run_with_cache(x, rows="readout")
    lens = DiffusionSteeringLens(alpha=400.0)
    embeds = lens.embed(cache, submodules(model))
    wide = ViTActivationCache({k: v.double() for k, v in cache.items()}, model.double(), rows="readout")
    assert embeds.dtype == torch.float32
    assert (embeds - lens.embed(wide, submodules(model))).abs().max() < 1e-4


@pytest.mark.parametrize("several", ["heads", "L0H1,L1H0"])
def test_hooks_of_several_sites_are_refused(several):
    from vit_lens import DiffusionLens, DiffusionSteeringLens, HookedViT
    from vit_lens.errors import LensError
    from vit_lens.mini import sample_images

    model = HookedViT.from_pretrained("mini").requires_grad_(False)
    _, cache = model.run_with_cache(model.preprocess(sample_images()[:1]))
    for lens in (DiffusionLens(), DiffusionSteeringLens(alpha=2.0)):
        with pytest.raises(LensError, match=r"sites, and hooks show one: lens\.hooks\(cache, 'L0H"):
            lens.hooks(cache, several)
