"""SDXL with an image adapter draws what the stock pipeline draws, from folders in the published formats."""

import functools
import json
import shutil

import pytest
import tiny_pipelines
import torch
from safetensors.torch import load_file, save_file

# diffusers hands torch tensors to numpy 2 in a way that it is leaving.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

D_EMBED, ENCODER = 28, "an/encoder"


def random_adapter(unet, d_embed=D_EMBED, seed=3):
    """Random weights under the published names, gains and biases included."""
    from vit_lens.decoders.ip_adapter_parts import adapter_shapes

    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in adapter_shapes(unet, d_embed).items():
        scale = 0.3 if len(shape) == 2 else 0.5
        made[name] = torch.randn(shape, generator=generator) * scale + (name == "image_proj.norm.weight")
    return made


@functools.cache
def folder():
    """A pipeline of SDXL and an adapter, saved as published; the adapter lies where the published one does."""
    import tempfile
    from pathlib import Path

    root = Path(tempfile.mkdtemp())
    pipeline = tiny_pipelines.make("sdxl")
    pipeline.save_pretrained(root / "sdxl")
    (root / "sdxl_models").mkdir()
    save_file(random_adapter(pipeline.unet), root / "sdxl_models" / "ip-adapter_sdxl.safetensors")
    return root


def adapter():
    return folder() / "sdxl_models" / "ip-adapter_sdxl.safetensors"


def name():
    return f"{folder() / 'sdxl'}+{adapter()}"


@functools.cache
def stock():
    """What a user of diffusers has: the pipeline, and its own load_ip_adapter."""
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(folder() / "sdxl", add_watermarker=False)
    pipeline.load_ip_adapter(
        str(folder()), subfolder="sdxl_models", weight_name="ip-adapter_sdxl.safetensors", image_encoder_folder=None
    )
    pipeline.set_ip_adapter_scale(1.0)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@functools.cache
def shared():
    """A decoder of that very pipeline: equal bits need weights that lie in memory alike."""
    from vit_lens.decoders import IPAdapterDecoder

    return IPAdapterDecoder(stock(), encoder=ENCODER)


@functools.cache
def loaded():
    import vit_lens as vl

    return vl.load_decoder(name(), encoder=ENCODER)


def embeds(n=3, seed=0):
    return torch.randn(n, D_EMBED, generator=torch.Generator().manual_seed(seed)) * 3


def stock_pictures(rows, settings, negative=None, **words):
    """The stock call, with an empty prompt and zeros first, in [0, 1]."""
    n = len(rows)
    away = torch.zeros(1, D_EMBED) if negative is None else negative
    given = torch.cat([away.expand(n, -1), rows])[:, None] if settings.guidance > 1 else rows[:, None]
    words = words or {"prompt": [""] * n}
    found = stock()(
        **words, ip_adapter_image_embeds=[given], num_inference_steps=settings.steps, output_type="pt",
        guidance_scale=settings.guidance, height=settings.height, width=settings.width,
        generator=[torch.Generator().manual_seed(settings.seed) for _ in range(n)],
    ).images  # fmt: skip
    return found


