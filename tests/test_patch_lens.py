"""Lenses of patches: closed form against hooks and against sums written out, in float64, on towers of odd shapes."""

from functools import cache as once

import pytest
import torch
from conftest import open_clip_tower
from kinds import OPEN_CLIP, OWN, images, own_tower
from torch.nn import functional

SITES = ["L0H1", "L1H2", "L1.attn", "L0.mlp", "L2.mlp"]


@once
def tower_of(kind):
    import vit_lens as vl

    made = own_tower(kind) if kind in OWN else vl.HookedViT.from_module(open_clip_tower(**OPEN_CLIP[kind]))
    return made.requires_grad_(False)


@once
def means_at_every_token(tower):
    import vit_lens as vl

    return vl.ReferenceMeans.from_images(tower, images(tower, 5, seed=11), positions="all")


@pytest.fixture(scope="module", params=[*OPEN_CLIP, *OWN])
def tower(request):
    return tower_of(request.param)


@pytest.fixture(scope="module")
def run(tower):
    pixels = images(tower)
    return pixels, tower.run_with_cache(pixels)[1]


def lenses(tower):
    import vit_lens as vl

    means = means_at_every_token(tower)
    return {
        "clean": vl.PatchSteeringLens(alpha=3.5),
        "clean, matched": vl.PatchSteeringLens(share=0.7),
        "mean": vl.PatchSteeringLens(alpha=5.0, anchor="mean", reference=means),
        "mean, matched": vl.PatchSteeringLens(share=1.3, anchor="mean", reference=means),
        "mean, here": vl.PatchSteeringLens(alpha=-2.0, anchor="mean", reference=means, at=[(2, 1), "patch0"]),
        "clean, here": vl.PatchSteeringLens(alpha=2.0, at="patch3"),
    }


def plain_norm(rows, eps):
    return functional.layer_norm(rows, rows.shape[-1:], eps=eps)


def of_run(tower, pixels, hooks):
    import vit_lens as vl

    with tower.hooks(hooks):
        _, cache = tower.run_with_cache(pixels)
    return vl.patch_tokens(cache)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", ["clean", "clean, matched", "mean", "mean, matched", "mean, here", "clean, here"])
def test_hooks_are_the_closed_form(tower, run, name, site):
    pixels, cache = run
    lens = lenses(tower)[name]
    read = lens.read(cache, site).tokens[:, 0]
    assert (of_run(tower, pixels, lens.hooks(cache, site)) - read).abs().max() < 1e-9
    assert (read - lens.clean(torch.zeros(3, 1), cache).tokens).abs().max() > 1e-2  # it does something


@pytest.mark.parametrize("site", [*SITES, "L0.resid_pre", "L1.resid_mid", "L2.resid_post"])
def test_hooks_of_the_diffusion_lens_are_its_closed_form(tower, run, site):
    import vit_lens as vl

    pixels, cache = run
    lens = vl.PatchDiffusionLens()
    read = lens.read(cache, site).tokens[:, 0]
    assert (of_run(tower, pixels, lens.hooks(cache, site)) - read).abs().max() < 1e-9


def test_the_last_residual_is_the_models_own_tokens(tower, run):
    import vit_lens as vl

    _, cache = run
    own = vl.patch_tokens(cache)
    assert torch.equal(vl.PatchDiffusionLens().read(cache, "L2.resid_post").tokens[:, 0], own)
    assert torch.equal(vl.PatchSteeringLens(alpha=1).read(cache, "L1H2").tokens[:, 0], own)
    last, cfg = cache["blocks.2.hook_resid_post"], tower.cfg
    assert torch.equal(own, plain_norm(last[:, cfg.n_prefix :], tower.ln_final.eps))
    assert (own.mean(-1).abs().max() < 1e-9) and ((own.var(-1, unbiased=False) - 1).abs().max() < 1e-2)


def test_tokens_are_the_final_norm_but_for_gain_and_bias(tower, run):
    import vit_lens as vl

    _, cache = run
    if tower.cfg.ln_final == "after_pool":
        pytest.skip("the norm of this tower sees the mean of the patches alone")
    normed = cache["ln_final.hook_normalized"][:, tower.cfg.n_prefix :]
    own = vl.patch_tokens(cache)
    assert (own * tower.ln_final.w + tower.ln_final.b - normed).abs().max() < 1e-9
    assert (own - normed).abs().max() > 0.1


@pytest.mark.parametrize("site", ["L1H2", "L0.mlp"])
def test_a_row_is_the_anchor_and_what_is_written_there(tower, run, site):
    """Written out for one row of one image: mu_L + alpha (h - mu_h), normed."""
    import vit_lens as vl

    _, cache = run
    means, row = means_at_every_token(tower), 4
    lens = vl.PatchSteeringLens(alpha=5.0, anchor="mean", reference=means)
    pos = tower.cfg.n_prefix + row
    if site == "L1H2":
        weight = tower.blocks[1].attn.W_O[2]
        h, mean = cache["blocks.1.attn.hook_z"][1, pos, 2] @ weight, means.z[1, pos, 2] @ weight
    else:
        h, mean = cache["blocks.0.hook_mlp_out"][1, pos], means.mlp_out[0, pos]
    anchor = means.resid_pre[pos] + means.mlp_out[:, pos].sum(0)
    for layer in range(3):
        attn = tower.blocks[layer].attn
        anchor = anchor + sum(means.z[layer, pos, k] @ attn.W_O[k] for k in range(tower.cfg.n_heads)) + attn.b_O
    wanted = plain_norm(anchor + 5.0 * (h - mean), tower.ln_final.eps)
    assert (lens.read(cache, site).tokens[1, 0, row] - wanted).abs().max() < 1e-9


