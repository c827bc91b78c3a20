"""Lenses of studies: made of reference images that do not overlap; caches that are held only where they are small."""

import pytest
import torch
from test_interventions import images, random_vit


def test_jacobians_are_fitted_behind_the_anchors_and_checked(errors):
    from vit_lens import JacobianLens, ReferenceMeans
    from vit_lens.reference.fitting import seen_by
    from vit_lens.studies.reference_lenses import N_ANCHORS, N_FITTED, lenses_of_reference

    model = random_vit(n_layers=2)
    pixels = images(model, N_ANCHORS + N_FITTED + 5, seed=3)
    names = [f"image {place}" for place in range(len(pixels))]
    given = {"first": pixels[:N_ANCHORS], "names": names}
    means = ReferenceMeans.from_images(model, pixels)
    lens, plain = lenses_of_reference(["jacobian:share=0.5", "diffusion"], model, pixels, means, **given)
    digits = seen_by(model, pixels)
    used = [*lens.jacobians.images, *lens.jacobians.error.images]
    assert sorted(used) == sorted(digits[N_ANCHORS : N_ANCHORS + N_FITTED]) and plain.name == "diffusion"
    assert len(lens.anchors) == N_ANCHORS and lens.anchors.cache.rows == "all"
    few = pixels[: N_ANCHORS + 7]
    with pytest.raises(errors.StudyError, match=r"10 reference images: .* at least 8 are needed; give 11 or more"):
        lenses_of_reference(["jacobian"], model, few, means, first=few[:3], names=names[:10])
    made = JacobianLens.fit(model, images(model, 2, seed=9), test=False).jacobians
    (own,) = lenses_of_reference(["jacobian:alpha=2"], model, pixels, means, jacobians=made, **given)
    assert own.jacobians is made
    other = random_vit(n_layers=2, d_mlp=20)
    with pytest.raises(errors.ReferenceMismatchError):
        lenses_of_reference(["jacobian:alpha=2"], other, pixels, means, jacobians=made, **given)


@pytest.mark.parametrize("most, batch", [(2**28, 64), (3000, 2), (10, 1)])
def test_caches_of_all_rows_are_held_where_they_are_small_and_run_anew_where_not(monkeypatch, most, batch):
    from vit_lens import DiffusionLens, JacobianLens
    from vit_lens.studies import similarities

    model = random_vit(n_layers=2)
    pixels = images(model, 5, seed=3)
    jacobian = JacobianLens.fit(model, images(model, 2, seed=9), test=False)
    monkeypatch.setattr(similarities, "_HELD_NUMBERS", most)
    numbers = similarities._numbers(model, pixels, [jacobian])
    assert 1250 < numbers <= 1500 and similarities._batch(numbers) == min(64, max(1, most // numbers))
    found = similarities.held_caches(model, pixels, [jacobian, DiffusionLens()])
    assert isinstance(found, list) == (most == 2**28)
    for _ in range(2):  # it can be gone through again
        parts = [jacobian.embed(cache, "L0.mlp") for cache in found]
        assert max(map(len, parts)) <= batch
        whole = jacobian.embed(model.run_with_cache(pixels)[1], "L0.mlp")
        assert torch.allclose(torch.cat(parts), whole, atol=1e-12)
    plain = similarities.held_caches(model, pixels, [DiffusionLens()])
    assert isinstance(plain, list) and len(plain) == 1  # the read-out rows are small
