"""Verification passes what is equal, and names the layer of every small fault."""

import json
import re
import weakref
from pathlib import Path

import conftest
import pytest
import torch
import towers

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
DOC = Path(__file__).parent.parent / "docs" / "verification.md"
OPEN_CLIP = {
    "cls": {},
    "avg": dict(pool_type="avg"),
    "pooled": dict(pool_type="avg", final_ln_after_pool=True, no_ln_pre=True),
}


def hooked(source):
    from vit_lens import HookedViT

    return HookedViT.from_module(source).requires_grad_(False)


def plain(**changes):
    """An open_clip tower in float32, without layer scale, so that its weights are copied as they are."""
    return conftest.open_clip_tower(ls_init_value=None, **changes).float()


@pytest.fixture(scope="module")
def source():
    return plain()


@pytest.fixture
def vit(source):
    return hooked(source)


def nudge(model, name, by=1e-3):
    """Add to one number of a parameter."""
    parameter = model.get_parameter(name).data
    parameter[(1,) * parameter.ndim] += by


def places(result, dtype):
    return {row.place: row.relative for row in result.differences[dtype]}


def first_wrong(result, dtype):
    return next((place for place, error in places(result, dtype).items() if not error < result.bars[dtype]), None)


# ---- what is equal ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", OPEN_CLIP.values(), ids=OPEN_CLIP)
def test_open_clip_towers(changes):
    tower = plain(**changes)
    result = hooked(tower).verify(tower)
    assert result.passed, result
    assert list(result.differences) == [F32, BF16, F64]
    assert list(places(result, F32)) == ["into L0", "L0", "L1", "L2", "final norm", "embedding"]
    assert result.source == "open_clip VisionTransformer"
    worst = {dtype: max(places(result, dtype).values()) for dtype in result.differences}
    assert worst[F64] < 1e-13 < 1e-8 < worst[F32] < 1e-6 < 1e-4 < worst[BF16] < 3e-2


@pytest.mark.parametrize("kind", ["CLIPVisionModelWithProjection", "CLIPVisionModel", "CLIPModel"])
def test_hugging_face_clip(kind):
    tower = towers.hf_clip() if kind == "CLIPModel" else towers.hf_tower(kind)
    result = hooked(tower).verify(tower)
    assert result.passed, result
    assert list(result.differences) == [F64]  # as the model
    assert result.source == f"transformers {kind}"


def test_a_whole_open_clip_model_and_its_visual():
    clip = towers.shrunk_open_clip("ViT-B-32")
    model = hooked(clip)
    assert model.verify(clip).passed
    assert model.verify(clip.visual).passed


@pytest.mark.parametrize("dtype", [torch.float16, BF16], ids=str)
def test_models_in_half_precision(source, vit, dtype):
    model = vit.to(dtype)
    result = model.verify(source)  # the source is rounded likewise
    assert result.passed, result
    assert max(places(result, F64).values()) < 1e-13
    assert not hooked(source).verify(hooked_source_rounded(dtype)).passed


def hooked_source_rounded(dtype):
    return plain().to(dtype).float()


def test_weights_that_were_multiplied_at_load_have_a_bar_of_their_own():
    tower = conftest.open_clip_tower().float()  # with layer scale
    result = hooked(tower).verify(tower)
    assert result.passed, result
    assert 1e-9 < max(places(result, F64).values()) < result.bars[F64] < 1e-6
    assert result.bars[F32] == 1e-5


@pytest.mark.parametrize("steps", [dict(center_writing_weights=False), dict(fold_ln=False), {}], ids=str)
def test_processed_weights(steps):
    for changes in OPEN_CLIP.values():
        tower = plain(**changes).double()
        model = hooked(tower).process_weights(**steps)
        result = model.verify(tower)
        assert result.passed, result
        assert ("final norm" in places(result, F64)) is (steps == dict(fold_ln=False))
        assert len(result.notes) == 2 - len(steps)
        model.blocks[1].mlp.W_out.data[0, 0] += 1e-3
        assert first_wrong(model.verify(tower), F64) == "L1"


