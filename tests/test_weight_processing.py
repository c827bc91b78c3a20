"""Each step of weight processing keeps the function and every hook point that it does not name."""

import re
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.tl3

TOWER = dict(
    n_layers=3, d_model=35, n_heads=5, d_head=7, d_mlp=23, d_embed=13, image_size=(14, 21), patch_size=(7, 7),
    has_cls=True, n_registers=0, has_patch_bias=False, act_fn="gelu", eps=1e-5, has_ln_pre=True, pool="cls",
    attn_pool=None, ln_final="before_pool", has_proj=True, has_proj_bias=False,
)  # fmt: skip
NO_LN_PRE = dict(has_ln_pre=False)
SIGLIP_POOL = dict(n_heads=3, d_head=11, d_model=33, d_mlp=17, has_ln_post=False)
TOWERS = {
    "cls": {},
    "cls_raw_stream_biased": NO_LN_PRE | dict(has_patch_bias=True, has_proj_bias=True, act_fn="quick_gelu"),
    "avg_patches": NO_LN_PRE | dict(pool="avg", n_registers=2),
    "avg_patches_ln_pre": dict(pool="avg", has_cls=False),
    "avg_pooled": NO_LN_PRE | dict(pool="avg", ln_final="after_pool"),
    "avg_pooled_no_proj": dict(pool="avg", ln_final="after_pool", has_proj=False, d_embed=35),
    "dinov2": NO_LN_PRE | dict(has_patch_bias=True, n_registers=4, has_proj=False, d_embed=35, eps=1e-6),
    "siglip": NO_LN_PRE
    | dict(pool="attn", attn_pool=SIGLIP_POOL, has_cls=False, has_patch_bias=True, has_proj=False, d_embed=33),
    "coca": dict(pool="attn", attn_pool=SIGLIP_POOL | dict(d_mlp=None, has_ln_post=True)),
    "pool_with_all": NO_LN_PRE
    | dict(pool="attn", attn_pool=SIGLIP_POOL | dict(has_ln_post=True), has_proj=False, d_embed=33),
}
STEPS = ("fold_ln", "fold_value_biases", "center_writing_weights")
DOC = Path(__file__).parent.parent / "docs" / "weight_processing.md"


def build(changes, seed=0):
    """A HookedViT in float64 with random weights, biases and gains."""
    from vit_lens import HookedViT, HookedViTConfig
    from vit_lens.config import AttentionPoolConfig

    sizes = TOWER | changes
    if sizes["attn_pool"] is not None:
        sizes["attn_pool"] = AttentionPoolConfig(**sizes["attn_pool"])
    model = HookedViT(HookedViTConfig(**sizes)).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        fan_in = 1 if parameter.ndim == 1 else parameter.shape[-2]
        parameter.copy_(noise * (0.3 if parameter.ndim == 1 else fan_in**-0.5) + name.endswith(".w"))
    return model


@pytest.fixture(scope="module", params=TOWERS.values(), ids=TOWERS)
def tower(request):
    return build(request.param)


@pytest.fixture(scope="module")
def cls_tower():
    return build({})


def images(model, n=2):
    return torch.randn(n, 3, *model.cfg.image_size, dtype=model.dtype, generator=torch.Generator().manual_seed(3))


def only(step):
    return {name: name == step for name in STEPS}


def activations(model):
    """Every hook point's value, gated ones too, and the output."""
    with torch.no_grad():
        out, cache = model.run_with_cache(images(model), names_filter=list(model.hook_dict))
    return out, cache


@pytest.mark.parametrize("steps", [*map(only, STEPS), {}], ids=[*STEPS, "all"])
def test_the_function_stays_and_the_report_names_every_hook_point_that_changes(tower, steps):
    made = tower.process_weights(**steps)
    (before, old), (after, new) = activations(tower), activations(made)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9)
    assert list(made.hook_dict) == list(tower.hook_dict)
    assert set(made.processing.changed) <= set(made.hook_dict)
    moved = {name: float((new[name] - old[name]).abs().max()) for name in made.hook_dict}
    changed = made.processing.changed
    assert {name: move for name, move in moved.items() if name not in changed and move > 1e-9} == {}
    assert {name: move for name, move in moved.items() if name in changed and move < 1e-4} == {}
    assert made.processing.steps == tuple(step for step in STEPS if steps.get(step, True))


