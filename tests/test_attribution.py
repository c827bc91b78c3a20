"""Attribution: every term against runs in which one part is missing and everything later is held fixed."""

import copy
import dataclasses
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

pytestmark = pytest.mark.tl3

EXACT = dict(rtol=0, atol=1e-10)
KINDS = ("hf", "cls", "avg_patches", "avg_pooled", "map", "coca", "registers")


def build(kind):
    import conftest

    from vit_lens import HookedViT

    if kind in ("map", "coca"):
        return conftest.randomize(HookedViT(conftest.pooling_config(kind)).double())
    if kind == "registers":
        cfg = dataclasses.replace(
            conftest.pooling_config("map"), pool="avg", attn_pool=None, has_cls=True, n_registers=2, has_ln_pre=True,
            image_size=(23, 28),
        )  # fmt: skip
        return conftest.randomize(HookedViT(cfg).double())
    pools = {
        "cls": {},
        "avg_patches": {"pool_type": "avg"},
        "avg_pooled": {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
    }
    return HookedViT.from_module(conftest.open_clip_tower(**pools[kind]))


class Run:
    """A tower, two images, what it made of them, and runs of it with one part missing."""

    def __init__(self, model):
        self.model = model.requires_grad_(False)
        generator = torch.Generator().manual_seed(11)
        self.pixels = torch.randn(2, 3, *model.cfg.image_size, dtype=torch.float64, generator=generator)
        self.out, self.cache = model.run_with_cache(self.pixels)

    def without(self, edits, layer=-1, attn=True, model=None):
        """The embedding under ``edits``, with what is written after ``layer`` and every later scale held fixed.

        ``attn``: whether the layer's own attention output is held fixed too (its MLP output always is).
        """
        model = model or self.model
        later = [
            f"blocks.{i}.hook_{part}" for i in range(layer + 1, model.cfg.n_layers) for part in ("attn_out", "mlp_out")
        ]
        if layer >= 0:
            later += [f"blocks.{layer}.hook_mlp_out"] + ([f"blocks.{layer}.hook_attn_out"] if attn else [])
        pool = ("attn_pool.attn.hook_pattern", "attn_pool.hook_mlp_out", "attn_pool.ln_post.hook_scale")
        later += ["ln_final.hook_scale", *(name for name in pool if name in model.hook_dict)]
        edited = {name for name, _ in edits}
        keep = [(name, lambda act, hook: self.cache[hook.name].clone()) for name in later if name not in edited]
        return model.run_with_hooks(self.pixels, fwd_hooks=[*keep, *edits])


@pytest.fixture(scope="module")
def runs(request):
    made = {}

    def get(kind):
        if kind not in made:
            model = request.getfixturevalue("vit") if kind == "hf" else build(kind)
            made[kind] = Run(model)
        return made[kind]

    return get


@pytest.fixture(params=KINDS)
def run(request, runs):
    return runs(request.param)


@pytest.fixture(scope="module")
def cls_run(runs):
    return runs("cls")


def zero(*index):
    def edit(act, hook):
        act = act.clone()
        act[(slice(None), slice(None), *index)] = 0
        return act

    return edit


def directions(model, n=3):
    return torch.randn(n, model.cfg.d_embed, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


# ---- the split of the embedding -----------------------------------------------------------------------------


def test_the_parts_add_up_to_the_embedding(run):
    from vit_lens.attribution import split_embedding

    parts = split_embedding(run.cache)
    torch.testing.assert_close(parts.total, run.out, **EXACT)
    cfg = run.model.cfg
    assert parts.labels[:2] == ["embed", "pos_embed"]
    assert len(parts.select("head")) == cfg.n_layers * cfg.n_heads
    assert len(set(parts.labels)) == len(parts)


def test_a_part_is_what_a_run_without_it_lacks(run):
    from vit_lens.attribution import split_embedding

    parts = split_embedding(run.cache)
    for name in ("embed", "pos_embed"):
        lacking = run.without([(f"hook_{name}", zero())])
        torch.testing.assert_close(run.out - lacking, parts[name], **EXACT)
    for layer in range(run.model.cfg.n_layers):
        for head in range(run.model.cfg.n_heads):
            lacking = run.without([(f"blocks.{layer}.attn.hook_z", zero(head))], layer, attn=False)
            torch.testing.assert_close(run.out - lacking, parts[f"L{layer}H{head}"], **EXACT)
        lacking = run.without([(f"blocks.{layer}.hook_mlp_out", zero())], layer)
        torch.testing.assert_close(run.out - lacking, parts[f"L{layer}.mlp"], **EXACT)
        bias = run.model.blocks[layer].attn.b_O
        lacking = run.without([(f"blocks.{layer}.hook_attn_out", lambda act, hook, b=bias: act - b)], layer)
        torch.testing.assert_close(run.out - lacking, parts[f"L{layer}.b_O"], **EXACT)


def test_a_constant_is_what_a_model_without_the_bias_lacks(run):
    from vit_lens.attribution import split_embedding

    parts = split_embedding(run.cache)
    names = {
        "ln_final.b": "ln_final.b", "pool.b_V": "attn_pool.attn.b_V", "pool.b_O": "attn_pool.attn.b_O",
        "pool.ln_post.b": "attn_pool.ln_post.b", "b_U": "unembed.b_U",
    }  # fmt: skip
    constants = parts.select("constant").labels
    assert constants == [label for label, name in names.items() if name in dict(run.model.named_parameters())]
    for label in constants:
        model = copy.deepcopy(run.model)
        model.get_parameter(names[label]).data.zero_()
        torch.testing.assert_close(run.out - run.without([], model=model), parts[label], **EXACT)
    if "attn_pool.hook_mlp_out" in run.model.hook_dict:
        lacking = run.without([("attn_pool.hook_mlp_out", zero())])
        torch.testing.assert_close(run.out - lacking, parts["pool.mlp"], **EXACT)


def test_a_neuron_is_what_a_run_without_it_lacks(run):
    from vit_lens.attribution import neuron_parts, split_embedding

    layer = 1
    whole = split_embedding(run.cache, neuron_layers=[layer])
    torch.testing.assert_close(whole.total, run.out, **EXACT)
    some = neuron_parts(run.cache, layer, [3, 0])
    assert some.labels == ["L1N3", "L1N0"]
    for neuron, value in zip((3, 0), some.values, strict=True):
        edits = [
            (f"blocks.{layer}.mlp.hook_post", zero(neuron)),
            (f"blocks.{layer}.hook_mlp_out", lambda act, hook: None),
        ]
        torch.testing.assert_close(run.out - run.without(edits, layer), value, **EXACT)
        torch.testing.assert_close(whole[f"L1N{neuron}"], value, **EXACT)
    mlp = whole.select("neuron", "mlp_bias").total
    torch.testing.assert_close(mlp, split_embedding(run.cache)["L1.mlp"], **EXACT)
    torch.testing.assert_close(neuron_parts(run.cache, layer, slice(2, 4)).values[1], some.values[0], **EXACT)


def test_neurons_are_the_same_in_small_chunks(cls_run, monkeypatch):
    from vit_lens.attribution import neuron_parts, parts

    whole = neuron_parts(cls_run.cache, 2)
    monkeypatch.setattr(parts, "_CHUNK_NUMBERS", 5 * cls_run.model.cfg.d_model * 2)
    torch.testing.assert_close(neuron_parts(cls_run.cache, 2).values, whole.values, **EXACT)


def test_earlier_blocks_can_stay_together(run):
    from vit_lens.attribution import split_embedding

    parts, all_parts = split_embedding(run.cache, start_layer=2), split_embedding(run.cache)
    assert parts.labels[0] == "L2.resid_pre"
    torch.testing.assert_close(parts.total, run.out, **EXACT)
    earlier = [name for name in all_parts.labels if name.endswith("embed") or name.startswith(("L0", "L1"))]
    torch.testing.assert_close(parts["L2.resid_pre"], all_parts.select(*earlier).total, **EXACT)


@pytest.mark.parametrize("kind", ["hf", "cls", "avg_patches", "avg_pooled", "registers"])
def test_a_cache_of_the_readout_rows_is_enough(runs, kind):
    from vit_lens.attribution import split_embedding

    run = runs(kind)
    _, cache = run.model.run_with_cache(run.pixels, rows="readout")
    parts, full = split_embedding(cache), split_embedding(run.cache)
    torch.testing.assert_close(parts.total, run.out, **EXACT)
    torch.testing.assert_close(parts["L1H2"], full["L1H2"], **EXACT)


def test_the_named_hooks_are_enough_and_needed(run):
    from vit_lens.attribution import hook_names, neuron_parts, split_embedding, token_parts

    names = hook_names(run.model, tokens=True, neuron_layers=[1], layers=[2])
    _, cache = run.model.run_with_cache(run.pixels, names_filter=names)
    assert set(cache.cache_dict) == set(names)
    torch.testing.assert_close(split_embedding(cache).total, run.out, **EXACT)
    assert neuron_parts(cache, 1).values.isfinite().all()
    torch.testing.assert_close(token_parts(cache, layers=[2]), token_parts(run.cache)[:, 2:], **EXACT)


def test_sites_and_frame(run):
    from vit_lens import Address, Site
    from vit_lens.attribution import split_embedding

    parts = split_embedding(run.cache)
    assert parts.sites[parts.labels.index("L1H2")] == Site(1, "head", 2)
    assert parts.sites[parts.labels.index("L2.mlp")] == Site(2, "mlp")
    assert parts.sites[parts.labels.index("embed")] is None
    torch.testing.assert_close(parts[Site(1, "head", 2)], parts["L1H2"])
    for label in parts.labels:
        address = Address.parse(label)
        assert str(address) == label and parts[address] is not None and torch.equal(parts[label.upper()], parts[label])
    assert parts.select("l1.B_o", Address.parse("L1H2"), "embed").labels[-2:] == ["L1H2", "L1.b_O"]
    frame = parts.to_frame()
    assert len(frame) == 2 * len(parts)
    np.testing.assert_allclose(frame.groupby("image")["share"].sum(), 1, atol=1e-10)
    row = frame[(frame["component"] == "L1H2") & (frame["image"] == 1)].iloc[0]
    assert (row["layer"], row["head"], row["kind"]) == (1, 2, "head")
    assert row["norm"] == pytest.approx(parts["L1H2"][1].norm().item())
    expected = F.cosine_similarity(parts["L1H2"][1], run.out[1], 0) * parts["L1H2"][1].norm() / run.out[1].norm()
    assert row["share"] == pytest.approx(expected.item())


# ---- the frozen read-out --------------------------------------------------------------------------------------


def test_the_frozen_readout_is_linear_and_gives_the_embedding(run):
    from vit_lens.attribution import FrozenReadout

    readout = FrozenReadout(run.cache)
    last = run.cache.readout(f"blocks.{run.model.cfg.n_layers - 1}.hook_resid_post")
    torch.testing.assert_close(readout(last) + readout.constant, run.out, **EXACT)
    torch.testing.assert_close(readout.embedding, run.out, **EXACT)
    torch.testing.assert_close(readout(torch.stack([last, 2 * last]))[1], 2 * readout(last), **EXACT)


def test_the_frozen_readout_is_the_derivative_with_scales_held(run):
    """Autograd through the hooked model, every scale and pattern replaced by its cached value."""
    from vit_lens.attribution import FrozenReadout

    model, along = run.model, directions(run.model)
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    resid = run.cache[last].clone().requires_grad_()
    out = run.without([(last, lambda act, hook: act * 0 + resid)], model.cfg.n_layers - 1)
    readout = FrozenReadout(run.cache)
    back = readout.pull_back(along)
    for i, direction in enumerate(along):
        (slope,) = torch.autograd.grad((out @ direction).sum(), resid, retain_graph=True)
        if model.readout.kind == "pooled":  # the mean row: each patch has its share of it
            torch.testing.assert_close(slope[:, model.cfg.n_prefix :].sum(1, keepdim=True), back[i], **EXACT)
        else:
            torch.testing.assert_close(model.readout_rows(slope), back[i], **EXACT)


def test_the_pull_back_is_the_transpose(run):
    from vit_lens.attribution import FrozenReadout

    readout, along = FrozenReadout(run.cache), directions(run.model)
    rows = torch.randn(run.cache.readout("blocks.0.hook_resid_pre").shape, dtype=torch.float64)
    torch.testing.assert_close(readout(rows) @ along.T, (readout.pull_back(along) * rows).sum((-1, -2)).T, **EXACT)


def test_an_edited_scale_is_part_of_the_run(run):
    from vit_lens.attribution import split_embedding

    with run.model.hooks([("ln_final.hook_scale", lambda act, hook: act * 1.7)]):
        out, cache = run.model.run_with_cache(run.pixels)
    torch.testing.assert_close(split_embedding(cache).total, out, **EXACT)
    assert (out - run.out).abs().max() > 1e-3


def test_an_edited_head_is_part_of_the_run(run):
    from vit_lens.attribution import split_embedding

    with run.model.hooks([("blocks.1.attn.hook_z", lambda act, hook: act * 3)]):
        out, cache = run.model.run_with_cache(run.pixels)
    torch.testing.assert_close(split_embedding(cache).total, out, **EXACT)


@pytest.mark.parametrize(
    ("name", "says"),
    [("blocks.1.hook_resid_mid", "do not add up to its last residual"), ("hook_pooled", "edited after the last block")],
)
def test_a_run_whose_parts_do_not_add_up_is_refused(run, name, says):
    from vit_lens.attribution import split_embedding
    from vit_lens.errors import LensError

    with run.model.hooks([(name, lambda act, hook: act + torch.linspace(0, 1, act.shape[-1]).to(act))]):
        _, cache = run.model.run_with_cache(run.pixels)
    with pytest.raises(LensError, match=says):
        split_embedding(cache)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_adds_up_to_its_rounding(runs, dtype):
    from vit_lens.attribution import split_embedding

    model = copy.deepcopy(runs("avg_patches").model).to(dtype)
    out, cache = model.run_with_cache(runs("avg_patches").pixels.to(dtype))
    parts = split_embedding(cache)
    assert parts.values.dtype == torch.float32
    error = (parts.total - out).abs().max() / out.abs().max()
    assert error < (1e-5 if dtype == torch.float32 else 0.05)


# ---- tokens -------------------------------------------------------------------------------------------------


def test_a_token_through_a_head_is_what_a_run_without_its_value_lacks(run):
    from vit_lens.attribution import token_parts

    tokens, cfg = token_parts(run.cache), run.model.cfg
    assert tokens.shape == (2, cfg.n_layers, cfg.n_heads, cfg.n_ctx, cfg.d_embed)
    for layer, head, token in ((0, 0, 0), (1, 2, cfg.n_ctx - 1), (2, 1, 1)):

        def silence(act, hook, token=token, head=head):
            act = act.clone()
            act[:, token, head] = 0
            return act

        edits = [
            (f"blocks.{layer}.attn.hook_v", silence),
            (f"blocks.{layer}.attn.hook_pattern", lambda act, hook: run.cache[hook.name].clone()),
        ]
        lacking = run.without(edits, layer, attn=False)
        torch.testing.assert_close(run.out - lacking, tokens[:, layer, head, token], **EXACT)


def test_the_tokens_of_a_head_add_up_to_the_head(run):
    from vit_lens.attribution import split_embedding, token_parts

    parts, tokens = split_embedding(run.cache), token_parts(run.cache, layers=[2, 0])
    for i, layer in enumerate((2, 0)):
        for head in range(run.model.cfg.n_heads):
            torch.testing.assert_close(tokens[:, i, head].sum(1), parts[f"L{layer}H{head}"], **EXACT)


@pytest.mark.parametrize("units", ["dot", "cosine"])
def test_projected_tokens_are_the_tokens_projected(run, units):
    from vit_lens.attribution import direct_attribution, token_attribution, token_parts

    along = directions(run.model)
    found = token_attribution(run.cache, along, units=units, layers=[1, 2])
    expected = token_parts(run.cache, layers=[1, 2]) @ along.T
    if units == "cosine":
        expected = expected / along.norm(dim=1) / run.out.norm(dim=1)[:, None, None, None, None]
    torch.testing.assert_close(found.values, expected, **EXACT)
    direct = direct_attribution(run.cache, along, units=units)
    heads = [i for i, c in enumerate(direct.components) if c.kind == "head" and c.layer in (1, 2)]
    torch.testing.assert_close(found.values.sum(3).flatten(1, 2).transpose(0, 1), direct.values[heads], **EXACT)


@pytest.mark.parametrize("kind", ["map", "coca"])
def test_the_heads_of_attention_pooling_and_their_tokens(runs, kind):
    from vit_lens.attribution import pool_token_parts, split_pooling

    run = runs(kind)
    parts, tokens = split_pooling(run.cache), pool_token_parts(run.cache)
    torch.testing.assert_close(parts.total, run.out, **EXACT)
    for head in range(run.model.cfg.attn_pool.n_heads):
        lacking = run.without([("attn_pool.attn.hook_z", zero(head))])
        torch.testing.assert_close(run.out - lacking, parts[f"poolH{head}"], **EXACT)
    assert str(parts.sites[0]) == "poolH0"

    def silence(act, hook):
        act = act.clone()
        act[:, 4, 1] = 0
        return act

    lacking = run.without([("attn_pool.attn.hook_v", silence)])
    torch.testing.assert_close(run.out - lacking, tokens[:, 1, 4], **EXACT)


# ---- direct attribution ------------------------------------------------------------------------------------


def bank_for(model, bias=None):
    from vit_lens import TextBank

    names = ("a cup", "a dog", "two boats", "<b>snow</b>")
    return TextBank(
        captions=names, embeds=directions(model, 4), logit_scale=13.7, logit_bias=bias, encoder_id=model.encoder_id
    )


def test_direct_attribution_adds_up_to_cosines_dots_and_logits(run):
    from vit_lens.attribution import direct_attribution

    along = directions(run.model)
    cosine = F.cosine_similarity(run.out[:, None], along[None], dim=-1)
    torch.testing.assert_close(direct_attribution(run.cache, along).total, cosine, **EXACT)
    torch.testing.assert_close(direct_attribution(run.cache, along, units="dot").total, run.out @ along.T, **EXACT)
    torch.testing.assert_close(direct_attribution(run.cache, along[0]).total, cosine[:, :1], **EXACT)
    for bias in (None, -2.5):
        bank = bank_for(run.model, bias)
        found = direct_attribution(run.cache, bank, units="logit")
        torch.testing.assert_close(found.total, bank.logits(run.out), **EXACT)
        assert (found.components[-1].label == "logit_bias") == (bias is not None)


def test_each_value_is_the_part_along_the_direction(run):
    from vit_lens.attribution import direct_attribution, split_embedding

    along, parts = directions(run.model), split_embedding(run.cache)
    found = direct_attribution(run.cache, along)
    assert [c.label for c in found.components] == parts.labels
    i, image, direction = parts.labels.index("L2H1"), 1, 2
    expected = parts["L2H1"][image] @ along[direction] / run.out[image].norm() / along[direction].norm()
    torch.testing.assert_close(found.values[i, image, direction], expected, **EXACT)


def test_differences_of_captions(run):
    from vit_lens.attribution import direct_attribution

    bank = bank_for(run.model, bias=-2.5)
    logits, embeds = bank.logits(run.out), bank.embeds
    found = direct_attribution(run.cache, bank, captions=["two boats", "a cup"], minus="a dog", units="logit")
    assert found.names == ("two boats - a dog", "a cup - a dog")
    torch.testing.assert_close(found.total, logits[:, [2, 0]] - logits[:, [1]], **EXACT)
    cosines = bank.cosines(run.out)
    plain = direct_attribution(run.cache, embeds[:1], minus=embeds[1])
    torch.testing.assert_close(plain.total, cosines[:, :1] - cosines[:, 1:2], **EXACT)
    dot = direct_attribution(run.cache, embeds[:1], minus=embeds[1], units="dot")
    torch.testing.assert_close(dot.total, run.out @ (embeds[0] - embeds[1])[:, None], **EXACT)


def test_the_frame_of_a_direct_attribution(cls_run):
    from vit_lens.attribution import direct_attribution

    found = direct_attribution(cls_run.cache, bank_for(cls_run.model), captions=["a dog", "a cup"])
    frame = found.to_frame()
    assert list(frame.columns) == ["component", "layer", "head", "kind", "image", "direction", "value"]
    assert len(frame) == found.values.numel()
    for index, row in ((0, frame.iloc[0]), (len(frame) - 1, frame.iloc[-1])):
        assert row["value"] == found.values.flatten()[index].item()
    pick = frame[(frame["component"] == "L1H2") & (frame["image"] == 1) & (frame["direction"] == "a cup")]
    where = [c.label for c in found.components].index("L1H2")
    assert pick["value"].item() == found.values[where, 1, 1].item()
    ordered = found.to_frame(sort=True)
    assert list(ordered["direction"].unique()) == ["a dog", "a cup"]
    for _, group in ordered.groupby(["image", "direction"], sort=False):
        assert group["value"].abs().is_monotonic_decreasing
    assert sorted(ordered["value"]) == sorted(frame["value"])


# ---- maps ---------------------------------------------------------------------------------------------------


def test_an_attention_map_is_the_softmax_laid_out_on_the_grid(run):
    from vit_lens.attribution import attention_map

    cfg, layer, head = run.model.cfg, 1, 2
    q, k = (run.cache[f"blocks.{layer}.attn.hook_{name}"][:, :, head] for name in "qk")
    pattern = (q @ k.transpose(1, 2) / cfg.d_head**0.5).softmax(-1)
    prefix = ["cls"] * cfg.has_cls + [f"register{i}" for i in range(cfg.n_registers)]
    queries = {name: i for i, name in enumerate(prefix)} | {(1, 2): len(prefix) + cfg.grid[1] + 2, (0, 0): len(prefix)}
    for query, position in queries.items():
        if cfg.grid[1] < 3 and query == (1, 2):
            continue
        found = attention_map(run.cache, layer, head, query)
        if position >= len(prefix):
            named = attention_map(run.cache, layer, head, f"patch{position - len(prefix)}")
            assert torch.equal(named.values, found.values) and named.title == found.title
            assert found.title == f"attention of L1H2 from patch {query}"
        torch.testing.assert_close(found.total, torch.ones(2, dtype=torch.float64), **EXACT)
        assert list(found.prefix) == prefix
        for i, name in enumerate(prefix):
            torch.testing.assert_close(found.prefix[name], pattern[:, position, i], **EXACT)
        for row in range(cfg.grid[0]):
            for column in range(cfg.grid[1]):
                token = len(prefix) + row * cfg.grid[1] + column
                torch.testing.assert_close(found.values[:, row, column], pattern[:, position, token], **EXACT)


@pytest.mark.parametrize("kind", ["map", "coca"])
def test_the_map_of_attention_pooling(runs, kind):
    from vit_lens.attribution import pool_attention_map

    run = runs(kind)
    cfg, head = run.model.cfg, 1
    q, k = (run.cache[f"attn_pool.attn.hook_{name}"][:, :, head] for name in "qk")
    pattern = (q @ k.transpose(1, 2) / cfg.attn_pool.d_head**0.5).softmax(-1)[:, 0]
    found = pool_attention_map(run.cache, head)
    assert len(found.prefix) == cfg.n_prefix
    torch.testing.assert_close(found.values.flatten(1), pattern[:, cfg.n_prefix :], **EXACT)
    torch.testing.assert_close(found.total, torch.ones(2, dtype=torch.float64), **EXACT)
    single = run.cache.apply_slice_to_batch_dim(0)
    refuse(lambda: pool_attention_map(single, head), "LensError", "batch axis")


def test_token_maps_keep_everything(run):
    from vit_lens.attribution import token_attribution

    found = token_attribution(run.cache, bank_for(run.model), layers=[0, 2])
    values, cfg = found.values, run.model.cfg
    whole = found.map(direction="a dog")
    torch.testing.assert_close(whole.total, values[..., 1].sum((1, 2, 3)), **EXACT)
    one = found.map(layer=2, head=1, direction=3)
    torch.testing.assert_close(one.values[:, 1, 1], values[:, 1, 1, cfg.n_prefix + cfg.grid[1] + 1, 3], **EXACT)
    assert one.signed and "L2, H1, to <b>snow</b>" in one.title
    torch.testing.assert_close(found.map(head=0).total, values[:, :, 0, :, 0].sum((1, 2)), **EXACT)


# ---- the original image -------------------------------------------------------------------------------------

SIZES = [(60, 90), (91, 60), (60, 60), (100, 61), (33, 47)]
TARGETS = [
    ((28, 28), "shortest", None), ((28, 28), "longest", None), ((28, 28), "squash", None),
    ((28, 42), "shortest", None), ((28, 42), "longest", None), ((28, 28), "shortest", 33),
]  # fmt: skip


def spec_for(size, mode, interpolation="bicubic", edge=None):
    from vit_lens import PreprocessSpec

    return PreprocessSpec(
        size=size,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        interpolation=interpolation,
        resize_mode=mode,
        fill_color=0,
        resize_edge=edge,
    )


def grid_map(size, patch=(7, 7)):
    from vit_lens.attribution import PatchMap

    rows, columns = size[0] // patch[0], size[1] // patch[1]
    return PatchMap(torch.arange(rows * columns).reshape(1, rows, columns).double(), {}, "m", "u", False, patch)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("target", "mode", "edge"), TARGETS)
def test_a_coloured_box_lights_up_its_patch(size, target, mode, edge):
    """Paint one patch's box white in a black original: the patch becomes white, its neighbours stay dark."""
    from vit_lens.attribution import Placement
    from vit_lens.images import preprocess

    spec, patches = spec_for(target, mode, edge=edge), grid_map(target)
    place = Placement.of_size(size, spec)
    rows, columns = target[0] // 7, target[1] // 7
    painted = 0
    for row in range(rows):
        for column in range(columns):
            top, left, bottom, right = place.boxes(patches)[row, column]
            if top < 0 or left < 0 or bottom > size[0] or right > size[1]:
                continue  # on the padding
            picture = _paint(size, (top, left, bottom, right))
            seen = preprocess(Image.fromarray(picture), spec)[0, 0]
            means = seen.reshape(rows, 7, columns, 7).mean((1, 3))
            # the share of each patch that is white: 1 here, 0 elsewhere, up to the resize's blur over an edge
            expected = torch.zeros(rows, columns)
            expected[row, column] = 1
            torch.testing.assert_close(means, expected, rtol=0, atol=0.13)
            painted += 1
    assert painted > 0


def _paint(size, box):
    """A picture that is white in a box with fractional edges; pixels on its edge are grey by how much is inside."""
    top, left, bottom, right = box
    inside = [
        np.clip(np.minimum(np.arange(n) + 1, high) - np.maximum(np.arange(n), low), 0, 1)
        for n, low, high in ((size[0], top, bottom), (size[1], left, right))
    ]
    return np.repeat(np.rint(255 * np.outer(*inside))[..., None], 3, -1).astype(np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("target", "mode", "edge"), TARGETS)
def test_pixels_come_from_where_the_placement_says(size, target, mode, edge):
    """Ramps survive a resize: each pixel that the tower sees tells which row and column it was made of."""
    from vit_lens.attribution import Placement
    from vit_lens.images import preprocess

    spec = spec_for(target, mode, "bilinear", edge)
    place = Placement.of_size(size, spec)
    for axis in (0, 1):
        ramp = (np.arange(size[axis]) + 20).astype(np.uint8)
        shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
        picture = np.broadcast_to(ramp.reshape(shape), (*size, 3)).copy()
        seen = preprocess(Image.fromarray(picture), spec)[0, 0].numpy() * 255 - 20
        line = seen.mean(1 - axis) if mode != "longest" else seen.max(1 - axis)
        expected = place.offset[axis] + place.step[axis] * (np.arange(target[axis]) + 0.5) - 0.5
        reach = 2 * max(1, place.step[axis])  # at the borders the filter is cut
        clear = (expected > reach) & (expected < size[axis] - 1 - reach)
        assert clear.sum() >= 3
        np.testing.assert_allclose(line[clear], expected[clear], atol=0.55)


def test_what_the_tower_saw():
    from vit_lens.attribution import Placement

    assert Placement.of_size((60, 90), spec_for((20, 20), "shortest")).visible == (0, 15, 60, 75)
    assert Placement.of_size((60, 90), spec_for((20, 20), "squash")).visible == (0, 0, 60, 90)
    padded = Placement.of_size((60, 90), spec_for((30, 30), "longest"))
    assert padded.visible == (0, 0, 60, 90)
    assert padded.offset == (-15, 0)
    assert padded.edges(grid_map((30, 30), (5, 5)))[0].tolist() == [-15, 0, 15, 30, 45, 60, 75]


def test_a_picture_is_placed_as_it_is_turned(tmp_path):
    """A photo that lies on its side in the file is upright for the tower, and for the map."""
    from vit_lens.attribution import Placement

    picture = Image.new("RGB", (90, 60))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert Placement.of(tmp_path / "turned.jpg", spec_for((20, 20), "shortest")).size == (90, 60)


# ---- figures ------------------------------------------------------------------------------------------------


def test_the_overlay_lies_where_the_patches_lie():
    from vit_lens.attribution import Placement
    from vit_lens.figures import patch_overlay

    spec, patches = spec_for((28, 28), "shortest"), grid_map((28, 28))
    patches = dataclasses.replace(patches, prefix={"cls": torch.tensor([0.25])})
    figure = patch_overlay(Image.new("RGB", (90, 60)), patches, spec)
    heat = figure.data[1]
    down, right = Placement.of_size((60, 90), spec).edges(patches)
    np.testing.assert_allclose(np.array(heat.x) + 0.5, right)
    np.testing.assert_allclose(np.array(heat.y) + 0.5, down)
    np.testing.assert_array_equal(heat.z, patches.values[0])
    assert "cls 0.25" in figure.layout.title.text
    assert heat.opacity == 0.6
    assert patch_overlay(Image.new("RGB", (90, 60)), patches, spec, opacity=0.25).data[1].opacity == 0.25
    dimmed = sorted((shape.x0 + 0.5, shape.x1 + 0.5) for shape in figure.layout.shapes)
    assert dimmed == [(0, 15), (75, 90)]
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]


