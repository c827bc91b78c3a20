"""The trainers of the text-to-image model, on tiny sizes: they run, resume without a trace, and write what loads."""

import itertools
import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from vit_lens.mini import still_life
from vit_lens.mini.still_life import Lexicon, Scene
from vit_lens.mini.text_kinds import FACTORS
from vit_lens.mini.training import text_encoder, text_evaluate, text_painter
from vit_lens.mini.training.autoencoder import AutoencoderSettings, train_autoencoder
from vit_lens.mini.training.relative_text import build_relative_encoder, hide_words
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
        "relative": lambda out, **more: train_text(out, seed=1, settings=TEXT, kind="relative", **more)[0],
        "denoising": lambda out, **more: train_text(out, seed=1, settings=TEXT, kind="denoising", **more)[0],
        "autoencoder": lambda out, **more: train_autoencoder(out, seed=1, settings=AUTOENCODER, **more),
        "judge": lambda out, **more: train_second_judge(out, seed=1, settings=JUDGE, **more),
        "painter": lambda out, **more: _paint(out, parts, **more),
    }[kind]


def _paint(out, parts, **more):
    text, _ = train_text(parts, seed=1, settings=TEXT)
    autoencoder = train_autoencoder(parts, seed=0, settings=AUTOENCODER)
    return train_painter(out, text, autoencoder, encoder_seed=1, seed=2, settings=PAINTER, **more)


@pytest.mark.parametrize("kind", ["text", "relative", "denoising", "autoencoder", "judge", "painter"])
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
    assert told == {"encoder_seed": 1, "painter_seed": 1, "kind": "clip", "factors": clip, "text_steps": 3, "reads": 0}
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


# ---- the chain of kinds


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """An encoder of every kind, trained for a few steps, and the folder of each."""
    made = {}
    for kind in FACTORS:
        out = tmp_path_factory.mktemp(kind)
        made[kind] = train_text(out, seed=1, settings=TEXT, kind=kind)[0], out
    return made


@pytest.fixture(scope="module")
def t5_trained(trained, tmp_path_factory):
    """A tiny model whose encoder is a T5, on the autoencoder and judge of the other."""
    out = tmp_path_factory.mktemp("t5")
    (out / "work").mkdir()
    for name in ("autoencoder.pt", "second_judge.pt"):
        if (file := trained[0] / "work" / name).is_file():
            shutil.copyfile(file, out / "work" / name)
    return out, train_text_to_image(
        out, 1, kind="denoising", text=TEXT, autoencoder=AUTOENCODER, painter=PAINTER, judge=JUDGE, n=4
    )


def test_each_kind_differs_from_the_one_before_in_one_factor_as_it_says(kinds):
    chain = [asdict(factors) for factors in FACTORS.values()]
    for a, b in itertools.pairwise(chain):
        assert sum(a[name] != b[name] for name in a) == 1
    for kind, (model, _) in kinds.items():
        assert type(model).__name__ == ("CLIPTextModel" if kind == "clip" else "T5EncoderModel")


@pytest.mark.parametrize("kind", FACTORS)
def test_a_causal_encoder_sees_nothing_later_to_the_last_bit(kind, kinds):
    """After training, in a batch and alone; an encoder that is not causal does see it."""
    model = kinds[kind][0]
    ids = tokenise(build_text_tokenizer(), ["a blue striped ring left of a red star", "a red star"])
    other = ids.clone()
    other[:, 6:] = ids[:, 6:].flip(1)
    assert not torch.equal(ids, other)
    with torch.no_grad():
        states, changed = (model(each, output_hidden_states=True).hidden_states for each in (ids, other))
    same = [torch.equal(a[:, :6], b[:, :6]) for a, b in zip(states[1:], changed[1:], strict=True)]
    assert same == [FACTORS[kind].attention == "causal"] * TEXT.n_layers
    assert not torch.equal(states[-1][:, 6:], changed[-1][:, 6:])


def test_biases_of_later_positions_are_left_alone_and_those_of_earlier_ones_learn(kinds):
    name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    (causal, _), (both, _) = kinds["relative"], kinds["bidirectional"]
    first = build_relative_encoder(build_text_tokenizer(), width=16, n_layers=2, n_heads=2, causal=True, seed=1)
    for model, learns in ((causal, False), (both, True)):
        moved = model.get_parameter(name).ne(first.get_parameter(name)).all(1)
        half = len(moved) // 2
        assert moved[1:6].all() and bool(moved[half + 1 : half + 6].all()) == learns
        assert learns or not moved[half:].any()
    later = causal.get_parameter(name)[2 * MAX_TOKENS :]
    assert torch.equal(later, torch.full_like(later, -1e4)) and torch.equal(later.half().float(), later)


