"""The doctor finds each corruption, names it, and goes on; on sound pairs it finds nothing."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_kandinsky
import torch
import towers
from PIL import Image
from safetensors.torch import load_file, save_file

SIZE = 32
STEPS = 2
PREPROCESSOR = {
    "size": {"shortest_edge": SIZE}, "crop_size": SIZE, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3,
}  # fmt: skip
ENCODER = dict(hidden_size=32, num_attention_heads=4, projection_dim=32, image_size=SIZE, patch_size=8)
UNET = "unet/diffusion_pytorch_model.safetensors"
# A decoder with random weights neither predicts noise nor draws what it is given.
UNTRAINED = {"denoising error falls", "round trip"}
NAMES = [
    "encoder loads", "encoder inventory", "parity: into block 0", "parity: after each block", "parity: embedding",
    "sample images", "embedding norms", "decoder loads", "unet inventory", "movq inventory", "scheduler", "contract",
    "rows", "stock pipeline", "denoising error", "denoising error falls", "round trip", "peak memory",
]  # fmt: skip


def build(root, tower, encoder_id=None, **scheduler_overrides):
    """Save an encoder, and a decoder whose card names it."""
    from vit_lens import HookedViT

    tower.float().save_pretrained(root / "encoder")
    (root / "encoder" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    encoder_id = encoder_id or HookedViT.from_pretrained(root / "encoder").encoder_id
    card = {"encoder_id": encoder_id, "image_size": SIZE, "steps": STEPS, "guidance": 1.5}
    tiny_kandinsky.save(root / "decoder", card=card, **scheduler_overrides)
    return root


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return build(tmp_path_factory.mktemp("sound"), towers.hf_tower(**ENCODER))


@pytest.fixture
def pair(sound, tmp_path):
    """A copy of the sound pair, to be corrupted."""
    return Path(shutil.copytree(sound, tmp_path / "pair"))


def examine(pair, **arguments):
    from vit_lens.doctor import examine

    return examine(pair / "encoder", pair / "decoder", **arguments)


def failures(report):
    return {check.name for check in report.checks if check.passed is False}


def not_run(report):
    return {check.name for check in report.checks if check.given == "not run"}


def edit(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def corrupt_after_loading(monkeypatch, cls, corrupt):
    """Let ``cls.from_pretrained`` return a model with one thing changed."""
    honest = cls.from_pretrained

    def load(*args, **kwargs):
        loaded = honest(*args, **kwargs)
        with torch.no_grad():
            corrupt(loaded)
        return loaded

    monkeypatch.setattr(cls, "from_pretrained", load)


# ---- sound pairs ----------------------------------------------------------------------------------------------


def test_a_sound_pair(sound, capfd):
    report = examine(sound)
    assert capfd.readouterr() == ("", "")
    assert [check.name for check in report.checks] == NAMES
    assert failures(report) == UNTRAINED
    assert not report.passed
    layers = report["parity: after each block"].values
    assert list(layers) == ["L0", "L1", "L2"]
    assert 0 < max(layers.values()) < 1e-5
    assert report["embedding norms"].values["zero"] > 1
    assert report["peak memory"].values["resident_gib"] > 0.05
    assert report.subject["settings"]["steps"] == STEPS
    assert report.command == (
        f"vit-lens doctor --model {sound / 'encoder'} --decoder {sound / 'decoder'} "
        "--encoder-dtype float32 --decoder-dtype float32 --device cpu"
    )
    told = json.loads(json.dumps(report.to_dict()))
    assert told["passed"] is False
    assert told["checks"][0]["name"] == "encoder loads"
    assert report.to_text().endswith(": FAIL")


def test_the_table_is_aligned_and_ends_in_the_verdict():
    from vit_lens.doctor import Check, Report

    checks = [Check("one", True, "1.0", "< 2"), Check("another " * 9, None, "x" * 60, "", "more"), Check("3", True, "")]
    report = Report(checks=checks, subject={}, machine={}, versions={}, command="c", seconds=1.0)
    lines = report.to_text().splitlines()
    assert report.passed
    assert lines[-1] == "2 passed, 0 failed, 1 without a verdict, 1 s: PASS"
    head, first = (next(line for line in lines if line.split()[:1] == [word]) for word in ("check", "ok"))
    assert head.index("given") == first.index("1.0")
    assert head.index("expected") == first.index("< 2")
    assert max(map(len, lines)) <= 120
    failed = dataclasses.replace(report, checks=[*checks, Check("4", False, "")])
    assert not failed.passed
    assert failed.to_text().endswith("FAIL")
    assert not dataclasses.replace(report, checks=checks[1:2]).passed  # nothing was judged
    with pytest.raises(KeyError, match="no check 'ones'; nearest: 'one'"):
        report["ones"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_precisions_have_their_own_bars(sound, dtype):
    report = examine(sound, encoder_dtype=dtype, decoder_dtype=dtype, steps=1)
    assert failures(report) <= UNTRAINED
    assert report["stock pipeline"].passed is None
    assert report["parity: embedding"].expected == {torch.float64: "< 1e-09", torch.bfloat16: "< 8e-02"}[dtype]
    assert report.subject["settings"]["steps"] == 1


def test_encoder_and_decoder_may_differ_in_precision(sound, tmp_path):
    image = tmp_path / "a.png"
    Image.new("RGB", (40, 40), (200, 30, 60)).save(image)
    report = examine(sound, decoder_dtype=torch.bfloat16, images=[image], steps=1)
    assert failures(report) <= UNTRAINED and report["encoder inventory"].given.endswith("float32")
    assert report["unet inventory"].given.endswith("bfloat16")
    assert report.subject["dtypes"] == {"encoder": "float32", "decoder": "bfloat16"}
    assert f"--images {image} --steps 1 --encoder-dtype float32 --decoder-dtype bfloat16" in report.command


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++"])
def test_the_stock_pipeline_runs_the_sampler_in_use(pair, scheduler):
    card = json.loads((pair / "decoder" / "vit_lens.json").read_text())
    (pair / "decoder" / "vit_lens.json").write_text(json.dumps(card | {"scheduler": scheduler, "steps": 4}))
    report = examine(pair)
    assert failures(report) == UNTRAINED
    assert f"{scheduler}, 4 steps" in report["stock pipeline"].detail


def test_images_of_the_user(sound, tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    report = examine(sound, images=paths)
    assert failures(report) <= UNTRAINED
    assert report["sample images"].given == "2 images"
    assert f"--images {paths[0]} --images {paths[1]}" in report.command
    one = examine(sound, images=paths[:1])
    assert "no other" in one["round trip"].detail
    assert one["embedding norms"].passed


def test_the_embedded_pair_is_sound():
    import vit_lens
    from vit_lens.doctor import examine

    if not (Path(vit_lens.__file__).parent / "mini" / "pair" / "decoder" / UNET).is_file():
        pytest.skip("the embedded pair is not in this checkout")
    report = examine("mini", "mini")
    assert report.passed, report.to_text()
    assert report["sample images"].expected == "reported"


# ---- one corruption at a time -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the encoder's weights were changed")
def test_one_wrong_weight_in_a_block(pair, monkeypatch):
    from vit_lens import HookedViT

    def corrupt(model):
        model.blocks[1].mlp.W_out[3, 2] += 0.5

    corrupt_after_loading(monkeypatch, HookedViT, corrupt)
    report = examine(pair)
    assert failures(report) == UNTRAINED | {"parity: after each block", "parity: embedding"}
    layers = report["parity: after each block"].values
    assert layers["L0"] < 1e-5 < min(layers["L1"], layers["L2"])


@pytest.mark.parametrize("part", ["pos_embed.W_pos", "unembed.W_U"])
@pytest.mark.filterwarnings("ignore:the encoder's weights were changed")
def test_one_wrong_weight_outside_the_blocks(pair, monkeypatch, part):
    from vit_lens import HookedViT

    corrupt_after_loading(monkeypatch, HookedViT, lambda model: model.get_parameter(part)[1, 3].add_(0.1))
    found = failures(examine(pair)) - UNTRAINED
    assert found == ({"parity: embedding"} if part == "unembed.W_U" else set(NAMES[2:5]))


def test_a_value_that_is_not_finite(pair):
    def corrupt(tensors):
        tensors["conv_out.bias"][0] = float("nan")

    edit(pair / "decoder" / UNET, corrupt)
    report = examine(pair)
    # what NaN becomes in 8 bits is not defined, so "rows" may pass or fail
    assert failures(report) - {"rows"} == UNTRAINED | {"unet inventory", "stock pipeline"}
    assert report["unet inventory"].given.endswith("1 not finite")
    edit(pair / "encoder" / "model.safetensors", lambda t: t["visual_projection.weight"][0].fill_(float("inf")))
    report = examine(pair)
    assert {"encoder inventory", "sample images"} < failures(report) and {"embedding norms"} <= not_run(report)
    assert "so do the weights ['unembed.W_U']" in report["sample images"].detail


def test_an_encoder_that_normalises(tmp_path):
    tower = towers.hf_tower(**ENCODER)
    with torch.no_grad():
        tower.vision_model.post_layernorm.weight.fill_(32**-0.5)
        tower.vision_model.post_layernorm.bias.zero_()
        tower.visual_projection.weight.copy_(torch.linalg.qr(tower.visual_projection.weight).Q)
    report = examine(build(tmp_path, tower))
    assert failures(report) == UNTRAINED | {"embedding norms"}
    assert "L2-normalised" in report["embedding norms"].detail


def test_an_encoder_that_does_not_see(tmp_path):
    tower = towers.hf_tower(**ENCODER)
    with torch.no_grad():
        tower.vision_model.embeddings.patch_embedding.weight.zero_()
    report = examine(build(tmp_path, tower))
    assert "embedding norms" in failures(report)
    assert "same embedding" in report["embedding norms"].detail


@pytest.mark.parametrize("flag", [dict(clip_sample=False), dict(beta_end=0.02), dict(timestep_spacing="trailing")])
def test_a_wrong_scheduler_flag(pair, monkeypatch, flag):
    from vit_lens import KandinskyDecoder

    def corrupt(decoder):
        decoder.scheduler = type(decoder.scheduler).from_config(decoder.scheduler.config, **flag)

    corrupt_after_loading(monkeypatch, KandinskyDecoder, corrupt)
    report = examine(pair)
    assert failures(report) == UNTRAINED | {"scheduler", "stock pipeline"}
    assert f"{next(iter(flag))} is" in report["scheduler"].detail


def test_other_noise_than_the_pipelines(pair, monkeypatch):
    from vit_lens.decoders import decode_call

    honest = decode_call.draw_noise

    def draw(shape, timesteps, settings, **where):
        return honest(shape, timesteps, dataclasses.replace(settings, seed=9), **where)

    monkeypatch.setattr(decode_call, "draw_noise", draw)
    assert failures(examine(pair)) == UNTRAINED | {"stock pipeline"}


def test_a_truncated_encoder(pair):
    truncate(pair / "encoder" / "model.safetensors")
    report = examine(pair)
    assert failures(report) == {"encoder loads"}
    assert "not a whole safetensors file" in report["encoder loads"].detail
    assert "\n" not in report["encoder loads"].detail
    assert not_run(report) == {
        "encoder inventory", "parity", "sample images", "embedding norms", "contract", "rows", "stock pipeline",
        "denoising error", "round trip",
    }  # fmt: skip
    assert report["unet inventory"].passed
    assert report["scheduler"].passed
    assert "encoder" not in report.subject


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_decoder(pair, damage):
    path = pair / "decoder" / UNET
    if damage == "truncated":
        truncate(path)
    else:
        edit(path, lambda tensors: tensors.pop("conv_in.bias"))
    report = examine(pair)
    assert failures(report) == {"decoder loads"}
    assert ("not a whole" if damage == "truncated" else "1 missing: conv_in.bias") in report["decoder loads"].detail
    assert all(report[name].passed for name in NAMES[:5])
    assert {"decoder inventory", "scheduler", "rows", "stock pipeline", "round trip"} < not_run(report)
    assert report.to_text().endswith("FAIL")


def test_a_missing_tensor_of_the_encoder(pair):
    key = "vision_model.encoder.layers.1.mlp.fc1.bias"
    edit(pair / "encoder" / "model.safetensors", lambda tensors: tensors.pop(key))
    assert "layers.1.mlp.fc1.bias" in examine(pair)["encoder loads"].detail


def test_a_decoder_of_another_encoder(tmp_path):
    report = examine(build(tmp_path, towers.hf_tower(**ENCODER), encoder_id="hf/somebody/else"))
    assert failures(report) == UNTRAINED | {"contract"}
    assert "made for encoder 'hf/somebody/else'" in report["contract"].detail


def test_a_decoder_without_a_card(pair):
    from vit_lens import HookedViT

    (pair / "decoder" / "vit_lens.json").unlink()
    config = pair / "decoder" / "unet" / "config.json"  # which then decides the size of the pictures
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": SIZE // 2}))
    assert "pass encoder=" in examine(pair)["decoder loads"].detail
    model = HookedViT.from_pretrained(pair / "encoder")
    report = examine(pair, encoder=model, steps=1)
    assert failures(report) == UNTRAINED
    assert f"--decoder-encoder {model.encoder_id} --steps 1" in report.command


def test_images_that_cannot_be_read(pair, tmp_path):
    (tmp_path / "no.png").write_bytes(b"")
    report = examine(pair, images=[tmp_path / "no.png"])
    assert failures(report) == {"sample images"}
    assert "no.png" in report["sample images"].detail
    assert {"embedding norms", "denoising error", "round trip"} < not_run(report)
    assert report["scheduler"].passed


def test_unexpected_exceptions_are_not_swallowed(pair, monkeypatch):
    from vit_lens.doctor import encoder_checks

    def broken(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(encoder_checks, "norm_checks", broken)
    with pytest.raises(ZeroDivisionError):
        examine(pair)


def test_a_device_that_is_not_there(pair, monkeypatch):
    from vit_lens import VitLensError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(VitLensError, match="sees no CUDA device"):
        examine(pair, device="cuda")


# ---- sources ----------------------------------------------------------------------------------------------------


def parity(name, **arguments):
    from vit_lens import HookedViT
    from vit_lens.doctor.encoder_checks import parity_checks
    from vit_lens.verification import load_source

    model = HookedViT.from_pretrained(name, **arguments)
    checks = parity_checks(model, load_source(name, model, tag=arguments.get("tag")))
    assert [check.name for check in checks] == NAMES[2:5]
    return model, checks


@pytest.mark.parametrize("kind", ["CLIPVisionModelWithProjection", "CLIPVisionModel", "CLIPModel"])
@pytest.mark.parametrize("subfolder", ["", "image_encoder"])
def test_hugging_face_sources(kind, subfolder, tmp_path):
    tower = towers.hf_clip() if kind == "CLIPModel" else towers.hf_tower(kind)
    tower.float().save_pretrained(tmp_path / subfolder)
    _, checks = parity(f"{tmp_path}:{subfolder}" if subfolder else tmp_path)
    assert all(check.passed for check in checks)


@pytest.mark.parametrize("act", [False, True])
def test_open_clip_sources(act, tmp_path, monkeypatch):
    import open_clip.factory

    small = towers.shrink_registry(monkeypatch)
    path = tmp_path / "open_clip_model.safetensors"
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *args, **kwargs: str(path))
    monkeypatch.setattr(open_clip, "download_pretrained", lambda *args, **kwargs: str(path))
    config = small["ViT-B-32"] | {"quick_gelu": act}
    towers.save_safely(towers.clip_of(config).float(), path)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    # the tag openai wants quick_gelu, of which open_clip only warns; laion2b wants gelu
    named = dict(tag="openai" if act else "laion2b_s34b_b79k")
    for name, arguments in [
        (tmp_path, {}), ("ViT-B-32", named), ("ViT-B-32", dict(tag=path, quick_gelu=act)),
    ]:  # fmt: skip
        model, checks = parity(name, **arguments)
        assert model.cfg.act_fn == ("quick_gelu" if act else "gelu")
        assert all(check.passed for check in checks), (name, arguments, checks)


def test_average_pooling_of_open_clip(tmp_path, monkeypatch):
    small = towers.shrink_registry(monkeypatch)
    path = tmp_path / "w.safetensors"
    towers.save_safely(towers.clip_of(small["ViT-L-14-CLIPA"]).float(), path)
    model, checks = parity("ViT-L-14-CLIPA", tag=path)
    assert model.cfg.pool == "avg" and not model.cfg.has_ln_pre
    assert all(check.passed for check in checks)


def test_a_source_that_its_own_library_cannot_load(tmp_path):
    from vit_lens import HookedViT
    from vit_lens.errors import CheckpointError
    from vit_lens.verification import load_source

    towers.hf_tower().float().save_pretrained(tmp_path)
    model = HookedViT.from_pretrained(tmp_path)
    edit(tmp_path / "model.safetensors", lambda tensors: tensors.pop("vision_model.post_layernorm.bias"))
    with pytest.raises(CheckpointError, match=r"misses .*post_layernorm\.bias and would fill"):
        load_source(tmp_path, model)
    truncate(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="cannot be loaded by its own library"):
        load_source(tmp_path, model)


# ---- published numbers --------------------------------------------------------------------------------------------


def test_the_published_numbers_are_those_of_the_published_configs():
    import diffusers

    from vit_lens import HookedViT, HookedViTConfig
    from vit_lens.doctor.published import KANDINSKY_22, published_encoder
    from vit_lens.identity import KANDINSKY_22_ENCODER

    folder = Path(__file__).parent / "data" / "kandinsky-2-2"
    cfg = HookedViTConfig(
        n_layers=48, d_model=1664, n_heads=16, d_head=104, d_mlp=8192, d_embed=1280, image_size=(224, 224),
        patch_size=(14, 14), has_cls=True, n_registers=0, has_patch_bias=False, act_fn="gelu", eps=1e-5,
        has_ln_pre=True, pool="cls", attn_pool=None, ln_final="before_pool", has_proj=True, has_proj_bias=False,
    )  # fmt: skip
    with torch.device("meta"):
        parts = {
            "encoder": HookedViT(cfg),
            "unet": diffusers.UNet2DConditionModel.from_config(json.loads((folder / "unet.json").read_text())),
            "movq": diffusers.VQModel.from_config(json.loads((folder / "movq.json").read_text())),
        }
    for name, part in parts.items():
        tensors = list(part.state_dict().values())
        assert (len(tensors), sum(t.numel() for t in tensors)) == KANDINSKY_22.parts[name]
    scheduler = diffusers.DDPMScheduler.from_config(json.loads((folder / "scheduler.json").read_text()))
    assert {name: scheduler.config[name] for name in KANDINSKY_22.scheduler} == KANDINSKY_22.scheduler
    assert published_encoder("local/copy@0", cfg) is KANDINSKY_22
    small = dataclasses.replace(cfg, n_layers=12)
    assert published_encoder(KANDINSKY_22_ENCODER, small) is KANDINSKY_22
    assert published_encoder("local/copy@0", small) is None


def test_another_number_of_tensors_than_published():
    from vit_lens.doctor.encoder_checks import part_check

    tensors = [torch.zeros(3), torch.zeros(2, 2), torch.arange(4)]  # integers are no parameters
    assert part_check("x", tensors, torch.float32, (2, 7)).passed
    assert not part_check("x", tensors, torch.float32, (2, 8)).passed
    assert not part_check("x", tensors, torch.float32, (3, 7)).passed
    assert not part_check("x", tensors, torch.float16, None).passed


def decoder_of(*, cls=None, **scheduler_overrides):
    from vit_lens import KandinskyDecoder

    return (cls or KandinskyDecoder)(*tiny_kandinsky.parts(**scheduler_overrides), encoder="vit_lens/mini")


def as_published(monkeypatch, decoder, **changes):
    """Let this decoder count as one whose numbers are published."""
    from vit_lens.doctor import kandinsky_checks
    from vit_lens.doctor.published import KANDINSKY_22

    known = dataclasses.replace(KANDINSKY_22, **changes)
    monkeypatch.setattr(kandinsky_checks, "published_decoder", lambda candidate: known)


def test_kandinsky_is_recognised(monkeypatch):
    from vit_lens import KandinskyDecoder
    from vit_lens.doctor.published import KANDINSKY_22, published_decoder

    parts = tiny_kandinsky.parts()
    hub_id = "hf/kandinsky-community/kandinsky-2-2-decoder"
    assert published_decoder(KandinskyDecoder(*parts, encoder="vit_lens/mini", decoder_id=hub_id)) is KANDINSKY_22
    copy = KandinskyDecoder(*parts, encoder="open_clip/ViT-bigG-14/laion2b_s39b_b160k")
    assert published_decoder(copy) is None
    copy.unet.register_to_config(block_out_channels=(384, 768, 1152, 1536))
    assert published_decoder(copy) is KANDINSKY_22
    copy.encoder_id = "vit_lens/mini"
    assert published_decoder(copy) is None


def test_a_scheduler_that_is_not_the_published_one(monkeypatch):
    from vit_lens.doctor.kandinsky_checks import scheduler_check

    for overrides, passed in (({}, True), (dict(clip_sample=False), False)):
        decoder = decoder_of(**overrides)
        assert scheduler_check(decoder, decoder.scheduler)[0].passed  # as in its files
        with monkeypatch.context() as patch:
            as_published(patch, decoder)
            check = scheduler_check(decoder, decoder.scheduler)[0]
            assert check.passed is passed
            assert ("clip_sample is False, published True" in check.detail) is not passed


def test_denoising_error_that_falls_and_its_published_values(monkeypatch):
    from vit_lens.doctor.kandinsky_checks import denoising_checks

    # With zero as its prediction of the clean latents, the predicted noise is off by them, less so at later t.
    decoder = decoder_of(prediction_type="sample")
    with torch.no_grad():
        decoder.unet.conv_out.weight.zero_()
        decoder.unet.conv_out.bias.zero_()
    pictures = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    embeds, _ = tiny_kandinsky.embeddings(5)
    with torch.no_grad():
        power = decoder.movq.encode(pictures).latents.square().mean()
    alphas = torch.cumprod(1 - torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64), 0)
    by_hand = {t: float(alphas[t] / (1 - alphas[t]) * power) for t in (100, 300, 500, 700, 900)}

    values, falls = denoising_checks(decoder, pictures, embeds, photographs=True)
    assert falls.passed
    assert values.passed is None and values.expected == "reported"
    assert values.values == pytest.approx({f"t{t}": error for t, error in by_hand.items()}, rel=1e-3)
    for factor, passed in ((1.4, True), (1 / 1.4, True), (1.6, False), (1 / 1.6, False)):
        with monkeypatch.context() as patch:
            as_published(patch, decoder, denoising=by_hand | {500: by_hand[500] * factor})
            assert denoising_checks(decoder, pictures, embeds, photographs=True)[0].passed is passed
            assert denoising_checks(decoder, pictures, embeds, photographs=False)[0].passed is None


@pytest.mark.parametrize(
    "order, passed", [([0, 1, 2, 3, 4], True), ([1, 2, 3, 4, 0], False), ([0] * 5, False)],
    ids=["its own", "the next one's", "always the first"],
)  # fmt: skip
def test_round_trip(sound, order, passed):
    from vit_lens import Condition, HookedViT, KandinskyDecoder
    from vit_lens.doctor.decoder_checks import round_trip_check
    from vit_lens.doctor.examining import sample_pictures

    pictures = torch.from_numpy(np.stack(sample_pictures(5)))

    class Oracle(KandinskyDecoder):
        """Draws known pictures, whatever it is asked for."""

        drawn = 0

        def decode(self, condition, *, batch_size, **settings):
            rows = [*order[self.drawn :], *order[-1:] * batch_size][:batch_size]
            self.drawn += batch_size
            return pictures[rows]

    model = HookedViT.from_pretrained(sound / "encoder").requires_grad_(False)
    pixels = model.preprocess(pictures.numpy(), layout="HWC")
    common = torch.nn.functional.normalize(model(pixels).mean(0), dim=0)
    model.unembed.W_U.sub_(model.W_U @ common[:, None] @ common[None])  # or a random tower's embeddings are all alike
    embeds, decoder = model(pixels), decoder_of(cls=Oracle)
    check = round_trip_check(model, decoder, Condition(pooled=embeds), decoder.defaults)[0]
    assert check.passed is passed
    assert (check.values["matched"] > 0.999) is passed
    assert check.values["mismatched"] < 0.5


def test_tf32_is_off_meanwhile_and_back_afterwards():
    from vit_lens.verification import exact_float32

    before = torch.backends.cudnn.allow_tf32
    with pytest.raises(KeyError), exact_float32():
        assert not torch.backends.cudnn.allow_tf32
        raise KeyError
    assert torch.backends.cudnn.allow_tf32 is before


# ---- the command that repeats it, and the encoder alone


@pytest.mark.parametrize("decoder", [True, False])
def test_the_command_that_is_printed_runs_and_finds_the_same(sound, tmp_path, decoder, capsys, monkeypatch):
    import shlex
    import sys

    from vit_lens.cli import main
    from vit_lens.doctor import examine as run

    image = tmp_path / "a picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(image)
    more = {"steps": 1, "encoder": "vit_lens/mini"} if decoder else {}
    drawer = sound / "decoder" if decoder else None
    report = run(sound / "encoder", drawer, images=[image], encoder_dtype=torch.float64, quick_gelu=False, **more)
    monkeypatch.setattr(sys, "argv", shlex.split(report.command))
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr()
    assert f"$ {report.command}".split() == said.out.split("encoder: ")[0].split("dtypes:")[0].split(), said.err
    for check in report.checks:
        assert check.name in said.out
    assert ("round trip" in said.out) == decoder


def test_the_encoder_alone(sound):
    from vit_lens.doctor import examine as run

    report = run(sound / "encoder", None)
    assert report.passed and [c.name for c in report.checks if "decoder" in c.name or "unet" in c.name] == []
    assert "--decoder none" in report.command and report["parity: embedding"].passed
