"""What ships for lenses of the embedded encoder: Jacobians and a gallery, which serve it alone."""

import numpy as np
import pytest
import torch
from test_interventions import random_vit

import vit_lens as vl
from vit_lens.images import picture_hash, to_display
from vit_lens.lenses import parse_lenses
from vit_lens.mini import sample_images, world
from vit_lens.readers import Gallery
from vit_lens.reference import Jacobians, make_jacobians


@pytest.fixture(scope="module")
def mini():
    return vl.HookedViT.from_pretrained("mini")


def test_they_are_of_the_embedded_encoder_and_of_the_scenes_of_its_means(mini):
    """Drawn again as the training of the pair draws them; no bundled image is among them."""
    scenes = list(world.render_codes(world.sample_codes(512, np.random.default_rng([0, 7]), held_out=False)))
    gallery, jacobians = Gallery.shipped(mini).check(mini), Jacobians.shipped(mini).check(mini)
    again = Gallery.from_images(mini, scenes)
    assert again.hashes == gallery.hashes
    torch.testing.assert_close(again.embeds, gallery.embeds, rtol=0, atol=1e-4)
    how = {"held_out": None, "test": False, "out": None, "per_row": False, "batch_size": 16, "progress": False}
    fitted = make_jacobians(mini, scenes[:96], **how)
    assert set(fitted.images) == set(jacobians.images) and jacobians.error.n == 32
    assert (fitted.values - jacobians.values).norm() < 1e-3 * jacobians.values.norm()
    shown = set(map(picture_hash, to_display(sample_images(), mini.spec())))
    assert shown and not shown & set(gallery.hashes)


def test_spelt_lenses_of_the_embedded_encoder_take_them_and_those_of_others_do_not(mini):
    photo = sample_images()[:1]
    (raw,) = parse_lenses(["jacobian"], mini)
    assert raw.jacobians.content == Jacobians.load("mini").content
    (projected,) = vl.plan(mini, None, photo, lens="diffusion:project").readings
    assert projected.lens.gallery.hashes == Gallery.shipped(mini).hashes
    own = Gallery.from_images(mini, photo + sample_images()[1:])
    (given,) = vl.plan(mini, None, photo, lens="diffusion:project", beside=vl.Beside(gallery=own)).readings
    assert given.lens.gallery is own
    other = random_vit(n_layers=1)
    assert Jacobians.shipped(other) is None and Gallery.shipped(other) is None
    with pytest.raises(vl.errors.LensError, match="needs averaged Jacobians"):
        parse_lenses("jacobian", other)


def test_they_serve_the_commands_without_a_word(vit_lens, tmp_path):
    photo, lens = sample_images()[0], "jacobian:alpha=5:project=40"
    given = ["--lens", lens, "--sites", "L3.attn,L7.mlp"]
    status, _, error = vit_lens("sweep", photo, "--decoder", "none", *given, "--out", tmp_path / "out")
    assert status == 0, error
    record = vl.Record.load(tmp_path / "out")
    model = vl.HookedViT.from_pretrained("mini")
    made = vl.ProjectedLens(
        lens=vl.JacobianLens(jacobians=Jacobians.load("mini"), alpha=5.0), gallery=Gallery.shipped(model)
    )
    clean, cache = vl.lenses.run_for(model, model.preprocess([photo]), made)
    told = torch.nn.functional.cosine_similarity(made.embed(cache, ["L3.attn", "L7.mlp"])[0], clean)
    assert np.allclose(record.table["cos_lens_clean"], told.detach(), atol=1e-5)
    status, output, error = vit_lens("readout", photo, *given)
    assert status == 0 and "L3.attn" in output, error
