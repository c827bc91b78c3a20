"""The ridge map from texts to images: against another way of fitting it, and on scenes that it never saw."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

import vit_lens as vl
from vit_lens.errors import ContractError, VitLensError
from vit_lens.mini import world
from vit_lens.readers import TextImageRidge


@pytest.fixture(scope="module")
def held_out():
    """Captions and images of 200 scenes that training never showed, embedded."""
    model, text = vl.HookedViT.from_pretrained("mini"), vl.HookedTextEncoder.from_pretrained("mini")
    scenes = world.sample_scenes(200, np.random.default_rng(31), held_out=True)
    with torch.no_grad():
        images = model(model.preprocess(list(world.render(scenes))))
        return [world.caption(scene) for scene in scenes], text([world.caption(scene) for scene in scenes]), images


def test_it_is_least_squares_with_the_penalty_as_further_rows():
    torch.manual_seed(0)
    x, y = torch.randn(61, 7, dtype=torch.float64) + 3, torch.randn(61, 5, dtype=torch.float64)
    found = TextImageRidge.fit(x, y, encoder_id="module@0", penalty=0.3)
    rows = torch.cat([x - x.mean(0), (0.3 * 61) ** 0.5 * torch.eye(7, dtype=torch.float64)])
    weight = torch.linalg.lstsq(rows, torch.cat([y - y.mean(0), torch.zeros(7, 5, dtype=torch.float64)])).solution
    assert torch.allclose(found.weight, weight.float(), atol=1e-6)
    assert torch.allclose(found(x), (y.mean(0) + (x - x.mean(0)) @ weight), atol=1e-6)
    assert found.n == 61 and found(x).dtype == torch.float64


def test_held_out_captions_are_near_their_images_and_far_from_others(held_out):
    _, texts, images = held_out
    asked = TextImageRidge.load("mini")(texts)
    assert cosine_similarity(asked, images).mean() > 0.95
    assert cosine_similarity(asked, images.roll(1, 0)).mean() < 0.3
    assert cosine_similarity(texts, images).mean() < 0.8
    nearest = torch.nn.functional.normalize(asked, dim=-1) @ torch.nn.functional.normalize(images, dim=-1).T
    assert (nearest.argmax(1) == torch.arange(200)).float().mean() > 0.95


def test_a_caption_is_drawn_as_its_scene(held_out):
    """Embedded again, the picture is the scene; that of another caption is not, nor is one without the map."""
    model, decoder, ridge = vl.HookedViT.from_pretrained("mini"), vl.load_decoder("mini"), TextImageRidge.load("mini")
    _, texts, images = held_out

    def seen(embeds):
        settings = decoder.settings(steps=5, guidance=1.0)
        pictures = decoder.decode(embeds, negative=model.zero_embedding(), encoder=ridge.encoder_id, settings=settings)
        with torch.no_grad():
            return model(model.preprocess(list(pictures.numpy())))

    drawn = seen(ridge(texts[:12]))
    own, other, raw = (
        cosine_similarity(a, b).mean()
        for a, b in ((drawn, images[:12]), (drawn, images[:12].roll(1, 0)), (seen(texts[:12]), images[:12]))
    )
    assert own > 0.97 and other < 0.5 and raw < own - 0.1


def test_layers_of_a_text_tower_are_drawn_through_it(held_out):
    """The last layer is the text's own embedding; the first knows nothing of what the end of the text is to say."""
    captions, texts, images = held_out
    text, ridge = vl.HookedTextEncoder.from_pretrained("mini"), TextImageRidge.load("mini")
    with torch.no_grad():
        _, cache = text.run_with_cache(captions[:9])
        layers = ridge(vl.DiffusionLens().embed(cache, ["L0.resid_pre", "resid_post"]))
    assert torch.allclose(layers[:, -1], ridge(texts[:9]), atol=1e-4)
    near = cosine_similarity(layers, images[:9, None], dim=-1).mean(0)
    assert near[0] < 0.5 < near[-1]


def test_the_shipped_map_is_what_training_writes(tmp_path):
    from vit_lens.mini.training import pair

    model, text = vl.HookedViT.from_pretrained("mini"), vl.HookedTextEncoder.from_pretrained("mini")
    again, shipped = pair.write_ridge(model, text, tmp_path / "map.safetensors", seed=0), TextImageRidge.load("mini")
    assert torch.allclose(again.weight, shipped.weight, atol=1e-4) and again.encoder_id == shipped.encoder_id
    read = TextImageRidge.load(tmp_path / "map.safetensors")
    assert torch.equal(read.weight, again.weight) and torch.equal(read.bias, again.bias)
    assert (read.n, read.penalty) == (2000, 1e-2)


def fit(n_texts=4, n_images=4, **settings):
    texts = torch.full((n_texts, 3), settings.pop("value", 1.0))
    return TextImageRidge.fit(texts, torch.randn(n_images, 2), encoder_id="module@0", **settings)


def of(weight, bias):
    return TextImageRidge(encoder_id="module@0", weight=weight, bias=bias, n=2, penalty=0.0)


WRONG = [
    (lambda: of(torch.ones(3, 2), torch.full((2,), torch.inf)), "not finite"),
    (lambda: fit(1, 1), "1 texts and 1 images; expected as many of both"),
    (lambda: fit(4, 3), "4 texts and 3 images"),
    (lambda: fit(penalty=-1), "penalty=-1; expected 0 or more"),
    (lambda: fit(value=float("nan")), "not finite"),
    (lambda: TextImageRidge.load("nowhere.safetensors"), "nowhere.safetensors"),
    (lambda: TextImageRidge.load("mini")(torch.zeros(2, 9)), r"shape \(2, 9\), where the map takes 128 numbers each"),
]


@pytest.mark.parametrize("call, said", WRONG, ids=range(len(WRONG)))
def test_wrong_input_is_told(call, said):
    with pytest.raises((VitLensError, ContractError), match=said):
        call()
