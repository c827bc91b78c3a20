"""Soft projection: against a loop, under hooks, beside its control; what of the gallery is left out, and told."""

import math

import pytest
import text_towers
import torch
from conftest import randomize
from test_interventions import images, random_vit

CLOSE = dict(atol=1e-9, rtol=0)


def gallery_of(model, embeds, names=None):
    """A gallery with embeddings given by hand, of a model whose pixels are handed over."""
    from vit_lens.readers import Gallery

    names = tuple(names or (f"{i}.png" for i in range(len(embeds))))
    return Gallery(
        encoder_id=model.encoder_id, fingerprint=model.fingerprint, preprocess={}, folder="", names=names,
        hashes=tuple(map(str, range(len(embeds)))), stamps=("",) * len(embeds), embeds=embeds,
        weights=model.exact_fingerprint(),
    )  # fmt: skip


def by_hand(e, targets, kappa):
    weights = [math.exp(kappa * float(e @ g) / float(e.norm() * g.norm())) for g in targets]
    mean = sum(weight / sum(weights) * g for weight, g in zip(weights, targets, strict=True))
    return mean / mean.norm() * sum(float(g.norm()) for g in targets) / len(targets)


@pytest.fixture
def setting(readout_vit):
    """A model, two images, their cache, and a gallery of others."""
    model, _ = readout_vit
    x = images(model, 9)
    _, cache = model.run_with_cache(x[:2])
    return model, x, cache, gallery_of(model, model(x[2:]))


def lenses(model, x):
    import vit_lens as vl

    means = vl.ReferenceMeans.from_images(model, x[5:])
    return [
        vl.DiffusionLens(),
        vl.DiffusionSteeringLens(alpha=3),
        vl.DiffusionSteeringLens(share=1, anchor="mean", reference=means),
        vl.CounterfactualLens(anchors=vl.Anchors.of(model, x[3:4]), norms=means.differences),
    ]


def test_every_lens_is_projected_in_closed_form_and_under_hooks(setting):
    import vit_lens as vl

    model, x, cache, gallery = setting
    for inner in lenses(model, x):
        lens = vl.ProjectedLens(lens=inner, gallery=gallery, kappa=7)
        read, raw = lens.embed(cache, ["L1H2", "L2.mlp"]), inner.embed(cache, ["L1H2", "L2.mlp"])
        controls = [
            one.placebo(cache, ["L1H2", "L2.mlp"], generator=torch.Generator().manual_seed(4)) for one in (lens, inner)
        ]
        others = [one.other_image(cache, ["L1H2", "L2.mlp"]) for one in (lens, inner)]
        for found, given in ((read, raw), controls, others):
            for image in range(2):
                for site in range(2):
                    expected = by_hand(given[image, site], gallery.embeds, 7)
                    assert torch.allclose(found[image, site], expected, **CLOSE)
        for at, site in enumerate(("L1H2", "L2.mlp")):
            hooked = model.run_with_hooks(x[:2], fwd_hooks=lens.hooks(cache, site))
            assert torch.allclose(hooked, read[:, at], **CLOSE)
        assert lens.reads(vl.Site.parse("L1.resid_post")) == inner.reads(vl.Site.parse("L1.resid_post"))
        said = lens.describe()
        assert (said.lens, said.settings["kappa"], said.settings["gallery_n"]) == (inner.describe().lens, 7, 7)
        assert said.id != inner.describe().id != vl.ProjectedLens(lens=inner, gallery=gallery, kappa=8).describe().id


def test_the_ends_of_kappa_are_the_mean_and_the_nearest(setting):
    from vit_lens.lenses import soft_projection

    _, _, _, gallery = setting
    targets, usual = gallery.embeds, gallery.embeds.norm(dim=-1).mean()
    e = (targets[3] * 5 + targets[1])[None, None]
    mean, near = soft_projection(e, targets, 1e-9)[0, 0], soft_projection(e, targets, 1e6)[0, 0]
    cosine = torch.nn.functional.cosine_similarity
    assert torch.allclose(cosine(mean, targets.mean(0), dim=0), torch.ones(()).double(), atol=1e-8)
    assert torch.allclose(cosine(near, targets[3], dim=0), torch.ones(()).double(), atol=1e-8)
    assert torch.allclose(mean.norm(), usual, **CLOSE) and torch.allclose(near.norm(), usual, **CLOSE)
    assert torch.allclose(soft_projection(e * 7, targets, 40), soft_projection(e, targets, 40), **CLOSE)


