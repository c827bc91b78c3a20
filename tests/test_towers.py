"""SigLIP, CoCa, DINOv2 and timm's ViT: exact against the source, and refused by name where they cannot be."""

import json
import warnings

import pytest
import torch
import towers
from torch import nn

# float64 sums of a few hundred terms of order one, over two or three blocks
EXACT = 1e-9
DINOV2 = ("Dinov2Model", "Dinov2WithRegistersModel")
PREPROCESSOR = {
    "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 14}, "resample": 3,
    "crop_size": {"height": 11, "width": 11}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6],
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_timm(monkeypatch):
    towers.shrink_timm(monkeypatch)


def hooked(tower, **options):
    from vit_lens.models import HookedViT

    return HookedViT.from_module(tower, **options)


def assert_exact(vit, theirs, pixels):
    """The hooked tower, and a slow forward pass on its weights, give the source's embedding and residuals."""
    assert vit.dtype == torch.float64
    assert towers.largest_error(towers.run_hooked(vit, pixels), theirs) < EXACT
    assert towers.largest_error(towers.brute_force(vit.state_dict(), vit.cfg, pixels), theirs) < EXACT


def hugging_face(tower, pixels, **call):
    """Run a Hugging Face tower; return its embedding and the output of every block."""
    core = getattr(tower, "vision_model", tower)
    blocks = core.encoder.layers if hasattr(core.encoder, "layers") else core.encoder.layer
    return towers.block_outputs(core, blocks, pixels, lambda x: core(x, **call).pooler_output)


# ---- open_clip and timm ---------------------------------------------------------------------------------------


def test_there_are_31_configs_beside_the_54_native_ones():
    assert (len(towers.timm_names()), len(towers.coca_names())) == (29, 2)


@pytest.mark.parametrize("name", towers.timm_names())
def test_every_timm_config(name):
    visual = towers.visual_of(name)
    vit = hooked(visual).requires_grad_(False)
    pixels = towers.pixels_of(vit.cfg.image_size, batch=2)
    assert_exact(vit, towers.block_outputs(visual, visual.trunk.blocks, pixels, visual), pixels)
    assert vit.cfg.n_heads == visual.trunk.blocks[0].attn.num_heads
    if name == "MobileCLIP2-L-14":
        assert (vit.cfg.pool, vit.cfg.has_proj_bias, vit.cfg.has_ln_pre, vit.cfg.eps) == ("cls", True, True, 1e-5)
    else:
        assert (vit.cfg.pool, vit.cfg.has_cls, vit.cfg.has_proj, vit.cfg.eps) == ("attn", False, False, 1e-6)


def test_eight_siglip_configs_have_tanh_gelu():
    acts = [hooked(towers.visual_of(name)).cfg.act_fn for name in towers.timm_names()]
    assert (acts.count("gelu"), acts.count("gelu_pytorch_tanh")) == (21, 8)


@pytest.mark.parametrize("name", towers.coca_names())
def test_every_coca_config(name):
    visual = towers.visual_of(name, attn_pooler_heads=1)
    vit = hooked(visual).requires_grad_(False)
    pixels = towers.pixels_of(vit.cfg.image_size, batch=1)
    assert_exact(vit, towers.block_outputs(visual, visual.transformer.resblocks, pixels, visual), pixels)
    assert (vit.cfg.d_pooled, vit.cfg.attn_pool.has_ln_post, vit.readout.kind) == (13, True, "tokens")


@pytest.mark.parametrize(
    "changes",
    [
        dict(),  # widths differ: keys and values have matrices of their own
        dict(output_dim=33, attn_pooler_heads=3),  # widths are equal: torch fuses the matrices
        dict(attn_pooler_queries=1, ls_init_value=0.1, no_ln_pre=True),
        dict(final_ln_after_pool=True),  # which open_clip ignores here
    ],
)
def test_coca_pooling(changes):
    visual = towers.tiny_visual(**(dict(attentional_pool=True, attn_pooler_heads=2) | changes))
    vit = hooked(visual).requires_grad_(False)
    pixels = towers.pixels_of(vit.cfg.image_size)
    assert_exact(vit, towers.block_outputs(visual, visual.transformer.resblocks, pixels, visual), pixels)


