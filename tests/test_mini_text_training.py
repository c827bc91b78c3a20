"""The trainers of the text-to-image model, on tiny sizes: they run, resume without a trace, and write what loads."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from vit_lens.mini import still_life
from vit_lens.mini.still_life import Lexicon, Scene
from vit_lens.mini.training import text_evaluate, text_painter
from vit_lens.mini.training.autoencoder import AutoencoderSettings, train_autoencoder
from vit_lens.mini.training.second_judge import JudgeSettings, train_second_judge
from vit_lens.mini.training.text_encoder import (
    MAX_TOKENS,
    TextSettings,
    build_text_tokenizer,
    text_answers,
    tokenise,
    train_text,
)
from vit_lens.mini.training.text_painter import PainterSettings, build_schedule, train_painter
from vit_lens.mini.training.text_to_image import train_text_to_image

TEXT = TextSettings(width=16, n_layers=2, n_heads=2, batch=8, n_steps=3)
AUTOENCODER = AutoencoderSettings(channels=(8, 8, 8), latent_channels=4, batch=4, n_steps=3)
PAINTER = PainterSettings(latent_channels=4, channels=(32, 32), text_width=16, batch=4, n_steps=3)
JUDGE = JudgeSettings(batch=8, n_steps=3)
STOCK = """
import json, sys, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], local_files_only=True)
noise = torch.Generator().manual_seed(0)
images = pipe(["a red star", "a ring"], num_inference_steps=2, guidance_scale=1.5, generator=noise).images
print(json.dumps([type(pipe).__name__, [image.size for image in images], "vit_lens" in sys.modules]))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny model, trained for a few steps: in effect random."""
    out = tmp_path_factory.mktemp("text")
    return out, train_text_to_image(out, 1, text=TEXT, autoencoder=AUTOENCODER, painter=PAINTER, judge=JUDGE, n=4)


def test_a_stock_process_loads_and_draws_with_what_was_trained(trained):
    run = [sys.executable, "-c", STOCK, str(trained[0] / "sd")]
    out = subprocess.run(run, capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == ["StableDiffusionPipeline", [[32, 32], [32, 32]], False]


def test_bars_are_written_beside_the_model_and_no_path_of_the_machine(trained):
    out, metrics = trained
    assert json.loads((out / "sd" / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert list(metrics["bars"]) == list(text_evaluate.BARS)
    assert [bar["n"] for bar in metrics["bars"].values()] == [4, 8, 4, 4, 4, 4]
    assert not [p for p in (out / "sd").rglob("*.json") if str(out) in p.read_text()]


def _trainer(kind, trained):
    parts = trained[0] / "work"
    return {
        "text": lambda out, **more: train_text(out, seed=1, settings=TEXT, **more)[0],
        "autoencoder": lambda out, **more: train_autoencoder(out, seed=1, settings=AUTOENCODER, **more),
        "judge": lambda out, **more: train_second_judge(out, seed=1, settings=JUDGE, **more),
        "painter": lambda out, **more: _paint(out, parts, **more),
    }[kind]


def _paint(out, parts, **more):
    text, _ = train_text(parts, seed=1, settings=TEXT)
    autoencoder = train_autoencoder(parts, seed=0, settings=AUTOENCODER)
    return train_painter(out, text, autoencoder, encoder_seed=1, seed=2, settings=PAINTER, **more)


@pytest.mark.parametrize("kind", ["text", "autoencoder", "judge", "painter"])
def test_an_interrupted_run_ends_like_an_undisturbed_one(kind, trained, tmp_path):
    train = _trainer(kind, trained)
    whole = train(tmp_path / "whole").state_dict()
    early = {name: value.clone() for name, value in train(tmp_path / "broken", stop_after=1).state_dict().items()}
    resumed = train(tmp_path / "broken").state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert any(not torch.equal(early[name], whole[name]) for name in whole)


def test_a_reader_is_shown_what_it_is_said_to_be(trained, tmp_path):
    """The states are the encoder's own, behind its final norm; the end is that of the text, and not of the filling."""
    from vit_lens.errors import TextError

    parts = trained[0] / "work"
    text, _ = train_text(parts, seed=1, settings=TEXT)
    ids = tokenise(build_text_tokenizer(), ["a red star", "a blue ring left of a star", ""])
    with torch.no_grad():
        found = text(ids, output_hidden_states=True)
        norm = getattr(text, "text_model", text).final_layer_norm
    assert torch.equal(text_painter.read_states(text, ids, "last"), found.last_hidden_state)
    for layer in range(TEXT.n_layers + 1):
        assert torch.equal(text_painter.read_states(text, ids, layer), norm(found.hidden_states[layer]))
    assert torch.equal(text_painter.read_states(text, ids, TEXT.n_layers), found.last_hidden_state)
    ends = text_painter.read_states(text, ids, "eos")
    assert torch.equal(ends[:, 0], found.pooler_output) and torch.equal(ends, ends[:, :1].expand_as(ends))
    for reads in (-1, TEXT.n_layers + 1, "first"):
        with pytest.raises(
            TextError, match=rf"expected 'last', 'eos', or the number of blocks before it, 0 to {TEXT.n_layers}"
        ):
            text_painter.read_states(text, ids, reads)