# ---- what is not ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", range(3))
@pytest.mark.parametrize("part", ["attn.b_Q", "attn.b_V", "attn.b_O", "ln1.b", "ln2.w", "mlp.b_in", "mlp.b_out"])
def test_one_number_that_is_off_by_a_thousandth(source, vit, layer, part):
    nudge(vit, f"blocks.{layer}.{part}")
    result = vit.verify(source)
    assert not result.passed
    assert first_wrong(result, F64) == f"L{layer}"
    assert f"block L{layer} is off by" in result.failure.split(";")[0]


def test_a_key_bias_alone_changes_nothing(source, vit):
    vit.blocks[1].attn.b_K.data += 1e-3  # it adds the same to every score of a row
    assert vit.verify(source).passed


@pytest.mark.parametrize(
    ("part", "place"),
    [
        ("pos_embed.W_pos", "into L0"),
        ("ln_pre.b", "into L0"),
        ("ln_final.b", "final norm"),
        ("unembed.W_U", "embedding"),
    ],
)
def test_outside_the_blocks(source, vit, part, place):
    nudge(vit, part)
    assert first_wrong(vit.verify(source), F64) == place


@pytest.mark.parametrize("act_fn", ["quick_gelu", "gelu_pytorch_tanh"])
def test_another_activation(source, vit, act_fn):
    vit.blocks[2].mlp.act_fn = act_fn
    result = vit.verify(source)
    assert first_wrong(result, F32) == first_wrong(result, F64) == "L2"


def test_another_eps(source, vit):
    vit.blocks[1].ln2.eps = 1e-6
    result = vit.verify(source)
    assert first_wrong(result, F32) is None  # float32 cannot see it
    assert first_wrong(result, F64) == "L1"
    result = vit.verify(source, dtypes=[F32])
    assert not result.passed
    assert result.failure == "blocks.1.ln2 has eps 1e-06, the source 1e-05"
    assert result.to_text().endswith(f"FAIL: {result.failure}")


def test_weights_that_are_not_finite(source):
    for part, place in (("blocks.1.mlp.b_out", "L1"), ("unembed.W_U", "embedding"), ("embed.W_E", "into L0")):
        model = hooked(source)
        nudge(model, part, float("nan"))
        result = model.verify(source)
        assert not result.passed
        assert first_wrong(result, F32) == place
        told = json.loads(json.dumps(result.to_dict(), allow_nan=False))
        assert told["differences"][-1]["relative"] is None


def test_the_numbers_are_those_of_a_plain_run(source, vit):
    vit.blocks[0].attn.b_O.data[1] += 0.3
    result = vit.verify(source, dtypes=[F32])
    pixels = torch.randn(2, 3, 21, 21, generator=torch.Generator().manual_seed(0))
    blocks = list(source.transformer.resblocks)
    embeds, outputs = towers.block_outputs(source, blocks, pixels, source)
    ours, cache = vit.run_with_cache(pixels)
    pairs = {f"L{i}": (cache[f"blocks.{i}.hook_resid_post"], out) for i, out in enumerate(outputs)}
    pairs["embedding"] = (ours, embeds)
    for row in result.differences[F32]:
        if row.place in pairs:
            found, expected = pairs[row.place]
            assert row.max_diff == pytest.approx(float((found - expected).abs().max()), rel=1e-4)
            assert row.max_source == pytest.approx(float(expected.abs().max()), rel=1e-4)


# ---- how it runs ------------------------------------------------------------------------------------------------


def test_the_users_module_is_left_alone():
    tower = plain().train()
    before = {name: (tensor, tensor.clone(), tensor.data_ptr()) for name, tensor in tower.named_parameters()}
    model = hooked(tower)
    assert model.verify(tower).passed
    for name, tensor in tower.named_parameters():
        same, value, pointer = before[name]
        assert tensor is same and tensor.data_ptr() == pointer and torch.equal(tensor, value), name
        assert tensor.requires_grad and tensor.grad is None
    assert all(part.training for part in tower.modules())
    assert {parameter.dtype for parameter in model.parameters()} == {F32}


def test_one_layer_is_held_at_a_time(source, vit, monkeypatch):
    from vit_lens.verification import lockstep

    honest, held, most = lockstep._Lockstep.compare, [], []

    def compare(self, place, ours, theirs, **more):
        honest(self, place, ours, theirs, **more)
        held.append(weakref.ref(ours))
        most.append(sum(ref() is not None for ref in held))

    monkeypatch.setattr(lockstep._Lockstep, "compare", compare)
    assert vit.verify(source).passed
    assert len(most) == 3 * 6
    assert max(most) <= 2


