"""Controls of lenses that start from other images, and of projected ones: every kind, against a formula written out."""

import pytest
import torch
from test_controls import SITES, against, bank, model, photos  # noqa: F401 - fixtures

CLOSE = dict(atol=1e-9, rtol=0)
KINDS = ("random", "other", "covariance")


@pytest.fixture(scope="module")
def means(model, photos):  # noqa: F811
    from vit_lens import ReferenceMeans

    return ReferenceMeans.from_images(model, photos[4:8])


@pytest.fixture(scope="module")
def cache(model, photos):  # noqa: F811
    return model.run_with_cache(model.preprocess(photos[1:4]), rows="readout")[1]


def anchored(model, means, images):  # noqa: F811
    import vit_lens as vl

    return vl.CounterfactualLens(anchors=vl.Anchors.of(model, images), norms=means.differences, share=0.7)


def centred(x):
    return x - x.mean(-1, keepdim=True)


def test_another_images_difference_from_the_anchor_which_never_stands_in(model, photos, bank, means, cache):  # noqa: F811
    from vit_lens import Site
    from vit_lens.lenses import site_outputs

    lens, others = anchored(model, means, photos[:1]), bank.others(bank.hashes[1:4])
    sites = Site.resolve(SITES, model.cfg)
    own, start = site_outputs(cache, sites), site_outputs(lens.anchors.cache, sites)[0]
    every = site_outputs(bank.cache, sites)
    last = model.streams[-1].last(lens.anchors.cache)[0]
    copies = [place for place, digest in enumerate(bank.hashes) if digest == bank.hashes[0]]
    assert all(set(order) & set(copies) for order in others.orders)  # so that the anchor's turn would come
    for turn in range(others.least()):
        found = lens.pooled_against(cache, SITES, against("other", others.at(turn)))
        for i, order in enumerate(others.orders):
            left = [place for place in order if place not in copies]
            there = centred(every[left[turn % len(left)]] - start)
            size = centred(own[i] - start).flatten(1).norm(dim=1) / there.flatten(1).norm(dim=1)
            unit = 0.7 * centred(last).norm() / means.differences.of_sites(sites).to(last)
            expected = model.streams[-1].read((last + (unit * size)[:, None, None] * there)[None])[0]
            torch.testing.assert_close(found[i], expected, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_several_anchors_are_held_against_the_same(model, photos, bank, means, cache, kind):  # noqa: F811
    from vit_lens.lenses import average_reading

    lens, others = anchored(model, means, [photos[0], photos[7]]), bank.others(bank.hashes[1:4])
    found = lens.pooled_against(cache, SITES, against(kind, others))
    only = bank.others(bank.hashes[1:4])
    told = {0, 8, 7}
    orders = tuple(tuple(place for place in order if place not in told) for order in only.orders)
    object.__setattr__(only, "orders", orders)
    each = [one.pooled_against(cache, SITES, against(kind, only)) for one in lens.each()]
    torch.testing.assert_close(found, average_reading(torch.stack(each)), **CLOSE)
    assert (each[0] - each[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_every_control_is_projected(model, photos, bank, means, cache, kind):  # noqa: F811
    import vit_lens as vl
    from vit_lens.lenses import average_reading, soft_projection

    gallery = vl.readers.Gallery.from_images(model, photos[4:8])
    for lens in (vl.DiffusionLens(), anchored(model, means, [photos[0], photos[7]])):
        projected, others = vl.ProjectedLens(lens=lens, gallery=gallery, kappa=9), bank.others(bank.hashes[1:4])
        assert projected.has_controls
        found = projected.pooled_against(cache, SITES, against(kind, others))
        raw = [one.pooled_against(cache, SITES, against(kind, others)) for one in lens.each()]
        each = [soft_projection(one, gallery.embeds, 9) for one in raw]
        torch.testing.assert_close(found, each[0] if len(each) == 1 else average_reading(torch.stack(each)), **CLOSE)


def test_a_projected_lens_has_the_controls_of_its_own_lens_alone(model, photos):  # noqa: F811
    import vit_lens as vl

    class Plain(vl.Lens):
        "What the Diffusion Lens reads."

        def reads(self, site):
            return True

        def read(self, cache, sites):
            return vl.DiffusionLens().read(cache, sites)

    lens = vl.ProjectedLens(lens=Plain(), gallery=vl.readers.Gallery.from_images(model, photos[4:8]))
    assert not lens.has_control and not lens.has_controls


def test_every_lens_is_spelt_with_a_projection_and_what_is_none_of_its_is_refused(errors):
    from vit_lens.lenses import check_spelling, parse_lens, parse_text_lenses

    assert check_spelling("jacobian") == ("jacobian", {})
    assert check_spelling("jacobian:alpha=5:project=9") == ("jacobian", {"alpha": 5.0, "project": 9.0})
    with pytest.raises(errors.LensError, match=r"jacobian alone is the raw write"):
        check_spelling("jacobian:beta=1")
    with pytest.raises(errors.LensError, match="jacobian needs averaged Jacobians"):
        parse_lens("jacobian:project", None)
    with pytest.raises(errors.LensError, match=r"jacobian is of images; nearest: .*counterfactual:share"):
        parse_text_lenses("jacobian:alpha=5")
