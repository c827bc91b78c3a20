"""Hostile input to interventions: nothing silent, no bare error, nothing shared."""

import dataclasses

import numpy as np
import pytest
import torch
from faults import outcomes, pickled

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(scope="module")
def cache(vit, pixels):
    return vit.run_with_cache(pixels)[1]


# ---- H2, H3: a metric may edit what it is given, and keeps what it was given --------------------------------------


def test_a_metric_that_edits_its_embeddings_changes_no_other_number(vit, pixels):
    from vit_lens.interventions import patch_paths

    def kind(embeds):
        return (embeds - 1).square().sum(-1)

    def rude(embeds):
        return embeds.sub_(1).square_().sum(-1)

    senders, receivers = ["L2.mlp", "L1H1"], ["L1H0.q", "L2H2.v", "final"]  # no path: the clean embeddings, again
    found, expected = (patch_paths(vit, pixels, pixels.flip(0), metric, senders, receivers) for metric in (rude, kind))
    for name in ("values", "base", "source"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0)


def test_a_target_that_is_edited_later_changes_no_metric(vit, pixels):
    from vit_lens.interventions import cosine_to, logit_difference

    embeds = vit(pixels)
    targets = embeds.clone(), embeds.flip(0).clone()
    metrics = cosine_to(targets[0]), logit_difference(*targets)
    before = [metric(embeds) for metric in metrics]
    for target in targets:
        target.mul_(-1)
    for metric, value in zip(metrics, before, strict=True):
        assert torch.equal(metric(embeds), value)


def test_yes_and_no_are_numbers(vit, pixels):
    from vit_lens.interventions import patch_each

    found = patch_each(vit, pixels, pixels.flip(0), lambda embeds: embeds[:, 0] > embeds[:, 1], "mlp")
    assert found.values.dtype == vit.dtype and set(found.values.unique().tolist()) <= {0.0, 1.0}
    assert found.effect.isfinite().all()


# ---- pickle -----------------------------------------------------------------------------------------------------


def test_hooks_and_metrics_go_through_pickle(vit, pixels, cache):
    from vit_lens import interventions as iv
    from vit_lens.reference import ReferenceMeans

    means = ReferenceMeans.from_images(vit, pixels, positions="all")
    hooks = {
        "zero": iv.zero(vit, ["L0H1", "L1.mlp"]), "mean": iv.mean(vit, "L0H1", means),
        "patch": iv.patch(vit, "L0H1", cache, images=0), "resample": iv.resample(vit, "heads", cache),
        "path": iv.path(vit, "L0H1", "L2H0.q", cache, vit.run_with_cache(pixels.flip(0))[1]),
    }  # fmt: skip
    for name, own in hooks.items():
        again = pickled(own)
        found = vit.run_with_hooks(pixels, fwd_hooks=again)
        assert torch.equal(found, vit.run_with_hooks(pixels, fwd_hooks=own)), name
    embeds = vit(pixels)
    for metric in (iv.cosine_to(embeds), iv.logit_difference(embeds[0], embeds[1], 90.0)):
        assert torch.equal(pickled(metric)(embeds), metric(embeds))


# ---- hooks of another model ---------------------------------------------------------------------------------------


def test_hooks_of_a_model_of_other_sizes_are_refused_by_the_run(vit, pixels, cache, errors):
    """Zero for heads 0 to 4 of 7 would be no ablation of a layer, and nothing would say so."""
    from conftest import randomize

    from vit_lens import HookedViT
    from vit_lens import interventions as iv
    from vit_lens.reference import ReferenceMeans

    cfg = dataclasses.replace(vit.cfg, n_heads=7, d_model=28, d_head=4, d_mlp=50, image_size=(22, 33))
    other, images = randomize(HookedViT(cfg).double()), torch.randn(3, 3, 22, 33, dtype=torch.float64)
    means = ReferenceMeans.from_images(vit, pixels, positions="all")
    hooks = [iv.zero(vit, "heads"), iv.zero(vit, "L0N3"), iv.mean(vit, "L1.mlp", means), iv.mean(vit, "L1H1", means),
             iv.patch(vit, "L1.mlp", cache), iv.patch(vit, "L1H1", cache), iv.path(vit, "L0H1", "L2H0.q", cache, cache),
             iv.path(vit, "L0H1", "final", cache, cache)]  # fmt: skip
    for own in hooks:
        with pytest.raises(errors.InterventionError, match="these hooks are of another model than this run"):
            other.run_with_hooks(images, fwd_hooks=own)
    with pytest.raises(errors.InterventionError, match="these hooks are of another model"):
        vit.run_with_hooks(pixels, fwd_hooks=iv.zero(other, "L0.mlp", tokens=6))


# ---- arguments --------------------------------------------------------------------------------------------------


def test_sets_of_hooks_may_be_a_generator(vit, pixels):
    from vit_lens.interventions import run_many

    found = run_many(vit, pixels, ([] for _ in range(2)), batch_size=np.int64(4))
    torch.testing.assert_close(found, torch.stack([vit(pixels)] * 2), rtol=0, atol=1e-12)