@pytest.mark.parametrize("name", ["mean", "clean, matched"])
def test_per_token_moves_one_row_and_no_other(tower, run, name):
    import dataclasses

    _, cache = run
    lens = lenses(tower)[name]
    per, whole, still = lens.per_token(cache, "L1H2").tokens, lens.read(cache, "L1H2").tokens[:, 0], None
    still = lens.anchor_tokens(cache)
    for k in range(tower.cfg.n_patches):
        own = dataclasses.replace(lens, at=f"patch{k}").read(cache, "L1H2").tokens[:, 0]
        assert torch.equal(per[:, k], own)
        others = [row for row in range(tower.cfg.n_patches) if row != k]
        assert torch.equal(own[:, k], whole[:, k]) and torch.equal(own[:, others], still[:, others])
    assert (whole - still).abs().amax((0, 2)).min() > 1e-4  # every row moves


def test_heads_and_bias_add_up_to_their_attention(tower, run):
    """What heads write here, and b_O, is what their block writes here."""
    from vit_lens.lenses import site_outputs
    from vit_lens.towers import at_patches

    _, cache = run
    view = at_patches(cache)
    heads = site_outputs(view, [f"L1H{k}" for k in range(tower.cfg.n_heads)]).sum(1)
    whole = site_outputs(view, "L1.attn")[:, 0]
    assert (heads + tower.blocks[1].attn.b_O - whole).abs().max() < 1e-9


@pytest.mark.parametrize("anchor", ["clean", "mean"])
def test_the_control_is_as_long_at_every_patch_and_points_elsewhere(tower, run, anchor):
    import vit_lens as vl

    class Watched(vl.PatchSteeringLens):
        """Keeps what stands in for the sites' outputs."""

        def _read(self, cache, sites, outputs):
            seen.append(outputs if self.reference is None else outputs - self._origin(cache, sites))
            return super()._read(cache, sites, outputs)

    _, cache = run
    seen, means = [], means_at_every_token(tower) if anchor == "mean" else None
    lens = Watched(alpha=2.0, anchor=anchor, reference=means)
    lens.read(cache, SITES)
    found = [
        lens.read_control(cache, SITES, generator=torch.Generator().manual_seed(seed)).tokens for seed in (0, 0, 1)
    ]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    own, control = (x - x.mean(-1, keepdim=True) for x in seen[:2])
    assert own.shape == (3, len(SITES), tower.cfg.n_patches, tower.cfg.d_model)
    assert (own.norm(dim=-1) - control.norm(dim=-1)).abs().max() < 1e-9
    assert functional.cosine_similarity(own, control, dim=-1).mean().abs() < 0.2


@pytest.mark.parametrize("anchor", ["clean", "mean"])
@pytest.mark.parametrize("kind", ["other", "covariance"])
def test_every_control_stands_in_patch_by_patch(tower, run, anchor, kind):
    """As each patch were a site of its own: what is drawn of other images is theirs at the same patch."""
    import vit_lens as vl
    from vit_lens.controls import Against, ControlBank, Spread

    pixels, cache = run
    bank = ControlBank.from_images(tower, images(tower, 6, seed=5), rows="all")
    others = bank.others([""] * len(pixels))
    against = Against(control=kind, generator=torch.Generator().manual_seed(0), others=others)
    lens = vl.PatchSteeringLens(
        alpha=2.0, anchor=anchor, reference=means_at_every_token(tower) if anchor == "mean" else None
    )
    read = lens.read_against(cache, "L1.mlp", against).tokens[:, 0]
    n_prefix, n = tower.cfg.n_prefix, tower.cfg.n_patches
    own, theirs = (run["blocks.1.hook_mlp_out"][:, n_prefix:] for run in (cache, bank.cache))
    base = cache["blocks.2.hook_resid_post"][:, n_prefix:]
    origin = torch.zeros_like(own[0])
    if anchor == "mean":
        origin = lens.reference.mlp_out[1, n_prefix:]
        base = lens.reference.last_state(tower)[n_prefix:].expand_as(base)
    own, theirs = (x - origin - (x - origin).mean(-1, keepdim=True) for x in (own, theirs))
    generator = torch.Generator().manual_seed(0)
    for i, order in enumerate(others.orders):
        found = theirs[order[0]]
        if kind == "covariance":
            noise = torch.randn((n, 1, tower.cfg.d_model), generator=generator, dtype=own.dtype)
            found = Spread.of(theirs[sorted(order)]).power(noise, 0.5)[:, 0]
            found = found - found.mean(-1, keepdim=True)
        found = found * (own[i].norm(dim=-1) / found.norm(dim=-1))[:, None]
        added = 2.0 * found if anchor == "mean" else found
        assert (read[i] - plain_norm(base[i] + added, tower.ln_final.eps)).abs().max() < 1e-9


