"""What KandinskyDecoder refuses, and what its errors say."""

import dataclasses

import pytest
import tiny_kandinsky
import torch


@pytest.fixture(scope="module")
def decoder():
    from vit_lens.decoders import KandinskyDecoder

    return KandinskyDecoder(*tiny_kandinsky.parts(), encoder="vit_lens/mini", decoder_id="tiny")


def decode(decoder, embeds=None, negative="own", encoder=None, batch_size=None, **overrides):
    own_embeds, own_negative = tiny_kandinsky.embeddings(2)
    return decoder.decode(
        own_embeds if embeds is None else embeds,
        negative=own_negative if isinstance(negative, str) else negative,
        encoder=encoder,
        settings=decoder.settings(**(dict(steps=1, height=8, width=8) | overrides)),
        batch_size=batch_size,
    )


class OtherEncoder:
    encoder_id = "open_clip/ViT-B-32/openai"


@pytest.mark.parametrize("encoder", [OtherEncoder.encoder_id, OtherEncoder()])
def test_another_encoder_is_refused_by_name(decoder, encoder):
    from vit_lens.errors import ContractError

    with pytest.raises(ContractError, match=r"tiny was made for encoder 'vit_lens/mini'.*'open_clip/ViT-B-32/openai'"):
        decode(decoder, encoder=encoder)


def test_the_same_encoder_passes_under_any_of_its_names():
    from vit_lens.decoders import KandinskyDecoder

    decoder = KandinskyDecoder(*tiny_kandinsky.parts(), encoder="open_clip/ViT-bigG-14/laion2b_s39b_b160k")
    assert decoder.encoder_id == "hf/kandinsky-community/kandinsky-2-2-prior:image_encoder"
    assert decoder.decoder_id.startswith("module@")
    decode(decoder, encoder="open_clip/ViT-bigG-14/laion2b_s39b_b160k")
    decode(decoder, encoder="hf/kandinsky-community/kandinsky-2-2-prior:image_encoder")


def test_widths_are_refused_with_both_numbers(decoder):
    from vit_lens.errors import ContractError

    with pytest.raises(ContractError, match="embeds are 31 wide, but the decoder takes 32"):
        decode(decoder, embeds=torch.randn(2, 31))
    with pytest.raises(ContractError, match="negative are 7 wide, but the decoder takes 32"):
        decode(decoder, negative=torch.randn(1, 7))
    with pytest.raises(ContractError, match="no rows"):
        decode(decoder, embeds=torch.randn(0, 32))
    with pytest.raises(ContractError, match=r"float tensor \[batch 32\], got torch.float32 \[32\]"):
        decoder.check(torch.randn(32))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_row(decoder, value):
    from vit_lens.errors import ContractError

    embeds, negative = tiny_kandinsky.embeddings(3)
    embeds[1, 4] = value
    with pytest.raises(ContractError, match=r"embeds hold NaN or infinite values in rows \[1\] \(1 of 3\)"):
        decode(decoder, embeds=embeds)
    negative[0, 0] = value
    with pytest.raises(ContractError, match="negative hold NaN"):
        decode(decoder, negative=negative)


def test_normalised_embeddings_are_refused(decoder):
    from vit_lens.errors import ContractError

    embeds, negative = tiny_kandinsky.embeddings(3)
    unit = torch.nn.functional.normalize(embeds)
    with pytest.raises(ContractError, match=r"norm 1, but the negative.* has 1\d\.\d: these look L2-normalised"):
        decode(decoder, embeds=unit)
    decode(decoder, embeds=torch.cat([unit, embeds]))  # one row of norm 1 among others may be just that
    decode(decoder, embeds=unit, negative=negative / negative.norm())  # an encoder whose embeddings are short


def test_guidance_needs_a_negative(decoder):
    from vit_lens.errors import ContractError

    with pytest.raises(ContractError, match=r"guidance 4\.0 needs a negative.*negative=encoder\.zero_embedding\(\)"):
        decode(decoder, negative=None)
    for guidance in (1, 0.5, 0):
        assert torch.equal(decode(decoder, negative=None, guidance=guidance), decode(decoder, guidance=guidance))


@pytest.mark.parametrize(("overrides", "said"), [
    (dict(steps=0), "steps must be a whole number >= 1, got 0"),
    (dict(steps=1001), "steps=1001, but the decoder was trained with 1000"),
    (dict(steps=1000), "steps=1000 with scheduler 'ddpm' runs from timestep 1000 to 1, .* those from 999 to 0"),
    (dict(guidance=float("nan")), "guidance must be a finite number"),
    (dict(guidance=float("inf")), "guidance must be a finite number"),
    (dict(guidance=-1.0), "guidance must be a finite number >= 0"),
    (dict(guidance_interval=(0.5, 0.5)), "0 <= start < stop <= 1, got"),
    (dict(guidance_interval=(-0.1, 0.5)), "0 <= start < stop <= 1, got"),
    (dict(guidance_interval=(0.0, 1.1)), "0 <= start < stop <= 1, got"),
    (dict(guidance_interval=(0.0, float("nan"))), "0 <= start < stop <= 1, got"),
    (dict(scheduler="dpm"), r"no scheduler 'dpm'; nearest: .*'dpm\+\+'"),
    (dict(seed=-1), "seed must be a whole number >= 0, got -1"),
    (dict(gidance=2.0), "no decoder setting 'gidance'; nearest: 'guidance'"),
    (dict(height=30), "height=30: this decoder needs multiples of 4; nearest: 28 or 32"),
    (dict(width=3), "width=3: this decoder needs multiples of 4; nearest: 4"),
    (dict(batch_size=0), "batch_size must be at least 1, a whole number, got 0"),
], ids=str)  # fmt: skip
def test_settings_that_cannot_run(decoder, overrides, said):
    from vit_lens.errors import DecoderError

    with pytest.raises(DecoderError, match=said):
        decode(decoder, **overrides)