TIMM = {
    "cls": dict(),
    "head": dict(num_classes=7),
    "clip": dict(pre_norm=True, num_classes=7),
    "cls_fc_norm": dict(fc_norm=True),
    "avg": dict(global_pool="avg", num_classes=7),
    "avg_norm": dict(global_pool="avg", fc_norm=False, class_token=False),
    "map": dict(global_pool="map", class_token=False, num_classes=7),
    "map_with_prefix": dict(global_pool="map", pool_include_prefix=True, reg_tokens=2),
    "tanh": dict(act_layer="gelu_tanh", global_pool="map", class_token=False),
    "quick": dict(act_layer="quick_gelu"),
    "layer_scale": dict(init_values=0.1),
    "registers": dict(reg_tokens=3, init_values=0.1),
    "dinov2_registers": dict(reg_tokens=3, no_embed_class=True, init_values=0.1),
    "no_embed_class": dict(no_embed_class=True, global_pool="avg"),
    "dropouts": dict(drop_rate=0.5, pos_drop_rate=0.5, patch_drop_rate=0.5, proj_drop_rate=0.5, drop_path_rate=0.5),
    "ragged": dict(img_size=(13, 16)),
}


@pytest.mark.parametrize("case", TIMM)
def test_timm_by_itself(case):
    tower = towers.tiny_timm(**TIMM[case])
    vit = hooked(tower.train()).requires_grad_(False)
    assert tower.training
    pixels = towers.pixels_of(vit.cfg.image_size)
    assert_exact(vit, towers.block_outputs(tower.eval(), tower.blocks, pixels, tower), pixels)


def test_a_timm_tower_with_open_clips_projection():
    from open_clip.timm_model import TimmModel

    tower = TimmModel("vit_base_patch16_siglip_224", embed_dim=7, pool="map", proj="linear", proj_bias=True)
    tower = towers.randomize(tower.double().eval())
    vit = hooked(tower).requires_grad_(False)
    assert (vit.cfg.d_embed, vit.cfg.d_pooled, vit.cfg.has_proj_bias) == (7, 36, True)
    pixels = towers.pixels_of(vit.cfg.image_size)
    assert_exact(vit, towers.block_outputs(tower, tower.trunk.blocks, pixels, tower), pixels)


# ---- Hugging Face ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["gelu_pytorch_tanh", "gelu"])
@pytest.mark.parametrize("kind", ["SiglipVisionModel", "SiglipModel"])
def test_siglip(kind, act):
    build = towers.siglip_model if kind == "SiglipModel" else lambda **sizes: towers.hf_other(kind, **sizes)
    tower = build(hidden_act=act)
    vit = hooked(tower).requires_grad_(False)
    assert (vit.cfg.act_fn, vit.cfg.image_size, vit.cfg.n_ctx) == (act, (13, 13), 9)
    pixels = towers.pixels_of(vit.cfg.image_size)
    assert_exact(vit, hugging_face(tower, pixels), pixels)


@pytest.mark.parametrize("kind", DINOV2)
@pytest.mark.parametrize("size", [None, 13, 22, (21, 10), (4, 36)])
def test_dinov2(kind, size):
    tower = towers.hf_other(kind)
    vit = hooked(tower, image_size=size).requires_grad_(False)
    n_registers = 4 if "Registers" in kind else 0
    expected = (13, 13) if size is None else ((size, size) if isinstance(size, int) else size)
    assert (vit.cfg.image_size, vit.cfg.n_registers, vit.cfg.d_embed) == (expected, n_registers, 15)
    pixels = towers.pixels_of(vit.cfg.image_size)
    assert_exact(vit, hugging_face(tower, pixels), pixels)
    rows = vit.pos_embed.W_pos[1 : 1 + n_registers]
    assert torch.equal(rows, torch.zeros_like(rows))


@pytest.mark.parametrize("size", [22, (9, 17)])
def test_clip_and_siglip_at_another_size(size):
    for tower in (towers.hf_other("SiglipVisionModel"), towers.hf_tower("CLIPVisionModel", image_size=22)):
        size = (22, 33) if "CLIP" in type(tower).__name__ else size
        vit = hooked(tower, image_size=size).requires_grad_(False)
        pixels = towers.pixels_of(vit.cfg.image_size)
        assert_exact(vit, hugging_face(tower, pixels, interpolate_pos_encoding=True), pixels)


