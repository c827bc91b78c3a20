"""The shipped text-to-image models: their size, their formats, and their bars on held-out scenes, measured again."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vit_lens
from vit_lens.identity import EMBEDDED_PIPELINES
from vit_lens.mini import STILL_LIFE
from vit_lens.mini.second_judge import SecondJudge
from vit_lens.mini.training import flux_pipeline, text_evaluate, text_to_image

FLUX = EMBEDDED_PIPELINES["mini-flux"]
PARTS = {STILL_LIFE: ["text_encoder", "unet", "vae"], FLUX: ["text_encoder", "text_encoder_2", "transformer", "vae"]}
METRICS = {folder: json.loads((folder / "metrics.json").read_text()) for folder in PARTS}
DOCS = Path(__file__).parents[1] / "docs"
of_both = pytest.mark.parametrize("folder", PARTS, ids=list(EMBEDDED_PIPELINES))
STOCK = """
import json, sys, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], local_files_only=True)
noise = torch.Generator().manual_seed(0)
images = pipe(["a red solid square"], generator=noise, **json.loads(sys.argv[2])).images
middle = [side // 2 for side in images[0].size]
print(json.dumps([type(pipe).__name__, images[0].size, images[0].getpixel(tuple(middle)), "vit_lens" in sys.modules]))
"""


def test_the_folders_are_small_and_the_package_with_them():
    sizes = {path: path.stat().st_size for path in Path(vit_lens.__file__).parent.rglob("*") if path.is_file()}
    for folder, most in ((STILL_LIFE, 12e6), (FLUX, 10e6)):
        assert sum(size for path, size in sizes.items() if folder in path.parents) < most
    # Room for a decoder of patch tokens and for a second one of embeddings; PyPI takes files of up to 100 MB.
    assert sum(size for path, size in sizes.items() if "__pycache__" not in path.parts) < 60e6


@of_both
def test_weights_are_in_half_precision(folder):
    from safetensors import safe_open

    for path in [next((folder / part).glob("*.safetensors")) for part in PARTS[folder]]:
        with safe_open(path, "pt") as weights:
            assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}
            if path.parent.name == "text_encoder":  # which classes of transformers 4 and of each 5 find
                assert {name.split(".")[0] for name in weights.keys()} == {"text_model"}


@of_both
def test_no_file_names_a_machine_path(folder):
    texts = [path for path in folder.rglob("*") if path.suffix in (".json", ".md")]
    assert len(texts) > 6
    assert [path.name for path in texts if any(root in path.read_text() for root in ("/work", "/root", "/tmp"))] == []


@pytest.mark.parametrize(
    "folder, settings, expected",
    [(STILL_LIFE, text_evaluate.PAINTING, ("StableDiffusionPipeline", [32, 32])),
     (FLUX, flux_pipeline.PAINTING, ("FluxPipeline", [64, 64]))],
)  # fmt: skip
def test_a_stock_process_draws_what_a_sentence_says(folder, settings, expected):
    run = [sys.executable, "-c", STOCK, str(folder), json.dumps(settings)]
    kind, size, (red, green, blue), known = json.loads(
        subprocess.run(run, capture_output=True, text=True, check=True).stdout
    )
    assert ((kind, size), known) == (expected, False)
    assert red > 180 and max(green, blue) < 90


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The bars on sentences and noise that no committed number used."""
    copy = tmp_path_factory.mktemp("measured") / "flux"
    shutil.copytree(FLUX, copy)
    return {
        STILL_LIFE: text_evaluate.evaluate_painter(
            text_to_image.load_pipeline(STILL_LIFE), SecondJudge.load(STILL_LIFE / "second_judge.safetensors"),
            encoder_seed=METRICS[STILL_LIFE]["encoder_seed"], n=20, seed=77,
        ),
        FLUX: flux_pipeline.measure_flux(
            copy, STILL_LIFE / "second_judge.safetensors", seed=METRICS[FLUX]["seed"], n=20
        ),
    }  # fmt: skip


@of_both
@pytest.mark.parametrize("bar", text_evaluate.BARS)
def test_bars_come_out_again(measured, folder, bar):
    """Twenty pictures of each kind: three standard errors of the committed share, and one picture."""
    share, found = METRICS[folder]["bars"][bar]["share"], measured[folder]["bars"][bar]
    assert found["share"] >= share - 3 * (share * (1 - share) / found["n"]) ** 0.5 - 1 / found["n"]


@pytest.mark.parametrize("text", ["both", "t5 alone", "partial"])
@pytest.mark.parametrize("attribute", ["layout", "colour", "texture", "shape", "scene at all"])
def test_what_each_text_does_comes_out_again(measured, text, attribute):
    share, found = METRICS[FLUX]["attributes"][text][attribute]["share"], measured[FLUX]["attributes"][text][attribute]
    assert found["share"] >= share - 3 * (share * (1 - share) / found["n"]) ** 0.5 - 1 / found["n"]


@of_both
def test_the_card_gives_the_numbers_of_the_metrics(folder):
    card = (folder / "MODEL_CARD.md").read_text()
    for bar, found in METRICS[folder]["bars"].items():
        row = next(line for line in card.splitlines() if line.startswith(f"| {bar} |"))
        numbers = [cell.strip() for cell in row.split("|")[2:-1]]
        assert numbers[:3] == [str(found["n"]), f"{found['share']:.3f}", f"{found['lower']:.3f}"]
    assert folder == FLUX or all(found["lower"] >= 0.95 for found in METRICS[folder]["bars"].values())


def test_mini_flux_reads_t5_and_nothing_of_the_pooled_vector():
    """Else a lens on T5 would read what CLIP says: T5 alone draws everything, the pooled vector no more than chance."""
    card, found = (FLUX / "MODEL_CARD.md").read_text().splitlines(), METRICS[FLUX]["attributes"]
    for name, row in found.items():
        shares = [f"{row[one]['share']:.3f} ({row[one]['lower']:.3f})" for one in row]
        assert any(line.startswith(f"| {name} |") and line.endswith(f"| {' | '.join(shares)} |") for line in card)
    for one in ("layout", "colour", "texture", "shape"):
        assert found["both"][one]["lower"] >= 0.95 and found["t5 alone"][one]["lower"] >= 0.95
        assert found["partial"][one]["lower"] >= 0.95
        alone, chance = found["pooled alone"][one], found["chance"][one]
        spread = (alone["share"] * (1 - alone["share"]) / alone["n"]) ** 0.5
        assert abs(alone["share"] - chance["share"]) < 3 * 2**0.5 * spread + 0.02
    assert min(found[text]["scene at all"]["lower"] for text in ("both", "t5 alone", "partial")) >= 0.84
    unconditional = METRICS[FLUX]["unconditional_scenes"]
    assert f"only\n{unconditional:.2f} of the pictures are clean scenes" in "\n".join(card)


def test_the_page_gives_the_bars_of_every_model():
    """Shares with the lower ends of their intervals, of the shipped model as of those that the commands make."""
    measured = json.loads((DOCS / "results" / "mini_sd.json").read_text())
    assert measured[0] == METRICS[STILL_LIFE]
    page = (DOCS / "mini_sd.md").read_text().splitlines()
    for found in measured:
        shares = [f"{bar['share']:.3f} ({bar['lower']:.3f})" for bar in found["bars"].values()]
        assert f"| {' | '.join([str(found['encoder_seed']), str(found['painter_seed']), *shares])} |" in page


def test_the_demos_sentences_are_held_out_and_drawn_right():
    """What the README shows is no lucky pick from training."""
    from vit_lens.decoders import PromptEncoder, TextDecoder
    from vit_lens.mini import SENTENCES, inspection, still_life

    lexicon = still_life.Lexicon(0)
    every = [still_life.object_of(number) for number in range(still_life.N_OBJECTS)]
    named = lexicon.objects[lexicon.names.index("tul bo ven")]
    scenes = [
        still_life.Scene("beside", (every.index(("red", "solid", "star")), every.index(("blue", "striped", "ring")))),
        still_life.Scene("stacked", (every.index(("pink", "shaded", "square")), named)),
    ]
    assert all(map(still_life.is_held_out, scenes)) and lexicon.is_rare[lexicon.names.index("tul bo ven")]
    encoder, decoder = PromptEncoder.from_pretrained("mini-sd"), TextDecoder.from_pretrained("mini-sd")
    assert (decoder.decoder_id, decoder.defaults.steps, decoder.defaults.guidance) == ("vit_lens/mini-sd", 8, 1.5)
    pictures = decoder.decode(encoder.encode(SENTENCES), negative=encoder.negative(), encoder=encoder)
    assert inspection.inspect(pictures.numpy()).shows(scenes).all()


def test_the_text_encoder_has_its_name():
    from vit_lens import HookedTextEncoder

    model = HookedTextEncoder.from_pretrained("mini-sd")
    assert (model.encoder_id, model.cfg.n_layers, model.cfg.n_heads) == ("vit_lens/mini-sd", 8, 8)
    assert model.to_str_tokens("a red star") == ["<start>", "a", "red", "star", "<end>"]
    assert model.verify(STILL_LIFE / "text_encoder").passed


def test_a_word_that_the_world_has_not_is_told():
    """The tokenizer would read it as unknown, and the picture would look like any other."""
    from vit_lens.decoders import PromptEncoder
    from vit_lens.errors import TextError

    with pytest.raises(TextError, match=r"does not know 'reed' \(nearest: .*'red'.*\) in the prompt 'a reed star'"):
        PromptEncoder.from_pretrained("mini-sd").encode(["a red star", "a reed star"])


def test_mini_flux_has_its_name_everywhere():
    import torch
    from transformers import AutoTokenizer, T5EncoderModel

    import vit_lens as vl
    from vit_lens.decoders import PromptEncoder, TextDecoder
    from vit_lens.mini import inspection, still_life

    texts = ["a red solid star left of a blue striped ring"]
    model = vl.HookedTextEncoder.from_pretrained("mini-flux")
    assert (model.encoder_id, model.cfg.n_layers) == ("vit_lens/mini-flux", 6)
    ids = AutoTokenizer.from_pretrained(FLUX / "tokenizer_2")(texts, return_tensors="pt").input_ids
    expected = T5EncoderModel.from_pretrained(FLUX / "text_encoder_2")(ids).last_hidden_state
    _, cache = model.run_with_cache(ids)
    states = model.ln_final(cache["resid_post", -1])
    assert (states - expected).abs().max() < 1e-5 * expected.abs().max()
    encoder, decoder = PromptEncoder.from_pretrained("mini-flux"), TextDecoder.from_pretrained("mini-flux")
    said = decoder.defaults
    assert (encoder.length, said.steps, said.guidance, said.height, said.width) == (16, 12, 0.0, 64, 64)
    drawn = decoder.decode(encoder.encode(texts), encoder=encoder)
    every = [still_life.object_of(number) for number in range(still_life.N_OBJECTS)]
    scene = still_life.Scene(
        "beside", (every.index(("red", "solid", "star")), every.index(("blue", "striped", "ring")))
    )
    reduced = flux_pipeline.reduced(drawn.numpy())
    assert inspection.inspect(reduced).shows([scene]).all()
    flux = vl.HookedFlux.from_pretrained("mini-flux")
    assert flux.model_id == decoder.decoder_id == "vit_lens/mini-flux"
    assert flux(texts, output_type="latent").shape == (1, 16, 64)
    assert torch.isfinite(flux(texts, output_type="pt")).all()
