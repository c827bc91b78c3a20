"""vit-lens dict: learns, goes on, converts, says plainly what is weak, and refuses in words."""

import errno
import json

import numpy as np
import pytest
import tiny_dictionaries as tiny
import torch
from PIL import Image

ASKED = ["--site", "L5.resid_post", "--k", "3", "--n-tokens", "700", "--held-out", "0.3", "--show", "3"]
SMALL = [*ASKED, "--features", "40"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from vit_lens.mini import world

    place = tmp_path_factory.mktemp("images")
    for index, pixels in enumerate(world.render(world.sample_scenes(14, np.random.default_rng(0)))):
        Image.fromarray(pixels).save(place / f"{index:02d}.png")
    return place


def test_train_writes_all_of_it_and_goes_on_to_the_same_bits(folder, tmp_path, vit_lens, monkeypatch):
    import vit_lens as vl
    from vit_lens.dictionaries import TopK, card
    from vit_lens.dictionaries import training as training_module

    monkeypatch.setattr(TopK, "save_every", 2)
    plain = TopK.__init__
    monkeypatch.setattr(TopK, "__init__", lambda self, **said: plain(self, **{"save_every": 2, **said}))
    status, output, errors = vit_lens("dict", "train", folder, *SMALL, "--out", tmp_path / "whole")
    assert status == 0, errors
    made = tmp_path / "whole"
    assert {p.name for p in made.iterdir()} == {
        "activations", "card.md", "dictionary.html", "dictionary.safetensors", "settings.json",
    }  # fmt: skip
    found = vl.Dictionary.load(made / "dictionary.safetensors")
    assert (found.n_features, found.semantics.k, found.origin.tokens) == (40, 3, "patches")
    assert {"held_out", "controls", "fidelity", "training"} <= set(found.statistics)
    assert (made / "card.md").read_text() == card(found) and card(found) in output
    assert (
        "weak:" in errors
        and "what mean ablation takes away" in output
        and "L5.resid_post.f" in (made / "dictionary.html").read_text()
    )

    saved, real = [], training_module.save_tensors

    def full_at_the_second(tensors, path, told):
        saved.append(path)
        if len(saved) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(tensors, path, told)

    monkeypatch.setattr(training_module, "save_tensors", full_at_the_second)
    status, _, errors = vit_lens("dict", "train", folder, *SMALL, "--out", tmp_path / "stopped")
    assert status == 2 and "No space left on device" in errors and "Traceback" not in errors
    assert (tmp_path / "stopped" / "checkpoint.safetensors").exists()
    monkeypatch.setattr(training_module, "save_tensors", real)
    status, _, errors = vit_lens("dict", "train", folder, *SMALL, "--out", tmp_path / "stopped")
    assert status == 0, errors
    again = vl.Dictionary.load(tmp_path / "stopped" / "dictionary.safetensors")
    assert all(torch.equal(getattr(again, name), getattr(found, name)) for name in ("W_dec", "W_enc", "b_enc", "b_dec"))
    assert not (tmp_path / "stopped" / "checkpoint.safetensors").exists()

    monkeypatch.setattr("vit_lens.dictionaries.fit", lambda *a, **k: pytest.fail("learnt again"))
    status, output, errors = vit_lens("dict", "train", folder, *SMALL, "--out", made)
    assert status == 0 and "is there already, of this command" in output
    status, _, errors = vit_lens("dict", "train", folder, *SMALL, "--learning-seed", "1", "--out", made)
    assert status == 2 and "holds a dictionary of other settings or images" in errors


def test_itda_and_load(folder, tmp_path, vit_lens):
    import vit_lens as vl
    from vit_lens.dictionaries import save_sae_lens

    out = tmp_path / "itda"
    status, output, errors = vit_lens("dict", "itda", folder, *ASKED, "--threshold", "0.6", "--out", out)
    assert status == 0, errors
    found = vl.Dictionary.load(out / "dictionary.safetensors")
    assert found.labels is not None and found.semantics.encoder == "pursuit"
    status, output, _ = vit_lens("dict", "load", out / "dictionary.safetensors")
    assert status == 0 and "- encoder: pursuit" in output and "| random data points |" in output
    sae = tiny.make(dtype=torch.float32)
    save_sae_lens(sae, tmp_path / "theirs")
    kept = tmp_path / "ours.safetensors"
    said = ["--say", "site=blocks.5.hook_resid_post"]
    status, output, errors = vit_lens("dict", "load", tmp_path / "theirs", *said, "--out", kept)
    assert status == 0, errors
    ours = vl.Dictionary.load(kept)
    x = tiny.randn(9, 35, dtype=torch.float32)
    assert ours.origin.site == "blocks.5.hook_resid_post" and torch.allclose(ours.encode(x), sae.encode(x), atol=1e-5)
    status, _, errors = vit_lens("dict", "load", tmp_path / "theirs", "--out", kept)
    assert status == 2 and "is there already" in errors


def test_prompts(tmp_path, vit_lens):
    prompts = tmp_path / "prompts.txt"
    words = [f"a {a} {b} {c}" for a in ("small", "large") for b in ("red", "blue") for c in ("star", "ring", "cross")]
    prompts.write_text("\n".join(words))
    asked = ["--site", "L1.resid_post", "--k", "2", "--threshold", "0.3", "--held-out", "0.3"]
    out = tmp_path / "out"
    status, _, errors = vit_lens("dict", "itda", "--prompts", prompts, *asked, "--show", "2", "--out", out)
    assert status == 0, errors
    assert 'class="tokens"' in (out / "dictionary.html").read_text()
    assert json.loads((out / "settings.json").read_text())["threshold"] == 0.3


REFUSED = {
    ("train", "--trainer", "topkk"): "--trainer topkk: nearest: 'topk'",
    ("train", "--features", "8", "--k", "9"): "k=9 of 8 features",
    ("train", "--site", "L99.resid_post"): "no hook point",
    ("train", "--site", "L5.resid_pst"): "nearest",
    ("train", "--tokens", "patch99"): "patch",
    ("train", "--held-out", "1.5"): "held_out=1.5",
    ("itda", "--form", "other"): "form='other'",
    ("itda", "--threshold", "-1"): "threshold=-1",
    ("train", "--model", "minii"): "nearest: 'mini'",
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_wrong_input_is_told_in_words(words, folder, tmp_path, vit_lens, unchecked):
    command, *rest = words
    site = [] if "--site" in rest else ["--site", "L5.resid_post"]
    status, _, errors = vit_lens("dict", command, folder, *site, *rest, "--out", tmp_path / "out")
    assert status == 2 and REFUSED[words] in errors and "Traceback" not in errors


def test_files_that_are_none_and_folders_of_others_are_refused(folder, tmp_path, vit_lens):
    status, _, errors = vit_lens("dict", "load", tmp_path / "nothing")
    assert status == 2 and "no such file or folder" in errors
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "weights.bin").write_bytes(b"x")
    status, _, errors = vit_lens("dict", "load", tmp_path / "odd")
    assert status == 2 and "is of no layout that is known" in errors
    status, _, errors = vit_lens("dict", "load", tmp_path / "odd", "--say", "k")
    assert status == 2 and "write NAME=VALUE" in errors
    status, _, errors = vit_lens("dict", "train", folder, *SMALL, "--out", tmp_path / "odd")
    assert status == 2 and "holds weights.bin already; choose a folder of its own" in errors
    status, _, errors = vit_lens("dict", "train", folder, "--site", "L5.mlp", "--out", folder / "00.png")
    assert status == 2 and "is a file; choose another" in errors
    status, _, errors = vit_lens("dict", "train", folder, "--prompts", "a star", *SMALL, "--out", tmp_path / "new")
    assert status == 2 and "would have no effect on --prompts" in errors


PAINTS = ["--steps", "2", "--at-steps", "1", "--guidance", "2", "--decoder-seed", "5", "--batch-size", "4"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(f"a {b} {c}" for b in ("red", "blue", "green") for c in ("star", "ring", "cross")))
    return path


def test_a_pipeline_draws_prompts(words, tmp_path, vit_lens):
    import vit_lens as vl

    out = tmp_path / "out"
    asked = ["--model", "mini-sd", "--site", "mid.0.hook_update", "--prompts", words, "--branch", "uncond"]
    small = ["--k", "3", "--threshold", "0.4", "--held-out", "0.3", "--show", "2", "--tokens", "0,5,9"]
    status, output, errors = vit_lens("dict", "itda", *asked, *small, *PAINTS, "--out", out)
    assert status == 0, errors
    found = vl.Dictionary.load(out / "dictionary.safetensors")
    said = found.origin
    assert (said.at_steps, said.branch, said.tokens, said.model) == ((1,), "uncond", "0,5,9", "vit_lens/mini-sd")
    assert (said.run["steps"], said.run["guidance_scale"], said.run["noise_seed"]) == (2, 2.0, 5)
    assert "Measured: denoising loss at steps 1" in (out / "card.md").read_text() and "- at steps: 1" in output
    page = (out / "dictionary.html").read_text()
    assert '<span class="prompt">a ' in page and "step 1 of 2, uncond" in page
    status, output, errors = vit_lens("dict", "itda", *asked, *small, *PAINTS, "--out", out)
    assert status == 0 and "is there already, of this command" in output
    other = [*PAINTS[:-3], "6", *PAINTS[-2:]]
    status, output, errors = vit_lens("dict", "itda", *asked, *small, *other, "--out", out)
    assert status == 2 and "of other settings" in errors


@pytest.mark.filterwarnings("ignore:.*features fired on none")  # of nine prompts
def test_a_folder_of_a_pipeline_is_one_and_text_is_read(words, tmp_path, vit_lens):
    import tiny_pipelines

    import vit_lens as vl

    tiny_pipelines.make("schnell").save_pretrained(tmp_path / "flux")
    asked = ["--model", tmp_path / "flux", "--site", "double.0.text.hook_resid_post", "--prompts", words]
    small = ["--size", "6", "--steps", "2", "--k", "2", "--threshold", "0.5", "--n-tokens", "900", "--show", "2"]
    status, _, errors = vit_lens("dict", "itda", *asked, *small, "--out", tmp_path / "out")
    assert status == 0, errors
    found = vl.Dictionary.load(tmp_path / "out" / "dictionary.safetensors")
    assert found.origin.at_steps == (0, 1) and found.origin.run["max_sequence_length"] == 77  # its tokenizer's
    assert found.origin.model.startswith("local/flux@")
    page = (tmp_path / "out" / "dictionary.html").read_text()
    assert 'class="tokens"' in page and ">a</span>" in page and "&lt;pad&gt;</span>" in page


def test_an_embedded_pipeline_has_captions_and_a_text_encoder(words, tmp_path, vit_lens, monkeypatch):
    import vit_lens as vl
    from vit_lens.cli import dictionary_inputs

    monkeypatch.setattr(dictionary_inputs, "_SCENES", 6)
    small = ["--k", "2", "--threshold", "0.5", "--held-out", "0.4", "--show", "1"]
    asked = ["--model", "mini-sd", "--site", "mid.0.hook_update", "--steps", "2", "--at-steps", "0"]
    status, output, errors = vit_lens("dict", "itda", *asked, *small, "--out", tmp_path / "own")
    assert status == 0 and "no prompts were given: 6 captions of mini-sd's own world" in output, errors
    text = ["--model", "mini-sd", "--site", "L1.resid_post", "--prompts", words]
    status, output, errors = vit_lens("dict", "itda", *text, *small, "--out", tmp_path / "text")
    assert status == 0, errors
    assert vl.Dictionary.load(tmp_path / "text" / "dictionary.safetensors").origin.at_steps is None


DRAWN_REFUSED = {
    ("--model", "mini-sd", "--at-steps", "9"): "at_steps=[9]: a run of steps=8",
    ("--model", "mini-sd", "--branch", "both"): "a source reads one",
    ("--model", "mini-sd", "--tokens", "patches"): "tokens='patches': of a denoiser's stream give 'all'",
    ("--model", "mini-sd", "--site", "mid.0.hook_updat"): "nearest: 'mid.0.hook_update'",
    ("--model", "mini-sd", "--decoder-seed", "1", "--decoder-seed", "2"): "--decoder-seed is given 2 values",
    ("--model", "mini-sd", "--images", "x.png"): "--images would have no effect on --prompts",
    ("--model", "mini", "--at-steps", "1", "--steps", "2"): "--at-steps, --steps would have no effect here",
    ("--model", "mini", "--branch", "uncond"): "--branch would have no effect here",
}


@pytest.mark.parametrize("asked", DRAWN_REFUSED, ids=" ".join)
def test_pipelines_and_options_that_do_not_fit_are_told(asked, words, tmp_path, vit_lens, unchecked):
    site = [] if "--site" in asked else ["--site", "mid.0.hook_update"]
    status, _, errors = vit_lens("dict", "itda", *asked, *site, "--prompts", words, "--out", tmp_path / "out")
    assert status == 2 and DRAWN_REFUSED[asked] in errors and "Traceback" not in errors


def test_a_pipeline_without_a_world_wants_prompts(tmp_path, vit_lens):
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    asked = ["--model", tmp_path / "flux", "--site", "double.0.hook_resid_post"]
    status, _, errors = vit_lens("dict", "itda", *asked, "--out", tmp_path / "out")
    assert status == 2 and "flux draws prompts; give --prompts, a file with one a line" in errors
