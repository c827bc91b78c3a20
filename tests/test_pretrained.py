"""Towers from memory, files and names: exact against the source, and refused where they cannot be."""

import warnings

import pytest
import torch
import towers
from torch import nn

# float64 sums of a few hundred terms of order one, over two or three blocks
EXACT = 1e-9
# float32 carries 6e-8 per operation; two blocks add up a few dozen of them
SINGLE = 1e-5


def hooked(tower):
    from vit_lens.models import HookedViT

    return HookedViT.from_module(tower)


def run_hooked(model, pixels):
    with torch.no_grad():
        embedding, cache = model.run_with_cache(pixels, names_filter=lambda name: name.endswith("hook_resid_post"))
    return embedding, [cache[f"blocks.{layer}.hook_resid_post"] for layer in range(model.cfg.n_layers)]


def assert_exact(ours, theirs):
    """Compare (embedding, residuals) of two towers of one dtype."""
    assert len(ours[1]) == len(theirs[1])
    for mine, other in zip([ours[0], *ours[1]], [theirs[0], *theirs[1]], strict=True):
        difference = (mine - other).abs().max()
        if mine.dtype == torch.float64:
            assert difference < EXACT
        else:
            assert difference / other.abs().max() < SINGLE


def same_weights(source, module_source):
    assert source.state_dict.keys() == module_source.state_dict.keys()
    for name, tensor in source.state_dict.items():
        assert torch.equal(tensor, module_source.state_dict[name].to(tensor.dtype)), name