@pytest.mark.parametrize("kind", ["SiglipVisionModel", *DINOV2])
def test_the_towers_own_positions_are_left_alone(kind):
    tower = towers.hf_other(kind)
    parts = {**dict(tower.named_parameters()), **dict(tower.named_buffers())}
    hooked(tower, image_size=22)
    after = {**dict(tower.named_parameters()), **dict(tower.named_buffers())}
    assert parts.keys() == after.keys() and all(after[name] is part for name, part in parts.items())
    assert all(parameter.requires_grad for parameter in tower.parameters())


def test_the_size_of_the_preprocessing_decides_for_dinov2_and_is_refused_elsewhere():
    from vit_lens.errors import PreprocessError
    from vit_lens.images import PreprocessSpec

    spec = PreprocessSpec.from_hf_preprocessor(PREPROCESSOR)
    assert (spec.size, spec.resize_edge) == ((11, 11), 14)
    assert hooked(towers.hf_other("Dinov2Model"), preprocess_spec=spec).cfg.image_size == (11, 11)
    with pytest.raises(PreprocessError, match=r"makes pixels of \(11, 11\), the tower sees \(13, 13\)"):
        hooked(towers.hf_other("SiglipVisionModel"), preprocess_spec=spec)


# ---- what is refused ------------------------------------------------------------------------------------------


def with_part(tower, path, module):
    *steps, last = path.split(".")
    owner = tower
    for step in steps:
        owner = owner[int(step)] if step.isdigit() else getattr(owner, step)
    if last.isdigit():
        owner[int(last)] = module
    else:
        setattr(owner, last, module)
    return tower


def siglip2():
    import transformers

    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=4)
    return transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**sizes, num_patches=9))


def from_timm(name, **changes):
    import timm

    return timm.create_model(name, pretrained=False, num_classes=0, **changes)


def rms():
    from timm.layers import RmsNorm

    return RmsNorm