def test_settings_are_the_decoders_own_where_nothing_is_said(decoder):
    settings = decoder.settings(seed=9)
    assert settings.seed == 9
    assert dataclasses.replace(settings, seed=0) == decoder.defaults
    assert (settings.steps, settings.guidance, settings.scheduler) == (25, 4.0, "ddpm")
    assert (settings.height, settings.width) == (128, 128)  # 64 latents, as the published UNet, of 2 pixels each


@pytest.mark.parametrize(("overrides", "said"), [
    (dict(variance_type="learned_range"), "variance_type 'learned_range'.*discards it"),
    (dict(prediction_type="flow"), "prediction_type 'flow', expected one of"),
], ids=str)  # fmt: skip
def test_schedulers_that_are_refused(overrides, said):
    from vit_lens.decoders import KandinskyDecoder
    from vit_lens.errors import DecoderError

    with pytest.raises(DecoderError, match=said):
        KandinskyDecoder(*tiny_kandinsky.parts(**overrides), encoder=None)


@pytest.mark.parametrize(("overrides", "name", "said"), [
    (dict(variance_type="fixed_large"), "ddpm", "'fixed_large' and thresholding=False; use 'ddim'"),
    (dict(thresholding=True), "ddpm", "thresholding=True; use 'ddim'"),
    (dict(clip_sample_range=2.0), "dpm++", r"clamp to 1 only, this decoder's is 2\.0"),
], ids=str)  # fmt: skip
def test_samplers_that_a_scheduler_cannot_run(overrides, name, said):
    from vit_lens.decoders import KandinskyDecoder
    from vit_lens.errors import DecoderError

    decoder = KandinskyDecoder(*tiny_kandinsky.parts(**overrides), encoder=None)
    with pytest.raises(DecoderError, match=said):
        decode(decoder, scheduler=name)
    decode(decoder, scheduler="ddim")


def test_parts_of_other_models_are_refused():
    import diffusers

    from vit_lens.decoders import KandinskyDecoder
    from vit_lens.errors import DecoderError

    unet, movq, scheduler = tiny_kandinsky.parts()
    with pytest.raises(DecoderError, match=r"expected UNet2DConditionModel of diffusers, got a VQModel"):
        KandinskyDecoder(movq, movq, scheduler, encoder=None)
    with pytest.raises(DecoderError, match=r"DDPMScheduler or DDIMScheduler.*got a EulerDiscreteScheduler"):
        KandinskyDecoder(unet, movq, diffusers.EulerDiscreteScheduler(), encoder=None)
    inpainting = diffusers.UNet2DConditionModel(**(tiny_kandinsky.UNET | {"in_channels": 9}))
    with pytest.raises(DecoderError, match=r"in_channels=9, but a Kandinsky 2\.2 decoder has 4; inpainting"):
        KandinskyDecoder(inpainting, movq, scheduler, encoder=None)


def test_denoising_error_refuses_what_does_not_fit(decoder):
    from vit_lens.decoders import denoising_error
    from vit_lens.errors import ContractError, DecoderError

    embeds, _ = tiny_kandinsky.embeddings(2)
    images = torch.zeros(2, 3, 8, 8)
    with pytest.raises(DecoderError, match="timestep 1000 is out of range, the decoder has 0 to 999"):
        denoising_error(decoder, images, embeds, timesteps=(1000,))
    with pytest.raises(DecoderError, match="height=6: this decoder needs multiples of 4"):
        denoising_error(decoder, images[:, :, :6], embeds)
    with pytest.raises(ContractError, match="embeds are 30 wide"):
        denoising_error(decoder, images, embeds[:, :30])


def test_pictures_that_are_not_finite_are_refused():
    from vit_lens.decoders import KandinskyDecoder
    from vit_lens.errors import DecoderError

    unet, movq, scheduler = tiny_kandinsky.parts()
    torch.nn.init.constant_(movq.decoder.conv_out.bias, float("nan"))
    with pytest.raises(DecoderError, match=r"UNet in torch\.float32.*try dtype=torch\.bfloat16"):
        decode(KandinskyDecoder(unet, movq, scheduler, encoder=None))


def test_an_encoder_that_was_changed_since_is_named(hf_tower):

    from vit_lens import HookedViT
    from vit_lens.decoders.contract import check_encoder

    model = HookedViT.from_module(hf_tower, encoder_id="test/tower")
    check_encoder("a decoder", "test/tower", model)
    with torch.no_grad():
        model.blocks[1].mlp.W_out.mul_(2)
    with pytest.warns(UserWarning, match="changed since it was loaded as test/tower"):
        check_encoder("a decoder", "test/tower", model)
