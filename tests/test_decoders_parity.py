"""KandinskyDecoder against the published pipeline, and the laws of its batches."""

import dataclasses

import pytest
import tiny_kandinsky
import torch

# The bar of the project for the pipeline, on [-1, 1]: two orders of rounding, a few denoising steps apart.
TOLERANCE = 1e-4
# diffusers' DPM-Solver++ hands torch tensors to numpy 2 in a deprecated way; ours keeps that quiet, the pipeline not.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def build(dtype=torch.float32, **scheduler_overrides):
    from vit_lens.decoders import KandinskyDecoder

    unet, movq, scheduler = tiny_kandinsky.parts(**scheduler_overrides)
    return KandinskyDecoder(unet.to(dtype), movq.to(dtype), scheduler, encoder="vit_lens/mini")


@pytest.fixture(scope="module")
def decoder():
    return build()


def small(decoder, **overrides):
    return decoder.settings(**(dict(steps=4, height=32, width=40, seed=3) | overrides))


def stock_scheduler(scheduler, name):
    import diffusers

    if name == "dpm++":
        return diffusers.DPMSolverMultistepScheduler.from_config(
            scheduler.config, thresholding=True, sample_max_value=1.0
        )
    return {"ddpm": diffusers.DDPMScheduler, "ddim": diffusers.DDIMScheduler}[name].from_config(scheduler.config)