# ---- towers in memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", towers.native_names())
def test_every_native_open_clip_config(name):
    model = towers.shrunk_open_clip(name)
    for dtype in (torch.float64, torch.float32):
        tower = model.to(dtype)
        vit = hooked(tower)
        assert vit.dtype == dtype
        pixels = towers.pixels_of(vit.cfg.image_size, batch=1, dtype=dtype)
        theirs = towers.block_outputs(tower.visual, tower.visual.transformer.resblocks, pixels, tower.visual)
        assert_exact(run_hooked(vit, pixels), theirs)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("act", ["gelu", "quick_gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("kind", ["CLIPVisionModelWithProjection", "CLIPVisionModel"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_hugging_face(kind, act, attn, dtype, monkeypatch):
    tower = towers.hf_tower(kind, hidden_act=act, attn=attn).to(dtype)
    vit = hooked(tower)
    pixels = towers.pixels_of(vit.cfg.image_size, dtype=dtype)
    if attn == "eager":  # it takes the softmax in float32, whatever the dtype
        softmax = nn.functional.softmax
        monkeypatch.setattr(nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim=dim))
    with torch.no_grad():
        out = tower(pixels, output_hidden_states=True)
    embedding = out.image_embeds if vit.cfg.has_proj else out.pooler_output
    assert_exact(run_hooked(vit, pixels), (embedding, list(out.hidden_states[1:])))
    assert vit.cfg.d_embed == (13 if vit.cfg.has_proj else 35)


def test_whole_models_and_their_towers_are_one(pre):
    from open_clip.model import CustomTextCLIP

    model = towers.clip_of(towers.shrink({"vision_cfg": {"width": 128, "patch_size": 8, "image_size": 24}}))
    custom = CustomTextCLIP(**towers.shrink({"vision_cfg": {"width": 128, "patch_size": 8, "image_size": 24}})).double()
    custom.visual.load_state_dict(model.visual.state_dict())
    for tower in (model.visual, custom):
        same_weights(pre.read_module(tower), pre.read_module(model))
    clip = towers.hf_clip()
    whole, core = pre.read_module(clip), pre.read_module(clip.vision_model)
    assert whole.cfg.d_embed == 9 and not core.cfg.has_proj
    del whole.state_dict["unembed.W_U"]
    same_weights(whole, core)


def test_a_nested_vision_model_as_in_older_versions(pre):
    tower = towers.hf_tower("CLIPVisionModel")
    outer = type(tower).__new__(type(tower))
    nn.Module.__init__(outer)
    outer.vision_model = tower
    same_weights(pre.read_module(outer), pre.read_module(tower))


def test_what_is_read_from_the_object(pre):
    tower = towers.tiny_visual(no_ln_pre=True, pool_type="avg", final_ln_after_pool=True, ls_init_value=0.1)
    for module in tower.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 3e-4
    cfg = pre.read_module(tower).cfg
    assert (cfg.pool, cfg.ln_final, cfg.has_ln_pre, cfg.eps, cfg.act_fn) == ("avg", "after_pool", False, 3e-4, "gelu")
    assert (cfg.n_layers, cfg.n_heads, cfg.d_head, cfg.d_mlp, cfg.d_embed) == (3, 3, 11, 56, 10)
    assert (cfg.image_size, cfg.patch_size) == ((10, 15), (5, 5))


@pytest.mark.parametrize(
    "changes",
    [
        dict(patch_dropout=0.5),
        dict(output_tokens=True),
        dict(image_size=15, pos_embed_type="sin_cos_2d", width=36),
        dict(patch_size=(5, 3)),
        dict(image_size=(11, 17)),  # the last row and columns are not seen
        dict(act_layer=lambda: nn.GELU(approximate="tanh")),
    ],
)
def test_open_clip_options_that_stay_exact(changes):
    tower = towers.tiny_visual(**changes)
    vit = hooked(tower.train())
    assert tower.training
    pixels = towers.pixels_of(vit.cfg.image_size)
    theirs = towers.block_outputs(tower.eval(), tower.transformer.resblocks, pixels, tower)
    assert_exact(run_hooked(vit, pixels), theirs)


def test_a_tower_without_projection(pre):
    tower = towers.tiny_visual()
    tower.proj = None
    vit = hooked(tower)
    assert (vit.cfg.has_proj, vit.cfg.d_embed) == (False, 33)
    pixels = towers.pixels_of(vit.cfg.image_size)
    assert_exact(run_hooked(vit, pixels), towers.block_outputs(tower, tower.transformer.resblocks, pixels, tower))


def test_training_the_source_does_not_reach_the_copy(pre):
    tower = towers.tiny_visual()
    source = pre.read_module(tower)
    before = {name: tensor.clone() for name, tensor in source.state_dict.items()}
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(1)
    assert all(torch.equal(source.state_dict[name], before[name]) for name in before)


def test_mixed_half_precision_takes_the_dtype_of_the_patches(pre):
    from open_clip.model import convert_weights_to_lp

    model = towers.clip_of(towers.shrink({"vision_cfg": {"width": 128, "patch_size": 8, "image_size": 24}})).float()
    convert_weights_to_lp(model, dtype=torch.float16)
    assert {p.dtype for p in model.visual.parameters()} == {torch.float16, torch.float32}
    assert {t.dtype for t in pre.read_module(model).state_dict.values()} == {torch.float16}


def test_ids_of_modules(pre):
    tower, other = towers.tiny_visual(), towers.tiny_visual(seed=1)
    assert pre.read_module(tower).encoder_id == pre.read_module(towers.tiny_visual()).encoder_id
    assert pre.read_module(tower).encoder_id != pre.read_module(other).encoder_id
    assert pre.read_module(tower).encoder_id.startswith("module@")
    named = pre.read_module(tower, encoder_id="open_clip/ViT-bigG-14/laion2b_s39b_b160k")
    assert named.encoder_id == "open_clip/ViT-bigG-14/laion2b_s39b_b160k"


def test_preprocessing_of_modules(pre):
    tower = towers.tiny_visual()
    assert pre.read_module(tower).preprocess_spec is None
    assert pre.read_module(towers.hf_tower()).preprocess_spec is None
    tower.image_mean, tower.image_std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    spec = pre.read_module(tower).preprocess_spec
    assert (spec.size, spec.mean, spec.resize_mode) == ((10, 15), (0.1, 0.2, 0.3), "shortest")
    tower.preprocess_cfg = {"size": 15, "mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash"}
    spec = pre.read_module(tower).preprocess_spec
    assert (spec.size, spec.mean, spec.resize_mode, spec.interpolation) == ((15, 15), (0.5,) * 3, "squash", "bicubic")


# ---- towers that are refused ----------------------------------------------------------------------------------


def resnet():
    from open_clip.modified_resnet import ModifiedResNet

    return ModifiedResNet(layers=(1, 1, 1, 1), output_dim=8, heads=4, image_size=32, width=8)


def timm_tower(model, **extra):
    from open_clip.timm_model import TimmModel

    return TimmModel(model, embed_dim=8, image_size=32, pretrained=False, **extra)


def hf_other(kind, config, **sizes):
    import transformers

    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8)
    return getattr(transformers, kind)(getattr(transformers, config)(**(small | dict(patch_size=4) | sizes)))


def with_part(part, module):
    tower = towers.tiny_visual()
    if part.startswith("block."):
        owner = tower.transformer.resblocks[1]
        *path, last = part.split(".")[1:]
        for step in path:
            owner = getattr(owner, step)
        setattr(owner, last, module)
    else:
        setattr(tower, part, module)
    return tower


