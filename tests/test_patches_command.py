"""From one command to the page of patches, on the embedded model; sweeps, records and plans of patch lenses."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture(scope="module")
def mini():
    import vit_lens as vl

    model = vl.HookedViT.from_pretrained("mini").requires_grad_(False)
    return model, vl.load_decoder("mini-rae")


def test_from_the_command_to_the_page(vit_lens, photo, tmp_path, mini):
    import vit_lens as vl

    out = tmp_path / "out"
    command = ("patches", photo, "--sites", "L7.mlp,L5H2", "--patch", "patch5,(0,1)", "--controls", "--out", out)
    status, output, error = vit_lens(*command)
    assert status == 0, error
    assert output.strip() == f"page: {out / 'patches.html'}"
    record, (model, decoder) = vl.Record.load(out), mini
    assert record.complete and record.manifest["command"].startswith("vit-lens patches ")
    frame = record.frame()
    assert len(frame) == 2 * 4 * 2 + 3 + 2  # sites x (all, two patches, none) x control; alone at three, two with one
    # What the record holds is what lens and decoder give by themselves.
    _, cache = model.run_with_cache(model.preprocess([photo]))
    means = vl.ReferenceMeans.shipped(model, "all")
    lens = vl.PatchSteeringLens(alpha=5.0, anchor="mean", reference=means, at="patch5")
    row = int(frame[(frame["at"] == "patch5") & (frame["site"] == "L5H2") & (frame["control"] == "")]["row"].iloc[0])
    wanted = lens.read(cache, "L5H2")[:, 0]
    assert torch.allclose(record.conditions["lens"][[row]].tokens, wanted.tokens, atol=1e-4)
    drawn = np.asarray(record.picture(row), dtype=int)
    assert np.abs(drawn - decoder.decode(wanted)[0].numpy()).max() <= 1
    assert record.table["norm_h"].iloc[row] == pytest.approx(float(lens.written_norms(cache, "L5H2")), rel=1e-4)
    again = decoder.read(model, model.preprocess([drawn.astype(np.uint8)])).flat
    faithful = torch.cosine_similarity(again, wanted.flat)
    assert record.table["faithfulness"].iloc[row] == pytest.approx(float(faithful), abs=1e-3)
    # The page: two sites, sixteen cells each of which two are drawn, weights and controls.
    page = (out / "patches.html").read_text()
    assert page.count('<article class="site"') == 2 and page.count('role="cell"') == 32
    assert page.count('class="k1"') == 32 and "PSNR" in page and 'style="' not in page
    own = re.findall(r'<svg class="under"[^>]*><use href="#mean-0"/></svg><span class="k0"><img src="data:image', page)
    assert len(own) == 4
    # What changes is told from the picture of the mean tokens, which is there once.
    anchor = decoder.decode(vl.Condition(tokens=lens.anchor_tokens(cache)))[0].numpy()
    still = int(frame[(frame["alpha"] == 0) & (frame["control"] == "")]["row"].iloc[0])
    assert np.abs(np.asarray(record.picture(still), dtype=int) - anchor).max() <= 1
    assert page.count("drawn from the tokens of the mean") == 1 and page.count('id="mean-0"') == 1
    before = {path: path.stat().st_mtime_ns for path in (out / "pictures").iterdir()}
    assert vit_lens(*command)[0] == 0  # goes on where it was: everything is there
    assert before == {path: path.stat().st_mtime_ns for path in (out / "pictures").iterdir()}
    assert vit_lens("report", out)[0] == 0 and (out / "report.html").is_file()


def test_other_images_are_controls_too(vit_lens, photo, tmp_path, mini):
    """What stands in at a patch is what the other image writes at the same patch, as long as the image's own there."""
    import vit_lens as vl
    from vit_lens.mini import sample_images

    model, _ = mini
    out, other = tmp_path / "out", sample_images()[0]
    status, _, error = vit_lens(
        "patches", photo, "--sites", "L6.attn", "--patch", "patch5", "--controls", "--control-kind", "random,other",
        "--control-images", other, "--out", out,
    )  # fmt: skip
    assert status == 0, error
    record = vl.Record.load(out)
    frame = record.frame()
    row = int(frame[(frame["at"] == "patch5") & (frame["control"] == "other")]["row"].iloc[0])
    _, cache = model.run_with_cache(model.preprocess([photo, other]))
    means = vl.ReferenceMeans.shipped(model, "all")
    own, theirs = cache["blocks.6.hook_attn_out"][:, 1 + 5] - means.output(model, vl.Site.parse("L6.attn"))[1 + 5]
    own, theirs = own - own.mean(), theirs - theirs.mean()
    moved = means.last_state(model)[1 + 5] + 5 * theirs * own.norm() / theirs.norm()
    wanted = torch.nn.functional.layer_norm(moved, moved.shape, eps=model.ln_final.eps)
    assert torch.allclose(record.conditions["lens"][[row]].tokens[0, 5], wanted, atol=1e-4)
    page = (out / "patches.html").read_text()
    assert "control: a random direction" in page and "control: what the site writes for another image" in page
    assert page.count('class="k2"') == 16 and len(re.findall(r'class="k2"><img', page)) == 1


