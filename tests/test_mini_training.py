"""The trainers of the embedded pair, on tiny sizes: they run, resume without a trace, and write what loads."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vit_lens.mini.training import evaluate, progress
from vit_lens.mini.training.encoder import EncoderSettings, to_pixels, train_encoder
from vit_lens.mini.training.movq import MoVQSettings, train_movq
from vit_lens.mini.training.muon import Muon, orthogonalised
from vit_lens.mini.training.pair import train_pair
from vit_lens.mini.training.unet import UNetSettings, build_scheduler, train_unet, train_unet_by_workers
from vit_lens.mini.training.workers import Worker

ENCODER = EncoderSettings(width=16, n_layers=1, n_heads=2, d_embed=8, text_width=16, text_layers=1, batch=8, n_steps=3)
MOVQ = MoVQSettings(channels=(32, 32, 32), batch=4, n_steps=3, whole_share=0.5)
UNET = UNetSettings(channels=(32, 32), cross_width=16, d_embed=8, batch=4, n_steps=3, n_bank=8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny pair, trained for a few steps."""
    out = tmp_path_factory.mktemp("pair")
    return out, train_pair(out, 0, encoder=ENCODER, movq=MOVQ, unet=UNET, n_workers=1, n_images=20, n_decoded=4)


def test_a_trained_pair_fits_itself_and_no_other(trained):
    """The decoder accepts its own encoder, by the path that a user gives, and refuses the shipped one."""
    from vit_lens import HookedViT, KandinskyDecoder, ReferenceMeans
    from vit_lens.errors import ContractError

    pair = trained[0] / "pair"
    model = HookedViT.from_pretrained(pair / "encoder")
    decoder = KandinskyDecoder.from_pretrained(pair / "decoder", encoder=model)
    decoder.check(model.zero_embedding(), encoder=model)
    assert ReferenceMeans.load(pair / "reference_means.safetensors").check(model).n == 512
    with pytest.raises(ContractError, match="vit_lens/mini"):
        KandinskyDecoder.from_pretrained(pair / "decoder", encoder="vit_lens/mini")


def _bank():
    generator = torch.Generator().manual_seed(0)
    return {
        "latents": torch.randn(8, 4, 16, 16, generator=generator),
        "zero": torch.zeros(1, 8),
        "embeds": torch.randn(8, 8, generator=generator),
    }


def _trainer(kind):
    return {
        "encoder": lambda out, **more: train_encoder(out, seed=1, settings=ENCODER, **more),
        "movq": lambda out, **more: train_movq(out, seed=1, settings=MOVQ, **more),
        "unet": lambda out, **more: train_unet(out, seed=1, settings=UNET, bank=_bank(), **more),
    }[kind]


@pytest.mark.parametrize("kind", ["encoder", "movq", "unet"])
def test_an_interrupted_run_ends_like_an_undisturbed_one(kind, tmp_path):
    train = _trainer(kind)
    whole = train(tmp_path / "whole").state_dict()
    early = train(tmp_path / "broken", stop_after=1).state_dict()
    resumed = train(tmp_path / "broken").state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    still = [name for name in whole if torch.equal(early[name], whole[name])]
    assert [name for name in still if "position_ids" not in name and "quantize" not in name] == []


def test_other_settings_do_not_continue_a_run(tmp_path):
    train_encoder(tmp_path, seed=1, settings=ENCODER, stop_after=1)
    with pytest.raises(ValueError, match="remove it, or choose another --out"):
        train_encoder(tmp_path, seed=2, settings=ENCODER)


def test_a_failed_save_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    train_encoder(tmp_path, seed=1, settings=ENCODER, stop_after=1)
    before = (tmp_path / "encoder.pt").read_bytes()

    def torn(content, path):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(progress.torch, "save", torn)
    with pytest.raises(OSError, match="disk full"):
        train_encoder(tmp_path, seed=1, settings=ENCODER, stop_after=2)
    assert (tmp_path / "encoder.pt").read_bytes() == before


