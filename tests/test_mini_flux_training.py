"""The trainers of mini-flux, on tiny sizes: they run, resume without a trace, and write what a stock process loads."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

from vit_lens.mini import still_life
from vit_lens.mini.still_life import Lexicon
from vit_lens.mini.training import flux_painter, text_evaluate
from vit_lens.mini.training.flux_autoencoder import FluxAutoencoderSettings, train_flux_autoencoder
from vit_lens.mini.training.flux_painter import FluxPainterSettings, packed, train_flux_painter
from vit_lens.mini.training.flux_pipeline import PAINTING, load_flux, train_flux
from vit_lens.mini.training.flux_text import (
    MAX_TOKENS,
    QUESTIONS,
    FluxTextSettings,
    build_t5_tokenizer,
    tokenise_t5,
    train_t5,
    word_answers,
)
from vit_lens.mini.training.second_judge import JudgeSettings
from vit_lens.mini.training.text_encoder import TextSettings, train_text

TEXT = FluxTextSettings(width=16, inner=24, n_layers=2, n_heads=2, batch=8, n_steps=3)
CLIP = TextSettings(width=16, n_layers=2, n_heads=2, batch=8, n_steps=3)
AUTOENCODER = FluxAutoencoderSettings(channels=(8, 8, 8, 8), latent_channels=4, batch=4, n_steps=3)
PAINTER = FluxPainterSettings(
    latent_channels=4, n_double=1, n_single=1, n_heads=2, rope=(4, 4, 4), text_width=16, pooled_width=16, batch=4,
    n_steps=3,
)  # fmt: skip
GUIDED = replace(PAINTER, n_steps=2, guidance=1.5)
STOCK = """
import json, sys, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], local_files_only=True)
noise = torch.Generator().manual_seed(0)
said = dict(num_inference_steps=2, height=64, width=64, max_sequence_length=16)
images = pipe(["a red star", "a ring"], generator=noise, **said).images
print(json.dumps([type(pipe).__name__, [image.size for image in images], "vit_lens" in sys.modules]))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny model, trained for a few steps: in effect random."""
    out = tmp_path_factory.mktemp("flux")
    return out, train_flux(
        out, 1, text=TEXT, clip=CLIP, autoencoder=AUTOENCODER, painter=PAINTER, guided=GUIDED,
        judge=JudgeSettings(batch=8, n_steps=3), n=4,
    )  # fmt: skip


def test_a_stock_process_loads_and_draws_with_what_was_trained(trained):
    run = [sys.executable, "-c", STOCK, str(trained[0] / "flux")]
    out = subprocess.run(run, capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == ["FluxPipeline", [[64, 64], [64, 64]], False]


def test_bars_are_written_beside_the_model_and_no_path_of_the_machine(trained):
    out, metrics = trained
    assert json.loads((out / "flux" / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert list(metrics["bars"]) == list(text_evaluate.BARS)
    assert list(metrics["attributes"]) == ["both", "t5 alone", "pooled alone", "partial", "chance"]
    assert not [p for p in (out / "flux").rglob("*.json") if str(out) in p.read_text()]


@pytest.mark.parametrize("kind", ["t5", "autoencoder", "painter"])
def test_an_interrupted_run_ends_like_an_undisturbed_one(kind, trained, tmp_path):
    train = {
        "t5": lambda out, **more: train_t5(out, seed=1, settings=TEXT, **more)[0],
        "autoencoder": lambda out, **more: train_flux_autoencoder(out, seed=1, settings=AUTOENCODER, **more),
        "painter": lambda out, **more: _paint(out, trained[0] / "work", **more),
    }[kind]
    whole = train(tmp_path / "whole").state_dict()
    early = {name: value.clone() for name, value in train(tmp_path / "broken", stop_after=1).state_dict().items()}
    resumed = train(tmp_path / "broken").state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert any(not torch.equal(early[name], whole[name]) for name in whole)


def _paint(out, parts, **more):
    t5, _ = train_t5(parts, seed=1, settings=TEXT)
    clip, _ = train_text(parts, seed=1, settings=CLIP)
    autoencoder = train_flux_autoencoder(parts, seed=0, settings=AUTOENCODER)
    return train_flux_painter(out, t5, clip, autoencoder, encoder_seed=1, seed=2, settings=PAINTER, **more)


def test_the_pooled_vector_is_always_of_another_sentence_and_nothing_is_held_out(trained, tmp_path, monkeypatch):
    seen, sample, tokenise = [], still_life.sample, flux_painter.tokenise
    build = flux_painter.build_flux_painter
    given = {}

    def spy(*args, **settings):
        seen.append(settings)
        return sample(*args, **settings)

    def building(*args, **settings):
        model = build(*args, **settings)
        model.register_forward_pre_hook(lambda module, args, kwargs: given.update(kwargs), with_kwargs=True)
        return model

    monkeypatch.setattr(flux_painter.still_life, "sample", spy)
    monkeypatch.setattr(flux_painter, "build_flux_painter", building)
    monkeypatch.setattr(flux_painter, "tokenise", lambda one, texts: given.update(texts=texts) or tokenise(one, texts))
    _paint(tmp_path, trained[0] / "work")
    assert not any(settings.get("held_out") for settings in seen) and sum("equal" in one for one in seen) == 3
    clip, _ = train_text(trained[0] / "work", seed=1, settings=CLIP)
    with torch.no_grad():
        own = clip(tokenise(flux_painter.build_text_tokenizer(), given["texts"])).pooler_output
    assert torch.allclose(given["pooled_projections"], own.roll(1, 0)) and len(set(given["texts"])) > 1


def test_guidance_is_what_the_sentence_changes_in_the_average(trained, tmp_path, monkeypatch):
    """Read off the calls of a step: the second network's with the sentence, the same without, and the learner's."""
    parts, calls, latents = trained[0] / "work", [], []
    start = flux_painter.build_flux_painter(PAINTER, seed=9)
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    forward, pack = FluxTransformer2DModel.forward, flux_painter.packed

    def spy(self, **given):
        out = forward(self, **given)
        calls.append((given, out[0].detach()))
        return out

    def packing(x):
        latents.append(pack(x))
        return latents[-1]

    monkeypatch.setattr(FluxTransformer2DModel, "forward", spy)
    monkeypatch.setattr(flux_painter, "packed", packing)
    losses = []
    monkeypatch.setattr(flux_painter, "run_steps", lambda step, *_, **__: losses.append(step(0)["loss"].item()) or 1)
    t5, _ = train_t5(parts, seed=1, settings=TEXT)
    clip, _ = train_text(parts, seed=1, settings=CLIP)
    autoencoder = train_flux_autoencoder(parts, seed=0, settings=AUTOENCODER)
    train_flux_painter(
        tmp_path, t5, clip, autoencoder, encoder_seed=1, seed=2, start=start,
        settings=replace(PAINTER, drop=0.3, guidance=1.6),
    )  # fmt: skip
    (said, with_text), (unsaid, without), (learnt, velocity) = calls
    empty = t5(tokenise_t5(build_t5_tokenizer(), [""])).last_hidden_state
    assert torch.equal(unsaid["encoder_hidden_states"], empty.expand(4, -1, -1))
    assert torch.equal(said["encoder_hidden_states"], learnt["encoder_hidden_states"])
    assert not torch.allclose(with_text, without)
    x0, sigma = latents[0].double(), learnt["timestep"].double()[:, None, None]
    flow = (learnt["hidden_states"].double() - x0) / sigma
    target = flow + (1 - 1 / 1.6) * (with_text - without).double()
    assert losses[0] == pytest.approx(((velocity.double() - target) ** 2).mean().item(), rel=1e-4)


def test_training_packs_latents_and_gives_positions_as_the_pipeline_does(trained):
    pipe = load_flux(trained[0] / "flux")
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(packed(latents), pipe._pack_latents(latents, 2, 4, 8, 8))
    given = {}
    pipe.transformer.register_forward_pre_hook(lambda module, args, kwargs: given.update(kwargs), with_kwargs=True)
    pipe(["a ring"], **{**PAINTING, "num_inference_steps": 1})
    side = still_life.SIDE // 8
    grid = [[0, row, column] for row in range(side) for column in range(side)]
    assert given["img_ids"].tolist() == grid and given["txt_ids"].tolist() == [[0, 0, 0]] * MAX_TOKENS
    assert given["hidden_states"].shape == (1, 16, 16) and given["timestep"].item() == 1.0


def test_every_word_is_asked_for_what_it_is_about():
    """Read off the words themselves, by another way than the trainer's."""
    sentences = still_life.sample(400, np.random.default_rng(3), Lexicon(2), pairs=0.8, named=0.4)
    answers = word_answers(sentences)
    names, tokenizer = list(QUESTIONS), build_t5_tokenizer()
    ids = tokenise_t5(tokenizer, [s.text for s in sentences])
    relations = list(still_life.RELATIONS)
    for sentence, rows, row_ids in zip(sentences, answers, ids, strict=True):
        words = sentence.text.split()
        assert row_ids[len(words)] == tokenizer.eos_token_id and tokenizer.unk_token_id not in row_ids
        assert (rows[len(words) + 1 :] == -1).all() and (rows[: len(words), 6:] == -1).all()
        said = next((number for number, one in enumerate(relations) if one in sentence.text), None)
        told = 0 if said is None else 1 + said
        assert rows[: len(words), names.index("relation")].tolist() == [told] * len(words)
        for word, asked in zip(words, rows.tolist(), strict=False):
            for name, values in (("colour", still_life.COLOURS), ("shape", still_life.SHAPES)):
                if word in values:
                    assert list(values)[asked[names.index(name)]] == word
        shapes = [at for at, word in enumerate(words) if word in still_life.SHAPES]
        if len(shapes) == 2:
            about, landmark = shapes[::-1] if words[0] in ("left", "right", "above", "below") else shapes
            assert rows[about, 1] == 0 and rows[landmark, 1] == 1
            first = {"left": 1, "right": 2, "above": 3, "below": 4}[relations[told - 1].split()[0]]
            assert rows[about, 2] == first and rows[landmark, 2] == {1: 2, 2: 1, 3: 4, 4: 3}[first]


def test_weights_depend_on_the_seed_alone(tmp_path):
    torch.manual_seed(5)
    first = train_t5(tmp_path / "a", seed=1, settings=TEXT)
    torch.manual_seed(6)
    again = train_t5(tmp_path / "b", seed=1, settings=TEXT)
    other = train_t5(tmp_path / "c", seed=2, settings=TEXT)
    for one, same, else_ in zip(first, again, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), else_.parameters(), strict=True))