MAP = dict(global_pool="map", class_token=False)
REFUSED = {
    "qkv_bias": (lambda: towers.tiny_timm(qkv_bias=False), r"without biases \(qkv_bias"),
    "proj_bias": (lambda: towers.tiny_timm(proj_bias=False), "without biases"),
    "qk_norm": (lambda: towers.tiny_timm(qk_norm=True), r"norm inside \(q_norm\)"),
    "scale_norm": (lambda: towers.tiny_timm(scale_attn_norm=True), r"norm inside \(norm\)"),
    "mlp_norm": (lambda: towers.tiny_timm(scale_mlp_norm=True), "a timm MLP of type Mlp"),
    "swiglu": (lambda: towers.tiny_timm(mlp_layer=swiglu()), "a timm MLP of type SwiGLU"),
    "silu": (lambda: towers.tiny_timm(act_layer="silu"), "activation SiLU"),
    "rms": (lambda: towers.tiny_timm(norm_layer=rms()), "norm of type RmsNorm"),
    "max": (lambda: towers.tiny_timm(global_pool="max"), "global_pool='max'"),
    "prr": (lambda: towers.tiny_timm(global_pool="prr"), "global_pool='prr'"),
    "avg_prefix": (lambda: towers.tiny_timm(global_pool="avg", pool_include_prefix=True), "including its 1 prefix"),
    "map_prefix": (lambda: towers.tiny_timm(global_pool="map"), "without its 1 prefix"),
    "no_pos": (lambda: towers.tiny_timm(pos_embed="none"), "without learned positions"),
    "dynamic": (lambda: towers.tiny_timm(dynamic_img_size=True), "dynamic_img_size"),
    "no_norm": (lambda: towers.tiny_timm(final_norm=False), "without a final norm"),
    "two_norms": (lambda: with_part(towers.tiny_timm(), "fc_norm", nn.LayerNorm(15)), "both norm and fc_norm"),
    "block": (lambda: towers.tiny_timm(block_fn=res_post_block()), "blocks of type ResPostBlock"),
    "diff": (lambda: towers.tiny_timm(attn_layer="diff", num_heads=3, embed_dim=18), "attention of type DiffAttention"),
    "half_scale": (lambda: with_part(towers.tiny_timm(init_values=0.1), "blocks.0.ls2", nn.Identity()), "one half"),
    "patch_norm": (lambda: towers.tiny_timm(embed_norm_layer=nn.LayerNorm), "patch embedding of type PatchEmbed"),
    "mixed_eps": (lambda: with_part(towers.tiny_timm(), "blocks.1.norm1", nn.LayerNorm(15, eps=1e-3)), "eps that"),
    "head": (lambda: with_part(towers.tiny_timm(), "head", nn.Sequential(nn.ReLU())), "a head of Sequential"),
    "latents": (lambda: with_part(towers.tiny_timm(**MAP), "attn_pool", pooler(latent_len=2)), "with 2 queries"),
    "pool_avg": (lambda: with_part(towers.tiny_timm(**MAP), "attn_pool", pooler(pool_type="avg")), "pooled by 'avg'"),
    "pool_norm": (lambda: with_part(towers.tiny_timm(**MAP), "attn_pool", pooler(qk_norm=True)), r"attn_pool\.q_norm"),
    "pool_bias": (lambda: with_part(towers.tiny_timm(**MAP), "attn_pool", pooler(qkv_bias=False)), "whose q is not"),
    "pool_bare": (lambda: with_part(towers.tiny_timm(**MAP), "attn_pool", pooler(norm_layer=None)), "without a norm"),
    "pool_pos": (
        lambda: with_part(towers.tiny_timm(**MAP), "attn_pool", pooler(pos_embed="abs", feat_size=6)),
        "positions of its own",
    ),
    "pool_act": (
        lambda: with_part(towers.tiny_timm(**MAP), "attn_pool.mlp.act", nn.GELU(approximate="tanh")),
        "activation that differs",
    ),
    "gate": (lambda: with_part(towers.tiny_timm(), "blocks.0.attn.gate", nn.Linear(15, 15)), "with a gate"),
    "scale": (lambda: with_part(towers.tiny_timm(depth=1), "blocks.0.attn.scale", 0.1), "attention scale 0.1"),
    "one_scale": (lambda: with_part(towers.tiny_timm(), "blocks.0.attn.scale", 0.1), "scale that differs"),
    "qkv_width": (lambda: with_part(towers.tiny_timm(), "blocks.0.attn.qkv", nn.Linear(15, 60)), "differ in width"),
    "pool_type": (lambda: with_part(towers.tiny_timm(**MAP), "attn_pool", nn.Linear(15, 15)), "pooling of type Linear"),
    "pool_fc_norm": (lambda: towers.tiny_timm(**MAP, fc_norm=True), "followed by fc_norm"),
    "pool_width": (lambda: with_part(towers.tiny_timm(**MAP), "attn_pool", pooler(latent_dim=9)), "of width 9 to"),
    "pool_no_q": (lambda: with_part(towers.tiny_timm(**MAP), "attn_pool", pooler(q_proj=False)), "whose q is not"),
    "pool_scale": (lambda: with_part(towers.tiny_timm(**MAP), "attn_pool.scale", 0.1), "attention scale 0.1"),
    "coca_type": (lambda: with_part(coca(), "attn_pool", nn.Linear(3, 3)), "attention pooling of type Linear"),
    "coca_attn": (lambda: with_part(coca(), "attn_pool.attn", attention(10, 2, 33)), "or added keys"),
    "coca_zero": (lambda: with_part(coca(), "attn_pool.attn.add_zero_attn", True), "attention has added keys"),
    "coca_eps": (lambda: with_part(coca(), "attn_pool.ln_q", nn.LayerNorm(10, eps=1e-3)), "eps that differs"),
    "siglip_attn": (lambda: with_part(siglip(), "head.attention", attention(15, 3, 15)), "or with added keys"),
    "siglip_head": (lambda: with_part(siglip(), "head", nn.Linear(15, 15)), "a SigLIP head of type Linear"),
    "siglip_layer": (lambda: with_part(siglip(), "encoder.layers.0", nn.Linear(3, 3)), "layer type that differs"),
    "siglip_patch": (
        lambda: with_part(siglip(), "embeddings.patch_embedding", nn.Conv2d(3, 15, 4, 4, bias=False)),
        "patch_embedding without a bias",
    ),
    "siglip_head_act": (lambda: with_part(siglip(), "head.mlp.activation_fn", nn.GELU()), "activation that differs"),
    "dinov2_layer": (
        lambda: with_part(towers.hf_other("Dinov2Model"), "encoder.layer.1", nn.Linear(3, 3)),
        "layers of type Linear",
    ),
    "coca_parallel": (
        lambda: towers.tiny_visual(attentional_pool="parallel", attn_pooler_heads=2),
        "'parallel' .attn_pool_contrastive",
    ),
    "coca_avg": (
        lambda: towers.tiny_visual(attentional_pool=True, attn_pooler_heads=2, pool_type="avg"),
        "pool_type='avg', which reads more",
    ),
    "siglip_no_head": (lambda: towers.hf_other("SiglipVisionModel", vision_use_head=False), "vision_use_head=False"),
    "siglip_act": (lambda: towers.hf_other("SiglipVisionModel", hidden_act="relu"), "activation ReLU"),
    "siglip_text": (lambda: towers.siglip_model().text_model, "SiglipTextModel"),
    "siglip2": (siglip2, r"NaFlex.*fixed-resolution SigLIP 2 checkpoints .* are `siglip` models"),
    "dinov2_swiglu": (lambda: towers.hf_other("Dinov2Model", use_swiglu_ffn=True), "Dinov2SwiGLUFFN"),
    "dinov2_bias": (lambda: towers.hf_other("Dinov2Model", qkv_bias=False), "without biases"),
    "dinov2_classifier": (lambda: towers.hf_other("Dinov2ForImageClassification"), "Dinov2ForImageClassification"),
}


