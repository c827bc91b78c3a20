"""The counterfactual lens: hooks and closed form against a formula written out, for every read-out; its norms."""

import dataclasses
import itertools
import math

import pytest
import text_towers
import torch
from conftest import randomize
from test_interventions import images, random_vit

CLOSE = dict(atol=1e-9, rtol=0)
KINDS = ("head", "attn", "mlp")


def site_writes(model, cache, site):
    """What a site writes at the rows that the output is read from, one image after the other, by hand."""
    readout = cache.read_out
    if site.kind in ("head", "pool_head"):
        z, weight = cache[site.hook_name], model.attention_of(site).W_O
        out = torch.einsum("bpk,kd->bpd", z[:, :, site.head], weight[site.head])
    else:
        out = cache[site.hook_name]
    return out if site.is_pool else readout.rows(out)


def last_of(model, cache, site):
    if site.is_pool:
        parts = [name for name in ("attn_pool.hook_attn_out", "attn_pool.hook_mlp_out") if name in cache.cache_dict]
        return sum(cache[name] for name in parts)
    return cache.read_out.rows(cache[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"])


def centred(x):
    return (x - x.mean(-1, keepdim=True)).flatten(1).norm(dim=-1)


def slow(model, own, start, others, site, share):
    """The definition, from runs of images, an anchor and each reference input; the norm is a loop over all pairs."""
    each = [site_writes(model, run, site) for run in others]
    pairs = list(itertools.combinations(each, 2))
    typical = math.sqrt(sum(float(centred(a - b)) ** 2 for a, b in pairs) / len(pairs))
    last = last_of(model, start, site)
    change = (site_writes(model, own, site) - site_writes(model, start, site)) / typical
    return model.stream_of(site).read(last + share * centred(last)[:, None, None] * change)


def made(model, anchors, reference, **given):
    import vit_lens as vl

    norms = vl.reference.DifferenceNorms.of(model, reference, batch_size=4)
    return vl.CounterfactualLens(anchors=vl.Anchors.of(model, anchors), norms=norms, **given)


def check(model, x, anchors, reference, sites):
    """Closed form, hooks and formula, anchor by anchor; hooks from a cache of read-out rows and from a whole one."""
    lens = made(model, anchors, reference, share=0.7)
    alone = [one[None] if torch.is_tensor(one) else [one] for one in reference]
    _, cache = model.run_with_cache(x, rows="readout")
    own, *others = (model.run_with_cache(one)[1] for one in (x, *alone))
    for place, one in enumerate(lens.each()):
        start = model.run_with_cache(anchors[place : place + 1])[1]
        found = one.embed(cache, sites)
        for at, site in enumerate(one.check_sites(model, sites)):
            expected = slow(model, own, start, others, site, 0.7)
            assert torch.allclose(found[:, at], expected, **CLOSE), site
            hooked = model.run_with_hooks(x, fwd_hooks=one.hooks((cache, own)[at % 2], site))
            assert torch.allclose(hooked, expected, **CLOSE), site


def test_closed_form_hooks_and_formula_agree(readout_vit):
    model, _ = readout_vit
    x = images(model, 9)
    check(model, x[:2], x[2:4], x[4:], ["L0H1", "L1.attn", "L2H0", "L1.mlp", "L2.mlp"])


def test_the_same_with_attention_pooling(pooling_vit):
    x = torch.randn(8, 3, 23, 21, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    sites = ["L0H1", "L1.attn", "L2.mlp", "poolH1", "pool.attn"]
    sites += ["pool.mlp"] if pooling_vit.cfg.attn_pool.d_mlp else []
    check(pooling_vit, x[:2], x[2:4], x[4:], sites)


def test_the_same_of_a_text_tower_with_prompts_as_anchors():
    """Read at each prompt's own end, wherever that is."""
    from vit_lens import HookedTextEncoder

    model = HookedTextEncoder.from_module(
        text_towers.clip_text(randomize), tokenizer=text_towers.clip_tokenizer()
    ).requires_grad_(False)
    prompts = ["a red star", "a blue star of red", "blue", "red star, red", "of", "a star", "star of a blue star"]
    check(model, prompts[:2], prompts[2:4], prompts[4:], ["L0H1", "L1.attn", "L1.mlp", "L2H2"])


def test_at_the_strength_of_one_it_is_direct_patching():
    """Where strength undoes both norms, the site's output itself goes to that of the image."""
    model = random_vit()
    x = images(model, 6)
    lens = made(model, x[1:2], x[2:])
    _, cache = model.run_with_cache(x[:1])
    _, start = model.run_with_cache(x[1:2])
    for site in lens.check_sites(model, ["L1H0", "L0.mlp"]):
        size = float(centred(last_of(model, start, site)))
        own = dataclasses.replace(lens, share=float(lens.norms.of_sites([site])[0]) / size)
        state = last_of(model, start, site) + site_writes(model, cache, site) - site_writes(model, start, site)
        assert torch.allclose(own.embed(cache, [site])[:, 0], model.readout.read(state), **CLOSE)


def test_one_strength_for_each_site_and_not_for_each_image():
    """Twice the difference is twice the change: the size of what an image does differently is kept."""
    model = random_vit()
    x = images(model, 6)
    lens = made(model, x[1:2], x[2:])
    _, cache = model.run_with_cache(x[:1], rows="readout")
    _, start = model.run_with_cache(x[1:2], rows="readout")
    name = "blocks.1.hook_mlp_out"
    far = type(cache)(dict(cache.cache_dict), model, rows="readout", read_out=cache.read_out)
    far.cache_dict[name] = start[name] + 2 * (cache[name] - start[name])
    doubled = dataclasses.replace(lens, share=2 * lens.share)
    assert torch.allclose(lens.embed(far, "L1.mlp"), doubled.embed(cache, "L1.mlp"), **CLOSE)


def test_norms_are_those_of_all_pairs_for_every_kind_of_site(readout_vit, tmp_path, errors):
    """Of every head, block, MLP and place of the stream, whichever way they were collected; and back from the file."""
    import vit_lens as vl

    model, _ = readout_vit
    x = images(model, 7)
    norms = vl.reference.DifferenceNorms.of(model, x, batch_size=3)
    means = [
        vl.ReferenceMeans.from_images(model, x, positions=positions, batch_size=2) for positions in ("readout", "all")
    ]
    runs = [model.run_with_cache(one[None])[1] for one in x]
    sites = vl.Site.resolve(["heads", "attn", "mlp", "resid_pre", "resid_mid", "resid_post"], model.cfg)
    for site, norm in zip(sites, norms.of_sites(sites).tolist(), strict=True):
        each = [site_writes(model, run, site) for run in runs]
        pairs = [float(centred(a - b)) ** 2 for a, b in itertools.combinations(each, 2)]
        expected = math.sqrt(sum(pairs) / len(pairs))
        assert norm == pytest.approx(0 if expected < 1e-7 else expected, rel=1e-9), site
    path = means[0].save(tmp_path / "means.safetensors")
    for other in (*(one.differences for one in means), vl.ReferenceMeans.load(path).differences):
        assert all(torch.allclose(other.values[kind], value, rtol=1e-12) for kind, value in norms.values.items())
        assert (other.n, other.weights, other.fingerprint) == (7, norms.weights, norms.fingerprint)
    again = vl.reference.DifferenceNorms.load(norms.save(tmp_path / "norms.safetensors"))
    assert again.content == norms.content and again.check(model) is again
    assert vl.ReferenceMeans.load(path).content == means[0].content
    assert vl.ReferenceMeans.from_images(model, x[:1]).differences is None
    with pytest.raises(errors.VitLensError, match=r"at least two inputs"):
        vl.reference.DifferenceNorms.of(model, x[:1])


def test_several_anchors_have_a_reading_each_and_an_averaged_one(vit, pixels):
    import vit_lens as vl

    x = torch.cat([pixels, pixels * 1.7, pixels.flip(-1)])
    lens = made(vit, x[2:5], x[3:])
    _, cache = vit.run_with_cache(x[:2])
    apart = lens.embed_each(cache, ["L1H2", "L2.mlp"])
    assert apart.shape == (3, 2, 2, 13) and not torch.allclose(apart[0], apart[1])
    for place, one in enumerate(lens.each()):
        assert torch.equal(one.embed(cache, ["L1H2", "L2.mlp"]), apart[place])
        assert one.anchors.names == (f"anchor {place}",) and one.each() == [one]
    unit = apart / apart.norm(dim=-1, keepdim=True)
    whole = lens.embed(cache, ["L1H2", "L2.mlp"])
    texts = torch.randn(5, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    averaged = (unit @ texts.T).mean(0)
    read = whole @ texts.T
    ratio = read / averaged
    assert torch.allclose(ratio, ratio[..., :1].expand_as(ratio), **CLOSE)  # the same ranking, and the same signs
    assert torch.allclose(whole.norm(dim=-1), apart.norm(dim=-1).mean(0), **CLOSE)
    assert len({one.describe().id for one in [lens, *lens.each()]}) == 4
    assert lens.label.endswith("3 anchors") and lens.each()[1].settings()["anchor"] == "anchor 1"
    bank = vl.TextBank(
        captions=("a", "b", "c", "d", "e"), embeds=texts, logit_scale=3.0, logit_bias=None, encoder_id=vit.encoder_id
    )
    found = vl.readers.zero_shot_lens(cache, bank, ["L1H2", "L2.mlp"], lens=lens, controls=["random"])
    assert torch.allclose(found.of(), averaged / texts.norm(dim=-1), **CLOSE)
    controls = [
        one.placebo(cache, ["L1H2", "L2.mlp"], generator=torch.Generator().manual_seed(0)) for one in lens.each()
    ]
    expected = torch.stack([bank.cosines(one) for one in controls]).mean(0)
    assert torch.allclose(found.of(control="random"), expected, **CLOSE)


def test_the_control_is_a_random_direction_as_long_as_the_difference(readout_vit):
    model, _ = readout_vit
    x = images(model, 8)
    lens = made(model, x[2:3], x[3:])
    _, cache = model.run_with_cache(x[:2])
    _, start = model.run_with_cache(x[2:3])
    seen = []
    original = type(lens)._read

    def spy(self, cache, sites, outputs):
        seen.append(outputs)
        return original(self, cache, sites, outputs)

    try:
        type(lens)._read = spy
        lens.placebo(cache, "L1.mlp", generator=torch.Generator().manual_seed(2))
        lens.other_image(cache, "L1.mlp")
    finally:
        type(lens)._read = original
    (site,) = lens.check_sites(model, "L1.mlp")
    before = site_writes(model, start, site)
    difference = site_writes(model, cache, site) - before
    for outputs in seen:
        assert torch.allclose(centred(outputs[:, 0] - before), centred(difference), **CLOSE)
        assert not torch.allclose(outputs[:, 0], difference + before)
    swapped = seen[1][:, 0] - before
    assert torch.allclose(swapped[0] / centred(swapped)[0], difference[1] / centred(difference)[1], **CLOSE)


def test_features_change_in_the_anchor_at_the_strength_of_their_site(vit, pixels):
    import tiny_dictionaries as tiny

    import vit_lens as vl
    from vit_lens.dictionaries import Origin, feature_embeddings, feature_writes

    x = torch.cat([pixels, pixels * 1.7, pixels.flip(-1)])
    for place, name in (("L1.resid_post", "blocks.1.hook_resid_post"), ("L1.mlp", "blocks.1.hook_mlp_out")):
        dictionary = tiny.make("topk", origin=Origin(site=name, tokens="all", stream="output"))
        lens = made(vit, x[2:4], x[4:])
        _, cache = vit.run_with_cache(x[:2])
        found = feature_embeddings(lens, cache, dictionary, [3, 5, 8])
        apart = []
        for one, anchor in zip(lens.each(), (x[2:3], x[3:4]), strict=True):
            _, start = vit.run_with_cache(anchor)
            change = feature_writes(cache, dictionary, [3, 5, 8]) - feature_writes(start, dictionary, [3, 5, 8])
            last = vit.readout.rows(start["blocks.2.hook_resid_post"])
            site = vl.Site.parse(place)
            strength = 0.5 * float(centred(last)) / float(lens.norms.of_sites([site])[0])
            apart.append(vit.readout.read(last[:, None] + strength * change))
            assert torch.allclose(feature_embeddings(one, cache, dictionary, [3, 5, 8]), apart[-1], **CLOSE)
        unit = torch.stack([one / one.norm(dim=-1, keepdim=True) for one in apart]).mean(0)
        cosine = torch.nn.functional.cosine_similarity(found, unit, dim=-1)
        assert torch.allclose(cosine, torch.ones_like(cosine), **CLOSE)
        assert float(found.std()) > 1e-3


# ---- what is refused


def test_wrong_anchors_norms_and_strengths_are_refused(vit, pixels, errors, unchecked):
    import vit_lens as vl

    x = torch.cat([pixels, pixels * 1.7])
    norms = vl.reference.DifferenceNorms.of(vit, x)
    anchors = vl.Anchors.of(vit, x[2:4])
    good = vl.CounterfactualLens(anchors=anchors, norms=norms)
    _, cache = vit.run_with_cache(x[:2])
    for share in (0, -1.0, math.nan, math.inf, "x", None, True, 1e7):
        with pytest.raises(errors.LensError, match=r"share=.*expected a number above 0"):
            vl.CounterfactualLens(anchors=anchors, norms=norms, share=share)
    with pytest.raises(errors.LensError, match=r"no anchors: give at least one"):
        vl.Anchors.of(vit, [])
    with pytest.raises(errors.LensError, match=r"no anchors"):
        vl.Anchors.of(vit, x[:0])
    with pytest.raises(errors.LensError, match=r"'anchor 0' and 'anchor 2' are the same"):
        vl.Anchors.of(vit, x[[0, 1, 0]])
    with pytest.raises(errors.LensError, match=r"all different"):
        vl.Anchors.of(vit, x[:2], names=["a", "a"])
    with pytest.raises(errors.PreprocessError, match=r"22"):
        vl.Anchors.of(vit, torch.zeros(1, 3, 33, 22, dtype=torch.float64))
    with pytest.raises(errors.LensError, match=r"anchors is .*Anchors.of"):
        vl.CounterfactualLens(anchors=x, norms=norms)
    with pytest.raises(errors.LensError, match=r"norms=None.*make them again"):
        vl.CounterfactualLens(anchors=anchors, norms=vl.ReferenceMeans.from_images(vit, x[:1]).differences)
    both = vl.Anchors.of(vit, x[[1, 3]])
    own = vl.CounterfactualLens(anchors=both, norms=norms)
    readings = [
        lambda: own.embed(cache, "L1H1"), lambda: own.placebo(cache, "L1H1", generator=torch.Generator()),
        lambda: own.other_image(cache, "L1H1"), lambda: own.each()[0].hooks(cache, "L1H1"),
        lambda: own.each()[0].embed(vit.run_with_cache(x[1:2], rows="readout")[1], "L1H1"),
    ]  # fmt: skip
    for reading in readings:
        with pytest.raises(errors.LensError, match=r"image [01] is the anchor 'anchor 0' itself"):
            reading()
    assert own.knows(cache) == [False, True]
    other = random_vit()
    strange = images(other, 4)
    theirs = vl.Anchors.of(other, strange[:1])
    with pytest.raises(errors.ReferenceMismatchError, match=r"these anchors .* were made with"):
        vl.CounterfactualLens(anchors=theirs, norms=norms).embed(cache, "L1H1")
    with pytest.raises(errors.ReferenceMismatchError, match=r"these norms of differences .* were made with"):
        mixed = vl.reference.DifferenceNorms.of(other, strange)
        vl.CounterfactualLens(anchors=anchors, norms=mixed).embed(cache, "L1H1")
    with pytest.raises(errors.LensError, match=r"L1\.resid_post: the counterfactual lens changes what one submodule"):
        good.embed(cache, "L1.resid_post")
    with pytest.raises(errors.LensError, match=r"one anchor at a time; take lens.each"):
        good.hooks(cache, "L1H1")
    with pytest.raises(errors.LensError, match=r"reads changes"):
        good.read_writes(cache, "L1.mlp", torch.zeros(2, 1, 1, 35))
    constant = dataclasses.replace(norms, values={**norms.values, "mlp": norms.values["mlp"] * 0})
    with pytest.raises(errors.LensError, match=r"L1.mlp holds the same for every reference image"):
        vl.CounterfactualLens(anchors=anchors, norms=constant).embed(cache, "L1.mlp")
    with pytest.raises(errors.UnknownSiteError):
        good.embed(cache, "L9H0")
    with pytest.raises(errors.VitLensError, match=r"no finite numbers"):
        dataclasses.replace(norms, values={**norms.values, "mlp": norms.values["mlp"] * math.nan})


def test_means_of_an_earlier_version_and_of_another_preprocessing_are_told(errors, unchecked):
    import vit_lens as vl

    model = vl.HookedViT.from_pretrained("mini").requires_grad_(False)
    means = vl.ReferenceMeans.load("mini")
    assert means.differences.n == 512 and float(means.differences.of_sites([vl.Site.parse("L0H0")])[0]) > 1
    old = dataclasses.replace(means, differences=None)
    with pytest.raises(errors.LensError, match=r"of an earlier version"):
        vl.lenses.parse_lens("counterfactual", old, anchors=vl.Anchors.of(model, vl.mini.sample_images()[:1]))
    spec = model.spec().to_dict() | {"resize_mode": "squash"}
    moved = dataclasses.replace(means.differences, preprocess=spec)
    with pytest.raises(errors.ReferenceMismatchError, match=r"preprocessed with resize_mode 'squash'"):
        moved.check(model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("counterfactual:shar=1", "give its strength as counterfactual:share=NUMBER"),
        ("counterfactual:share=0", "share=0.0; expected a number above 0"),
        ("counterfactual:share=nan", "expected a number above 0"),
        ("counterfactual:share=1:share=2", "share is given twice"),
        ("counterfactual:alpha=2", "give its strength as counterfactual:share=NUMBER"),
        ("counterfactul", "nearest: 'counterfactual'"),
        ("dsl:alpha=3:project=0", "kappa=0.0; expected a number above 0"),
        ("dsl:alpha=3:projct=4", "behind any lens may stand :project=NUMBER"),
        ("dsl:project=4", "give its strength as dsl:alpha=NUMBER"),
        ("dsl:alpha=1:share=1", "give its strength as dsl:alpha=NUMBER"),
        ("diffusion:alpha=4", "the Diffusion Lens has no settings"),
        ("diffusion:project=x", "'x' is not a number"),
    ],
)
def test_wrong_spellings_are_told(text, message, errors):
    from vit_lens.lenses import check_spelling

    with pytest.raises(errors.LensError, match=message):
        check_spelling(text)
