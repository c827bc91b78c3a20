"""The trainers of the second embedded decoder, on tiny sizes: they resume without a trace, and diffusers reads them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from vit_lens.mini.training.ip import assemble_ip, measure_ip, train_ip
from vit_lens.mini.training.ip_autoencoder import IPAutoencoderSettings, train_ip_autoencoder
from vit_lens.mini.training.ip_painter import IPPainterSettings, build_ip_painter, build_ip_schedule, train_ip_painter

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

AUTOENCODER = IPAutoencoderSettings(channels=(8, 8, 16), latent_channels=4, batch=2, n_steps=3)
PAINTER = IPPainterSettings(
    latent_channels=4, channels=(16, 32, 32), cross_width=24, pooled_width=5, n_heads=2, n_bank=250, batch=4, n_steps=3
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("ip")
    return train_ip(out, 3, autoencoder=AUTOENCODER, painter=PAINTER)


def _bank():
    generator = torch.Generator().manual_seed(0)
    return {
        "latents": torch.randn(8, 4, 16, 16, generator=generator),
        "embeds": torch.randn(8, 128, generator=generator),
    }


def _trainer(kind):
    return {
        "autoencoder": lambda out, **more: train_ip_autoencoder(out, seed=1, settings=AUTOENCODER, **more),
        "painter": lambda out, **more: train_ip_painter(out, _bank(), seed=1, settings=PAINTER, **more),
    }[kind]


@pytest.mark.parametrize("kind", ["autoencoder", "painter"])
def test_an_interrupted_run_ends_like_an_undisturbed_one(kind, tmp_path):
    """And every weight is trained, but those that read the text, of which there is none."""
    train = _trainer(kind)
    whole = train(tmp_path / "whole").state_dict()
    early = train(tmp_path / "broken", stop_after=1).state_dict()
    resumed = train(tmp_path / "broken").state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    still = [name for name in whole if torch.equal(early[name], whole[name])]
    unread = ("attn2.to_k.weight", "attn2.to_v.weight")
    assert [name for name in still if not name.endswith(unread)] == []


def test_a_seed_gives_the_weights_and_another_gives_others():
    first, again, other = (build_ip_painter(PAINTER, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv_in.weight"], other["conv_in.weight"])
    key = next(name for name in first if "to_k_ip" in name)
    assert not torch.equal(first[key], other[key])


def test_the_noise_schedule_ends_in_noise_alone():
    signal = build_ip_schedule().alphas_cumprod
    assert signal[-1] == 0 and signal[0] > 0.99


def test_stock_diffusers_loads_it_and_paints_the_same_picture(trained):
    """A pipeline without text encoders, load_ip_adapter, zeros for what would be said in words."""
    from diffusers import StableDiffusionXLPipeline

    import vit_lens as vl

    decoder = vl.load_decoder(trained)
    assert decoder.encoder_id == "vit_lens/mini" and decoder.text == "zeros" and decoder.d_embed == 128
    stock = StableDiffusionXLPipeline.from_pretrained(trained, add_watermarker=False)
    stock.load_ip_adapter(str(trained), subfolder="", weight_name="ip_adapter.safetensors", image_encoder_folder=None)
    stock.set_progress_bar_config(disable=True)
    embeds = torch.randn(1, 128, generator=torch.Generator().manual_seed(1))
    for guidance in (1.0, 2.0):
        given = torch.cat([torch.zeros(1, 128), embeds])[:, None] if guidance > 1 else embeds[:, None]
        words = {"prompt_embeds": torch.zeros(1, 1, 24), "pooled_prompt_embeds": torch.zeros(1, 5)}
        picture = stock(
            **words, **{f"negative_{name}": value for name, value in words.items()}, ip_adapter_image_embeds=[given],
            num_inference_steps=3, guidance_scale=guidance, generator=[torch.Generator().manual_seed(4)],
            output_type="pt",
        ).images  # fmt: skip
        settings = decoder.settings(steps=3, guidance=guidance, seed=4)
        ours = decoder.decode(embeds, settings=settings, output="float")
        torch.testing.assert_close(ours, picture * 2 - 1, atol=1e-4, rtol=0)


def test_it_is_measured_with_the_bars_of_the_pair(trained):
    found = measure_ip(trained, n_images=20, n_decoded=4, steps=1, guidance=1.0)
    assert found == json.loads((trained / "metrics.json").read_text())
    assert set(found["zero_shot"]) == set(found["zero_shot_decoded"]) and "vae_psnr" in found


def test_scenes_are_those_of_no_other_training(trained):
    """Of the bank: the first latents are those of scenes that the first decoder did not begin with."""
    from vit_lens.mini import world

    first, second = (
        world.sample_codes(50, np.random.default_rng([seed, stream]), held_out=False)
        for seed, stream in ((0, 2), (3, 24))
    )
    assert not (first == second).all(axis=1).any()


def test_the_text_that_is_not_said_changes_nothing(trained):
    """Zeros in place of the text pass through attention as zeros, however many tokens there are."""
    from vit_lens.mini.training.ip_painter import conditions

    unet = build_ip_painter(replace(PAINTER), seed=1)
    text, said = conditions(torch.randn(2, 128), PAINTER)
    x, t = torch.randn(2, 4, 16, 16), torch.tensor(300)
    with torch.no_grad():
        one, many = (unet(x, t, text.repeat(1, n, 1), added_cond_kwargs=said).sample for n in (1, 7))
    torch.testing.assert_close(one, many, atol=1e-5, rtol=0)


def test_a_folder_is_written_as_it_ships(trained, tmp_path):
    again = assemble_ip(trained.parent / "work", tmp_path / "ip", encoder_id="vit_lens/mini", d_embed=128)
    names = sorted(str(path.relative_to(again)) for path in again.rglob("*") if path.is_file())
    assert names == [
        "ip_adapter.safetensors", "model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors", "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
        "vit_lens.json",
    ]  # fmt: skip