def test_one_block_is_cast_at_a_time(source, vit, monkeypatch):
    from vit_lens.verification import lockstep

    copies, wide = [], []
    honest_copy, honest_cast = lockstep.working_copy, lockstep.cast_while_running

    def copied(*args, **more):
        copies.append(honest_copy(*args, **more))
        return copies[-1]

    def cast(block, *dtypes):
        found = [one for copy in copies for one in copy.blocks if next(one.parameters()).dtype == F64]
        wide.append(len(found))
        return honest_cast(block, *dtypes)

    monkeypatch.setattr(lockstep, "working_copy", copied)
    monkeypatch.setattr(lockstep, "cast_while_running", cast)
    assert vit.verify(source, dtypes=[F64]).passed
    assert len(wide) == 6 and max(wide) <= 1
    assert (
        next(copies[1].blocks[0].parameters()).data_ptr()
        == next(source.transformer.resblocks[0].parameters()).data_ptr()
    )


def test_images_of_the_user(source, vit):
    extra = torch.randn(3, 3, 21, 21) * 9
    result = vit.verify(source, images=extra, dtypes=[F32])
    assert result.inputs == "2 random images (seed 0), 3 given"
    alone = vit.verify(source, dtypes=[F32])
    assert result.differences[F32][0].max_source >= alone.differences[F32][0].max_source
    assert result.passed
    model = hooked(source)
    model.embed.W_E.data[0, 0] = 0  # shows on images as on noise
    assert not model.verify(source, images=extra).passed


def test_the_same_every_time(source, vit):
    assert vit.verify(source) == vit.verify(source)


def test_frame_and_text(source, vit):
    result = vit.verify(source)
    frame = result.to_frame()
    assert list(frame.columns) == ["dtype", "place", "max_diff", "max_source", "relative", "bar", "passed"]
    assert len(frame) == 18 and frame.passed.all()
    assert repr(result) == result.to_text()
    assert result.to_text().endswith("\nPASS")
    assert max(map(len, result.to_text().splitlines())) <= 110


def test_refusals(source, vit):
    from vit_lens.errors import UnsupportedTowerError, VitLensError

    with pytest.raises(UnsupportedTowerError, match="unsupported: a Linear from torch"):
        vit.verify(torch.nn.Linear(2, 2))
    with pytest.raises(UnsupportedTowerError, match="not a wrapper"):
        vit.verify(torch.nn.DataParallel(source))
    with pytest.raises(VitLensError, match="has 2 blocks, the model 3; it is another tower"):
        vit.verify(plain(layers=2))
    with pytest.raises(VitLensError, match=r"into L0: the model has \[2, 10, 33\], the source \[2, 10, 36\]"):
        vit.verify(plain(width=36))
    with pytest.raises(VitLensError, match="tag= goes with the name"):
        vit.verify(source, tag="openai")
    for name in ("revision", "cache_dir"):
        with pytest.raises(VitLensError, match=f"{name}= goes with the name"):
            vit.verify(source, **{name: "main"})
    for shape in ((3, 21, 21), (1, 3, 21, 22), (1, 1, 21, 21)):
        with pytest.raises(VitLensError, match=r"images= of shape .*; expected \[batch, 3, 21, 21\]"):
            vit.verify(source, images=torch.zeros(shape))
    with pytest.raises(VitLensError, match="dtypes="):
        vit.verify(source, dtypes=[torch.int8])
    with pytest.raises(VitLensError, match="dtypes="):
        vit.verify(source, dtypes=[])
    vit.add_hook("hook_embed", lambda x, hook: x)
    with pytest.raises(VitLensError, match="a verdict on the model could not say so"):
        vit.verify(source)


def test_float32_is_exact_while_both_run(source, vit, monkeypatch):
    from vit_lens.verification import verifying

    honest, seen = verifying.differences, []

    def differences(*args):
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return honest(*args)

    monkeypatch.setattr(verifying, "differences", differences)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    vit.verify(source, dtypes=[F32])
    assert seen == [(False, False)]
    assert torch.backends.cudnn.allow_tf32


