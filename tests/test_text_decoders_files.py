"""Text-to-image pipelines from files, each half alone, and what is refused before anything is drawn."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_pipelines
import torch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = tiny_pipelines.PROMPTS
NAMES = ["sd1", "sdt5", "taesd", "sdxl", "if", "dev", "sd3", "pixart"]
LENGTH = {"dev": 11, "sd3": 11, "pixart": 11}
SIZE = {"dev": dict(height=16, width=12), "sd3": dict(height=16, width=12)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Pipelines saved by diffusers, made when they are asked for."""
    made = {}

    def save(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("saved") / name, tiny_pipelines.make(name)
            made[name][1].save_pretrained(made[name][0])
        return made[name]

    return save


@pytest.fixture
def copied(saved, tmp_path):
    return lambda name: Path(shutil.copytree(saved(name)[0], tmp_path / name))


@pytest.fixture
def no_network(monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a local directory must not reach for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def rewrite(path, **changes):
    """Change what a JSON file says; None takes a key out."""
    held = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in held.items() if value is not None}))


@pytest.mark.parametrize("name", NAMES)
def test_halves_from_files_are_the_pipeline_in_memory(name, saved, no_network):
    """Conditions, negative and picture, to the last bit, with encoders and denoiser never loaded together."""
    from vit_lens.decoders import PromptEncoder, TextDecoder, load_decoder

    folder, pipe = saved(name)
    text, loaded = PromptEncoder.from_pretrained(folder, length=LENGTH.get(name)), load_decoder(folder)
    memory, whole = PromptEncoder(pipe, length=LENGTH.get(name)), TextDecoder(pipe)
    asked, negative = text.encode(PROMPTS), text.negative()
    for part, value in memory.encode(PROMPTS).parts().items():
        assert torch.equal(getattr(asked, part), value)
    how = loaded.settings(steps=2, **SIZE.get(name, {}))
    pictures = loaded.decode(asked, negative=negative, encoder=text, settings=how)
    assert torch.equal(pictures, whole.decode(asked, negative=negative, settings=how))
    assert isinstance(loaded, TextDecoder) and loaded.decoder_id == f"local/{name}@{whole.fingerprint}"
    assert loaded.fingerprint == whole.fingerprint and text.encoder_id == memory.encoder_id
    assert {**loaded.identity(), "decoder_id": 0} == {**whole.identity(), "decoder_id": 0}
    assert loaded.defaults == whole.defaults and loaded.takes == whole.takes
    half = load_decoder(folder, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.fingerprint != loaded.fingerprint
    assert half.decode(asked, negative=negative, settings=how).shape == pictures.shape


@pytest.mark.parametrize("name", ["sdxl", "dev"])
def test_bfloat16_is_applied_as_the_pipeline_does(name, saved):
    """Norms run in the encoders' own dtype; the condition says it."""
    from vit_lens import TextRun
    from vit_lens.decoders import PromptEncoder

    text = PromptEncoder.from_pretrained(saved(name)[0], length=LENGTH.get(name), dtype=torch.bfloat16)
    asked, at = text.encode(PROMPTS), tiny_pipelines.at(TextRun.of(text, PROMPTS))
    assert text.dtype == torch.bfloat16
    for part, value in asked.parts().items():
        assert value.dtype == torch.bfloat16 and torch.equal(getattr(at, part), value)


def test_a_second_stage_from_files(saved, no_network):
    from vit_lens.decoders import PromptEncoder, TextDecoder

    first, second = saved("if")[0], saved("if2")[0]
    loaded = TextDecoder.from_pretrained(first, upscaler=second)
    asked, negative = (found := PromptEncoder.from_pretrained(first)).encode(PROMPTS), found.negative()
    how = loaded.settings(steps=2, upscale_steps=2)
    whole = TextDecoder(saved("if")[1], upscaler=saved("if2")[1])
    pictures = loaded.decode(asked, negative=negative, settings=how)
    assert torch.equal(pictures, whole.decode(asked, negative=negative, settings=how))
    assert loaded.decoder_id.startswith("local/if+local/if2@")


def test_one_hub_id_gives_what_each_half_needs(saved, monkeypatch):
    import huggingface_hub

    from vit_lens.decoders import PromptEncoder, load_decoder

    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, allow_patterns: asked.append(allow_patterns) or saved("sd1")[0],
    )
    assert load_decoder("someone/sd").decoder_id == "hf/someone/sd"
    assert asked[0] == ["model_index.json", "config.json"] and "unet/diffusion_pytorch_model.safetensors" in asked[-1]
    assert not [one for one in asked[-1] if one.startswith(("text_encoder/model", "tokenizer", "safety"))]
    asked.clear()
    PromptEncoder.from_pretrained("someone/sd")
    assert "text_encoder/model.safetensors" in asked[-1] and "tokenizer/vocab.json" in asked[-1]
    assert not [one for one in asked[-1] if one.startswith(("vae", "safety")) or one.endswith((".bin", "*"))]