def test_nothing_is_dimmed_where_all_was_seen():
    from vit_lens.figures import patch_overlay

    figure = patch_overlay(Image.new("RGB", (90, 45)), grid_map((28, 28)), spec_for((28, 28), "longest"))
    assert not figure.layout.shapes
    assert figure.layout.yaxis.range[1] == pytest.approx(-23)  # the padding is drawn as empty paper


@pytest.mark.parametrize("neurons", [[], [1]])
def test_the_attribution_map_is_the_attribution(run, neurons):
    from vit_lens.attribution import direct_attribution
    from vit_lens.figures import attribution_map

    found = direct_attribution(run.cache, bank_for(run.model), neuron_layers=neurons)
    figure = attribution_map(found, image=1, direction="<b>snow</b>")
    heat, cfg = figure.data[0], run.model.cfg
    values = direct_attribution(run.cache, bank_for(run.model)).values[:, 1, 3]
    labels = [c.label for c in direct_attribution(run.cache, bank_for(run.model)).components]
    for layer in range(cfg.n_layers):
        sites = [f"L{layer}H{head}" for head in range(cfg.n_heads)] + [f"L{layer}.mlp"]
        np.testing.assert_allclose(heat.z[layer], [values[labels.index(site)] for site in sites], atol=1e-10)
        assert list(heat.customdata[layer]) == sites
    assert heat.zmin == -heat.zmax
    assert heat.zmid == 0
    title = figure.layout.title.text
    assert "(cosine)" in title
    assert "<b>" not in title
    rest = (found.total[1, 3] - sum(map(sum, heat.z))).item()
    assert f"constants {rest:.3g}" in title