def test_a_gallery_that_holds_the_input_leaves_it_out_and_says_so(setting):
    import vit_lens as vl
    from vit_lens.lenses import OwnPictureWarning

    model, x, cache, gallery = setting
    # The same picture under another name, run in another batch; and twice in the gallery.
    held = gallery_of(model, torch.cat([model(x[1:2]), gallery.embeds, model(x[1:3])[:1]]), [*"abcdefghi"])
    lens = vl.ProjectedLens(lens=vl.DiffusionLens(), gallery=held, kappa=7)
    alone = vl.ProjectedLens(lens=vl.DiffusionLens(), gallery=gallery, kappa=7)
    with pytest.warns(OwnPictureWarning, match=r"holds input 1 itself, as 'a', 'i', and projects on the others"):
        found = lens.embed(cache, "L1.mlp")
    assert torch.allclose(found[1], alone.embed(cache, "L1.mlp")[1], **CLOSE)  # without both of them
    assert torch.allclose(
        found[0, 0], by_hand(vl.DiffusionLens().embed(cache, "L1.mlp")[0, 0], held.embeds, 7), **CLOSE
    )
    with pytest.warns(OwnPictureWarning):
        hooked = model.run_with_hooks(x[:2], fwd_hooks=lens.hooks(cache, "L1.mlp"))
    assert torch.allclose(hooked, found[:, 0], **CLOSE)
    with pytest.warns(OwnPictureWarning):
        means = vl.ProjectedLens(lens=vl.DiffusionLens(), gallery=held).placebo(
            cache, "L1.mlp", generator=torch.Generator().manual_seed(0)
        )
    assert means.isfinite().all()
    only = gallery_of(model, model(x[1:2]))
    with pytest.warns(OwnPictureWarning), pytest.raises(vl.errors.GalleryError, match=r"nothing but the input itself"):
        vl.ProjectedLens(lens=vl.DiffusionLens(), gallery=only).embed(cache, "L1.mlp")


def test_copies_of_one_picture_count_once(setting):
    import dataclasses

    import vit_lens as vl

    _, _, cache, gallery = setting
    twice = dataclasses.replace(
        gallery, names=(*gallery.names, "copy"), hashes=(*gallery.hashes, "2"), stamps=(*gallery.stamps, ""),
        embeds=torch.cat([gallery.embeds, gallery.embeds[2:3]]),
    )  # fmt: skip
    one, other = (vl.ProjectedLens(lens=vl.DiffusionLens(), gallery=each) for each in (gallery, twice))
    assert torch.equal(one.embed(cache, "heads"), other.embed(cache, "heads"))
    assert one.describe().id == other.describe().id


def test_several_anchors_are_projected_apart_and_averaged(setting):
    import vit_lens as vl
    from vit_lens.lenses import average_reading

    model, x, cache, gallery = setting
    norms = vl.reference.DifferenceNorms.of(model, x[4:])
    inner = vl.CounterfactualLens(anchors=vl.Anchors.of(model, x[2:4]), norms=norms)
    lens = vl.ProjectedLens(lens=inner, gallery=gallery, kappa=3)
    apart = torch.stack([one.embed(cache, "L1H0") for one in lens.each()])
    assert torch.allclose(lens.embed(cache, "L1H0"), average_reading(apart), **CLOSE)
    assert len(lens.each()) == 2 and [one.settings()["anchor"] for one in lens.each()] == ["anchor 0", "anchor 1"]
    draws = [one.placebo(cache, "L1H0", generator=torch.Generator().manual_seed(1)) for one in (lens, *lens.each())]
    assert torch.allclose(draws[0], average_reading(torch.stack(draws[1:])), **CLOSE)
    assert lens.knows(model.run_with_cache(x[1:3])[1]) == [False, True]


def test_text_towers_are_projected_on_texts():
    import vit_lens as vl
    from vit_lens.lenses import OwnPictureWarning

    model = vl.HookedTextEncoder.from_module(
        text_towers.clip_text(randomize), tokenizer=text_towers.clip_tokenizer()
    ).requires_grad_(False)
    captions = ("a star", "blue", "red star of a star", "a red star")
    bank = vl.TextBank(
        captions=captions, embeds=model(list(captions)), logit_scale=1.0, logit_bias=None, encoder_id=model.encoder_id
    )
    _, cache = model.run_with_cache(["a red star", "of a blue star"])
    lens = vl.ProjectedLens(lens=vl.DiffusionSteeringLens(alpha=2), gallery=bank, kappa=5)
    with pytest.warns(OwnPictureWarning, match=r"holds input 0 itself, as 'a red star'"):
        found = lens.embed(cache, "L1.mlp")
    raw = lens.lens.embed(cache, "L1.mlp")
    assert torch.allclose(found[0, 0], by_hand(raw[0, 0], bank.embeds[:3], 5), **CLOSE)
    assert torch.allclose(found[1, 0], by_hand(raw[1, 0], bank.embeds, 5), **CLOSE)