def test_the_trained_pair_loads_and_is_measured(trained):
    out, metrics = trained
    assert set(metrics["zero_shot"]) == set(metrics["zero_shot_decoded"])
    assert (out / "pair" / "metrics.json").exists()
    pair = evaluate.load_pair(out / "pair")
    assert evaluate.contact_sheet(pair, n_images=2).size == (2 * 68 * 2, 136 * 2)


def test_the_stock_pipeline_paints_the_same_picture(trained):
    from diffusers import KandinskyV22Pipeline

    out, _ = trained
    pair = evaluate.load_pair(out / "pair")
    stock = KandinskyV22Pipeline.from_pretrained(out / "pair" / "decoder")
    stock.set_progress_bar_config(disable=True)
    embed = pair.embed(np.full((1, 64, 64, 3), 90, dtype=np.uint8))
    picture = stock(
        image_embeds=embed,
        negative_image_embeds=pair.model.zero_embedding(),
        height=64,
        width=64,
        num_inference_steps=3,
        guidance_scale=1.5,
        generator=torch.Generator().manual_seed(5),
        latents=torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(6)),
        output_type="np",
    ).images[0]
    ours, _ = evaluate.decode_embeds(pair, embed, steps=3, guidance=1.5, seed=6)
    assert np.abs(picture * 255 - ours[0]).max() < 1.0


def test_the_shipped_preprocessing_is_the_one_of_training(trained):
    from PIL import Image
    from transformers import CLIPImageProcessor

    out, _ = trained
    image = np.random.default_rng(0).integers(0, 256, size=(64, 64, 3), dtype=np.uint8)
    processor = CLIPImageProcessor.from_pretrained(out / "pair" / "encoder")
    theirs = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(theirs, to_pixels(image[None]), atol=1e-5, rtol=1e-5)


def test_two_workers_train_what_one_trains(trained, tmp_path):
    out, _ = trained
    for name in ("encoder", "movq"):
        shutil.copytree(out / "work" / name, tmp_path / name)
    settings = replace(UNET, bf16=False)
    train_unet_by_workers(tmp_path, seed=0, n_workers=2, settings=settings)
    shared = torch.load(tmp_path / "unet.pt", weights_only=True)["parts"]["average"]
    (tmp_path / "unet.pt").unlink()
    alone = train_unet(tmp_path, seed=0, settings=settings).state_dict()
    # Muon orthogonalises in bfloat16, so rounding of the gradient's mean shows at the scale of one update's noise.
    assert max(float((alone[name] - shared[name]).abs().max()) for name in alone) < 5e-3


def test_a_batch_that_workers_cannot_share_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give a multiple"):
        train_unet(tmp_path, seed=0, settings=UNET, bank=_bank(), worker=Worker(rank=0, n_workers=3))


def test_orthogonalised_brings_singular_values_near_one():
    matrices = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(0))
    for flipped in (False, True):
        values = torch.linalg.svdvals(orthogonalised(matrices.mT if flipped else matrices))
        assert 0.5 < values.min() and values.max() < 1.35


def test_muon_flattens_convolutions():
    weight = torch.nn.Parameter(torch.zeros(4, 3, 3, 3))
    weight.grad = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=1.0).step()
    expected = -orthogonalised(weight.grad.flatten(1)[None])[0].view_as(weight)
    torch.testing.assert_close(weight.data, expected, atol=0.05, rtol=0.05)


def test_rate_rises_then_falls():
    rates = [progress.cosine(step, 100, warm_up=10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0) and rates[-1] < 0.01
    assert progress.cosine(99, 100, warm_up=10, floor=0.1) == pytest.approx(0.1, abs=0.01)


def test_noise_schedule_ends_in_noise():
    signal = build_scheduler().alphas_cumprod
    assert math.sqrt(signal[-1]) < 0.01 and signal[0] > 0.99