def test_numbers_are_of_any_kind(vit, pixels, cache):
    from vit_lens.interventions import derangement, logit_difference, resample

    assert torch.equal(derangement(np.int64(5), seed=torch.tensor(3)), derangement(5, seed=3))
    hooks = resample(vit, "L0H0", cache, seed=np.int32(1), n_images=np.int64(3))
    assert vit.run_with_hooks(pixels, fwd_hooks=hooks).shape == (3, 13)
    embeds = vit(pixels)
    found = logit_difference(embeds[0], embeds[1], torch.tensor(90.0))(embeds)
    assert torch.equal(found, logit_difference(embeds[0], embeds[1], 90.0)(embeds))


def test_wrong_arguments_are_refused_in_words(vit, pixels, cache, errors):
    from vit_lens import interventions as iv

    m, x, c, embeds = vit, pixels, cache, vit(pixels)
    metric, other = iv.cosine_to(embeds), pixels.flip(0)
    one, seed = "InterventionError", "expected a whole number"
    tensor = "expected a float tensor [*batch d_embed]"
    sizes = iter([1, 2])

    def ragged(embeds):
        return torch.zeros(next(sizes))

    swept = iv.ablate_each(m, x, metric, "mlp", replacement="zero")
    cases = {
        "model of a name": (lambda: iv.zero("mini", "L0H0"), one, "expected a HookedViT, not str"),
        "model None": (lambda: iv.run_many(None, x, [[]]), one, "expected a HookedViT, not NoneType"),
        "sweep of a name": (lambda: iv.ablate_each("mini", x, metric, replacement="zero"), one, "not str"),
        "no image": (lambda: iv.patch(m, "L0H0", c, images=[]), one, "images=[]; expected the number"),
        "n_images 0": (lambda: iv.resample(m, "L0H0", c, n_images=0), one, "n_images=0; expected a whole number"),
        "n_images -1": (lambda: iv.resample(m, "L0H0", c, n_images=-1), one, "at least 1"),
        "n_images of text": (lambda: iv.resample(m, "L0H0", c, n_images="3"), one, "n_images='3'"),
        "n_images 3.0": (lambda: iv.resample(m, "L0H0", c, n_images=3.0), one, "n_images=3.0"),
        "seed of text": (lambda: iv.resample(m, "L0H0", c, seed="a"), one, seed),
        "seed None": (lambda: iv.resample(m, "L0H0", c, seed=None), one, seed),
        "seed 1.5": (lambda: iv.derangement(4, seed=1.5), one, seed),
        "seed of 100 bits": (lambda: iv.derangement(4, seed=10**30), one, seed),
        "seed of a sweep": (lambda: iv.ablate_each(m, x, metric, replacement="resample", seed="x"), one, seed),
        "order of text": (lambda: iv.derangement("3"), one, "n='3'; expected a whole number"),
        "order of 2.5": (lambda: iv.derangement(2.5), one, "n=2.5"),
        "order of True": (lambda: iv.derangement(True), one, "n=True"),
        "target of whole numbers": (lambda: iv.cosine_to(torch.ones(13, dtype=torch.long)), one, "torch.int64"),
        "target on meta": (lambda: iv.cosine_to(torch.ones(13, device="meta")), one, "on meta"),
        "target complex": (lambda: iv.cosine_to(torch.ones(13, dtype=torch.complex64)), one, tensor),
        "target of one number": (lambda: iv.cosine_to(torch.tensor(1.0)), one, tensor),
        "target of numpy": (lambda: iv.cosine_to(np.ones(13)), one, "the target is a ndarray"),
        "target of three axes": (lambda: iv.patch_each(m, x, other, iv.cosine_to(torch.ones(1, 3, 13)), "mlp"), one,
                                 "the metric returned (1, 3)"),
        "scale nan": (lambda: iv.logit_difference(embeds[0], embeds[1], float("nan")), one, "logit_scale=nan"),
        "scale of text": (lambda: iv.logit_difference(embeds[0], embeds[1], "100"), one, "logit_scale='100'"),
        "batch 0": (lambda: iv.run_many(m, x, [[]], batch_size=0), one, "batch_size=0; expected a whole number"),
        "batch -3": (lambda: iv.patch_each(m, x, other, metric, batch_size=-3), one, "batch_size=-3"),
        "batch of text": (lambda: iv.run_many(m, x, [[]], batch_size="3"), one, "batch_size='3'"),
        "batch nan": (lambda: iv.run_many(m, x, [[]], batch_size=float("nan")), one, "batch_size=nan"),
        "sets 3": (lambda: iv.run_many(m, x, 3), one, "3 is no set of hooks"),
        "metric None": (lambda: iv.patch_each(m, x, other, None), one, "metric=None; expected a function"),
        "metric of text": (lambda: iv.ablate_each(m, x, "cos", replacement="zero"), one, "metric='cos'; expected"),
        "read of nothing": (lambda: iv.run_and_read(m, x, [[]], 64, lambda e: None), one,
                            "read= returned ['NoneType']"),
        "read of shapes": (lambda: iv.run_and_read(m, x, [[], iv.zero(m, "L1")], 64, ragged), one,
                           "tensors of one shape"),
        "kind": (lambda: swept.tensor("nose"), one, "no sites of kind 'nose' here; there are mlp"),
    }  # fmt: skip
    assert not outcomes(errors, cases)