def test_features_are_projected(vit, pixels):
    import tiny_dictionaries as tiny

    import vit_lens as vl
    from vit_lens.dictionaries import Origin, feature_embeddings

    dictionary = tiny.make("topk", origin=Origin(site="blocks.1.hook_mlp_out", tokens="all", stream="output"))
    gallery = gallery_of(vit, vit(pixels * 1.3))
    _, cache = vit.run_with_cache(pixels)
    inner = vl.DiffusionSteeringLens(alpha=3)
    lens = vl.ProjectedLens(lens=inner, gallery=gallery, kappa=5)
    raw = feature_embeddings(inner, cache, dictionary, [1, 4])
    found = feature_embeddings(lens, cache, dictionary, [1, 4])
    assert torch.allclose(found[2, 1], by_hand(raw[2, 1], gallery.embeds, 5), **CLOSE)


def test_wrong_galleries_and_sharpness_are_refused(setting, errors, unchecked):
    import vit_lens as vl
    from vit_lens.lenses import soft_projection

    model, _, cache, gallery = setting
    inner = vl.DiffusionLens()
    for kappa in (0, -3, math.nan, math.inf, None, "40", True, 1e9):
        with pytest.raises(errors.LensError, match=r"kappa=.*expected a number above 0.*40 is usual"):
            vl.ProjectedLens(lens=inner, gallery=gallery, kappa=kappa)
        with pytest.raises(errors.LensError, match=r"kappa="):
            soft_projection(torch.ones(1, 1, 2), torch.ones(1, 2), kappa)
    with pytest.raises(errors.GalleryError, match=r"the gallery is empty"):
        vl.ProjectedLens(lens=inner, gallery=gallery_of(model, gallery.embeds[:0]))
    with pytest.raises(errors.GalleryError, match=r"gallery is .*Gallery.from_folder"):
        vl.ProjectedLens(lens=inner, gallery="photos/")
    with pytest.raises(errors.GalleryError, match=r"is zero and has no direction"):
        vl.ProjectedLens(lens=inner, gallery=gallery_of(model, gallery.embeds * 0))
    with pytest.raises(errors.LensError, match=r"lens"):
        vl.ProjectedLens(lens="diffusion", gallery=gallery)
    other = random_vit()
    theirs = gallery_of(other, other(images(other, 3)))
    with pytest.raises(errors.GalleryError, match=r"this gallery was made with"):
        vl.ProjectedLens(lens=inner, gallery=theirs).embed(cache, "L1H1")
    with pytest.raises(errors.GalleryError, match=r"this gallery was made with"):
        vl.ProjectedLens(lens=inner, gallery=theirs).hooks(cache, "L1H1")
    bank = vl.TextBank(
        captions=("a",), embeds=gallery.embeds[:1], logit_scale=1.0, logit_bias=None, encoder_id=model.encoder_id
    )
    with pytest.raises(errors.GalleryError, match=r"embeddings of texts, which lie apart from those of images"):
        vl.ProjectedLens(lens=inner, gallery=bank).embed(cache, "L1H1")
    with pytest.raises(errors.LensError, match=r"reads tokens, and a projection is of one vector"):
        vl.ProjectedLens(lens=vl.TextDiffusionLens(), gallery=gallery)
    with pytest.raises(errors.LensError, match=r"no direction to project along"):
        soft_projection(torch.zeros(1, 1, 2), torch.ones(1, 2))
    with pytest.raises(errors.LensError, match=r"projects on a gallery, and there is none"):
        vl.lenses.parse_lens("diffusion:project=40", None)
    with pytest.raises(errors.LensError, match=r"a projection is of one vector: the k-th tokens"):
        vl.lenses.parse_text_lenses("diffusion:project=40")

    class Bare(vl.Lens):
        """Without a control."""

        def reads(self, site):
            return True

        def read(self, cache, sites):
            return inner.read(cache, sites)

    assert not vl.ProjectedLens(lens=Bare(), gallery=gallery).has_control
    with pytest.raises(errors.LensError, match=r"has no hook functions"):
        vl.ProjectedLens(lens=Bare(), gallery=gallery).hooks(cache, "L1H1")
