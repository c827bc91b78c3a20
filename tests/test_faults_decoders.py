"""What was wrong with decoders once: each fault, and others of its kind, with the right value or message."""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_kandinsky
import torch

# v_prediction: with it, random weights amplify rounding little.
SIZE = dict(steps=2, height=8, width=8)
EMBEDS, NEGATIVE = tiny_kandinsky.embeddings(2)


def build(**scheduler_overrides):
    from vit_lens.decoders import KandinskyDecoder

    parts = tiny_kandinsky.parts(**({"prediction_type": "v_prediction"} | scheduler_overrides))
    return KandinskyDecoder(*parts, encoder="vit_lens/mini", decoder_id="tiny")


@pytest.fixture(scope="module")
def decoder():
    """Shared by tests that change nothing of it."""
    return build()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Its files; tests that change them take ``folder``."""
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    return tiny_kandinsky.save(folder, card={"encoder_id": "mini"}, prediction_type="v_prediction")


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def decode(decoder, output="float", **overrides):
    return decoder.decode(EMBEDS, negative=NEGATIVE, settings=decoder.settings(**(SIZE | overrides)), output=output)


# ---- H5: what is drawn depends on what a record says, not on defaults and autocast around it -----------------------


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


AROUND = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device": lambda: default_device("meta"),
    "device block": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("scheduler", ["ddpm", "dpm++"])
def test_defaults_of_torch_do_not_reach_into_a_picture(decoder, around, scheduler):
    expected = decode(decoder, scheduler=scheduler)
    with AROUND[around]():
        before = torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu")
        decoder.check_settings(decoder.settings(**SIZE, scheduler=scheduler))
        got = decode(decoder, scheduler=scheduler)
        assert (torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu")) == before
    assert torch.equal(got, expected)


@pytest.mark.parametrize("around", AROUND)
def test_defaults_of_torch_do_not_reach_into_weights_costs_and_noise(decoder, around, saved):
    from vit_lens.decoders import KandinskyDecoder, denoising_error

    images = torch.linspace(-1, 1, 2 * 3 * 64).view(2, 3, 8, 8)
    expected, errors = decode(decoder), denoising_error(decoder, images, EMBEDS)
    settings = decoder.settings(**SIZE)
    fresh, cost = build(), decoder.cost(settings, 2)
    with AROUND[around]():
        loaded = KandinskyDecoder.from_pretrained(saved)
        assert denoising_error(decoder, images, EMBEDS) == errors
        assert fresh.cost(settings, 2) == cost
    assert loaded.dtype == torch.float32 and torch.equal(decode(loaded), expected)


# ---- H6: everything that changes a picture is in the identity ------------------------------------------------------


@pytest.mark.parametrize("change", [
    dict(beta_schedule="scaled_linear"), dict(prediction_type="epsilon"), dict(num_train_timesteps=900),
    dict(clip_sample_range=0.5), dict(timestep_spacing="trailing"), dict(scheduler="DDIMScheduler"),
], ids=str)  # fmt: skip
def test_another_schedule_is_another_identity(decoder, change):
    other = build(**change)
    assert other.fingerprint == decoder.fingerprint and other.identity() != decoder.identity()


def test_another_configuration_or_weight_is_another_identity(decoder, tmp_path, monkeypatch):
    """Numbers that no weight holds: the pictures differ, and so does what a record says."""
    plain = decoder.identity()
    assert json.loads(json.dumps(plain)) == plain and plain == build().identity()
    for name, key, value in [("UNET", "norm_eps", 0.5), ("MOVQ", "act_fn", "gelu"), ("UNET", "act_fn", "gelu")]:
        with monkeypatch.context() as patched:
            patched.setattr(tiny_kandinsky, name, getattr(tiny_kandinsky, name) | {key: value})
            other = build()
        assert other.fingerprint == decoder.fingerprint and other.identity() != plain
        assert not torch.equal(decode(other), decode(decoder))
    other = build()
    other.movq.to(torch.bfloat16)
    assert other.identity() != plain and other.identity()["movq"]["dtype"] == "bfloat16"
    other = build()
    assert other.identity() == plain
    with torch.no_grad():
        other.unet.conv_in.weight.mul_(1.5)
    assert other.identity()["fingerprint"] != plain["fingerprint"]
    other = build()
    with torch.no_grad():
        weight = next(other.movq.parameters())
        weight.copy_(torch.nextafter(weight, weight + 1))  # R9: what bfloat16 does not show
    assert other.identity()["fingerprint"] != plain["fingerprint"]
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # another picture on processors with bfloat16
    try:
        assert decoder.identity() == plain | {"float32_matmul": "medium"}
    finally:
        torch.set_float32_matmul_precision(precision)


def _squash(module, given, out):
    return out * 0.5


class _Squashed(torch.nn.SiLU):
    def forward(self, x):
        return super().forward(x) * 0.5


EDITS = {  # what is changed in memory, where neither weights nor configuration say it
    "eps of a norm": ("unet", lambda unet: setattr(unet.conv_norm_out, "eps", 0.5), {"conv_norm_out.eps": "0.5"}),
    "eps in MoVQ": (
        "movq", lambda movq: setattr(movq.decoder.conv_norm_out.norm_layer, "eps", 0.5),
        None,
    ),
    "scale of a block": ("unet", lambda unet: setattr(unet.mid_block.resnets[0], "output_scale_factor", 9.0), None),
    "processor": ("unet", lambda unet: setattr(_attention(unet), "processor", _Processor()), None),
    "hook": (
        "unet", lambda unet: unet.conv_in.register_forward_hook(_squash),
        {"conv_in.forward_hooks": f"[{__name__}._squash]"},
    ),
    "method": ("unet", lambda unet: setattr(unet.conv_in, "forward", lambda x: x.repeat(1, 8, 1, 1)), None),
    "module": ("unet", lambda unet: setattr(unet, "conv_act", _Squashed().eval()), None),
    "no module": ("unet", lambda unet: setattr(unet, "conv_norm_out", None), None),
    "training": ("movq", lambda movq: movq.decoder.train(), None),
}  # fmt: skip


def _attention(unet):
    from diffusers.models.attention_processor import Attention

    return next(module for module in unet.modules() if isinstance(module, Attention))


class _Processor:
    def __init__(self):
        self.strength = 0.5

    def __call__(self, attn, hidden_states, *args, **kwargs):
        return hidden_states * self.strength


@pytest.mark.parametrize("edit", EDITS)
def test_what_is_changed_in_memory_is_another_identity(decoder, edit):
    name, change, said = EDITS[edit]
    other, plain = build(), decoder.identity()
    decode(other)  # which leaves nothing behind
    assert other.identity() == plain and "edited" not in plain["unet"] and "edited" not in plain["movq"]
    change(getattr(other, name))
    told = other.identity()
    assert told["fingerprint"] == plain["fingerprint"] or edit == "no module"
    edited = told[name].pop("edited")
    assert edited and json.loads(json.dumps(edited)) == edited and (said is None or edited == said)
    assert not any(" at 0x" in value for value in edited.values())
    if edit not in ("training", "no module"):
        assert told == plain and not torch.equal(decode(other), decode(decoder))


def test_buffers_that_no_file_holds_are_weights_too(decoder):
    other = build()
    other.unet.conv_in.register_buffer("gain", torch.ones(3), persistent=False)
    first = other.fingerprint
    assert first != decoder.fingerprint
    other.unet.conv_in.gain.mul_(2)
    assert other.fingerprint not in (first, decoder.fingerprint)


def test_which_values_of_a_schedule_are_defaults_is_in_the_identity(decoder):
    """Another sampler takes its own defaults in their place, and what was said as it was said."""
    from diffusers import DDPMScheduler

    said = {**{k: v for k, v in decoder.scheduler.config.items() if k[0] != "_"}, "timestep_spacing": "leading"}
    unsaid = {name: value for name, value in said.items() if name != "timestep_spacing"}
    pictures, identities = [], []
    for config in (said, unsaid):
        other = build()
        other.scheduler = DDPMScheduler.from_config(config)
        assert other.scheduler.config.timestep_spacing == "leading"
        pictures.append(decode(other, steps=3, scheduler="dpm++"))
        identities.append(other.identity())
    assert not torch.equal(*pictures) and identities[0] != identities[1]


# ---- wrong arguments, without the suite's checks of types, as users meet them --------------------------------------

ARGUMENTS = {
    "decode(embeds.numpy())": "pooled of a condition is a ndarray; expected a torch.Tensor",
    "decode([1.0])": "pooled of a condition is a list; expected a torch.Tensor",
    "decode(None)": "a condition has tokens, a pooled vector or both",
    "decode(embeds[0])": "embeds must be a float tensor [batch 32], got torch.float32 [32] on cpu",
    "decode(embeds.long())": "embeds must be a float tensor [batch 32], got torch.int64 [2, 32] on cpu",
    "decode(embeds.to(torch.float8_e4m3fn))": "embeds must be a float tensor [batch 32], got torch.float8_e4m3fn",
    "decode(embeds.cfloat())": "embeds must be a float tensor [batch 32], got torch.complex64",
    "decode(embeds.to('meta'))": "embeds must be a float tensor [batch 32], got torch.float32 [2, 32] on meta",
    "decode(vl.Condition(pooled=embeds[None]))": "embeds must be a float tensor [batch 32], got torch.float32 [1, 2,",
    "decode(embeds, negative=embeds)": "the negative is one row, got 2: take encoder.zero_embedding()",
    "decode(embeds, negative=own.numpy())": "pooled of a condition is a ndarray",
    "decode(embeds, negative=own[0])": "negative must be a float tensor [batch 32], got torch.float32 [32]",
    "decode(embeds, negative=own * float('nan'))": "negative hold NaN or infinite values",
    "decode(embeds, settings={'steps': 2})": "decoder tiny takes DecodeSettings, got dict: decoder.settings(...) makes",
    "decode(embeds, settings='fast')": "decoder tiny takes DecodeSettings, got str",
    "decode(embeds, batch_size=2.0)": "batch_size must be at least 1, a whole number, got 2.0",
    "decode(embeds, batch_size='4')": "batch_size must be at least 1, a whole number, got '4'",
    "decode(embeds, batch_size=True)": "batch_size must be at least 1, a whole number, got True",
    "decode(embeds, output='png')": "output must be 'uint8' or 'float', got 'png'",
    "decode(embeds, encoder=3)": "an encoder is given as a model or as its id, got a int",
    "decoder.settings(guidance='4')": "guidance must be a finite number >= 0 (1 or below is off), got '4'",
    "decoder.settings(guidance=None)": "guidance must be a finite number >= 0 (1 or below is off), got None",
    "decoder.settings(steps='4')": "steps must be a whole number >= 1, got '4'",
    "decoder.settings(steps=2.0)": "steps must be a whole number >= 1, got 2.0",
    "decoder.settings(height=10**9)": "height must be a whole number >= 1 and at most 65536, got 1000000000",
    "decoder.settings(guidance_interval='ab')": "guidance_interval must be (start, stop)",
    "decoder.settings(guidance_interval=0.5)": "guidance_interval must be (start, stop)",
    "decoder.settings(guidance_interval=('a', 1))": "guidance_interval must be (start, stop)",
    "decoder.settings(scheduler=['ddpm'])": "no scheduler ['ddpm']",
    "decoder.check_settings({'steps': 2})": "decoder tiny takes DecodeSettings, got dict",
    "vl.load_decoder('')": "no decoder '': it is not an existing directory; expected 'mini', 'mini-ip', a directory",
    "vl.load_decoder(None)": "a decoder's name is of type NoneType; expected 'mini'",
    "vl.load_decoder('a' * 5000)": "no decoder 'aaa",
    "vl.load_decoder('~nobody-here/x')": "no decoder '~nobody-here/x'",
    "vl.load_decoder('a' + chr(0))": "no decoder 'a",
    "vl.load_decoder('mini', dtype='float32')": "weights of float32 cannot be had on 'cpu' here",
    "vl.load_decoder('mini', dtype=torch.int8)": "dtype is torch.int8; expected torch.float32, bfloat16, float16 or",
    "vl.load_decoder('mini', dtype=torch.float8_e4m3fn)": "dtype is torch.float8_e4m3fn; expected torch.float32",
    "vl.load_decoder('mini', device='gpu')": "weights of torch.float32 cannot be had on 'gpu' here",
    "vl.load_decoder('mini', encoder=3)": "an encoder is given as a model or as its id, got a int",
    "KandinskyDecoder(None, None, None, encoder=None)": "expected UNet2DConditionModel of diffusers, got a NoneType",
    "denoising_error(decoder, images[0], embeds)": "images are torch.float32 [3, 8, 8]; expected [batch 3 height",
    "denoising_error(decoder, images * 127, embeds)": "expected [batch 3 height width] with values in [-1, 1]",
    "denoising_error(decoder, images / 0, embeds)": "expected [batch 3 height width] with values in [-1, 1]",
    "denoising_error(decoder, images, embeds[:1])": "2 images, but 1 embeddings; give one per image",
    "denoising_error(decoder, images, embeds, timesteps=['1'])": "timestep '1' is out of range, the decoder has 0 to",
    "denoising_error(decoder, images, embeds, timesteps=[1.5])": "timestep 1.5 is out of range",
    "denoising_error('mini', images, embeds)": "decoder is of type str; expected KandinskyDecoder",
    "denoising_error(decoder, None, embeds)": "images is of type NoneType; expected Tensor",
    "denoising_error(decoder, images, embeds, timesteps=3)": "timesteps is of type int; expected Iterable",
    "denoising_error(decoder, images, embeds, seed='x')": "seed='x'; expected a whole number, at least 0",
    "vl.load_decoder('mini', dtype=None)": "weights of None cannot be had on 'cpu' here",
    "decoder.work({'steps': 2})": "decoder tiny takes DecodeSettings, got dict",
    "decoder.coarse(None)": "decoder tiny takes DecodeSettings, got NoneType",
    "decoder.settings_words(3)": "decoder tiny takes DecodeSettings, got int",
    "decoder.cost(None, 1)": "decoder tiny takes DecodeSettings, got NoneType",
    "decoder.cost(decoder.defaults, '1')": "rows='1'; expected a whole number, at least 1",
    "decoder.batch_size('fast')": "decoder tiny takes DecodeSettings, got str",
    "decoder.negative('mini')": "expected a HookedViT, not str",
    "decoder.read(None, images)": "expected a HookedViT, not NoneType",
    "vl.decoders.settings_dict(None)": "settings are of type NoneType; decoder.settings(...) makes them",
    "vl.decoders.free_memory('cpu')": "device is of type str; expected device: torch.device('cpu')",
    "vl.decoders.check_encoder('x', None, 'mini')": "made_for is of type NoneType; expected str",
    "decode(embeds, batch_size=np.int64(2)).shape": "torch.Size([2, 8, 8, 3])",
    "decoder.settings(steps=np.int64(2)) == decoder.settings(steps=2)": "True",
    "decode(embeds.clone().requires_grad_(), negative=own.double()).requires_grad": "False",
}  # fmt: skip

RUN = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, tiny_kandinsky, torch
import vit_lens as vl
from vit_lens.decoders import KandinskyDecoder, denoising_error
decoder = KandinskyDecoder(*tiny_kandinsky.parts(), encoder="vit_lens/mini", decoder_id="tiny")
(embeds, own), images = tiny_kandinsky.embeddings(2), torch.ones(2, 3, 8, 8)

def decode(embeds, negative=own, **options):
    settings = options.pop("settings", decoder.settings(steps=1, height=8, width=8))
    return decoder.decode(embeds, negative=negative, settings=settings, **options)

for case in sys.argv[2:]:
    try:
        print(eval(case))
    except vl.VitLensError as error:
        print(" ".join(str(error).split()))
    except Exception as error:
        print("TRACEBACK", repr(error).replace(chr(10), " "))
"""