def test_a_clean_anchor_is_the_models_own_tokens(vit_lens, photo, tmp_path):
    out = tmp_path / "out"
    asked = ("--lens", "patch-dsl:alpha=5", "--sites", "L6.attn", "--patch", "patch5", "--out", out)
    status, _, error = vit_lens("patches", photo, *asked)
    assert status == 0, error
    page = (out / "patches.html").read_text()
    assert page.count('<use href="#own-0"/>') == 1 and page.count('id="own-0"') == 1 and "mean-0" not in page


def test_weights_of_the_page_are_how_far_tokens_move(mini, tmp_path):
    import vit_lens as vl
    from vit_lens.mini import sample_images
    from vit_lens.report.patches_page import _Held

    model, decoder = mini
    lens = ["patch-dsl-mean:alpha=5:at=each", "patch-dsl-mean:alpha=5"]
    record = vl.sweep(model, decoder, sample_images()[:1], lens=lens, sites="L6.attn", out=tmp_path / "sweep")
    held = _Held(record)
    (key,) = held.single
    moved = held._moved(0, "L6.attn", key)
    _, cache = model.run_with_cache(model.preprocess(sample_images()[:1]))
    steered = vl.PatchSteeringLens(alpha=5.0, anchor="mean", reference=vl.ReferenceMeans.shipped(model, "all"))
    whole, still = steered.read(cache, "L6.attn").tokens[0, 0], steered.anchor_tokens(cache)[0]
    assert np.allclose(moved, ((whole - still).norm(dim=-1) / still.norm(dim=-1)).numpy(), atol=1e-4)
    assert moved.std() > 1e-3


def test_a_plan_says_what_it_takes(vit_lens, photo, tmp_path):
    status, output, _ = vit_lens("patches", photo, "--plan", "--out", tmp_path / "out")
    assert status == 0 and "rows: 77" in output and "vit_lens/mini-rae" in output and "and 15 more" in output
    assert not (tmp_path / "out").exists()
    disk = float(re.search(r"disk: about ([\d.]+) MB", output)[1])
    assert disk > 77 * 2 * 16 * 128 * 4 / 1e6  # tokens count, not an embedding