def test_a_reader_is_a_pipeline_with_another_unet(trained, tmp_path):
    from vit_lens.mini.training.text_to_image import load_pipeline, train_reader

    first = load_pipeline(trained[0] / "sd")
    folder = train_reader(trained[0] / "sd", tmp_path, 0, painter=PAINTER)
    other = load_pipeline(folder)
    told = json.loads((folder / "metrics.json").read_text())
    clip = {"positions": "absolute", "attention": "causal", "objective": "contrastive"}
    assert told == {"encoder_seed": 1, "painter_seed": 1, "kind": "clip", "factors": clip, "reads": 0}
    for name in ("text_encoder", "vae", "unet"):
        ours, theirs = (getattr(one, name).state_dict() for one in (first, other))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours) == (name != "unet")


def test_weights_depend_on_the_seed_alone(tmp_path):
    torch.manual_seed(5)
    first = train_text(tmp_path / "a", seed=1, settings=TEXT)
    torch.manual_seed(6)
    again = train_text(tmp_path / "b", seed=1, settings=TEXT)
    other = train_text(tmp_path / "c", seed=2, settings=TEXT)
    for one, same, else_ in zip(first, again, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), else_.parameters(), strict=True))


def test_the_painter_sees_every_name_as_often_and_nothing_held_out(trained, tmp_path, monkeypatch):
    seen = []
    sample = still_life.sample

    def spy(*args, **settings):
        seen.append(settings)
        return sample(*args, **settings)

    monkeypatch.setattr(text_painter.still_life, "sample", spy)
    _paint(tmp_path, trained[0] / "work")
    painted = [settings for settings in seen if settings.get("equal")]
    assert len(painted) == PAINTER.n_steps and not any(settings.get("held_out") for settings in seen)


def test_sentences_fit_the_encoder_and_hold_no_unknown_word():
    tokenizer = build_text_tokenizer()
    sentences = still_life.sample(1500, np.random.default_rng(0), Lexicon(0), pairs=0.9)
    ids = tokenise(tokenizer, [s.text for s in sentences] + [""])
    assert ids.shape[1] == MAX_TOKENS and tokenizer.unk_token_id not in ids
    assert (ids[:, -1] == tokenizer.eos_token_id).all() and (ids[:, 0] == tokenizer.bos_token_id).all()
    assert Counter(ids[-1].tolist())[tokenizer.eos_token_id] == MAX_TOKENS - 1


def test_what_is_unsaid_is_not_asked():
    sentences = still_life.sample(300, np.random.default_rng(0), Lexicon(0))
    for sentence, answers in zip(sentences, text_answers(sentences).tolist(), strict=True):
        for place, mention in enumerate(sentence.mentions):
            asked = [answer >= 0 for answer in answers[1 + 3 * place : 4 + 3 * place]]
            assert asked == list(mention.says)
        assert answers[4:] == [-1] * 3 or sentence.scene.layout != "alone"


def test_the_schedule_ends_in_noise_alone_and_begins_there():
    schedule = build_schedule()
    assert schedule.alphas_cumprod[-1] == 0.0 and schedule.config.prediction_type == "sample"
    schedule.set_timesteps(8)
    assert schedule.timesteps[0] == 999 and schedule.final_alpha_cumprod == 1.0


def test_questions_are_of_held_out_scenes_and_names_of_both_groups():
    lexicon = Lexicon(3)
    asked = text_evaluate.ask(40, np.random.default_rng(0), lexicon)
    assert {kind: len(sentences) for kind, sentences in asked.items()} == dict.fromkeys(asked, 40)
    for kind, sentences in asked.items():
        assert all(still_life.is_held_out(s.scene) for s in sentences)
        assert all(len(s.mentions) == (1 if kind == "single" else 2) for s in sentences)
        names = [[m.name for m in s.mentions if m.name is not None] for s in sentences]
        assert all(len(found) == (kind in ("common", "rare")) for found in names)
        if kind in ("common", "rare"):
            assert {bool(lexicon.is_rare[found[0]]) for found in names} == {kind == "rare"}
    assert all(s.fronted for s in asked["fronted"]) and not any(s.fronted for s in asked["in order"])


def test_bars_ask_what_they_say():
    said = next(
        s for s in still_life.sample(200, np.random.default_rng(1), Lexicon(1), pairs=1.0, named=0.5)
        if [m.name is None for m in s.mentions] == [True, False] and len(set(s.scene.objects)) == 2
    )  # fmt: skip
    layout, (first, second) = said.scene
    other = "stacked" if layout == "beside" else "beside"
    wrong = (first + 1) % still_life.N_OBJECTS
    verdicts = {bar: is_right for bar, (_, is_right) in text_evaluate.BARS.items()}
    for scene, right in {
        said.scene: {"pair", "relation, in order", "rare name"},
        Scene(layout, (second, first)): {"pair"},
        Scene(other, (first, second)): {"pair"},
        Scene(layout, (wrong, second)): {"rare name"},
        Scene("alone", (second,)): set(),
    }.items():
        said_of = {bar for bar in ("pair", "relation, in order", "rare name") if verdicts[bar](scene, said)}
        assert said_of == right, scene


def test_lower_bound_is_wilsons():
    """Newcombe 1998, table I: 81 of 263 and 15 of 148."""
    assert text_evaluate.lower_bound(81, 263) == pytest.approx(0.2553, abs=5e-5)
    assert text_evaluate.lower_bound(15, 148) == pytest.approx(0.0624, abs=5e-5)
    assert text_evaluate.lower_bound(400, 400) < 1