def siglip():
    return towers.hf_other("SiglipVisionModel")


def coca():
    return towers.tiny_visual(attentional_pool=True, attn_pooler_heads=2)


def attention(width, heads, source_width):
    return nn.MultiheadAttention(width, heads, kdim=source_width, vdim=source_width, add_bias_kv=True)


def swiglu():
    from timm.layers import SwiGLU

    return SwiGLU


def res_post_block():
    from timm.models.vision_transformer import ResPostBlock

    return ResPostBlock


def pooler(**changes):
    from timm.layers import AttentionPoolLatent

    return AttentionPoolLatent(15, **(dict(num_heads=3, norm_layer=nn.LayerNorm) | changes))


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case, pre, errors):
    build, words = REFUSED[case]
    with pytest.raises(errors.UnsupportedTowerError, match=words):
        pre.read_module(build())


def test_sizes_that_cannot_be_had(pre, errors):
    for tower in (towers.tiny_timm(), towers.tiny_visual()):
        with pytest.raises(errors.UnsupportedTowerError, match="no interpolate_pos_encoding"):
            pre.read_module(tower, image_size=20)
    tower = towers.hf_other("Dinov2Model")
    with pytest.raises(errors.UnsupportedTowerError, match="smaller than the patch size"):
        pre.read_module(tower, image_size=3)
    for wrong in (0, (4, -1)):
        with pytest.raises(errors.CheckpointError, match="expected a side or"):
            pre.read_module(tower, image_size=wrong)
    with pytest.raises(errors.UnsupportedTowerError, match="cannot interpolate to"):
        pre.read_module(towers.hf_other("Dinov2Model", image_size=(8, 12)), image_size=12)


# ---- files ----------------------------------------------------------------------------------------------------


def same_weights(source, module_source):
    assert source.cfg == module_source.cfg
    assert source.state_dict.keys() == module_source.state_dict.keys()
    for name, tensor in source.state_dict.items():
        assert torch.equal(tensor, module_source.state_dict[name].to(tensor.dtype)), name
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, name


def whole_siglip(name="ViT-B-16-SigLIP"):
    import open_clip
    from open_clip.model import CustomTextCLIP

    vision = open_clip.get_model_config(name)["vision_cfg"]
    return towers.randomize(CustomTextCLIP(36, vision, dict(towers.TEXT), init_logit_bias=-10.0).double().eval())


def whole_coca(monkeypatch):
    """Shrink one of open_clip's CoCa configs, in its registry too, and build the whole model."""
    import open_clip
    import open_clip.factory
    from open_clip import CoCa

    small = towers.shrink(open_clip.get_model_config("coca_ViT-L-14"))
    small["vision_cfg"] |= {"attn_pooler_heads": 1}
    configs = open_clip.factory._MODEL_CONFIGS | {"coca_ViT-L-14": small}
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", configs)
    decoder = dict(context_length=5, vocab_size=11, width=8, heads=2, layers=1)
    model = CoCa(13, decoder, towers.TEXT | {"embed_cls": True, "output_tokens": True}, small["vision_cfg"])
    return towers.randomize(model.double().eval())