REFUSED = {
    "resnet": (resnet, "ModifiedResNet"),
    "eva": (lambda: timm_tower("eva02_tiny_patch14_224", pool="token", proj="linear"), r"timm trunk \(Eva\)"),
    "pool_none": (lambda: towers.tiny_visual(pool_type="none"), "pool_type='none'"),
    "qk_norm": (lambda: towers.tiny_visual(qk_norm=True), r"custom residual blocks \(qk_norm\)"),
    "cosine": (lambda: towers.tiny_visual(scaled_cosine_attn=True), r"\(scaled_cosine_attn\)"),
    "scale_heads": (lambda: towers.tiny_visual(scale_heads=True), r"\(scale_heads\)"),
    "inner": (lambda: towers.tiny_visual(scale_attn_inner=True), r"\(scale_attn_inner\)"),
    "scale_attn": (lambda: towers.tiny_visual(scale_attn=True), r"\(scale_attn\)"),
    "scale_fc": (lambda: towers.tiny_visual(scale_fc=True), r"\(scale_fc\)"),
    "custom": (lambda: towers.tiny_visual(block_type="custom"), r"block_type=custom"),
    "no_ln_post": (lambda: with_part("ln_post", nn.Identity()), "without ln_post"),
    "rms": (lambda: with_part("block.ln_1", nn.RMSNorm(33)), r"resblocks\.1\.ln_1 of type RMSNorm"),
    "silu": (lambda: towers.tiny_visual(act_layer=nn.SiLU), "activation SiLU"),
    "one_silu": (lambda: with_part("block.mlp.gelu", nn.SiLU()), "activation SiLU"),
    "mixed_eps": (lambda: with_part("block.ln_2", nn.LayerNorm(33, eps=1e-6)), "eps that differs"),
    "patch_bias": (lambda: with_part("conv1", nn.Conv2d(3, 33, 5, 5)), "conv1 with a bias"),
    "overlap": (lambda: with_part("conv1", nn.Conv2d(3, 33, 5, 4, bias=False)), "overlapping"),
    "attention": (lambda: with_part("block.attn", nn.MultiheadAttention(33, 3, bias=False)), "fused biased"),
    "small": (lambda: towers.tiny_visual(image_size=(4, 15)), "smaller than the patch size"),
    "vit": (lambda: hf_other("ViTModel", "ViTConfig"), "ViTModel"),
    "text": (lambda: hf_other("CLIPTextModel", "CLIPTextConfig", max_position_embeddings=5), "CLIPTextModel"),
    "hf_relu": (lambda: towers.hf_tower(hidden_act="relu"), "activation ReLU"),
    "other": (lambda: nn.Linear(3, 3), "a Linear from torch"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case, pre, errors):
    build, words = REFUSED[case]
    with pytest.raises(errors.UnsupportedTowerError, match=words):
        pre.read_module(build())


def test_a_tower_without_weights(pre, errors):
    with pytest.raises(errors.CheckpointError, match="meta device"):
        pre.read_module(towers.tiny_visual().to("meta"))


def test_a_tower_with_parts_added(pre, errors):
    tower = towers.tiny_visual()
    tower.adapter = nn.Linear(33, 33)
    with pytest.raises(errors.CheckpointError, match=r"2 extra: adapter\.weight, adapter\.bias"):
        pre.read_module(tower)


# ---- open_clip's registry -------------------------------------------------------------------------------------


def test_supported_names(pre):
    covered = {*towers.native_names(), *towers.timm_names(), *towers.coca_names()}
    assert set(pre.supported_open_clip()) == covered
    assert len(pre.supported_open_clip()) == 85


def disagreements():
    """(model, tag, what the tag says) where tag and config name different activations, counted on its own."""
    import open_clip

    pairs = []
    for model in towers.native_names():
        config = bool(open_clip.get_model_config(model).get("quick_gelu", False))
        for tag in open_clip.list_pretrained_tags_by_model(model):
            said = open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False)
            if said != config:
                pairs.append((model, tag, said))
    return pairs


def test_there_are_19_tags_that_want_quick_gelu_and_one_that_is_silent():
    assert sum(said for _, _, said in disagreements()) == 19
    assert [(model, tag) for model, tag, said in disagreements() if not said] == [
        ("roberta-ViT-B-32", "laion2b_s12b_b32k")
    ]


@pytest.mark.parametrize("pair", [p for p in disagreements() if p[2]], ids=lambda pair: "-".join(pair[:2]))
def test_disagreeing_tags_are_built_with_the_tags_activation(pair, pre, small_registry, downloads):
    model, tag, _ = pair
    config = small_registry[model]
    assert config["quick_gelu"] is False
    tower = towers.clip_of(config | {"quick_gelu": True})
    towers.save_safely(tower, downloads.path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = pre.read_pretrained(model, tag=tag, dtype=torch.float64)
    assert (source.cfg.act_fn, source.encoder_id) == ("quick_gelu", f"open_clip/{model}/{tag}")
    pixels = towers.pixels_of(source.cfg.image_size, batch=1)
    expected, _ = towers.block_outputs(tower.visual, tower.visual.transformer.resblocks, pixels, tower.visual)
    assert (towers.brute_force(source.state_dict, source.cfg, pixels)[0] - expected).abs().max() < EXACT
