"""The shipped pair: its size, its formats, and its bars on held-out scenes, measured again."""

import json

import pytest

from vit_lens.mini import PAIR
from vit_lens.mini.training import evaluate


@pytest.fixture(scope="module")
def pair():
    return evaluate.load_pair(PAIR)


@pytest.fixture(scope="module")
def measured(pair):
    """The bars on a seed that no committed number used."""
    return evaluate.evaluate_pair(pair, n_images=400, n_decoded=100, seed=77)


def test_shipped_weights_are_small_and_in_half_precision():
    from safetensors import safe_open

    weights_of = ("encoder/model", "decoder/unet/diffusion_pytorch_model", "decoder/movq/diffusion_pytorch_model")
    assert sum(path.stat().st_size for path in PAIR.rglob("*")) < 21e6
    for path in (PAIR / f"{name}.safetensors" for name in weights_of):
        with safe_open(path, "pt") as weights:
            assert all(weights.get_slice(name).get_dtype() == "F16" for name in weights.keys())


def test_encoder_has_64_heads(pair):
    vision = pair.clip.config.vision_config
    assert (vision.num_hidden_layers, vision.num_attention_heads) == (8, 8)


def test_decoder_says_which_encoder_it_was_made_for():
    card = json.loads((PAIR / "decoder" / "vit_lens.json").read_text())
    assert card["encoder_id"] == "vit_lens/mini" and card["embed_dim"] == 128


def test_no_file_names_a_machine_path():
    texts = [path for path in PAIR.rglob("*") if path.suffix in (".json", ".md")]
    assert len(texts) > 8
    assert [path.name for path in texts if any(root in path.read_text() for root in ("/work", "/home", "/tmp"))] == []


def test_zero_shot_on_inputs(measured):
    """The bars are .9, and .85 for shape; 400 scenes put two standard errors at .03 or less."""
    bars = {name: 0.85 if name == "shape" else 0.9 for name in measured["zero_shot"]}
    assert {name: value for name, value in measured["zero_shot"].items() if value < bars[name] - 0.03} == {}


def test_round_trip(measured):
    """The bars are .946 and .3; 100 scenes put two standard errors below .015 and .04."""
    assert measured["cosine_round_trip"]["mean"] >= 0.946 - 0.015
    assert measured["cosine_mismatched"]["mean"] < 0.3 + 0.04


def test_zero_shot_on_decoded_pictures(measured):
    """The bars are .7 and .6; 100 scenes put one and a half standard errors at .07."""
    assert measured["zero_shot_decoded"]["shape"] > 0.7 - 0.07
    assert measured["zero_shot_decoded"]["texture"] > 0.6 - 0.07


def test_embedding_norm_is_natural(measured):
    assert 8 < measured["embedding_norm"]["mean"] < 20


def test_committed_metrics_are_of_these_weights(measured):
    """Two samples of one model agree within their sampling error."""
    committed = json.loads((PAIR / "metrics.json").read_text())
    assert abs(committed["cosine_round_trip"]["mean"] - measured["cosine_round_trip"]["mean"]) < 0.02