def test_every_distance_has_a_bias_of_its_own():
    model = build_relative_encoder(build_text_tokenizer(), width=16, n_layers=1, n_heads=2, causal=False, seed=0)
    attention = model.encoder.block[0].layer[0].SelfAttention
    with torch.no_grad():
        attention.relative_attention_bias.weight[:, 0] = torch.arange(4 * MAX_TOKENS)
        found = attention.compute_bias(MAX_TOKENS, MAX_TOKENS)[0, 0]
    places = torch.arange(MAX_TOKENS)
    later = places[None] - places[:, None]
    assert torch.equal(found, torch.where(later > 0, 2 * MAX_TOKENS + later, -later).float())


def test_hidden_words_are_words_one_in_each_text_at_least():
    tokenizer, generator = build_text_tokenizer(), np.random.default_rng(0)
    texts = ["a red star", "star", "above a blue solid ring , a zor ka mip", ""] * 300
    ids = tokenise(tokenizer, texts)
    for share in (0.0, 0.3, 1.0):
        shown, hidden = hide_words(ids, tokenizer, generator, share)
        is_hidden = hidden >= 0
        assert torch.equal(torch.where(is_hidden, hidden, shown), ids)
        assert torch.equal(shown == tokenizer.unk_token_id, is_hidden)
        counts = is_hidden.sum(1).reshape(-1, 4)
        words = torch.tensor([len(text.split()) for text in texts[:4]])
        assert (counts[:, 3] == 0).all() and (counts[:, :3] >= 1).all() and (counts <= words).all()
        rate = float((is_hidden.sum(1).float() / words.repeat(300).clamp(min=1)).reshape(-1, 4)[:, 2].mean())
        assert abs(rate - max(share, 0.1)) < 0.03  # ten words, of which one is always hidden


def test_denoising_learns_from_hidden_words_alone(tmp_path, monkeypatch):
    """Its probe is over the vocabulary, and what it reads are texts with words hidden."""
    seen = []
    hide = text_encoder.hide_words
    monkeypatch.setattr(text_encoder, "hide_words", lambda *args: seen.append(hide(*args)) or seen[-1])
    _, probe = train_text(tmp_path, seed=1, settings=TEXT, kind="denoising")
    tokenizer = build_text_tokenizer()
    assert probe.out_features == len(tokenizer) and len(seen) == TEXT.n_steps
    assert all((shown == tokenizer.unk_token_id).any(1).all() for shown, _ in seen)
    moved = probe.bias.detach().ne(0)
    assert moved.all()  # a softmax over words


def test_checkpoints_in_clips_format_say_what_they_always_said(kinds):
    """So that runs of before kinds go on; those of one kind are refused by another."""
    from vit_lens.errors import OutputError

    told = {kind: torch.load(out / "text.pt", weights_only=True)["settings"] for kind, (_, out) in kinds.items()}
    assert list(told["clip"]) == "seed width n_layers n_heads batch n_steps pairs named lr lr_muon".split()
    assert all(told[kind]["kind"] == kind for kind in FACTORS if kind != "clip")
    with pytest.raises(OutputError, match=r"was made with .*'kind': 'relative'"):
        train_text(kinds["relative"][1], seed=1, settings=TEXT, kind="bidirectional")


def test_a_reader_of_a_t5_is_shown_what_it_is_said_to_be(kinds):
    model = kinds["bidirectional"][0]
    ids = tokenise(build_text_tokenizer(), ["a red star", "a blue ring left of a star", ""])
    with torch.no_grad():
        found = model(ids, output_hidden_states=True)
        assert torch.equal(text_painter.read_states(model, ids, "last"), found.last_hidden_state)
        for layer in range(TEXT.n_layers):
            expected = model.encoder.final_layer_norm(found.hidden_states[layer])
            assert torch.equal(text_painter.read_states(model, ids, layer), expected)
    assert torch.equal(text_painter.read_states(model, ids, TEXT.n_layers), found.last_hidden_state)
    ends = text_painter.read_states(model, ids, "eos")
    assert torch.equal(ends[:, 0], found.last_hidden_state[torch.arange(3), [4, 8, 1]])
    with torch.no_grad():
        assert torch.equal(ends[:, 0], text_encoder.text_ends(model, ids))