def test_siglip_by_name_and_from_a_checkpoint(pre, errors, downloads, tmp_path):
    model = whole_siglip()
    towers.save_safely(model, downloads.path)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    for tag in ("webli", tmp_path / "w.pt"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            source = pre.read_pretrained("ViT-B-16-SigLIP", tag=tag, dtype=torch.float64)
        same_weights(source, pre.read_module(model))
        spec = source.preprocess_spec
        assert (spec.size, spec.resize_mode, spec.mean) == ((9, 9), "squash", (0.5, 0.5, 0.5))
    with pytest.raises(errors.CheckpointError, match="would have no effect on ViT-B-16-SigLIP"):
        pre.read_pretrained("ViT-B-16-SigLIP", tag="webli", quick_gelu=True)
    with pytest.raises(errors.UnsupportedTowerError, match="ViT-B-16-SigLIP, which has no interpolate_pos_encoding"):
        pre.read_pretrained("ViT-B-16-SigLIP", tag="webli", image_size=12)


def test_coca_by_name(pre, monkeypatch, downloads):
    model = whole_coca(monkeypatch)
    towers.save_safely(model, downloads.path)
    source = pre.read_pretrained("coca_ViT-L-14", tag="laion2b_s13b_b90k", dtype=torch.float64)
    same_weights(source, pre.read_module(model))


@pytest.mark.parametrize("kind", ["SiglipModel", "SiglipVisionModel", *DINOV2])
def test_directories_of_transformers(kind, pre, tmp_path):
    tower = (towers.siglip_model() if kind == "SiglipModel" else towers.hf_other(kind)).float()
    tower.save_pretrained(tmp_path)
    source = pre.read_pretrained(tmp_path)
    same_weights(source, pre.read_module(tower))
    assert source.preprocess_spec is None and source.cfg.image_size == (13, 13)


@pytest.mark.parametrize("kind", DINOV2)
def test_dinov2_takes_the_size_that_its_processor_crops(kind, pre, errors, tmp_path):
    from vit_lens.images import PreprocessSpec

    tower = towers.hf_other(kind).float()
    tower.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    source = pre.read_pretrained(tmp_path, dtype=torch.float64)
    assert (source.cfg.image_size, source.preprocess_spec.size) == ((11, 11), (11, 11))
    same_weights(source, pre.read_module(tower.double(), image_size=11))
    other = pre.read_pretrained(tmp_path, image_size=22)
    assert (other.cfg.image_size, other.preprocess_spec.size, other.preprocess_spec.resize_edge) == ((22, 22),) * 2 + (
        28,
    )
    own = PreprocessSpec.from_hf_preprocessor(PREPROCESSOR).at((17, 17))
    assert pre.read_pretrained(tmp_path, preprocess_spec=own).cfg.image_size == (17, 17)
    with pytest.raises(errors.CheckpointError, match="give one size"):
        pre.read_pretrained(tmp_path, preprocess_spec=own, image_size=22)


def test_dinov2_files_with_older_names_and_parts_that_do_not_belong(pre, errors, tmp_path):
    """The names in published files differ from those of the module; nothing else may."""
    from safetensors.torch import load_file, save_file

    tower = towers.hf_other("Dinov2Model").float()
    tower.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    stored = load_file(path)
    assert "encoder.layer.0.attention.attention.query.weight" in stored
    save_file(dict(tower.state_dict()), path)
    same_weights(pre.read_pretrained(tmp_path), pre.read_module(tower))
    save_file(stored | {"encoder.layer.0.attention.q_proj.weight": torch.ones(15, 15)}, path)
    with pytest.raises(errors.CheckpointError, match="twice, under two names"):
        pre.read_pretrained(tmp_path)
    save_file(stored | {"classifier.weight": torch.ones(2, 2)}, path)
    with pytest.raises(errors.CheckpointError, match=r"1 extra: classifier\.weight"):
        pre.read_pretrained(tmp_path)


def test_siglip2_directories(pre, errors, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    with pytest.raises(errors.UnsupportedTowerError, match="are `siglip` models, and load"):
        pre.read_pretrained(tmp_path)


# ---- the table ------------------------------------------------------------------------------------------------


def test_the_table_of_towers(pre):
    import open_clip

    rows = {row.name: row for row in pre.supported_towers()}
    ours = [row for row in rows.values() if row.library == "open_clip"]
    assert [row.name for row in ours] == open_clip.list_models() and len(ours) == 144
    assert sum(row.tier == "A" for row in ours) == 55 and sum(row.tier == "B" for row in ours) == 30
    assert {row.name for row in ours if row.tier == "A"} == {*towers.native_names(), "MobileCLIP2-L-14"}
    assert all(bool(row.reason) != row.supported for row in rows.values())
    assert rows["ViT-B-32"].tags == tuple(open_clip.list_pretrained_tags_by_model("ViT-B-32"))
    assert "ModifiedResNet" in rows["RN50"].reason and "without biases" in rows["vit_medium_patch16_gap_256"].reason
    assert rows["Dinov2Model"].tier == "B" and rows["CLIPModel"].tier == "A" and not rows["Siglip2Model"].supported


def test_every_hugging_face_class_of_the_table_exists(pre):
    import transformers

    names = [row.name for row in pre.supported_towers() if row.library == "transformers"]
    assert len(names) == 8 and all(hasattr(transformers, name) for name in names)


def test_the_command(monkeypatch, capsys):
    import sys

    from vit_lens.cli import main

    def shown(*options):
        monkeypatch.setattr(sys, "argv", ["vit-lens", "models", *options])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        return capsys.readouterr().out

    short, full = shown(), shown("--all")
    assert "open_clip: 85 of 144" in short and "tier A (55)" in short and "tier B (30)" in short
    assert "ViT-B-16-SigLIP2-512" in short and "Dinov2WithRegistersModel" in short
    assert "RN50" not in short and "laion2b_s34b_b79k" not in short
    assert "ModifiedResNet" in full and "laion2b_s34b_b79k" in full and "NaFlex" in full


# ---- memory ---------------------------------------------------------------------------------------------------


def storages(tensors):
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


@pytest.mark.parametrize(
    "build",
    [
        lambda: towers.tiny_visual(),
        lambda: towers.hf_tower(),
        lambda: towers.hf_other("SiglipVisionModel"),
        lambda: towers.tiny_timm(**MAP),
    ],
)
def test_an_alias_shares_every_weight(build):
    tower = build()
    vit = hooked(tower, copy=False)
    assert storages(vit.parameters()) == storages(tower.parameters())
    assert not storages(hooked(tower).parameters()) & storages(tower.parameters())
    pixels = towers.pixels_of(vit.cfg.image_size)
    before = vit(pixels)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.mul_(1.5)
    assert (vit(pixels) - before).abs().max() > 1e-3
    assert (vit(pixels) - hooked(tower)(pixels)).abs().max() < EXACT
    vit(pixels).sum().backward()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.sub_(parameter.grad, alpha=1e-3)
    assert (vit(pixels) - hooked(tower)(pixels)).abs().max() < EXACT


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: towers.tiny_visual(ls_init_value=0.1), r"blocks\.0\.attn\.W_O"),
        (lambda: towers.tiny_visual(attentional_pool=True, attn_pooler_heads=2), r"attn_pool\.query"),
        (lambda: towers.hf_other("Dinov2Model"), r"pos_embed\.W_pos"),
        (lambda: towers.tiny_timm(no_embed_class=True), r"pos_embed\.W_pos"),
    ],
)
def test_what_is_computed_cannot_be_shared(build, words, errors):
    with pytest.raises(errors.CheckpointError, match=f"copy=False cannot share memory for {words}"):
        hooked(build(), copy=False)