# ---- code that a copy would not run -----------------------------------------------------------------------------


class Doubled(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


class Noise(torch.nn.Module):
    def forward(self, x):
        return x * 2


def doubled(part):
    part.__class__ = Doubled


def quantised(part):
    from transformers.integrations.bitnet import AutoBitLinear

    part.__class__ = AutoBitLinear


def hook(part):
    part.register_forward_hook(lambda part, args, output: output * 2)


def pre_hook(part):
    part.register_forward_pre_hook(lambda part, args: (args[0] * 2, *args[1:]))


def own_forward(part):
    part.forward = lambda *args, **more: type(part).forward(part, *args, **more) * 2


def noise(part):
    part.extra = Noise()


BUILDS = {
    "open_clip": (plain, "transformer.resblocks.0", "mlp.c_fc"),
    "timm": (towers.tiny_timm, "blocks.1", "attn.qkv"),
    "clip": (towers.hf_clip, "vision_model.encoder.layers.1", "mlp.fc2"),
    "siglip": (towers.siglip_model, "vision_model.encoder.layers.1", "self_attn.q_proj"),
    "dinov2": (lambda: towers.hf_other("Dinov2Model"), "encoder.layer.0", "mlp.fc1"),
}
CODE = {
    "hook": (hook, "a forward hook"),
    "pre_hook": (pre_hook, "a forward hook"),
    "forward": (own_forward, "a forward of its own"),
    "class": (noise, "of type test_verification.Noise"),
    "linear": (doubled, "of type test_verification.Doubled"),
    "library_linear": (quantised, "of type transformers.integrations.bitnet.AutoBitLinear"),
}


@pytest.mark.parametrize("code", CODE)
@pytest.mark.parametrize("family", BUILDS)
def test_code_that_was_put_on_a_tower(family, code, errors):
    from vit_lens import HookedViT

    (build, block, linear), (put, told) = BUILDS[family], CODE[code]
    tower = build()
    name = f"{block}.{linear}" if "linear" in code else block
    model, before = hooked(tower), dict(tower.state_dict())
    put(tower.get_submodule(name))
    assert tower.state_dict().keys() == before.keys()  # the weights do not show it
    words = rf"code on the tower .*{re.escape(name)}.*\({re.escape(told)}\)"
    for ask in (lambda: HookedViT.from_module(tower), lambda: model.verify(tower)):
        with pytest.raises(errors.UnsupportedTowerError, match=words):
            ask()


def test_code_that_does_not_reach_the_embedding(errors):
    """Hooks of transformers' own stay on a model that was asked for hidden states; text towers are not run."""
    from vit_lens.sources import source_tower

    clip = towers.hf_clip()
    with torch.no_grad():
        clip.vision_model(towers.pixels_of((22, 22)), output_hidden_states=True)
    assert any(part._forward_hooks for part in clip.vision_model.modules())
    clip.text_model.encoder.layers[0].register_forward_hook(lambda *args: None)
    assert hooked(clip).verify(clip).passed
    tower = source_tower(clip)
    hook(tower.blocks[0])
    with pytest.raises(errors.UnsupportedTowerError, match="a forward hook"):
        hooked(towers.hf_clip()).verify(tower)
    outer = towers.hf_tower()
    model = hooked(outer)
    hook(outer)
    with pytest.raises(errors.UnsupportedTowerError, match=r"CLIPVisionModelWithProjection \(a forward hook"):
        model.verify(outer)


# ---- another image size -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2"])
def test_at_another_image_size(family, dtype, tmp_path):
    from vit_lens import HookedViT

    tower, size = BUILDS[family][0]().to(dtype), (33, 46) if family == "clip" else (17, 23)
    model = HookedViT.from_module(tower, image_size=size).requires_grad_(False)
    result = model.verify(tower)
    assert result.passed, result
    tower.save_pretrained(tmp_path)
    loaded = HookedViT.from_pretrained(tmp_path, image_size=size, dtype=dtype).requires_grad_(False)
    assert loaded.verify(tmp_path).passed
    loaded.pos_embed.W_pos.data[3, 1] += 1e-3
    assert first_wrong(loaded.verify(tmp_path), F64) == "into L0"


# ---- families ---------------------------------------------------------------------------------------------------


def coca():
    return towers.tiny_visual(attentional_pool=True, attn_pooler_queries=5, attn_pooler_heads=2)


def siglip_timm():
    import timm

    return timm.create_model(
        "vit_base_patch16_siglip_224", img_size=16, patch_size=8, embed_dim=24, depth=3, num_heads=3
    ).double()


def siglip_hf():
    from transformers import SiglipVisionConfig, SiglipVisionModel

    sizes = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3, image_size=16)
    return SiglipVisionModel(SiglipVisionConfig(**sizes, patch_size=8)).double()