def test_a_pipeline_with_a_t5_is_stock_says_its_kind_and_draws_here_what_it_draws(t5_trained):
    """The weights are those that were trained, in half precision; conditions and pictures are the stock pipeline's."""
    from vit_lens.decoders import PromptEncoder, TextDecoder
    from vit_lens.mini.training.text_to_image import load_pipeline

    out, metrics = t5_trained
    run = [sys.executable, "-c", STOCK, str(out / "sd")]
    stock = subprocess.run(run, capture_output=True, text=True, check=True)
    assert json.loads(stock.stdout) == ["StableDiffusionPipeline", [[32, 32], [32, 32]], False]
    assert metrics["kind"] == "denoising" and metrics["factors"] == asdict(FACTORS["denoising"])
    assert json.loads((out / "sd" / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    pipe, texts = load_pipeline(out / "sd"), ["a red star", "a blue ring"]
    trained, _ = train_text(out / "work", seed=1, settings=TEXT, kind="denoising")
    kept = pipe.text_encoder.state_dict()
    assert all(torch.equal(kept[name], value.half().float()) for name, value in trained.state_dict().items())
    reader, decoder = PromptEncoder.from_pretrained(out / "sd"), TextDecoder.from_pretrained(out / "sd")
    assert reader.format.readings[0].kind == "t5"
    asked = reader.encode(texts)
    with torch.no_grad():
        assert torch.equal(asked.tokens, pipe.encode_prompt(texts, "cpu", 1, False)[0])
    noise = [torch.Generator().manual_seed(7) for _ in texts]
    own = pipe(texts, num_inference_steps=2, guidance_scale=1.5, generator=noise, output_type="np").images
    how = decoder.settings(steps=2, guidance=1.5, seed=7)
    found = decoder.decode(asked, negative=reader.encode([""] * 2)[:1], settings=how, output="float")
    assert torch.equal(found, torch.from_numpy(own).permute(0, 3, 1, 2) * 2 - 1)


def test_studies_read_the_kind_and_a_t5_is_swept_like_another(t5_trained, trained, tmp_path):
    """The setup says seed, kind and factors; metrics of another encoder are refused; those of before say CLIP's."""
    from vit_lens.errors import StudyError
    from vit_lens.studies.order.study import FRONTED, IN_ORDER, order_study
    from vit_lens.studies.text_parts import TextStudy

    kinds = {IN_ORDER: 2, FRONTED: 2}
    setup, asked = TextStudy(model=str(t5_trained[0] / "sd"), steps=1, decoder_seed=[0]).open(tmp_path / "a", kinds)
    said = order_study(setup, asked, n_shuffles=2).setup
    assert (said["kind"], said["encoder_seed"], said["format"]) == ("denoising", 1, "sd")
    assert said["factors"] == asdict(FACTORS["denoising"]) and said["text_steps"] == TEXT.n_steps
    old = Path(shutil.copytree(trained[0] / "sd", tmp_path / "old"))
    metrics = json.loads((old / "metrics.json").read_text())
    for kind in ("clip", None):
        told = {key: value for key, value in metrics.items() if key not in ("kind", "factors")}
        (old / "metrics.json").write_text(json.dumps(told if kind is None else told | {"kind": kind}))
        assert TextStudy(model=str(old)).open(tmp_path / "b", kinds)[0].describe()["kind"] == "clip"
    for kind, wrong in (
        ("relative", "in the format of t5, and this one is a clip"),
        ("relativ", "nearest: 'relative'"),
    ):
        (old / "metrics.json").write_text(json.dumps(metrics | {"kind": kind}))
        with pytest.raises(StudyError, match=wrong):
            TextStudy(model=str(old)).open(tmp_path / "b", kinds)
    (old / "metrics.json").unlink()
    (tmp_path / "asked.csv").write_text(
        "prompt,kind,part,question,caption,alternatives\na red star,simple,star,Is there a star?,a star,a ring\n"
    )
    own = TextStudy(model=str(old), prompt_table=tmp_path / "asked.csv", judge="clip:mini")
    other, _ = own.open(tmp_path / "b", kinds)
    assert other.describe()["kind"] is other.describe()["encoder_seed"] is None


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


def test_a_folder_that_cannot_be_made_is_refused_before_the_first_step(tmp_path, monkeypatch):
    from vit_lens.errors import OutputError
    from vit_lens.mini import still_life
    from vit_lens.mini.training.text_encoder import train_text

    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(still_life, "sample", lambda *_, **__: pytest.fail("a step was taken"))
    with pytest.raises(OutputError, match="file"):
        train_text(tmp_path / "file" / "out", seed=1, settings=TEXT)