def test_half_precision_is_read_in_float32(run, tower):
    import vit_lens as vl

    pixels, _ = run
    half = vl.towers.working_copy(tower, torch.bfloat16, device=torch.device("cpu"))
    _, cache = half.run_with_cache(pixels.bfloat16())
    assert vl.patch_tokens(cache).dtype == torch.float32


# ---- wrong input


def test_wrong_input_is_refused(tower, run):
    import vit_lens as vl

    pixels, cache = run
    lens = vl.PatchSteeringLens(alpha=2.0)
    with pytest.raises(vl.errors.LensError, match=r"residual stream itself.*PatchDiffusionLens"):
        lens.read(cache, "L1.resid_post")
    with pytest.raises(vl.errors.LensError, match=r"at='patch999'.*out of range"):
        vl.PatchSteeringLens(alpha=2.0, at="patch999").read(cache, "L1.mlp")
    if tower.cfg.has_cls:
        with pytest.raises(vl.errors.LensError, match=r"cls is no patch"):
            vl.PatchSteeringLens(alpha=2.0, at="cls").read(cache, "L1.mlp")
    _, small = tower.run_with_cache(pixels, rows="readout")
    with pytest.raises(vl.errors.LensError, match=r"need every token.*rows='readout'"):
        lens.read(small, "L1.mlp")
    readout = vl.ReferenceMeans.from_images(tower, pixels)
    with pytest.raises(vl.errors.LensError, match=r"mean at every token.*--positions all"):
        vl.PatchSteeringLens(alpha=2.0, anchor="mean", reference=readout)
    with pytest.raises(vl.errors.LensError, match=r"other images, or an edit"):
        tower.run_with_hooks(pixels.flip(0), fwd_hooks=lens.hooks(cache, "L1.mlp"))
    _, one = tower.run_with_cache(pixels[:1])
    means = means_at_every_token(tower)
    steered = vl.PatchSteeringLens(alpha=2.0, anchor="mean", reference=means)
    for each in (lens, steered, vl.PatchDiffusionLens()):
        with pytest.raises(vl.errors.LensError, match=r"the cache holds 1 images, this run has 3"):
            tower.run_with_hooks(pixels, fwd_hooks=each.hooks(one, "L1.mlp"))
    with pytest.raises(vl.errors.LensError, match=r"hooks show one"):
        lens.hooks(cache, "L1.mlp, L0.mlp")
    for other in (lens.other_image, lambda c, s: lens.read_writes(c, s, torch.zeros(3, 1, 1, 24))):
        with pytest.raises(vl.errors.LensError, match="tokens"):
            other(cache, "L1.mlp")
    with pytest.raises(vl.errors.LensError, match="pooled"):
        lens.embed(cache, "L1.mlp")
    if tower.cfg.attn_pool:
        with pytest.raises(vl.errors.LensError, match="behind the patch tokens"):
            vl.PatchDiffusionLens().read(cache, "pool.attn")


def test_texts_have_no_patches():
    import vit_lens as vl

    model = vl.HookedTextEncoder.from_pretrained("mini")
    _, cache = model.run_with_cache(["a red star"])
    with pytest.raises(vl.errors.LensError, match="sees no"):
        vl.patch_tokens(cache)


def test_spellings(tower):
    import vit_lens as vl

    means = means_at_every_token(tower)
    made = vl.lenses.parse_lenses(
        ["patch-diffusion", "patch-dsl:share=1", "patch-dsl-mean:alpha=5:at=each"], tower, means
    )
    assert [type(lens).__name__ for lens in made[:2]] == ["PatchDiffusionLens", "PatchSteeringLens"]
    assert [lens.at for lens in made[2:]] == [f"patch{k}" for k in range(tower.cfg.n_patches)]
    assert len({lens.describe().id for lens in made}) == len(made)
    both = vl.lenses.parse_lenses(["dsl-mean:alpha=5", "patch-dsl-mean:alpha=5"], tower, means)
    assert [lens.reference.positions for lens in both] == ["readout", "all"]
    for text, told in {
        "patch-dls:alpha=1": "nearest: 'patch-dsl'", "patch-dsl": "strength", "patch-dsl:alpha=x": "is not a number",
        "patch-dsl:alpha=1:ta=patch1": "nearest: 'at'", "patch-diffusion:at=patch1": "no settings",
        "patch-dsl-mean:alpha=5": "--positions all", "patch-dsl:alpha=1:project=40": "gallery of embeddings",
        "patch-diffusion:project": "gallery of embeddings", "patch-dsl:alpha=1:at=": "write settings",
    }.items():  # fmt: skip
        with pytest.raises(vl.errors.LensError, match=told):
            vl.lenses.parse_lens(text, None)