@pytest.mark.parametrize(
    "error, said",
    [("GatedRepoError", r"'a/b' is gated: accept its licence at https://huggingface.co/a/b, log in"),
     ("RepositoryNotFoundError", r"no public repository 'a/b': check the id; where it was withdrawn")],
)  # fmt: skip
def test_gated_and_absent_repositories(error, said, monkeypatch):
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    from vit_lens.decoders import PromptEncoder, load_decoder
    from vit_lens.errors import DecoderError

    def fetch(name, allow_patterns):
        answer = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co/a/b"))
        raise getattr(errors, error)("no", response=answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    for load in (load_decoder, PromptEncoder.from_pretrained):
        with pytest.raises(DecoderError, match=said):
            load("a/b")


def test_names_of_early_autoencoders(copied):
    from vit_lens.decoders import load_decoder

    folder = copied("sd1")
    expected, file = load_decoder(folder).fingerprint, folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = load_file(file)
    for today, before in old.items():
        assert any(today in name for name in tensors)
        tensors = {name.replace(today, before): value for name, value in tensors.items()}
    save_file(tensors, file)
    assert load_decoder(folder).fingerprint == expected


def test_text_encoders_under_their_older_names(copied):
    """Files of earlier releases call everything text_model; and early configurations of PixArt name another class."""
    from vit_lens.decoders import PromptEncoder, load_decoder

    folder = copied("sd1")
    asked = PromptEncoder.from_pretrained(folder).encode(PROMPTS)
    file = folder / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    assert torch.equal(PromptEncoder.from_pretrained(folder).encode(PROMPTS).tokens, asked.tokens)

    folder = copied("pixart")
    expected = load_decoder(folder).fingerprint
    rewrite(folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    rewrite(folder / "transformer" / "config.json", _class_name="Transformer2DModel", only_cross_attention=False)
    assert load_decoder(folder).fingerprint == expected

    file = copied("sdxl") / "unet" / "config.json"  # as published: null, where a bool is annotated
    file.write_text(json.dumps(json.loads(file.read_text()) | {"upcast_attention": None}))
    assert load_decoder(file.parent.parent).takes == {"tokens": 72, "pooled": 40}


# ---- wrong files


WRONG = [
    ("sd1", "model_index.json", dict(vae=None), r"has no vae, which is needed here"),
    ("sd1", "model_index.json", dict(unet=["os", "system"]), r"unet is a \['os', 'system'\]; expected \['diffusers'"),
    ("sd1", "model_index.json", dict(extra=["a", "b"]), r"names 'extra', which StableDiffusionPipeline has not"),
    ("sd1", "unet/config.json", dict(class_embed_type="identity"), r"the unet has class_embed_type='identity'"),
    ("sd1", "unet/config.json", dict(cross_attention_dim=40),
     r"text_encoder make tokens that are 32 wide, but the denoiser of this StableDiffusionPipeline takes 40"),
    ("sd1", "scheduler/scheduler_config.json", dict(_class_name="DPMSolverSDEScheduler"),
     r"scheduler 'DPMSolverSDEScheduler' is not supported"),
    ("sdxl", "text_encoder_2/config.json", dict(projection_dim=24), r"make pooled that are 24 wide, .* takes 40"),
    ("if", "text_encoder/config.json", dict(model_type="bert"), r"text_encoder of format if is a 'bert'"),
]  # fmt: skip


@pytest.mark.parametrize("name, path, changes, said", WRONG, ids=range(len(WRONG)))
def test_wrong_files_are_told(name, path, changes, said, copied):
    from vit_lens.decoders import load_decoder
    from vit_lens.errors import VitLensError

    folder = copied(name)
    load_decoder(folder)
    rewrite(folder / path, **changes)
    with pytest.raises(VitLensError, match=said):
        load_decoder(folder)


def test_wrong_files_of_text_encoders_are_told(copied):
    from vit_lens.decoders import PromptEncoder
    from vit_lens.errors import VitLensError

    folder = copied("sd1")
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file({key: value for key, value in tensors.items() if key != name}, file, {"format": "pt"})
    with pytest.raises(VitLensError, match=r"text_encoder lacks 1 tensors of a CLIPTextModel"):
        PromptEncoder.from_pretrained(folder)
    file.unlink()
    torch.save({}, folder / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(VitLensError, match=r"holds no weights of a CLIPTextModel in safetensors"):
        PromptEncoder.from_pretrained(folder)
    shutil.rmtree(folder / "tokenizer")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(VitLensError, match=r"has no tokenizer, which is needed to read prompts"):
        PromptEncoder.from_pretrained(folder)
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(VitLensError, match=r"has no text_encoder, which is needed here"):
        PromptEncoder.from_pretrained(folder)


# ---- wrong input in memory


def test_conditions_of_another_width_or_format_are_refused(unchecked):
    from vit_lens import Condition
    from vit_lens.decoders import PromptEncoder, TextDecoder
    from vit_lens.errors import ContractError

    sd, t5 = tiny_pipelines.make("sd1"), tiny_pipelines.make("if")
    decoder, other, xl = TextDecoder(sd), PromptEncoder(t5), TextDecoder(tiny_pipelines.make("sdxl"))
    asked = other.encode(PROMPTS)
    decoder.check(asked)  # as wide as CLIP's, so that the width alone does not tell
    with pytest.raises(ContractError, match=r"draws format sd .*, but the conditions are of format if .* text_encoder"):
        decoder.decode(asked, encoder=other)
    with pytest.raises(ContractError, match=r"tokens are 32 wide, but the decoder takes 72"):
        xl.decode(asked)
    with pytest.raises(ContractError, match=r"tokens are 40 wide, but the decoder takes 32: another encoder\?"):
        decoder.decode(Condition(tokens=torch.zeros(1, 16, 40)))
    with pytest.raises(ContractError, match=r"would ignore pooled"):
        decoder.decode(Condition(tokens=torch.zeros(1, 16, 32), pooled=torch.zeros(1, 32)))
    with pytest.raises(ContractError, match=r"would ignore a mask: in format sd the denoiser reads all positions"):
        decoder.decode(Condition(tokens=torch.zeros(1, 16, 32), mask=torch.ones(1, 16, dtype=torch.bool)))
    with pytest.raises(ContractError, match=r"takes the mask of its tokens, and got none"):
        TextDecoder(tiny_pipelines.make("pixart")).decode(Condition(tokens=torch.zeros(1, 16, 32)))
    with pytest.raises(ContractError, match=r"expected one row of tokens \[77, 32\]"):
        TextDecoder(t5).decode(asked, negative=Condition(tokens=torch.zeros(1, 16, 32)))
    with pytest.raises(ContractError, match=r"no picture has such a condition; take PromptEncoder"):
        decoder.read(None, torch.zeros(1, 3, 8, 8))


def test_parts_that_are_not_of_one_pipeline_are_refused():
    from vit_lens.decoders import PromptEncoder, TextDecoder
    from vit_lens.errors import ContractError, DecoderError

    def without(name, **parts):
        pipe = tiny_pipelines.make(name)
        for part, value in parts.items():
            setattr(pipe, part, value)
        return pipe

    with pytest.raises(DecoderError, match=r"this StableDiffusionPipeline has no vae, which is needed here"):
        TextDecoder(without("sd1", vae=None))
    with pytest.raises(DecoderError, match=r"has no text_encoder_2 and no tokenizer_2, which is needed"):
        PromptEncoder(without("dev", text_encoder_2=None, tokenizer_2=None))
    with pytest.raises(
        ContractError, match=r"make tokens that are 40 wide, .* takes 32: they were not trained together"
    ):
        TextDecoder(without("sd1", text_encoder=tiny_pipelines.clip(3, 40)[0]))
    with pytest.raises(ContractError, match=r"text_encoder of format if is a 'clip_text_model', expected 't5'"):
        PromptEncoder(without("if", text_encoder=tiny_pipelines.clip()[0]))
    with pytest.raises(DecoderError, match=r"a T5 in float16, .* take torch.bfloat16 or torch.float32"):
        PromptEncoder(without("if", text_encoder=tiny_pipelines.t5()[0].half()))
    with pytest.raises(DecoderError, match=r"the unet has addition_embed_type='text_time'"):
        TextDecoder(without("sd1", unet=tiny_pipelines.make("sdxl").unet))
    with pytest.raises(DecoderError, match=r"draws nothing of what StableDiffusionPipeline drew"):
        TextDecoder(tiny_pipelines.make("sd1"), upscaler=tiny_pipelines.make("if2"))
    stochastic = tiny_pipelines.make("dev")
    stochastic.scheduler.register_to_config(stochastic_sampling=True)
    with pytest.raises(DecoderError, match=r"with stochastic_sampling, whose noise cannot be held"):
        TextDecoder(stochastic)


def test_t5_in_float16_is_refused_from_files(saved):
    from vit_lens.decoders import PromptEncoder, load_decoder
    from vit_lens.errors import DecoderError

    with pytest.raises(DecoderError, match=r"text_encoder is a T5 in float16"):
        PromptEncoder.from_pretrained(saved("if")[0], dtype=torch.float16)
    assert load_decoder(saved("if")[0], dtype=torch.float16).dtype == torch.float16


def test_settings_that_cannot_be_run(unchecked, saved):
    from vit_lens.decoders import TextDecoder, load_decoder
    from vit_lens.errors import DecoderError

    decoder = load_decoder(saved("sd1")[0])
    zeros = torch.zeros(2, 16, 32)
    from vit_lens import Condition

    asked = Condition(tokens=zeros)
    cases = [
        (dict(height=30), {}, r"height=30: this decoder needs multiples of 8; nearest: 24 or 32"),
        (dict(steps=1001), {}, r"steps=1001, but the decoder was trained with 1000"),
        (dict(), {}, r"guidance 7.5 leads away from a negative, .* pass negative=PromptEncoder"),
        (dict(guidance=1), dict(noise="legacy", batch_size=3), r"2 rows with noise='legacy', which draws 3 a pass"),
        (dict(guidance=1), dict(noise="own"), r"noise 'own'; expected 'uint8' or 'float', 'shared' or 'legacy'"),
        (dict(guidance=1), dict(batch_size=0), r"batch_size must be at least 1"),
    ]
    for changes, arguments, said in cases:
        with pytest.raises(Exception, match=said) as caught:
            decoder.decode(asked, settings=decoder.settings(**{"steps": 2} | changes), **arguments)
        assert "errors" in type(caught.value).__module__
    flux = TextDecoder(tiny_pipelines.make("schnell"))
    assert (flux.defaults.steps, flux.defaults.guidance, flux.defaults.height) == (4, 0.0, 128)
    with pytest.raises(DecoderError, match=r"guidance 3.5: this denoiser was distilled without guidance"):
        flux.check_settings(flux.settings(guidance=3.5))
    with pytest.raises(DecoderError, match=r"scheduler 'ddim' is a diffusion's"):
        flux.check_settings(flux.settings(scheduler="ddim"))


def test_prompts_that_are_none(unchecked, saved):
    from vit_lens.decoders import PromptEncoder
    from vit_lens.errors import DecoderError, TextError

    text = PromptEncoder(saved("sdxl")[1])
    for wrong in ("a red star", [], [1]):
        with pytest.raises(TextError, match=r"expected a list of texts, at least one"):
            text.encode(wrong)
    with pytest.raises(DecoderError, match=r"format sdxl leaves no choice of length"):
        PromptEncoder(saved("sdxl")[1], length=5)


def test_a_pass_that_does_not_fit_is_halved(saved, monkeypatch):
    from vit_lens.decoders import TextDecoder
    from vit_lens.errors import DecoderError

    decoder, told = TextDecoder(saved("sd1")[1]), []
    asked = decoder.negative().padded(3)
    how, draw = decoder.settings(steps=1), decoder._draw

    def small(most):
        def drawn(rows, *more):
            if len(rows) > most:
                raise MemoryError("out of memory")
            return draw(rows, *more)

        monkeypatch.setattr(decoder, "_draw", drawn)

    small(1)
    assert decoder.decode(asked, settings=how, batch_size=4, on_smaller=told.append).shape == (3, 32, 32, 3)
    assert told == [2, 1]
    small(0)
    with pytest.raises(DecoderError, match=r"1 row of 32 x 32 do not fit into the memory of cpu"):
        decoder.decode(asked, settings=how)


def test_a_tokenizer_of_its_own_is_read_as_the_stock_pipeline_reads_it(saved, tmp_path):
    """A vocabulary of words, which CLIP's tokenizer would read as unknown letters without a word."""
    import diffusers

    from vit_lens.decoders import PromptEncoder
    from vit_lens.errors import DecoderError
    from vit_lens.mini.training.text_encoder import TextSettings, build_text_encoder, build_text_tokenizer

    tokenizer = build_text_tokenizer()
    settings = TextSettings(width=saved("sd1")[1].unet.config.cross_attention_dim, n_layers=2, n_heads=2)
    parts = saved("sd1")[1].components | {"tokenizer": tokenizer}
    parts["text_encoder"] = build_text_encoder(settings, tokenizer, seed=0)
    diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(tmp_path)
    stock = diffusers.DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    said = stock.encode_prompt(PROMPTS[:1], "cpu", 1, False)[0]
    text = PromptEncoder.from_pretrained(tmp_path)
    assert torch.equal(text.encode(PROMPTS[:1]).tokens, said)
    assert not torch.equal(text.encode(["a blue ring"]).tokens, said)
    rewrite(tmp_path / "model_index.json", tokenizer=["transformers", "GemmaTokenizer"])
    with pytest.raises(DecoderError, match=r"tokenizer is a .*GemmaTokenizer.*expected .*CLIPTokenizer"):
        PromptEncoder.from_pretrained(tmp_path)


def test_a_card_beside_a_pipeline_says_how_it_draws(copied):
    from vit_lens.decoders import TextDecoder
    from vit_lens.errors import DecoderError

    folder = copied("sd1")
    usual = TextDecoder.from_pretrained(folder).defaults
    (folder / "vit_lens.json").write_text('{"steps": 3, "guidance": 1.5}')
    said = TextDecoder.from_pretrained(folder).defaults
    assert (said.steps, said.guidance) == (3, 1.5) != (usual.steps, usual.guidance)
    assert (said.height, said.scheduler) == (usual.height, usual.scheduler)
    for content, told in {
        '{"step": 3}': r"vit_lens.json.*unknown key 'step'; nearest: 'steps'",
        '{"steps": 0}': "steps must be a whole number >= 1, got 0",
        '{"guidance": true}': "guidance",
        "[]": "expected",
    }.items():
        (folder / "vit_lens.json").write_text(content)
        with pytest.raises(DecoderError, match=told):
            TextDecoder.from_pretrained(folder)


def test_which_encoder_a_stable_diffusion_has_is_read_off_its_files_and_checked(copied):
    """What the index says and what the configuration says must be one kind, and one that the stock pipeline runs."""
    from vit_lens.decoders import PromptEncoder, TextDecoder
    from vit_lens.errors import ContractError, DecoderError

    folder = copied("sdt5")
    text, decoder = PromptEncoder.from_pretrained(folder), TextDecoder.from_pretrained(folder)
    assert text.format.readings[0].kind == "t5" and text.format.name == decoder.format.name == "sd"
    assert text.room("text_encoder", "star " * 20)[1] == 16
    with pytest.raises(DecoderError, match="text_encoder is a T5 in float16"):
        PromptEncoder.from_pretrained(folder, dtype=torch.float16)
    index = json.loads((folder / "model_index.json").read_text())["text_encoder"]
    rewrite(folder / "model_index.json", text_encoder=["transformers", "CLIPTextModel"])
    with pytest.raises(DecoderError, match=r"text_encoder is a .*CLIPTextModel.*expected .*T5EncoderModel"):
        PromptEncoder.from_pretrained(folder)
    rewrite(folder / "model_index.json", text_encoder=index)
    rewrite(folder / "text_encoder" / "config.json", d_model=40)
    with pytest.raises(
        ContractError, match="tokens that are 40 wide, but the denoiser of this StableDiffusionPipeline"
    ):
        TextDecoder.from_pretrained(folder)
    rewrite(folder / "text_encoder" / "config.json", model_type="bert")
    with pytest.raises((ContractError, DecoderError), match=r"text_encoder is a .*T5EncoderModel.*expected .*CLIP"):
        PromptEncoder.from_pretrained(folder)


def test_an_unet_draws_what_a_t5_wrote_under_hooks_too(saved):
    import vit_lens as vl

    pipe = saved("sdt5")[1]
    noise = torch.Generator().manual_seed(0)
    own = pipe(PROMPTS[:1], num_inference_steps=2, generator=noise, output_type="latent").images
    kept = dict(names_filter="mid.0.hook_update", output_type="latent")
    found, cache = vl.HookedUNet(pipe).run_with_cache(PROMPTS[:1], steps=2, seed=0, **kept)
    assert torch.equal(found, own) and cache["mid.0.hook_update"].abs().max() > 0