def test_a_tower_of_two_dtypes_cannot_be_shared(errors):
    tower = towers.tiny_visual().half()
    tower.ln_post.float()
    with pytest.raises(errors.CheckpointError, match=r"several dtypes \(torch\.float16, torch\.float32\)"):
        hooked(tower, copy=False)


@pytest.fixture
def reads(monkeypatch):
    """Note what is read from files, how often they are opened, and how much of it is held at the next read."""
    import weakref

    from vit_lens.sources import tensors

    held, record = [], {"names": [], "most": 0, "opened": 0}
    read = tensors._File.read

    def noted(self, key):
        record["most"] = max(record["most"], sum(ref() is not None for ref in held))
        values = read(self, key).numpy().copy()
        held.append(weakref.ref(values))  # it lives as long as any tensor that shares its memory
        record["names"].append(key)
        return torch.from_numpy(values)

    opened = tensors._File._open

    def counted(self):
        record["opened"] += 1
        return opened(self)

    monkeypatch.setattr(tensors._File, "read", noted)
    monkeypatch.setattr(tensors._File, "_open", counted)
    return record


def saved(kind, path):
    if kind == "hf":
        towers.hf_other("Dinov2Model").float().save_pretrained(path)
        return (path,), {}
    model = whole_siglip().float()
    file = path / f"w.{kind}"
    if kind == "safetensors":
        towers.save_safely(model, file)
    else:
        torch.save(model.state_dict(), file, _use_new_zipfile_serialization=kind == "pt")
    return ("ViT-B-16-SigLIP",), {"tag": file}