def dino(registers):
    import transformers

    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    sizes = dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=3, image_size=16, patch_size=8)
    config = getattr(transformers, f"{kind}Config")(**sizes)
    return getattr(transformers, f"{kind}Model")(config).double()


FAMILIES = {
    "coca": (coca, (10, 15), True),
    "siglip_timm": (siglip_timm, (16, 16), False),
    "siglip_hf": (siglip_hf, (16, 16), False),
    "dino": (lambda: dino(False), (16, 16), True),
    "dino_registers": (lambda: dino(True), (16, 16), True),
}


@pytest.mark.parametrize(("build", "size", "folded"), FAMILIES.values(), ids=FAMILIES)
def test_every_family_is_listened_to(build, size, folded):
    """The source runs as it does by itself, block by block, with the final norm last."""
    from vit_lens.sources import source_tower

    module = towers.randomize(build().eval())
    tower, pixels = source_tower(module), towers.pixels_of(size)
    order, handles = [], []
    for name, part in [*((f"L{i}", block) for i, block in enumerate(tower.blocks)), ("norm", tower.final_norm)]:
        handles.append(part.register_forward_hook(lambda part, args, out, name=name: order.append(name)))
    with torch.no_grad():
        embeds, own = tower(pixels), module(pixels)
    own = own.pooler_output if hasattr(own, "pooler_output") else own
    torch.testing.assert_close(embeds, own, rtol=0, atol=0)
    assert order == ["L0", "L1", "L2", "norm"] * 2
    for handle in handles:
        handle.remove()
    assert tower.is_folded is folded
    model = hooked(module)
    assert model.verify(module).passed
    assert model.process_weights().verify(module).passed
    model.blocks[1].attn.b_O.data[0] += 1e-3
    assert first_wrong(model.verify(module), F64) == "L1"


@pytest.mark.parametrize("name", ["MobileCLIP2-L-14", "ViT-B-16-SigLIP2"])
def test_timm_trunks_of_open_clip(name, monkeypatch):
    towers.shrink_timm(monkeypatch)
    visual = towers.visual_of(name)
    model = hooked(visual)
    result = model.verify(visual)
    assert result.passed, result
    assert result.source == "open_clip TimmModel (VisionTransformer)"
    last = list(dict(model.named_parameters()))[-1]
    nudge(model, last)
    assert first_wrong(model.verify(visual), F64) == "embedding"


# ---- by name ----------------------------------------------------------------------------------------------------


def test_mini():
    from vit_lens import HookedViT

    model = HookedViT.from_pretrained("mini").requires_grad_(False)
    assert model.verify("mini", dtypes=[F32, F64]).passed
    model.blocks[7].mlp.b_out.data[3] += 1e-3  # beside activations of 110
    result = model.verify("mini", dtypes=[F32, F64])
    assert first_wrong(result, F32) == "final norm"
    assert result.failure.startswith("block L7 is off by")


def test_the_name_decides_what_a_model_is_held_against(errors, tmp_path, monkeypatch):
    """Never the id that the model carries."""
    from vit_lens import HookedViT

    monkeypatch.chdir(tmp_path)
    tower = towers.hf_tower().float()
    tower.save_pretrained("my_ft")
    towers.hf_tower(seed=1).float().save_pretrained("other")
    for encoder_id in ("open_clip/ViT-B-32/openai", "hf/openai/clip-vit-base-patch32", "vit_lens/mini"):
        model = HookedViT.from_module(tower, encoder_id=encoder_id).requires_grad_(False)
        result = model.verify("./my_ft")
        assert result.passed, result
        assert result.source == "transformers CLIPVisionModelWithProjection of my_ft"
        assert not model.verify(Path("other"), dtypes=[F64]).passed
        with pytest.raises(errors.VitLensError, match="vit_lens/mini has 8 blocks, the model 3; it is another tower"):
            model.verify("mini")
        with pytest.raises(errors.CheckpointError, match="no such directory"):
            model.verify("./nowhere")
        with pytest.raises(errors.CheckpointError, match="tag= belongs to open_clip names"):
            model.verify("./my_ft", tag="openai")