def test_wrong_arguments_are_told():
    command = [sys.executable, "-c", RUN, str(Path(__file__).parent), *ARGUMENTS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = dict(zip(ARGUMENTS, done.stdout.splitlines(), strict=True))
    assert {case: said[case] for case, words in ARGUMENTS.items() if words not in said[case]} == {}


# ---- R8, R10, R11, M10: what a decoder's folder says, which anybody may have written ------------------------------

UNET, MOVQ, SCHEDULER = "unet/config.json", "movq/config.json", "scheduler/scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"unet/{WEIGHTS}.index.json"
SAID = {
    "layers without end": (UNET, {"layers_per_block": 10**6}, "layers_per_block is 1000000, which no decoder has"),
    "layers of one block": (UNET, {"layers_per_block": [10**6, 1]}, "layers_per_block is [1000000, 1], which no"),
    "layers of MoVQ": (MOVQ, {"layers_per_block": 10**6}, "layers_per_block is 1000000, which no decoder has"),
    "blocks without end": (UNET, {"block_out_channels": [32] * 100}, "block_out_channels is [32, 32, 32"),
    "terabytes": (SCHEDULER, {"num_train_timesteps": 10**12}, "num_train_timesteps is 1000000000000, which no"),
    "no timesteps": (SCHEDULER, {"num_train_timesteps": 0}, "num_train_timesteps is 0, which no decoder has"),
    "a text for a size": (UNET, {"sample_size": "32"}, "sample_size is '32', which no decoder has"),
    "three sizes": (UNET, {"sample_size": [1, 2, 3]}, "the UNet has sample_size=[1, 2, 3]; expected a number, or"),
    "a size below 1": (UNET, {"sample_size": -4}, "sample_size is -4, which no decoder has"),
    "a huge size": (UNET, {"sample_size": 10**9}, "sample_size is 1000000000, which no decoder has"),
    "a huge eps": (UNET, {"norm_eps": 1e30}, "norm_eps is 1e+30, which no decoder has"),
    "eps NaN": (UNET, {"norm_eps": float("nan")}, "cannot be read as JSON (the number NaN is not finite)"),
    "no groups": (UNET, {"norm_num_groups": 0}, "norm_num_groups is 0, which no decoder has"),
    "no heads": (UNET, {"attention_head_dim": 0}, "UNet2DConditionModel cannot be built from it: integer division"),
    "betas beyond 1": (SCHEDULER, {"beta_start": 5.0}, "beta_start 5.0 and beta_end 0.012, so that what is left"),
    "betas below 0": (SCHEDULER, {"beta_start": -0.5}, "what is left of a picture runs from 1.5 to"),
    "too few betas": (SCHEDULER, {"trained_betas": [0.1, 0.2]}, "the scheduler has 2 betas for 1000 timesteps"),
    "betas in words": (SCHEDULER, {"trained_betas": ["a"]}, "DDPMScheduler cannot be built from it"),
    "a kernel from afar": (UNET, {"_attn_implementation": "a/b@c"}, "has no setting '_attn_implementation', and would"),
    "quantized": (UNET, {"quantization_config": {"bits": 4}}, "has no setting 'quantization_config', and would ignore"),
    "code from afar": (MOVQ, {"auto_map": {"AutoModel": "x.Y"}}, "VQModel of the installed diffusers has no setting"),
    "a sampler's unknown": (SCHEDULER, {"algorithm": "x"}, "has no setting 'algorithm', and would ignore it; "),
    "index outside": (INDEX, {"weight_map": {"a": "../../outside.safetensors"}}, "which lies outside of its directory"),
    "index from the root": (INDEX, {"weight_map": {"a": "/etc/passwd"}}, "which lies outside of its directory"),
    "index as a list": (INDEX, {"weight_map": ["a"]}, "weight_map is no table from tensors to files"),
    "index of numbers": (INDEX, {"weight_map": {"a": 3}}, "weight_map is no table from tensors to files"),
    "a card's size": ("vit_lens.json", {"image_size": 10**9}, "height must be a whole number >= 1 and at most 65536"),
    "a card's steps": ("vit_lens.json", {"steps": 10**8}, "steps must be a whole number >= 1 and at most 65536"),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_what_no_decoder_has_is_told_before_it_is_built(folder, case):
    from vit_lens import load_decoder
    from vit_lens.errors import VitLensError

    name, change, said = SAID[case]
    path = folder / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | change))
    with pytest.raises(VitLensError) as raised:
        load_decoder(folder)
    assert said in str(raised.value)