@pytest.mark.parametrize("kind", ["hf", "safetensors", "pt", "old"])
def test_tensors_are_read_one_at_a_time(kind, reads, monkeypatch, pre, tmp_path):
    """While one is read, at most the tensor that it is computed with is held, and none of the file's memory."""
    from vit_lens.sources import tensors

    monkeypatch.setattr(tensors, "_OPEN_AGAIN_AFTER", 0)
    arguments, options = saved(kind, tmp_path)
    source = pre.read_pretrained(*arguments, **options)
    assert reads["most"] == (1 if kind == "hf" else 0) and reads["names"]
    assert reads["opened"] == (1 if kind == "old" else 1 + len(reads["names"]))
    assert not any("text" in name or "logit" in name or "mask_token" in name for name in reads["names"])
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in source.state_dict.values())


@pytest.mark.parametrize("kind", ["hf", "safetensors", "pt"])
def test_a_file_that_does_not_fit_is_refused_before_a_value_is_read(kind, reads, pre, errors, tmp_path):
    from safetensors.torch import load_file, save_file

    arguments, options = saved(kind, tmp_path)
    path = options.get("tag", tmp_path / "model.safetensors")
    tensors = torch.load(path, weights_only=True) if kind == "pt" else load_file(path)
    name = next(name for name in tensors if "norm2.bias" in name)
    tensors[name] = torch.ones(3)
    torch.save(tensors, path) if kind == "pt" else save_file(tensors, path)
    with pytest.raises(errors.CheckpointError, match=r"norm2\.bias \[3\] instead of"):
        pre.read_pretrained(*arguments, **options)
    assert not reads["names"]


@pytest.mark.parametrize("kind", ["hf", "safetensors", "pt"])
def test_a_meta_build_reads_no_value(kind, reads, tmp_path):
    from vit_lens.models import HookedViT

    arguments, options = saved(kind, tmp_path)
    meta = HookedViT.from_pretrained(*arguments, **options, device="meta", dtype=torch.bfloat16)
    assert not reads["names"] and meta.encoder_id.endswith("(no weights)")
    real = HookedViT.from_pretrained(*arguments, **options)
    assert {p.dtype for p in meta.parameters()} == {torch.bfloat16} and all(p.is_meta for p in meta.parameters())
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (meta, real)]
    assert shapes[0] == shapes[1]
    out = meta(torch.empty(2, 3, *meta.cfg.image_size, dtype=torch.bfloat16, device="meta"))
    assert out.shape == (2, meta.cfg.d_embed)


def test_a_model_is_built_on_meta_from_its_config():
    from vit_lens.models import HookedViT

    cfg = hooked(towers.tiny_timm(**MAP)).cfg
    with torch.device("meta"):
        model = HookedViT(cfg)
    assert all(p.is_meta for p in model.parameters())


def test_dtypes_that_are_none(errors):
    from vit_lens.sources.refusals import require_dtype

    assert require_dtype(torch.bfloat16) is torch.bfloat16
    for wrong, words in {
        "float32": "is a str; expected a torch.dtype such as torch.float32",
        "half?": "torch.float32",
    }.items():
        with pytest.raises(errors.CheckpointError, match=words):
            require_dtype(wrong)
    with pytest.raises(errors.CheckpointError, match="floating-point type"):
        require_dtype(torch.int64)