def test_layer_scale_and_the_three_read_outs_of_open_clip(readout_vit):
    vit, source = readout_vit
    pixels = images(vit)
    with torch.no_grad():
        torch.testing.assert_close(vit.process_weights()(pixels), source(pixels), rtol=0, atol=1e-9)


def test_what_is_folded_is_one_and_zero(tower):
    state = tower.process_weights().state_dict()
    for name, tensor in state.items():
        if re.search(r"(ln1|ln2|ln_final|ln_post)\.w$", name):
            assert (tensor == 1).all(), name
        if re.search(r"(ln1|ln2|ln_final|ln_post)\.b$|b_V$", name):
            assert (tensor == 0).all(), name
    if tower.ln_pre is not None:
        torch.testing.assert_close(state["ln_pre.w"], tower.ln_pre.w, rtol=0, atol=0)
        assert abs(state["ln_pre.b"].mean()) < 1e-12 < abs(tower.ln_pre.b.mean())


def test_a_projection_is_made_where_there_was_none():
    model = build(TOWERS["dinov2"])
    made = model.process_weights(**only("fold_ln"))
    assert made.cfg.has_proj and made.cfg.has_proj_bias
    assert not model.cfg.has_proj and model.unembed is None
    torch.testing.assert_close(made.W_U, torch.diag(model.ln_final.w), rtol=0, atol=0)
    torch.testing.assert_close(made.b_U, model.ln_final.b, rtol=0, atol=0)
    siglip = build(TOWERS["siglip"]).process_weights()  # nothing normed reaches its embedding
    assert not siglip.cfg.has_proj and siglip.unembed is None


def test_the_mean_that_is_left_in_the_stream(tower):
    made = tower.process_weights(**only("center_writing_weights"))
    with torch.no_grad():
        _, cache = made.run_with_cache(images(made))
    means = [cache[f"blocks.{layer}.hook_resid_post"].mean(-1) for layer in range(made.cfg.n_layers)]
    if tower.ln_pre is None:
        assert all(mean.abs().max() < 1e-12 for mean in means)
    else:  # ln_pre's weight gives it, image by image; nothing adds to it
        assert means[0].abs().max() > 1e-3
        torch.testing.assert_close(torch.stack(means), means[0].expand(len(means), -1, -1), rtol=0, atol=1e-12)


def test_the_projection_is_never_centred(tower):
    made = tower.process_weights(**only("center_writing_weights"))
    assert made.cfg == tower.cfg
    torch.testing.assert_close(made.W_U, tower.W_U, rtol=0, atol=0)
    torch.testing.assert_close(made.b_U, tower.b_U, rtol=0, atol=0)


def test_transformer_lens_folds_to_the_same_weights():
    upstream = pytest.importorskip("transformer_lens.weight_processing", reason="TransformerLens 4").ProcessWeights
    from vit_lens.towers.processing import fold_ln, fold_value_biases

    model = build(TOWERS["cls_raw_stream_biased"])
    state = model.state_dict()
    theirs = upstream.fold_layer_norm(dict(state), model.cfg, center_weights=False)
    ours, cfg = fold_ln(state, model.cfg)
    for expected, found in ((theirs, ours), (upstream.fold_value_biases(theirs, cfg), fold_value_biases(ours, cfg))):
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-12, msg=name)