# ---- exactness


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_picture_is_the_stock_pipelines_bit_for_bit(guidance):
    decoder = shared()
    settings = decoder.settings(steps=3, guidance=guidance, seed=11, height=24, width=40)
    ours = decoder.decode(embeds(1), negative=None, settings=settings, output="float")
    theirs = stock_pictures(embeds(1), settings)
    assert torch.equal(ours, theirs * 2 - 1)
    as_bytes = decoder.decode(embeds(1), negative=None, settings=settings)
    assert torch.equal(as_bytes, (theirs.permute(0, 2, 3, 1) * 255).round().to(torch.uint8))
    from_files = loaded().decode(embeds(1), negative=None, settings=settings, output="float")
    torch.testing.assert_close(from_files, ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_every_row_of_a_batch_is_the_stock_picture_of_its_own_embedding(guidance):
    """The stock pipeline itself would give each of several prompts the embeddings of all of them."""
    decoder = shared()
    settings = decoder.settings(steps=2, guidance=guidance, seed=5, height=16, width=16)
    ours = decoder.decode(embeds(), settings=settings, output="float")
    alone = torch.cat([stock_pictures(row[None], settings) for row in embeds()]) * 2 - 1
    torch.testing.assert_close(ours, alone, atol=1e-5, rtol=0)
    assert min((ours[i] - ours[j]).abs().max() for i, j in [(0, 1), (1, 2), (0, 2)]) > 0.05
    mixed = stock_pictures(embeds(), settings) * 2 - 1
    assert (mixed - alone).abs().max() > 0.05


def test_guidance_leads_away_from_zeros_or_from_what_is_given():
    decoder, black = shared(), embeds(1, seed=9)
    settings = decoder.settings(steps=2, guidance=4.0, height=16, width=16)
    plain = decoder.decode(embeds(1), settings=settings, output="float")
    said = decoder.decode(embeds(1), negative=decoder.negative(), settings=settings, output="float")
    assert torch.equal(plain, said)
    other = decoder.decode(embeds(1), negative=black, settings=settings, output="float")
    assert torch.equal(other, stock_pictures(embeds(1), settings, negative=black) * 2 - 1)
    assert not torch.equal(other, plain)


@pytest.mark.parametrize("scheduler", ["own", "ddim", "dpm++"])
def test_the_folders_scheduler_draws_and_others_that_are_named(scheduler):
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

    decoder = shared()
    settings = decoder.settings(steps=3, guidance=2.0, scheduler=scheduler, height=16, width=16)
    kinds = {"own": EulerDiscreteScheduler, "ddim": DDIMScheduler, "dpm++": DPMSolverMultistepScheduler}
    pipeline, own = stock(), stock().scheduler
    pipeline.scheduler = kinds[scheduler].from_config(own.config)
    try:
        theirs = stock_pictures(embeds(1), settings)
    finally:
        pipeline.scheduler = own
    assert torch.equal(decoder.decode(embeds(1), settings=settings, output="float"), theirs * 2 - 1)


def test_a_row_follows_from_its_embedding_alone():
    decoder = loaded()
    settings = decoder.settings(steps=2, guidance=2.0, height=16, width=16)
    rows = embeds(5)
    whole = decoder.decode(rows, settings=settings, batch_size=2)
    again = decoder.decode(rows[4:], settings=settings, batch_size=2)
    assert torch.equal(whole[4:], again)
    moved = decoder.decode(rows.flip(0), settings=settings, batch_size=5).flip(0)
    torch.testing.assert_close(moved.int(), whole.int(), atol=1, rtol=0)
    assert not torch.equal(whole[0], whole[1])


def test_half_precision_is_the_stock_pipelines():
    import vit_lens as vl
    from vit_lens.decoders import IPAdapterDecoder

    pipeline = tiny_pipelines.make("sdxl").to(torch.bfloat16)
    pipeline.load_ip_adapter(
        str(folder()), subfolder="sdxl_models", weight_name="ip-adapter_sdxl.safetensors", image_encoder_folder=None
    )
    decoder = IPAdapterDecoder(pipeline, encoder=ENCODER)
    settings = decoder.settings(steps=2, guidance=2.0, height=16, width=16)
    given = torch.cat([torch.zeros(1, D_EMBED), embeds(1)])[:, None].bfloat16()
    theirs = pipeline(
        prompt="", ip_adapter_image_embeds=[given], num_inference_steps=2, guidance_scale=2.0, height=16, width=16,
        generator=[torch.Generator().manual_seed(0)], output_type="pt",
    ).images  # fmt: skip
    assert torch.equal(decoder.decode(embeds(1), settings=settings, output="float"), theirs.float() * 2 - 1)
    read = vl.load_decoder(name(), encoder=ENCODER, dtype=torch.bfloat16)
    assert read.dtype == decoder.dtype == torch.bfloat16 and read.fingerprint == decoder.fingerprint


def test_a_decoder_in_memory_is_the_one_from_files():
    from vit_lens.decoders import IPAdapterDecoder, put_adapter

    pipeline = tiny_pipelines.make("sdxl")
    put_adapter(pipeline.unet, load_file(adapter()))
    made = IPAdapterDecoder(pipeline, encoder=None)
    settings = made.settings(steps=2, height=16, width=16)
    assert made.fingerprint == loaded().fingerprint and made.decoder_id.startswith("module@")
    ours, read = (one.decode(embeds(2), settings=settings) for one in (made, loaded()))
    torch.testing.assert_close(ours.int(), read.int(), atol=1, rtol=0)


def test_the_adapter_comes_back_out():
    from vit_lens.decoders import adapter_weights

    found, put = adapter_weights(loaded()._unet), load_file(adapter())
    assert found.keys() == put.keys() and all(torch.equal(found[key], put[key]) for key in put)


# ---- one folder with a card


def carded(tmp_path, **said):
    """A folder without text encoders, whose card names the adapter's file in it."""
    for part in ("unet", "vae", "scheduler"):
        shutil.copytree(folder() / "sdxl" / part, tmp_path / part)
    index = json.loads((folder() / "sdxl" / "model_index.json").read_text())
    index |= {f"{part}{n}": [None, None] for part in ("text_encoder", "tokenizer") for n in ("", "_2")}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    shutil.copyfile(adapter(), tmp_path / "adapter.safetensors")
    card = {"adapter": "adapter.safetensors", "encoder_id": ENCODER, "text": "zeros", "steps": 7, "guidance": 1.5}
    (tmp_path / "vit_lens.json").write_text(json.dumps(card | said))
    return tmp_path


def test_a_folder_whose_card_names_its_adapter_is_told_zeros(tmp_path):
    import vit_lens as vl

    decoder = vl.load_decoder(carded(tmp_path, height=24, embed_dim=D_EMBED))
    assert decoder.encoder_id == ENCODER and decoder.text == "zeros"
    assert (decoder.defaults.steps, decoder.defaults.guidance, decoder.defaults.height) == (7, 1.5, 24)
    assert decoder.decoder_id == f"local/{tmp_path.name}@{decoder.fingerprint}"
    settings = decoder.settings(steps=2, height=16)
    zeros = {"prompt_embeds": torch.zeros(1, 1, 72), "pooled_prompt_embeds": torch.zeros(1, 40)}
    zeros |= {f"negative_{key}": value for key, value in zeros.items()}
    theirs = stock_pictures(embeds(1), settings, **zeros) * 2 - 1
    torch.testing.assert_close(decoder.decode(embeds(1), settings=settings, output="float"), theirs, atol=1e-5, rtol=0)
    # a pipeline without adapter, of the same class, stays a decoder of text
    assert type(vl.load_decoder(folder() / "sdxl", encoder=ENCODER)).__name__ == "TextDecoder"


def test_without_text_encoders_and_a_card_that_says_zeros_nothing_is_guessed(tmp_path):
    import vit_lens as vl
    from vit_lens.errors import DecoderError

    with pytest.raises(DecoderError, match="has no text_encoder, which is needed here"):
        vl.load_decoder(carded(tmp_path, text="empty"))


# ---- what is refused


def test_another_encoder_and_another_width_are_refused(tmp_path):
    import vit_lens as vl
    from vit_lens.errors import ContractError

    with pytest.raises(ContractError, match="does not say which encoder it was made for"):
        vl.load_decoder(name())
    with pytest.raises(ContractError, match="was made for encoder"):
        vl.load_decoder(carded(tmp_path), encoder="vit_lens/mini")
    with pytest.raises(ContractError, match="embeds are 30 wide, but the decoder takes 28"):
        loaded().decode(torch.zeros(2, 30))
    with pytest.raises(ContractError, match="negative are 30 wide"):
        loaded().decode(embeds(1), negative=torch.zeros(1, 30))
    with pytest.raises(ContractError, match="the negative is one row, got 2"):
        loaded().decode(embeds(1), negative=embeds(2))
    with pytest.raises(ContractError, match="was made for encoder"):
        loaded().decode(embeds(1), encoder="vit_lens/mini")


def test_the_published_adapter_names_its_encoder():
    from vit_lens.decoders import PUBLISHED
    from vit_lens.identity import KANDINSKY_22_ENCODER

    assert PUBLISHED["h94/IP-Adapter:sdxl_models/ip-adapter_sdxl.safetensors"] == KANDINSKY_22_ENCODER


WRONG_ADAPTERS = {
    "plus": (lambda w: {"image_proj.latents": torch.zeros(1, 4, 8)} | w, ("image_proj.proj.weight",), "plus or faceid"),
    "missing": (lambda w: w, ("ip_adapter.3.to_v_ip.weight",), "is missing instead of"),
    "extra": (lambda w: w | {"ip_adapter.99.to_k_ip.weight": torch.zeros(2, 2)}, (), "instead of absent"),
    "shape": (lambda w: w | {"ip_adapter.1.to_k_ip.weight": torch.zeros(3, 72)}, (), "take the adapter that was"),
    "type": (lambda w: w | {"image_proj.proj.bias": torch.zeros(288, dtype=torch.int32)}, (), "is of type I32"),
}


@pytest.mark.parametrize("kind", WRONG_ADAPTERS)
def test_an_adapter_that_does_not_fit_is_refused(kind, tmp_path):
    import vit_lens as vl
    from vit_lens.errors import VitLensError

    change, dropped, said = WRONG_ADAPTERS[kind]
    weights = {key: value for key, value in change(load_file(adapter())).items() if key not in dropped}
    save_file(weights, tmp_path / "a.safetensors")
    with pytest.raises(VitLensError, match=said):
        vl.load_decoder(f"{folder() / 'sdxl'}+{tmp_path / 'a.safetensors'}", encoder=ENCODER)


def test_names_that_lead_nowhere_are_refused(tmp_path):
    import vit_lens as vl
    from vit_lens.errors import CheckpointError, DecoderError

    sdxl = folder() / "sdxl"
    for wrong in (f"{sdxl}+", f"{sdxl}+nowhere.safetensors", f"{sdxl}+h94/IP-Adapter:sdxl_models/ip-adapter.bin"):
        with pytest.raises(DecoderError, match=r"no image adapter|names no adapter"):
            vl.load_decoder(wrong, encoder=ENCODER)
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        vl.load_decoder(f"{sdxl}+{tmp_path / 'broken.safetensors'}", encoder=ENCODER)
    with pytest.raises(DecoderError, match="no decoder here reads a KandinskyV22Pipeline with an image adapter"):
        vl.load_decoder(f"mini+{adapter()}")
    with pytest.raises(DecoderError, match="expected the name of a file in the folder"):
        vl.load_decoder(carded(tmp_path / "card", adapter="../adapter.safetensors"))
    with pytest.raises(DecoderError, match="text"):
        vl.load_decoder(carded(tmp_path / "other", text="a prompt"))


def test_pipelines_without_one_plain_adapter_are_refused():
    from vit_lens.decoders import IPAdapterDecoder, put_adapter
    from vit_lens.errors import DecoderError

    with pytest.raises(DecoderError, match="has 0 image adapters, expected one"):
        IPAdapterDecoder(tiny_pipelines.make("sdxl"), encoder=None)
    with pytest.raises(DecoderError, match="a StableDiffusionPipeline is no StableDiffusionXLPipeline"):
        IPAdapterDecoder(tiny_pipelines.make("sd1"), encoder=None)
    pipeline = tiny_pipelines.make("sdxl")
    put_adapter(pipeline.unet, random_adapter(pipeline.unet))
    pipeline.set_ip_adapter_scale(0.5)
    with pytest.raises(DecoderError, match=r"scale is \[0.5\]; expected 1 everywhere"):
        IPAdapterDecoder(pipeline, encoder=None)


def test_settings_that_cannot_run_are_refused():
    from vit_lens.errors import DecoderError

    decoder = loaded()
    with pytest.raises(DecoderError, match="height=17"):
        decoder.decode(embeds(1), settings=decoder.settings(height=17))
    with pytest.raises(DecoderError, match="steps=2000"):
        decoder.check_settings(decoder.settings(steps=2000))


# ---- the contract


def test_it_keeps_the_contract_and_says_what_it_costs():
    from vit_lens.decoders import check_decoder

    decoder = check_decoder(loaded())
    settings = decoder.settings(steps=20, guidance=3.0, height=16, width=16)
    coarse = decoder.coarse(settings)
    assert (coarse.steps, coarse.guidance) == (4, 1.0) and decoder.coarse(
        decoder.settings(steps=3, guidance=1.0)
    ) is None
    assert decoder.settings_words(settings) == "20 steps, guidance 3"
    assert (
        decoder.settings_words(decoder.settings(steps=2, guidance=1, scheduler="ddim")) == "2 steps, no guidance, ddim"
    )
    one, two = decoder.cost(settings, 1), decoder.cost(settings, 2)
    assert two.flops == pytest.approx(2 * one.flops, rel=1e-6) and two.peak_bytes > one.peak_bytes
    assert one.weight_bytes == sum(4 * p.numel() for part in decoder._stage.trained.values() for p in part.parameters())
    assert decoder.work(settings) == 40


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_flops_are_those_of_a_run(guidance):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    decoder = loaded()
    settings = decoder.settings(steps=2, guidance=guidance, height=16, width=16)
    # Written out, since the counter of some versions of PyTorch knows nothing of the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        decoder.decode(embeds(2), settings=settings, batch_size=2)
    assert decoder.cost(settings, 2).flops == counted.get_total_flops()


def test_identity_tells_weights_words_and_edits_apart():
    from vit_lens.decoders import IPAdapterDecoder, put_adapter

    def made(seed=3, **how):
        pipeline = tiny_pipelines.make("sdxl")
        put_adapter(pipeline.unet, random_adapter(pipeline.unet, seed=seed))
        return IPAdapterDecoder(pipeline, encoder=None, **how)

    plain = made()
    json.dumps(plain.identity())
    assert "edited" not in plain.identity()["unet"]
    assert made().identity() == plain.identity()
    assert made(seed=4).fingerprint != plain.fingerprint
    assert made(text="zeros").identity() != plain.identity()
    for part in plain._unet.attn_processors.values():
        if hasattr(part, "to_k_ip"):
            part.scale = [0.5]
    assert any("scale" in key for key in plain.identity()["unet"]["edited"])


def test_it_runs_in_smaller_passes_where_memory_runs_out(monkeypatch):
    decoder = loaded()
    settings = decoder.settings(steps=1, guidance=1.0, height=16, width=16)
    whole = decoder.decode(embeds(4), settings=settings, batch_size=4)
    run, told = type(decoder)._draw, []

    def hungry(self, given, *more):
        if len(given) > 2:
            raise MemoryError("out of memory")
        return run(self, given, *more)

    monkeypatch.setattr(type(decoder), "_draw", hungry)
    fewer = decoder.decode(embeds(4), settings=settings, batch_size=4, on_smaller=told.append)
    assert told == [2]
    torch.testing.assert_close(fewer.int(), whole.int(), atol=1, rtol=0)