def test_timesteps_below_0_are_refused(folder):
    from vit_lens import load_decoder
    from vit_lens.errors import DecoderError

    path = folder / SCHEDULER
    path.write_text(json.dumps(json.loads(path.read_text()) | {"steps_offset": -5}))
    with pytest.raises(DecoderError, match="runs from timestep 495 to -5, but the decoder has those from 999 to 0"):
        decode(load_decoder(folder))


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_weights_that_would_be_cast_are_refused(folder, dtype):
    from safetensors.torch import load_file, save_file

    from vit_lens import load_decoder
    from vit_lens.errors import CheckpointError

    tensors = load_file(folder / "unet" / WEIGHTS)
    save_file(tensors | {"conv_in.weight": tensors["conv_in.weight"].to(dtype)}, folder / "unet" / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"1 of a type that is scaled, or no weight's: conv_in\.weight \("):
        load_decoder(folder)


def test_a_variant_is_loaded_where_it_is_the_only_one(folder, decoder):
    from vit_lens import load_decoder
    from vit_lens.errors import CheckpointError

    for part, model in zip(("unet", "movq"), (decoder.unet, decoder.movq), strict=True):
        (folder / part / WEIGHTS).unlink()
        model.save_pretrained(folder / part, variant="fp16", **({"max_shard_size": "1MB"} if part == "unet" else {}))
    assert len(list((folder / "unet").glob("*fp16*"))) > 2  # in shards
    assert load_decoder(folder).fingerprint == decoder.fingerprint
    (folder / "movq" / "diffusion_pytorch_model.bf16.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"movq holds the variants .*bf16.*, .*fp16.*; keep one"):
        load_decoder(folder)


def test_weights_are_not_the_file(folder):
    """What is loaded stays what it is when the file is written over."""
    from vit_lens import load_decoder

    loaded = load_decoder(folder)
    before, path = decode(loaded), folder / "unet" / WEIGHTS
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * (path.stat().st_size // 2))
    assert torch.equal(decode(loaded), before)


# ---- H7: what is not finite inside of a decoder --------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpm++"])
def test_an_overflow_that_the_clamp_would_hide_is_refused(value, scheduler):
    from vit_lens.errors import DecoderError

    decoder = build(prediction_type="epsilon")
    torch.nn.init.constant_(decoder.unet.conv_out.bias, value)
    with pytest.raises(DecoderError, match="decoded pictures hold NaN or infinite values"):
        decode(decoder, scheduler=scheduler, guidance=1.0)