def test_a_mask_keeps_it_exact_and_an_edited_pattern_does_not(cls_tower):
    model, made = cls_tower, cls_tower.process_weights(**only("fold_value_biases"))
    n = model.cfg.n_ctx
    mask = torch.ones(1, 1, n, n, dtype=torch.bool).tril()
    pixels = images(model)
    torch.testing.assert_close(made(pixels, mask=mask), model(pixels, mask=mask), rtol=0, atol=1e-9)
    hook = ("blocks.1.attn.hook_pattern", lambda pattern, hook: pattern * 0.5)
    apart = made.run_with_hooks(pixels, fwd_hooks=[hook]) - model.run_with_hooks(pixels, fwd_hooks=[hook])
    assert apart.abs().max() > 1e-3
    # Where rows still sum to one, an edit means the same.
    hook = ("blocks.1.attn.hook_pattern", lambda pattern, hook: pattern.roll(1, dims=-1))
    again = [one.run_with_hooks(pixels, fwd_hooks=[hook]) for one in (made, model)]
    torch.testing.assert_close(*again, rtol=0, atol=1e-9)


def test_the_original_is_left_alone_and_shares_no_memory(cls_tower):
    before = {name: tensor.clone() for name, tensor in cls_tower.state_dict().items()}
    made = cls_tower.process_weights(**only("fold_value_biases"))
    for parameter in made.parameters():
        parameter.add_(1)
    after = cls_tower.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert cls_tower.processing is None
    assert not any(parameter.requires_grad for parameter in made.parameters())
    assert not made.training


def test_the_vocabulary_goes_along(cls_tower):
    from vit_lens import TextBank

    embeds = torch.randn(2, cls_tower.cfg.d_embed, generator=torch.Generator().manual_seed(1))
    bank = TextBank(
        captions=("a", "b"), embeds=embeds, logit_scale=1.0, logit_bias=None, encoder_id=cls_tower.encoder_id
    )
    model = build({})
    model.vocabulary = bank
    assert model.process_weights().vocabulary is bank
    assert cls_tower.process_weights().vocabulary is None


def test_same_encoder_other_fingerprint_so_reference_means_are_refused(cls_tower):
    from vit_lens import ReferenceMeans
    from vit_lens.errors import ReferenceMismatchError

    made = cls_tower.process_weights()
    assert made.encoder_id == cls_tower.encoder_id
    assert made.fingerprint != cls_tower.fingerprint
    means = ReferenceMeans.from_images(cls_tower, images(cls_tower))
    assert means.check(cls_tower)
    with pytest.raises(ReferenceMismatchError):
        means.check(made)


def test_in_two_turns_as_in_one(tower):
    once = tower.process_weights()
    twice = tower.process_weights(**only("fold_ln")).process_weights(fold_ln=False)
    assert twice.processing == once.processing
    for name, tensor in once.state_dict().items():
        torch.testing.assert_close(twice.state_dict()[name], tensor, rtol=0, atol=1e-12, msg=name)
    again = once.process_weights().state_dict()
    for name, tensor in once.state_dict().items():
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_dtypes_stay_what_they_are(cls_tower, dtype):
    model = build({}).to(dtype)
    made = model.process_weights()
    assert {parameter.dtype for parameter in made.parameters()} == {dtype}
    wanted, found = model(images(model)).double(), made(images(model)).double()
    assert (found - wanted).abs().max() < {torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype] * wanted.abs().max()


def test_refusals(cls_tower):
    from vit_lens.errors import VitLensError

    with pytest.raises(VitLensError, match="no step is asked for"):
        cls_tower.process_weights(fold_ln=False, fold_value_biases=False, center_writing_weights=False)
    model = build({})
    model.add_hook("hook_embed", lambda x, hook: x)
    with pytest.raises(VitLensError, match="hook_embed"):
        model.process_weights()


def test_the_report_can_be_read(tower):
    told = repr(tower.process_weights().processing)
    assert "blocks.{l}.attn.hook_z" in told and "without b_V" in told
    assert "blocks.1." not in told
    assert ("ln_pre's weight stays" in told) is (tower.ln_pre is not None)


def test_the_guide_runs_as_written():
    snippets = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    assert len(snippets) >= 2
    exec(compile("\n".join(snippets), DOC.name, "exec"), {})
