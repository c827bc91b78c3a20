"""Replicas and the judge: other encoders of the world, and decoders that are fitted to them."""

import numpy as np
import pytest
import torch

from vit_lens.mini import world
from vit_lens.mini.shipped import JUDGE
from vit_lens.mini.training.encoder import EncoderSettings
from vit_lens.mini.training.replica import affine_map, train_replica
from vit_lens.studies.images import content_of
from vit_lens.studies.mini_images import study_images


def test_an_affine_map_is_found():
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(300, 7, generator=generator)
    weight, bias = torch.randn(5, 7, generator=generator), torch.randn(5, generator=generator)
    found, constant = affine_map(source, source @ weight.T + bias, ridge=1e-9)
    assert torch.allclose(found, weight, atol=1e-4) and torch.allclose(constant, bias, atol=1e-4)


def test_directions_that_no_image_uses_get_no_weight():
    """Least squares gives them huge weights, which half precision breaks."""
    generator = torch.Generator().manual_seed(0)
    seen = torch.randn(400, 4, generator=generator)
    source = torch.cat([seen, 1e-4 * torch.randn(400, 3, generator=generator)], dim=1)
    target = seen @ torch.randn(4, 6, generator=generator) + 0.01 * torch.randn(400, 6, generator=generator)
    weight, bias = affine_map(source, target)
    assert weight[:, 4:].abs().max() < 1e-3
    half = source.half().float() @ weight.half().float().T + bias.half().float()
    assert (half - target).square().mean() < 0.01 * target.square().mean()
    loose, _ = affine_map(source, target, ridge=0.0)
    assert loose[:, 4:].abs().max() > 1.0


def test_a_replica_is_a_pair_whose_decoder_takes_its_embeddings(tmp_path):
    from vit_lens import HookedViT, KandinskyDecoder

    tiny = EncoderSettings(
        width=32, n_layers=1, n_heads=2, d_embed=24, text_width=32, text_layers=1, batch=8, n_steps=2
    )
    found = train_replica(tmp_path, 5, encoder=tiny, n_scenes=250, n_images=12, n_decoded=4)
    pair = tmp_path / "pair"
    model = HookedViT.from_pretrained(pair / "encoder")
    decoder = KandinskyDecoder.from_pretrained(pair / "decoder", encoder=model)
    assert decoder.d_embed == 24 and found["n_decoded"] == 4 and (pair / "metrics.json").is_file()
    assert "cosine_round_trip" in found["ip"]
    picture = decoder.decode(
        model.zero_embedding(), negative=None, encoder=model, settings=decoder.settings(steps=1, guidance=1.0)
    )
    assert picture.shape == (1, 64, 64, 3)


def test_the_judge_reads_scenes_and_is_not_the_pairs_encoder():
    from vit_lens import HookedViT, TextBank
    from vit_lens.identity import MINI_FINGERPRINT

    judge = HookedViT.from_pretrained(str(JUDGE))
    assert judge.fingerprint != MINI_FINGERPRINT and (judge.cfg.n_layers, judge.cfg.d_model) == (6, 96)
    codes = world.sample_codes(60, np.random.default_rng(3), held_out=True)
    with torch.no_grad():
        seen = judge(judge.preprocess(list(world.render_codes(codes))))
    for name in ("shape", "colour", "texture", "row"):
        logits = TextBank.from_pretrained(str(JUDGE), world.prompts(name)).logits(seen)
        assert (logits.argmax(1).numpy() == world.labels(codes, name)).mean() > 0.95


@pytest.mark.parametrize("seed", [0, 1])
def test_images_of_a_study_are_disjoint_and_those_to_test_held_out(seed):
    found = study_images(30, seed=seed, n_means=200)
    sets = [{content_of(image) for image in some} for some in (found.test, found.anchor, found.ablation)]
    assert [len(some) for some in sets] == [30, 200, 200]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    again = study_images(30, seed=seed, n_means=200)
    assert np.array_equal(np.stack(again.test), np.stack(found.test))
    assert not np.array_equal(np.stack(study_images(30, seed=seed + 9, n_means=200).test), np.stack(found.test))