def test_the_tag_decides_too(errors, small_registry, tmp_path, monkeypatch):
    import open_clip
    import open_clip.factory

    from vit_lens import HookedViT

    for seed, name in enumerate(("openai", "laion2b_e16")):
        config = small_registry["ViT-B-32"] | {"quick_gelu": name == "openai"}
        towers.save_safely(towers.clip_of(config, seed).float(), tmp_path / name)
    openai = open_clip.get_pretrained_cfg("ViT-B-32", "openai")
    caches = []

    def fetch(cfg, cache_dir=None, **more):
        caches.append(cache_dir)
        path = tmp_path / ("openai" if cfg == openai else "laion2b_e16")
        return str(path.rename(path.with_suffix(".safetensors")) if path.exists() else path.with_suffix(".safetensors"))

    monkeypatch.setattr(open_clip, "download_pretrained", fetch)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", fetch)
    model = HookedViT.from_pretrained("ViT-B-32", tag="openai").requires_grad_(False)
    result = model.verify("ViT-B-32/openai", cache_dir=tmp_path / "cache")
    assert result.passed and result.source == "open_clip VisionTransformer of ViT-B-32 (openai)", result
    assert caches == [None, str(tmp_path / "cache")]
    assert not model.verify("open_clip/ViT-B-32", tag="laion2b_e16").passed
    file = tmp_path / "openai.safetensors"
    assert model.verify("ViT-B-32", tag=file).passed
    with pytest.raises(errors.CheckpointError, match="ViT-B-32 needs tag="):
        model.verify("ViT-B-32")


def test_revision_and_cache_reach_the_hub(tmp_path, monkeypatch):
    import huggingface_hub
    import transformers

    cls, asked = transformers.CLIPVisionModelWithProjection, []
    tower = towers.hf_tower().float()
    tower.save_pretrained(tmp_path)
    honest, where = cls.from_pretrained, {"revision": "v2", "cache_dir": tmp_path / "cache"}

    def fetch(repo_id, filename, **options):
        asked.append((repo_id, options))
        return str(tmp_path / filename)

    def load(repo_id, *, subfolder, output_loading_info, config, **options):
        assert config.num_hidden_layers == 3  # known keys alone
        asked.append((repo_id, options))
        return honest(tmp_path, output_loading_info=output_loading_info)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    monkeypatch.setattr(cls, "from_pretrained", load)
    result = hooked(tower).verify("owner/name", **where)
    assert result.passed and result.source.endswith(" of hf/owner/name")
    assert asked == [("owner/name", where)] * 2


def invoke(*words):
    from typer.testing import CliRunner

    from vit_lens.cli import app

    return CliRunner().invoke(app, ["verify", *map(str, words)])


def test_the_command(tmp_path, monkeypatch):
    towers.hf_tower().float().save_pretrained(tmp_path / "tower")
    found = invoke(tmp_path / "tower", "--encoder-dtype", "float32,float64", "--out", tmp_path / "a" / "v.json")
    assert found.exit_code == 0, found.output
    assert found.output.rstrip().endswith("PASS")
    told = json.loads((tmp_path / "a" / "v.json").read_text())
    assert told["passed"] and len(told["differences"]) == 12

    from vit_lens import HookedViT

    honest = HookedViT.from_pretrained

    def tampered(*args, **more):
        model = honest(*args, **more)
        model.blocks[1].attn.b_O.data[0] += 1e-3
        return model

    monkeypatch.setattr(HookedViT, "from_pretrained", tampered)
    found = invoke(tmp_path / "tower", "--json")
    assert found.exit_code == 1
    told = json.loads(found.output)
    assert not told["passed"] and told["failure"].startswith("block L1 is off by")


def test_the_guide_runs_as_written():
    snippets = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    assert len(snippets) >= 2
    exec(compile("\n".join(snippets), DOC.name, "exec"), {})