def test_the_bars_are_the_largest_and_the_rest(cls_run):
    from vit_lens.attribution import direct_attribution
    from vit_lens.figures import attribution_bars

    found = direct_attribution(cls_run.cache, bank_for(cls_run.model), units="logit")
    bars = attribution_bars(found, image=1, direction=2, k=4).data[0]
    values = found.values[:, 1, 2]
    best = values.abs().argsort(descending=True)[:4]
    assert list(bars.y) == [*(found.components[i].label for i in best), f"the other {len(values) - 4}"]
    np.testing.assert_allclose(bars.x[:4], values[best])
    assert sum(bars.x) == pytest.approx(values.sum().item())


# ---- what is refused ----------------------------------------------------------------------------------------


def refuse(call, error, says):
    from vit_lens import errors

    with pytest.raises(getattr(errors, error), match=says):
        call()


def test_caches_that_do_not_do(run):
    from vit_lens import attribution as at

    model, pixels = run.model, run.pixels
    bare_init = inspect.unwrap(at.FrozenReadout.__init__)  # without the suite's own check of types
    refuse(lambda: bare_init(object.__new__(at.FrozenReadout), {}), "LensError", "not dict")
    _, cut = model.run_with_cache(pixels, pos_slice=slice(0, 2))
    refuse(lambda: at.split_embedding(cut), "LensError", "pos_slice")
    _, bare = model.run_with_cache(pixels[:1], remove_batch_dim=True)
    refuse(lambda: at.split_embedding(bare), "LensError", "batch axis")
    _, some = model.run_with_cache(pixels, names_filter=[n for n in at.hook_names(model) if "blocks.1" not in n])
    refuse(lambda: at.split_embedding(some), "UnknownHookError", "blocks.1.attn.hook_z")
    refuse(lambda: at.neuron_parts(some, 0), "UnknownHookError", "blocks.0.mlp.hook_post")
    refuse(lambda: at.token_parts(some), "UnknownHookError", "hook_pattern")
    refuse(lambda: at.attention_map(cut, 0, 0, (0, 0)), "LensError", "hook_names")