@pytest.mark.parametrize("guidance", [4.0, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm++"])
def test_one_picture_equals_the_published_pipeline(name, prediction, guidance):
    decoder = build(prediction_type=prediction)
    embeds, negative = tiny_kandinsky.embeddings(1)
    expected = tiny_kandinsky.pictures_of_pipeline(
        decoder.unet, decoder.movq, stock_scheduler(decoder.scheduler, name), embeds, negative, seed=3,
        height=32, width=40, num_inference_steps=4, guidance_scale=guidance,
    )  # fmt: skip
    settings = small(decoder, scheduler=name, guidance=guidance)
    got = decoder.decode(embeds, negative=negative, settings=settings, output="float")
    assert expected.std() > 0.01  # the pipeline's picture is not flat
    assert (got - expected).abs().max() < TOLERANCE
    in_bytes = decoder.decode(embeds, negative=negative, settings=settings)
    by_hand = ((expected * 0.5 + 0.5) * 255).round().permute(0, 2, 3, 1)
    assert (in_bytes.float() - by_hand).abs().max() <= 1  # a value at a rounding edge may fall either way
    assert (in_bytes.float() - by_hand).abs().mean() < 0.01


@pytest.mark.parametrize("overrides", [
    dict(clip_sample=False), dict(clip_sample_range=0.7), dict(timestep_spacing="trailing"),
    dict(beta_schedule="squaredcos_cap_v2", steps_offset=0), dict(beta_start=0.0001, beta_end=0.02),
    dict(scheduler="DDIMScheduler"),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_the_decoders_own_schedule_is_honoured(name, overrides):
    decoder = build(**(dict(prediction_type="v_prediction") | overrides))
    embeds, negative = tiny_kandinsky.embeddings(1)
    expected = tiny_kandinsky.pictures_of_pipeline(
        decoder.unet, decoder.movq, stock_scheduler(decoder.scheduler, name), embeds, negative, seed=3,
        height=32, width=40, num_inference_steps=4, guidance_scale=2.5,
    )  # fmt: skip
    settings = small(decoder, scheduler=name, guidance=2.5)
    got = decoder.decode(embeds, negative=negative, settings=settings, output="float")
    assert (got - expected).abs().max() < TOLERANCE
    plain = build(prediction_type="v_prediction").decode(embeds, negative=negative, settings=settings, output="float")
    assert "scheduler" in overrides or (got - plain).abs().max() > 10 * TOLERANCE


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm++"])
def test_a_picture_does_not_depend_on_its_place_in_the_batch(name):
    # Predicting noise, random weights amplify rounding twentyfold at the first step; predicting v they do not.
    decoder = build(prediction_type="v_prediction")
    embeds, negative = tiny_kandinsky.embeddings(4)
    settings = small(decoder, scheduler=name, steps=3, width=32)

    def decode(rows, **arguments):
        return decoder.decode(rows, negative=negative, settings=settings, output="float", **arguments)

    alone = torch.cat([decode(row[None]) for row in embeds])
    order = torch.tensor([3, 0, 1, 2])
    assert (alone[0] - alone[1]).abs().max() > 0.01  # the embedding decides
    assert (decode(embeds) - alone).abs().max() < TOLERANCE
    assert (decode(embeds[order]) - alone[order]).abs().max() < TOLERANCE
    assert (decode(embeds, batch_size=3) - alone).abs().max() < TOLERANCE
    assert torch.equal(decode(embeds, batch_size=3), decode(embeds, batch_size=3))
    # Padded to one layout, a row's bits do not depend on how many rows follow it.
    assert torch.equal(decode(embeds[:3], batch_size=4), decode(embeds, batch_size=4)[:3])


def test_equal_embeddings_give_equal_pictures():
    decoder = build(prediction_type="v_prediction")
    embeds, negative = tiny_kandinsky.embeddings(1)
    pictures = decoder.decode(embeds.expand(3, -1), negative=negative, settings=small(decoder), output="float")
    assert (pictures - pictures[:1]).abs().max() < TOLERANCE


def test_in_float64_place_matters_only_at_the_last_digits():
    decoder = build(dtype=torch.float64)
    embeds, negative = tiny_kandinsky.embeddings(3)
    settings = small(decoder)
    whole = decoder.decode(embeds.double(), negative=negative.double(), settings=settings, output="float")
    alone = decoder.decode(embeds[2:].double(), negative=negative.double(), settings=settings, output="float")
    assert whole.dtype == torch.float32
    assert (whole[2:] - alone).abs().max() < 1e-6  # pictures are float32, the latents before them float64


def test_guidance_interval(decoder):
    embeds, negative = tiny_kandinsky.embeddings(2)

    def decode(**overrides):
        settings = small(decoder, steps=5, scheduler="ddim", **overrides)
        return decoder.decode(embeds, negative=negative, settings=settings, output="float")

    guided, off = decode(guidance=4.0), decode(guidance=1.0)
    assert (guided - off).abs().max() > 0.01
    assert torch.equal(decode(guidance=4.0, guidance_interval=(0.0, 1.0)), guided)
    assert torch.equal(decode(guidance=4.0, guidance_interval=(0.0, 1e-6)), off)
    partly = decode(guidance=4.0, guidance_interval=(0.0, 0.4))
    assert (partly - guided).abs().max() > 1e-3
    assert (partly - off).abs().max() > 1e-3
    assert small(decoder, steps=5, guidance_interval=(0.2, 0.6)).guided_steps == (False, True, True, False, False)


def test_seeds_change_pictures(decoder):
    embeds, negative = tiny_kandinsky.embeddings(1)
    pictures = [
        decoder.decode(embeds, negative=negative, settings=small(decoder, seed=seed)).float() for seed in (0, 0, 1)
    ]
    assert torch.equal(pictures[0], pictures[1])
    assert (pictures[0] - pictures[2]).abs().mean() > 1


def test_half_precision_keeps_float32_latents_and_finite_pictures():
    exact, half = build(), build(dtype=torch.bfloat16)
    embeds, negative = tiny_kandinsky.embeddings(2)
    for guidance in (4.0, 1.0):
        settings = small(half, guidance=guidance)
        pictures = half.decode(embeds, negative=negative, settings=settings, output="float")
        assert pictures.dtype == torch.float32
        assert torch.isfinite(pictures).all()
        wanted = exact.decode(embeds, negative=negative, settings=settings, output="float")
        assert (pictures - wanted).abs().mean() < 0.1 * wanted.std() + 0.02  # bfloat16 has 8 bits


def test_what_passes_between_steps_is_float32_and_of_one_batch_size(monkeypatch):
    """Seen from inside: latents stay float32 under a bfloat16 UNet, and a short batch is padded as asked."""
    from vit_lens.decoders import decode_call

    seen = []
    original = decode_call.unet_output

    def spy(unet, latents, timestep, embeds):
        seen.append((latents.dtype, len(latents)))
        return original(unet, latents, timestep, embeds)

    monkeypatch.setattr(decode_call, "unet_output", spy)
    half = build(dtype=torch.bfloat16)
    embeds, negative = tiny_kandinsky.embeddings(5)
    pictures = half.decode(embeds, negative=negative, settings=small(half, steps=2, guidance=1.0), batch_size=3)
    assert len(pictures) == 5 and seen == [(torch.float32, 3)] * 4


def test_pictures_can_enter_autograd_and_inputs_are_untouched(decoder):
    embeds, negative = tiny_kandinsky.embeddings(2)
    before = embeds.clone(), negative.clone()
    pictures = decoder.decode(embeds, negative=negative, settings=small(decoder, steps=1), output="float")
    weight = torch.ones(1, requires_grad=True)
    (pictures * weight).sum().backward()
    assert weight.grad is not None
    assert torch.equal(embeds, before[0]) and torch.equal(negative, before[1])
    assert not any(parameter.grad is not None for parameter in decoder.unet.parameters())


def test_progress_is_silent_unless_asked(decoder, capsys):
    embeds, negative = tiny_kandinsky.embeddings(3)
    arguments = dict(negative=negative, settings=small(decoder, steps=2), batch_size=2)
    decoder.decode(embeds, **arguments)
    assert capsys.readouterr() == ("", "")
    decoder.decode(embeds, progress=True, **arguments)
    assert "4/4" in capsys.readouterr().err  # two batches of two steps


def test_conditions_are_pooled(decoder):
    from vit_lens import Condition, Decoder
    from vit_lens.errors import ContractError

    embeds, negative = tiny_kandinsky.embeddings(2)
    settings = small(decoder, steps=1)
    assert isinstance(decoder, Decoder)
    direct = decoder.decode(Condition(pooled=embeds), negative=Condition(pooled=negative), settings=settings)
    assert torch.equal(direct, decoder.decode(embeds, negative=negative, settings=settings))
    with pytest.raises(ContractError, match=r"takes pooled \[32\], got tokens \[2, 32\]"):
        decoder.decode(Condition(tokens=embeds[None]), negative=None, settings=settings)
    with pytest.raises(ContractError, match=r"takes pooled \[32\], and would ignore tokens"):
        decoder.decode(Condition(tokens=embeds[:, None], pooled=embeds), negative=None, settings=settings)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_denoising_error_against_plain_arithmetic(prediction):
    from vit_lens.decoders import denoising_error

    decoder = build(prediction_type=prediction)
    embeds, _ = tiny_kandinsky.embeddings(2)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    got = denoising_error(decoder, images, embeds, timesteps=(100, 900), seed=4)
    assert list(got) == [100, 900]
    alphas = torch.cumprod(1 - torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64), 0).float()
    with torch.no_grad():
        clean = decoder.movq.encode(images).latents
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(4))
        for t, error in got.items():
            noisy = alphas[t].sqrt() * clean + (1 - alphas[t]).sqrt() * noise
            out = decoder.unet(noisy, t, None, added_cond_kwargs={"image_embeds": embeds}).sample[:, :4]
            found = {
                "epsilon": out,
                "v_prediction": alphas[t].sqrt() * out + (1 - alphas[t]).sqrt() * noisy,
                "sample": (noisy - alphas[t].sqrt() * out) / (1 - alphas[t]).sqrt(),
            }[prediction]
            assert error == pytest.approx(float((found - noise).square().mean()), rel=1e-4)


def test_settings_make_a_json_record(decoder):
    settings = small(decoder, guidance_interval=(0.0, 0.5))
    assert settings.to_dict() == {
        "steps": 4, "guidance": 4.0, "guidance_interval": [0.0, 0.5], "scheduler": "ddpm", "seed": 3,
        "height": 32, "width": 40,
    }  # fmt: skip
    assert dataclasses.replace(settings, seed=4) != settings