def test_a_sweep_takes_the_same_lens_and_decoder(vit_lens, photo, tmp_path):
    out = tmp_path / "out"
    status, _, error = vit_lens(
        "sweep", photo, "--decoder", "mini-rae", "--lens", "patch-dsl:alpha=4:at=(1,2)", "--sites", "L3.mlp",
        "--out", out,
    )  # fmt: skip
    assert status == 0, error
    manifest = json.loads((out / "record.json").read_text())
    assert manifest["readings"][0]["settings"]["at"] == "(1,2)" and manifest["decoder"]["takes"] == {"tokens": 128}
    assert manifest["conditions"]["shapes"]["lens"] == {"tokens": [16, 128]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["patches", "--lens", "dsl-mean:alpha=5"], "here it is patch-dsl-mean:alpha=5"),
        (["patches", "--lens", "patch-dsl:alpha=5:at=patch1"], "--patch says which patches"),
        (["patches", "--patch", "patch99"], "at='patch99': patch99 is out of range"),
        (["patches", "--patch", "cls"], "cls is no patch"),
        (["patches", "--patch", "somewhere"], "expected 'cls', 'patches'"),
        (["patches", "--sites", "L3.mpl"], "nearest: 'L3.mlp'"),
        (["patches", "--decoder", "mini"], "takes pooled and draws no patch tokens"),
        (["patches", "--decoder", "none"], "this command draws"),
        (["patches", "--control-kind", "other"], "none are without --controls"),
        (["patches", "--controls", "--control-kind", "others"], "nearest: 'other'"),
        (["patches", "--controls", "--control-kind", "other"], "needs 1 other image"),
        (["patches", "--decoder", "/absent/rae"], "/absent/rae"),
        (["patches", "--decoder", "mini-sd"], "draws no patch tokens"),
        (["sweep", "--decoder", "mini-rae"], "takes tokens, lens DSL, mean-anchored, alpha 5 reads pooled"),
        (["sweep", "--decoder", "mini-rae", "--lens", "patch-diffusion", "--steps", "3"], "no decoder setting 'steps'"),
        (["sweep", "--decoder", "mini-rae", "--lens", "patch-diffusion", "--captions", "a star"], "reads tokens"),
        (["sweep", "--decoder", "mini-rae", "--lens", "patch-diffusion", "--size", "32"], "64 x 64 alone"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_leaves_nothing(vit_lens, photo, tmp_path, arguments, message):
    status, _, error = vit_lens(arguments[0], photo, "--out", tmp_path / "out", *arguments[1:])
    assert status == 2
    assert message in error and error.count("\n") == 1 and error.startswith("vit-lens: "), error
    assert not (tmp_path / "out").exists()


def test_studies_start_from_their_own_means_at_every_token(mini):
    import vit_lens as vl
    from vit_lens.mini import sample_images
    from vit_lens.studies.reference_lenses import lenses_of_reference

    model, _ = mini
    pixels = model.preprocess(sample_images())
    names, means = ["star", "heart"], vl.ReferenceMeans.from_images(model, pixels)
    spelt = ["dsl-mean:alpha=5", "patch-dsl-mean:alpha=5", "patch-diffusion"]
    plain, of_patches, _ = lenses_of_reference(spelt, model, pixels, means, names=names, first=pixels)
    wanted = vl.ReferenceMeans.from_images(model, pixels, positions="all")
    assert plain.reference is means and of_patches.reference.content == wanted.content


def test_a_page_needs_lenses_of_single_patches(mini, tmp_path):
    import vit_lens as vl
    from vit_lens.mini import sample_images

    model, decoder = mini
    record = vl.sweep(model, decoder, sample_images()[:1], lens="patch-diffusion", sites="L7.mlp", out=tmp_path / "out")
    with pytest.raises(vl.errors.RecordError, match="no lens of single patches"):
        vl.report.write_patches_page(record)


# ---- the shipped decoder


def test_the_shipped_decoder_is_small_and_its_own():
    import vit_lens as vl
    from vit_lens.identity import MINI_RAE_FILES

    files = {path.name: path.stat().st_size for path in MINI_RAE_FILES.iterdir()}
    assert set(files) == {
        "MODEL_CARD.md", "config.json", "diffusion_pytorch_model.safetensors", "metrics.json",
        "reference_means.safetensors", "vit_lens.json",
    }  # fmt: skip
    assert sum(files.values()) < 3_000_000
    decoder = vl.load_decoder("mini-rae")
    assert (decoder.encoder_id, decoder.decoder_id, decoder.part.n_tokens) == ("vit_lens/mini", "vit_lens/mini-rae", 16)
    with pytest.raises(vl.errors.ContractError, match="was made for encoder 'vit_lens/mini'"):
        decoder.check_encoder("open_clip:ViT-B-32/openai")


def test_stock_diffusers_refuses_the_folder_and_draws_the_same(mini):
    """Its encoder is none that AutoencoderRAE builds; behind one that is, it draws what ours draws."""
    from diffusers import AutoencoderRAE
    from safetensors.torch import load_file

    from vit_lens.identity import MINI_RAE_FILES

    with pytest.raises(ValueError, match="Unknown encoder_type='outside'"):
        AutoencoderRAE.from_pretrained(MINI_RAE_FILES)
    config = json.loads((MINI_RAE_FILES / "config.json").read_text())
    stock = AutoencoderRAE.from_config({**config, "encoder_type": "mae", "encoder_num_hidden_layers": 0})
    weights = load_file(MINI_RAE_FILES / "diffusion_pytorch_model.safetensors")
    told = stock.load_state_dict({name: value.float() for name, value in weights.items()}, strict=False)
    assert not told.unexpected_keys and all(name.startswith("encoder.") for name in told.missing_keys)
    tokens = torch.randn(3, 16, 128, generator=torch.Generator().manual_seed(0))
    z = stock._normalize_latents(tokens.transpose(1, 2).reshape(3, 128, 4, 4))
    assert torch.equal(stock.eval().decode(z).sample, mini[1].sample(tokens))


def test_the_card_says_what_was_measured():
    """On a few held-out scenes anew; the card's numbers are those of metrics.json."""
    import vit_lens as vl
    from vit_lens.identity import MINI_RAE_FILES
    from vit_lens.mini.training.rae_evaluate import evaluate_rae

    said = json.loads((MINI_RAE_FILES / "metrics.json").read_text())
    model = vl.HookedViT.from_pretrained("mini").requires_grad_(False)
    found = evaluate_rae(vl.load_decoder("mini-rae"), model, n_images=100, seed=77)
    assert found["psnr"] == pytest.approx(said["psnr"], abs=1.0)
    assert found["cosine_embedding"]["own"] == pytest.approx(said["cosine_embedding"]["own"], abs=0.05)
    assert found["cosine_tokens"]["own"] > found["cosine_tokens"]["another"] + 0.2
    assert found["psnr_of_their_mean"] < found["psnr"] - 8
    for name, value in found["judge_on_pictures"].items():
        assert value > 0.95 and found["judge_on_another"][name] < 0.7
    card = (MINI_RAE_FILES / "MODEL_CARD.md").read_text()
    assert f"{said['psnr']:.1f} dB" in card
    assert f"{said['psnr_of_their_mean']:.1f} dB" in card
    for name, value in said["judge_on_pictures"].items():
        ceiling, floor = said["judge_on_scenes"][name], said["judge_on_another"][name]
        assert f"| {name} | {said['judge_n'][name]:,} | {ceiling:.3f} | {value:.3f} | {floor:.3f} |" in card


def test_training_goes_on_bit_for_bit(tmp_path):
    import vit_lens as vl
    from vit_lens.mini.training.rae import RAESettings, train_rae

    model = vl.HookedViT.from_pretrained("mini").requires_grad_(False)
    few = RAESettings(width=24, n_layers=1, n_heads=2, batch=4, n_steps=6)
    whole = train_rae(tmp_path / "whole", model, seed=3, settings=few)
    train_rae(tmp_path / "cut", model, seed=3, settings=few, stop_after=2)
    assert not (tmp_path / "cut" / "rae").exists()
    cut = train_rae(tmp_path / "cut", model, seed=3, settings=few)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters(), strict=True))
    decoder = vl.load_decoder(tmp_path / "cut" / "rae")
    assert decoder.encoder_id == "vit_lens/mini" and decoder.defaults.height == 64
    other = train_rae(tmp_path / "other", model, seed=4, settings=few)
    assert not torch.equal(other.decoder_pred.weight, cut.decoder_pred.weight)