def test_tokens_need_every_position(cls_run):
    from vit_lens import attribution as at

    _, cache = cls_run.model.run_with_cache(cls_run.pixels, rows="readout")
    refuse(lambda: at.token_parts(cache), "LensError", "needed at every token.*hook_names")


def test_arguments_that_name_nothing(runs):
    from vit_lens import attribution as at
    from vit_lens import figures

    run = runs("registers")
    model, cache, bank = run.model, run.cache, bank_for(run.model)
    refuse(lambda: at.split_embedding(cache, start_layer=3), "LensError", "layers 0 to 2")
    refuse(lambda: at.neuron_parts(cache, 0, [41]), "LensError", "neurons 0 to 40")
    refuse(lambda: at.neuron_parts(cache, 0, []), "LensError", "at least one")
    refuse(lambda: at.token_parts(cache, layers=[]), "LensError", "at least one")
    refuse(lambda: at.split_embedding(cache)["L9H0"], "UnknownSiteError", "nearest")
    refuse(lambda: at.split_embedding(cache).select("heads"), "UnknownSiteError", "nearest: 'head'")
    refuse(lambda: at.split_embedding(cache).select(), "UnknownSiteError", "nothing")
    refuse(lambda: at.attention_map(cache, 0, 0, "register2"), "LensError", "register2 is out of range: there are 2")
    refuse(lambda: at.attention_map(cache, 0, 0, "registers"), "LensError", "'registers' is 2 tokens")
    refuse(lambda: at.attention_map(cache, 0, 0, (0, 4)), "LensError", "outside the grid of . rows and 4 columns")
    refuse(lambda: at.attention_map(cache, 0, 9), "UnknownSiteError", "H0 to H2")
    refuse(lambda: at.pool_attention_map(cache, 0), "LensError", "the patches")
    refuse(lambda: at.split_pooling(cache), "LensError", "not by attention pooling")
    refuse(lambda: at.pool_token_parts(cache), "LensError", "not by attention pooling")
    unchecked = inspect.unwrap(at.directions.Directions.of.__func__)
    refuse(lambda: unchecked(at.directions.Directions, model, bank, units="bits"), "LensError", "'cosine'")
    refuse(lambda: at.direct_attribution(cache, bank.embeds, units="logit"), "LensError", "TextBank")
    refuse(lambda: at.direct_attribution(cache, bank.embeds, minus="a dog"), "LensError", "pass an embedding")
    refuse(lambda: at.direct_attribution(cache, bank, captions=["a cop"]), "TextError", "a cup")
    refuse(lambda: at.direct_attribution(cache, bank, minus="a cop"), "TextError", "a cup")
    refuse(lambda: at.direct_attribution(cache, torch.randn(2, 5)), "LensError", r"shape \(2, 5\).*\[direction 30\]")
    refuse(
        lambda: at.direct_attribution(cache, bank.embeds, minus=torch.randn(5)), "LensError", "minus= is .* of shape"
    )
    refuse(lambda: at.direct_attribution(cache, bank.embeds * 0), "LensError", "norm zero")
    refuse(lambda: at.direct_attribution(cache, bank.embeds, captions=["one"]), "LensError", "1 captions for 4")
    other = dataclasses.replace(bank, encoder_id="open_clip/other")
    refuse(lambda: at.direct_attribution(cache, other), "TextError", "made for open_clip/other")
    tokens = at.token_attribution(cache, bank, layers=[1])
    refuse(lambda: tokens.map(layer=0), "LensError", r"layers \[1\]")
    refuse(lambda: tokens.map(head=3), "LensError", "heads 0 to 2")
    refuse(lambda: tokens.map(direction="a cop"), "LensError", "a cup")
    found = at.direct_attribution(cache, bank)
    refuse(lambda: figures.attribution_map(found, image=2), "LensError", "images 0 to 1")
    refuse(lambda: figures.attribution_map(found, direction=9), "LensError", "direction 9")
    refuse(lambda: figures.attribution_bars(found, k=0), "LensError", "at least one")
    spec = spec_for((28, 28), "shortest")
    one = at.attention_map(cache, 0, 0)
    refuse(lambda: figures.patch_overlay(Image.new("RGB", (9, 9)), one, spec), "PreprocessError", "another tower")
    refuse(lambda: at.Placement.of(Image.new("RGB", (9, 9)), None), "PreprocessError", "preprocess_spec")
    refuse(lambda: at.Placement.of_size((900, 2), spec_for((28, 28), "longest")), "PreprocessError", "too narrow")
    assert model.cfg.n_registers == 2


# ---- the page -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_snippet_of_the_page_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent / "docs" / "attribution.md").read_text()
    names = {}
    exec(compile("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), "attribution.md", "exec"), names)
    torch.testing.assert_close(names["parts"].total, names["embeds"], rtol=0, atol=1e-5)
    bank, found = names["texts"], names["found"]
    logits = bank.logits(names["embeds"])
    torch.testing.assert_close(found.total, logits[:, :1] - logits[:, 1:2], rtol=0, atol=1e-4)
    assert (tmp_path / "attention.html").is_file()
