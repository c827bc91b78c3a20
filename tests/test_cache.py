"""The cache's algebra: every stack is held to a slow loop or to the run itself, on every kind of read-out."""

import ast
import copy
import logging
import re

import numpy as np
import pytest
import torch
from conftest import open_clip_tower
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import KINDS, LINEAR, OPEN_CLIP, OWN, close, images, own_tower
from torch.utils._python_dispatch import TorchDispatchMode
from transformer_lens import ActivationCache
from transformer_lens.utilities import Slice

pytestmark = pytest.mark.tl3


@pytest.fixture(scope="module")
def models(vit):
    from vit_lens import HookedViT

    built = {kind: HookedViT.from_module(open_clip_tower(**kw)).requires_grad_(False) for kind, kw in OPEN_CLIP.items()}
    return built | {"hf": vit} | {kind: own_tower(kind).requires_grad_(False) for kind in OWN}


@pytest.fixture(scope="module")
def runs(models):
    """For every kind of tower: model, embeddings and a full cache of three images; tests leave the caches alone."""
    return {kind: (model, *model.run_with_cache(images(model))) for kind, model in models.items()}


@pytest.fixture(params=KINDS)
def run(request, runs):
    return runs[request.param]


@pytest.fixture(params=LINEAR)
def linear_run(request, runs):
    return runs[request.param]


def bank_for(model, n=4, **changes):
    from vit_lens.texts import TextBank

    embeds = torch.randn(n, model.cfg.d_embed, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    fields = dict(logit_scale=3.7, logit_bias=None, encoder_id=model.encoder_id) | changes
    return TextBank(captions=tuple(f"caption {i}" for i in range(n)), embeds=embeds, **fields)


class Watch(TorchDispatchMode):
    """The largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor._base is None:
                self.numel = max(self.numel, tensor.numel())
        return out


# ---- sums are the residual stream ----------------------------------------------------------------------------

INPUTS = [(None, False), (-1, False), (3, False), (0, False), (1, False), (2, False), (0, True), (1, True), (2, True)]


def stream(cache, layer, mlp_input):
    if layer in (None, -1, 3):
        return cache["resid_post", 2]
    return cache["resid_mid" if mlp_input else "resid_pre", layer]


@pytest.mark.parametrize(("layer", "mlp_input"), INPUTS)
def test_decompositions_add_up_to_the_stream(run, layer, mlp_input):
    _, _, cache = run
    target = stream(cache, layer, mlp_input)
    parts, labels = cache.decompose_resid(layer, mlp_input, return_labels=True)
    close(parts.sum(0), target)
    n = 3 if layer in (None, -1, 3) else layer
    written = [f"{i}_{part}_out" for i in range(n) for part in ("attn", "mlp")]
    assert labels == ["embed", "pos_embed", *written, *[f"{n}_attn_out"] * mlp_input]
    for expand in (True, False):
        whole, names = cache.get_full_resid_decomposition(layer, mlp_input, expand, return_labels=True)
        close(whole.sum(0), target)
        assert len(names) == len(whole) and names[-3:] == ["embed", "pos_embed", "bias"]
        named = dict(zip(names, whole, strict=True))
        close(named["bias"][0, 0], cache.model.accumulated_bias(n, mlp_input, expand))
        close(named["embed"], cache["hook_embed"])


def test_decompose_modes(run):
    model, _, cache = run
    both = torch.stack([cache["attn_out", 0], cache["attn_out", 1]])
    close(cache.decompose_resid(1, mlp_input=True, mode="attn", incl_embeds=False), both)
    mlps, labels = cache.decompose_resid(mode="mlp", return_labels=True)
    assert labels == ["embed", "pos_embed", "0_mlp_out", "1_mlp_out", "2_mlp_out"]
    close(mlps[3], cache["mlp_out", 1])
    empty = cache.decompose_resid(0, incl_embeds=False)
    assert empty.shape == (0, 3, model.cfg.n_ctx, model.cfg.d_model)


def test_heads_and_neurons_against_loops(run):
    model, _, cache = run
    heads, labels = cache.stack_head_results(2, return_labels=True)
    neurons, neuron_labels = cache.stack_neuron_results(2, neuron_slice=[0, 4, 5], return_labels=True)
    slow = [cache["z", n][:, :, h] @ model.W_O[n, h] for n in range(2) for h in range(model.cfg.n_heads)]
    close(heads, torch.stack(slow))
    assert labels == [f"L{n}H{h}" for n in range(2) for h in range(model.cfg.n_heads)]
    slow = [cache["post", n][:, :, [i]] * model.W_out[n, i] for n in range(2) for i in (0, 4, 5)]
    close(neurons, torch.stack(slow))
    assert neuron_labels == [f"L{n}N{i}" for n in range(2) for i in (0, 4, 5)]


@pytest.mark.parametrize("method", ["stack_head_results", "stack_neuron_results"])
def test_remainders(run, method):
    model, _, cache = run
    stack = getattr(cache, method)
    for layer, target in ((1, cache["resid_post", 0]), (-1, cache["resid_post", 2]), (0, cache["resid_post", -1])):
        parts, labels = stack(layer, incl_remainder=True, return_labels=True, pos_slice=-1)
        close(parts.sum(0), target[:, -1])
        assert labels[-1] == "remainder" and len(labels) == len(parts)
        close(parts[:-1], stack(layer, pos_slice=-1))
        if layer == 0:
            assert labels == ["remainder"]
    assert stack(0, pos_slice=(1, 3)).shape == (0, 3, 2, model.cfg.d_model)
    with pytest.raises(ValueError, match="nothing before it"):
        stack(0, incl_remainder=True, apply_ln=True)
    parts = cache.stack_neuron_results(1, incl_remainder=True, mlp_input=True)
    close(parts.sum(0), cache["resid_mid", 1])
    normed = cache.stack_neuron_results(1, incl_remainder=True, mlp_input=True, apply_ln=True)
    close(normed.sum(0) + model.blocks[1].ln2.b, cache["blocks.1.ln2.hook_normalized"])


def test_accumulated_resid(run):
    _, _, cache = run
    stack, labels = cache.accumulated_resid(incl_mid=True, return_labels=True, pos_slice=-1)
    assert labels == ["0_pre", "0_mid", "1_pre", "1_mid", "2_pre", "2_mid", "final_post"]
    close(stack[3], cache["resid_mid", 1][:, -1])
    close(stack[-1], cache["resid_post", 2][:, -1])
    for layer in (-1, 3):
        assert torch.equal(cache.accumulated_resid(layer, incl_mid=True, pos_slice=Slice(-1)), stack)
    assert "mid" not in "".join(cache.accumulated_resid(return_labels=True)[1])
    part, labels = cache.accumulated_resid(1, incl_mid=True, mlp_input=True, return_labels=True)
    assert labels == ["0_pre", "0_mid", "1_pre", "1_mid"]
    close(part[-1], cache["resid_mid", 1])


def test_the_same_as_upstream(run):
    """On a whole cache TransformerLens' own code, with its bare norm, gives the same."""
    model, _, ours = run
    theirs = ActivationCache(dict(ours.cache_dict), model)
    direction = torch.randn(model.cfg.d_model, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    calls = [
        ("accumulated_resid", dict(layer=2, incl_mid=True)),
        ("decompose_resid", dict(layer=2, mlp_input=True)),
        ("stack_head_results", dict(layer=2, incl_remainder=True, pos_slice=1)),
        ("stack_head_results", dict(layer=0, incl_remainder=True, pos_slice=(1, 3))),
        ("stack_neuron_results", dict(layer=-1, neuron_slice=(2, 9), pos_slice=[0, 2], incl_remainder=True)),
        ("stack_neuron_results", dict(layer=1, project_output_onto=direction)),
        ("stack_neuron_results", dict(layer=1, project_output_onto=direction[:, 0])),
        ("get_neuron_results", dict(layer=1, pos_slice=0)),
        ("get_neuron_results", dict(layer=1, neuron_slice=3)),
        ("get_neuron_results", dict(layer=1, neuron_slice=[3, 1], project_output_onto=direction)),
        ("get_neuron_results", dict(layer=1, project_output_onto=direction[:, 0])),
        ("get_full_resid_decomposition", dict(layer=2, expand_neurons=False)),
        ("get_full_resid_decomposition", dict(layer=2, project_output_onto=direction)),
        ("stack_activation", dict(activation_name="scale", layer=2, sublayer_type="ln1")),
    ]
    for method, kwargs in calls:
        expected, got = getattr(theirs, method)(**kwargs), getattr(ours, method)(**kwargs)
        close(got, expected)
    stack = ours.decompose_resid()
    for kwargs in (dict(layer=1), dict(layer=2, mlp_input=True), dict(recompute_ln=True), dict(layer=-1)):
        bare = {} if kwargs.get("recompute_ln") else dict(weight=False)
        close(ours.apply_ln_to_stack(stack, **kwargs, **bare), theirs.apply_ln_to_stack(stack, **kwargs))


# ---- norms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "mlp_input", "name"),
    [(0, False, "blocks.0.ln1"), (2, False, "blocks.2.ln1"), (1, True, "blocks.1.ln2"), (None, False, "ln_final")],
)
def test_a_norm_of_all_components_and_its_bias_is_hook_normalized(run, layer, mlp_input, name):
    model, _, cache = run
    whole = cache.get_full_resid_decomposition(layer, mlp_input, expand_neurons=layer == 2)
    normed = cache.apply_ln_to_stack(whole, layer, mlp_input, incl_bias=True)
    assert len(normed) == len(whole) + 1
    total = normed.sum(0)
    if name == "ln_final" and model.cfg.ln_final == "after_pool":
        total = total[:, model.cfg.n_prefix :].mean(1, keepdim=True)
    close(total, cache[f"{name}.hook_normalized"])
    for cut in (1, (1, 4), [0, 2]):
        kwargs = dict(pos_slice=cut, expand_neurons=layer == 2)
        fused = cache.get_full_resid_decomposition(layer, mlp_input, apply_ln=True, **kwargs)
        part = cache.get_full_resid_decomposition(layer, mlp_input, **kwargs)
        close(fused, cache.apply_ln_to_stack(part, layer, mlp_input, pos_slice=cut))
        close(fused, Slice(cut).apply(normed[:-1], dim=2))


def test_every_stack_takes_the_norm_and_a_projection(run):
    model, _, cache = run
    directions = torch.randn(model.cfg.d_model, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for pos in (None, -1):
        for stack, kwargs in (
            (cache.decompose_resid, dict(layer=2)),
            (cache.stack_head_results, dict(layer=2, incl_remainder=True)),
            (cache.stack_neuron_results, dict(layer=2, incl_remainder=True)),
        ):
            plain = stack(pos_slice=pos, **kwargs)
            close(stack(pos_slice=pos, apply_ln=True, **kwargs), cache.apply_ln_to_stack(plain, 2, pos_slice=pos))
        for stack, kwargs in (
            (cache.stack_neuron_results, dict(layer=-1, incl_remainder=True)),
            (cache.stack_neuron_results, dict(layer=0)),
            (cache.get_full_resid_decomposition, dict(layer=-1)),
            (cache.get_full_resid_decomposition, dict(layer=1, mlp_input=True, expand_neurons=False)),
        ):
            for apply_ln in (False, True):
                plain = stack(pos_slice=pos, apply_ln=apply_ln, **kwargs)
                for project in (directions, directions[:, 1]):
                    got = stack(pos_slice=pos, apply_ln=apply_ln, project_output_onto=project, **kwargs)
                    close(got, plain @ project)


def test_recomputed_statistics(run):
    model, _, cache = run
    stack = cache.accumulated_resid(incl_mid=True, pos_slice=-1)
    norm = model.ln_final
    centred = stack - stack.mean(-1, keepdim=True)
    slow = centred / (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.w + norm.b
    fresh = cache.apply_ln_to_stack(stack, pos_slice=-1, recompute_ln=True)
    close(fresh, slow)
    close(cache.accumulated_resid(incl_mid=True, pos_slice=-1, apply_ln=True), slow)
    frozen = cache.apply_ln_to_stack(stack, pos_slice=-1)
    assert (fresh - frozen).abs().max() > 1e-3
    own = cache.apply_ln_to_stack(cache.accumulated_resid(1), 1, recompute_ln=True)
    close(own[-1], cache["blocks.1.ln1.hook_normalized"])
    at_one = cache.accumulated_resid(1, apply_ln=True)
    close(at_one[-1] + model.blocks[1].ln1.b, cache["blocks.1.ln1.hook_normalized"])


def test_a_folded_norm_is_upstream_s(models):
    """With w = 1 and b = 0, as after folding, the default is TransformerLens' form."""
    from vit_lens import HookedViT

    model = HookedViT(models["cls"].cfg).double()
    model.load_state_dict(models["cls"].state_dict())
    with torch.no_grad():
        model.ln_final.w.fill_(1)
        model.ln_final.b.fill_(0)
    _, cache = model.requires_grad_(False).run_with_cache(images(model))
    stack = cache.decompose_resid()
    close(cache.apply_ln_to_stack(stack), ActivationCache(cache.cache_dict, model).apply_ln_to_stack(stack))
    close(cache.apply_ln_to_stack(stack).sum(0), cache["ln_final.hook_normalized"])


def test_a_norm_refuses_what_does_not_fit(runs):
    from vit_lens.errors import VitLensError

    _, _, cache = runs["cls"]
    stack = cache.decompose_resid()
    for call, match in (
        (lambda: cache.apply_ln_to_stack(stack[:, :, 0]), r"of shape \(8, 3, 33\); expected \[component batch pos d_"),
        (lambda: cache.apply_ln_to_stack(stack, pos_slice=0), r"expected \[component batch d_model\]"),
        (lambda: cache.apply_ln_to_stack(stack[:, :, :4]), r"axes \(3, 4\), the norm's scale has \(3, 10\)"),
        (lambda: cache.apply_ln_to_stack(stack[:, :2]), r"axes \(2, 10\), the norm's scale has \(3, 10\)"),
        (lambda: cache.apply_ln_to_stack(stack[..., :7]), "d_model=33"),
        (lambda: cache.apply_ln_to_stack(stack, batch_slice=3), "3 is out of range for 3 images"),
        (lambda: cache.apply_ln_to_stack(stack, 4), "layer=4: expected 0 to 3"),
        (lambda: cache.apply_ln_to_stack(stack, 3, mlp_input=True), "mlp_input=True is the input of a block's MLP"),
        (lambda: cache.apply_ln_to_stack(stack, weight=False, incl_bias=True), "incl_bias=True goes with"),
        (lambda: cache.apply_ln_to_stack(stack, recompute_ln=True, incl_bias=True), "incl_bias=True goes with"),
        (lambda: cache.apply_ln_to_stack(stack, recompute_ln=True, weight=False), "leave weight=True"),
        (lambda: cache.decompose_resid(-2), "layer=-2: expected 0 to 3"),
        (lambda: cache.decompose_resid(mode="mlps"), "mode='mlps'; expected one of all, mlp, attn"),
        (lambda: cache.stack_neuron_results(1, project_output_onto=torch.zeros(9)), r"shape \(9, 1\); expected"),
        (lambda: cache.get_neuron_results(3), "layer=3: expected 0 to 2"),
        (lambda: cache.get_neuron_results(-1), "layer=-1: expected 0 to 2"),
        (lambda: cache.get_neuron_results(0, neuron_slice=99), "99 is out of range for 56 neurons"),
        (lambda: cache.decompose_resid(pos_slice=(7, 7)), "selects none of 10 positions"),
        (lambda: cache.decompose_resid(pos_slice=True), "'True' is no slice"),
        (lambda: cache.decompose_resid(pos_slice="CLS"), "'CLS' is no slice; expected an int"),
        (lambda: cache.stack_activation("z", 0), "no layer before it"),
    ):  # fmt: skip
        with pytest.raises(VitLensError, match=match):
            call()


def test_inputs_split_by_head_have_no_single_norm(models):
    from vit_lens.errors import LensError

    model = models["cls"]
    model.set_use_split_qkv_input(True)
    _, cache = model.run_with_cache(images(model))
    model.set_use_split_qkv_input(False)
    with pytest.raises(LensError, match=r"blocks.1.ln1.hook_scale has one scale per head"):
        cache.decompose_resid(1, apply_ln=True)
    close(cache.decompose_resid(1, True, apply_ln=True).sum(0) + model.blocks[1].ln2.b, cache["normalized", 1, "ln2"])


# ---- attributions --------------------------------------------------------------------------------------------


def at_readout(model, attrs):
    """Attributions per position as those of the image: position 0, or the mean over patches."""
    return attrs[..., 0] if model.cfg.pool == "cls" else attrs[..., model.cfg.n_prefix :].mean(-1)


@pytest.mark.parametrize("with_captions", [False, True])
def test_attributions_and_constant_are_the_embedding_along_a_direction(linear_run, with_captions):
    model, out, cache = linear_run
    bank = bank_for(model)
    unit = bank.unit if with_captions else torch.eye(model.cfg.d_embed, dtype=torch.float64)
    whole = cache.get_full_resid_decomposition(expand_neurons=False)
    try:
        model.vocabulary = bank if with_captions else None
        attrs = cache.logit_attrs(whole, 2, incl_bias=True)
        close(at_readout(model, attrs).sum(0), out @ unit[2])
        difference = cache.logit_attrs(whole, torch.tensor([0, 1, 3]), torch.tensor([2, 2, 1]), incl_bias=True)
        expected = (out * (unit[[0, 1, 3]] - unit[[2, 2, 1]])).sum(-1)
        close(at_readout(model, difference).sum(0), expected)
        close(cache.logit_attrs(whole, 2), attrs[:-1])
        if with_captions:
            close(cache.logit_attrs(whole, "caption 2"), attrs[:-1])
            cosine = at_readout(model, attrs).sum(0) / cache["hook_image_embeds"].norm(dim=-1)
            close(cosine * bank.logit_scale, bank.logits(out)[:, 2])
    finally:
        model.vocabulary = None


def test_tokens_of_every_shape(linear_run):
    """One for all, one per image, one per position, one for each: against a loop over components' dot products."""
    model, _, cache = linear_run
    stack, n_pos = cache.decompose_resid(), model.cfg.n_ctx
    normed, directions = cache.apply_ln_to_stack(stack), model.W_U.T
    per_image, per_pos = torch.tensor([3, 0, 7]), torch.arange(n_pos) % 5
    grid = (per_image[:, None] + per_pos) % 9
    for tokens, expand in (
        (torch.tensor(4), torch.full((3, n_pos), 4)),
        (4, torch.full((3, n_pos), 4)),
        (per_image, per_image[:, None].expand(3, n_pos)),
        (per_pos, per_pos.expand(3, n_pos)),
        (per_pos[None], per_pos.expand(3, n_pos)),
        (grid, grid),
    ):
        got = cache.logit_attrs(stack, tokens)
        for image in range(3):
            for pos in range(n_pos):
                close(got[:, image, pos], normed[:, image, pos] @ directions[expand[image, pos]])
    last = cache.logit_attrs(stack, per_image)[:, :, -1]
    close(cache.logit_attrs(stack[:, :, -1], per_image, pos_slice=-1), last)
    close(cache.logit_attrs(stack[:, :, -1], 0, pos_slice=-1, batch_slice=1), last[:, 1])
    close(cache.logit_attrs(stack[:, 1, -1], 0, pos_slice=-1, batch_slice=1, has_batch_dim=False), last[:, 1])
    two = cache.logit_attrs(stack[:, :, -1], per_image[[2, 0]], pos_slice=-1, batch_slice=[2, 0])
    close(two, last[:, [2, 0]])
    one = cache.apply_slice_to_batch_dim(1)
    close(one.logit_attrs(stack[:, 1], per_pos), cache.logit_attrs(stack, per_pos)[:, 1])


def test_as_many_images_as_positions(models):
    """[batch] is one per image even where it could be one per position; [1 pos] says the other."""
    model = models["hf"]
    _, cache = model.run_with_cache(images(model, n=5))
    stack, tokens = cache.decompose_resid(), torch.tensor([1, 4, 2, 0, 3])
    normed = cache.apply_ln_to_stack(stack)
    directions = model.W_U.T[tokens]
    close(cache.logit_attrs(stack, tokens), torch.einsum("nbpd,bd->nbp", normed, directions))
    close(cache.logit_attrs(stack, tokens[None]), torch.einsum("nbpd,pd->nbp", normed, directions))


def test_attributions_refuse_what_they_cannot_read(runs):
    from vit_lens.errors import LensError, VitLensError

    _, _, cache = runs["cls"]
    stack = cache.decompose_resid()
    for tokens, match in (
        (
            torch.zeros(4, dtype=torch.long),
            r"tokens of shape \(4,\) for components with batch and position axes \(3, 10",
        ),
        (torch.zeros(3, 9, dtype=torch.long), r"tokens of shape \(3, 9\)"),
        (torch.zeros(1, dtype=torch.long), r"tokens of shape \(1,\)"),
        (torch.zeros(1, 3, 10, dtype=torch.long), r"tokens of shape \(1, 3, 10\)"),
        (torch.zeros(3), "float32"),
        (99, "counted from 0"),
        (["a cat"], "tokens of type list; expected a caption, an int"),
        (True, "tokens of type bool"),
        ("a cat", "needs a vocabulary"),
    ):
        with pytest.raises(VitLensError, match=match):
            cache.logit_attrs(stack, tokens)
    with pytest.raises(VitLensError, match=r"incorrect_tokens of \(3,\); expected the same"):
        cache.logit_attrs(stack, 1, torch.tensor([0, 1, 2]))
    _, _, pooled = runs["map"]
    with pytest.raises(LensError, match="pools tokens by attention"):
        pooled.logit_attrs(pooled.decompose_resid(), 1)


# ---- the logit lens ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [None, -2.5])
def test_logit_lens_reads_every_state_as_the_last(run, bias):
    model, out, cache = run
    bank = bank_for(model, logit_bias=bias)
    logits, labels = cache.logit_lens(bank, incl_mid=True, return_labels=True)
    assert labels == ["0_pre", "0_mid", "1_pre", "1_mid", "2_pre", "2_mid", "final_post"]
    assert logits.shape == (7, 3, 4)
    unit = bank.embeds / bank.embeds.norm(dim=-1, keepdim=True)
    close(logits[-1], 3.7 * (out / out.norm(dim=-1, keepdim=True)) @ unit.T + (bias or 0))
    states = cache.accumulated_resid(incl_mid=True)
    slow = [model(state, start_at_layer=3) for state in states]  # no block, then the model's own read-out
    close(logits, torch.stack([bank.logits(x) for x in slow]))
    close(cache.logit_lens(bank, incl_mid=True, layers=[-1, 2]), logits[[-1, 2]])
    one = cache.apply_slice_to_batch_dim(1)
    close(one.logit_lens(bank, incl_mid=True), logits[:, 1])
    _, small = model.run_with_cache(images(model), rows="readout")
    close(small.logit_lens(bank, incl_mid=True), logits)


def test_logit_lens_is_loud(runs):
    from vit_lens.errors import LensError, TextError, UnknownHookError, VitLensError

    model, _, cache = runs["cls"]
    bank = bank_for(model)
    with pytest.raises(VitLensError, match=r"needs captions: give a TextBank, or set model.vocabulary"):
        cache.logit_lens()
    with pytest.raises(VitLensError, match=r"logit_lens has no top_k=: use .topk on the result"):
        cache.logit_lens(bank, top_k=3)
    with pytest.raises(VitLensError, match="has no layer=: expected texts, layers"):
        cache.logit_lens(bank, layer=3)
    for layers in ([4], [-5], []):
        with pytest.raises(VitLensError, match="expected at least one of 0 to 3"):
            cache.logit_lens(bank, layers=layers)
    with pytest.raises(TextError, match="made for another"):
        cache.logit_lens(bank_for(model, encoder_id="another"))
    _, part = model.run_with_cache(images(model), names_filter="blocks.1.hook_resid_pre")
    with pytest.raises(UnknownHookError, match=r"'blocks.0.hook_resid_pre'"):
        part.logit_lens(bank)
    close(part.logit_lens(bank, layers=[1])[0], cache.logit_lens(bank)[1])
    _, cut = model.run_with_cache(images(model), pos_slice=0)
    with pytest.raises(LensError, match="cut by pos_slice"):
        cut.logit_lens(bank)
    model.vocabulary = bank
    try:
        close(cache.logit_lens(), cache.logit_lens(bank))
    finally:
        model.vocabulary = None


# ---- slices --------------------------------------------------------------------------------------------------


def slices(size):
    """Ints, tuples, lists and arrays that select something of an axis."""
    index = st.integers(-size, size - 1)
    some = st.lists(index, min_size=1, max_size=4)
    stops = st.integers(1, size).map(lambda stop: (stop,))
    spans = st.tuples(st.integers(0, size - 1), st.integers(1, size)).filter(lambda s: s[0] < s[1])
    steps = st.integers(1, 3).map(lambda step: (0, size, step))
    arrays = some.map(np.array)
    return st.one_of(st.none(), index, some, arrays, some.map(torch.tensor), stops, spans, steps, index.map(np.int64))


def plain(value):
    """TransformerLens 3.3 does not take numpy's ints."""
    return Slice(int(value) if isinstance(value, np.integer) else value)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(kind=st.sampled_from(KINDS), pos=slices(5), batch=slices(3), neurons=slices(19), apply_ln=st.booleans())
def test_slices_commute_with_everything(runs, kind, pos, batch, neurons, apply_ln):
    _, _, cache = runs[kind]
    some = cache.apply_slice_to_batch_dim(batch)
    for method, kwargs in (
        ("accumulated_resid", dict(incl_mid=True)),
        ("decompose_resid", dict(layer=2, mlp_input=True)),
        ("stack_head_results", dict(layer=2, incl_remainder=True)),
        ("stack_neuron_results", dict(layer=1, neuron_slice=neurons)),
        ("get_full_resid_decomposition", dict(layer=1, expand_neurons=False)),
    ):
        whole = getattr(cache, method)(apply_ln=apply_ln, **kwargs)
        expected = plain(batch).apply(plain(pos).apply(whole, dim=2), dim=1)
        close(getattr(some, method)(apply_ln=apply_ln, pos_slice=pos, **kwargs), expected)
    every = cache.get_neuron_results(1, pos_slice=pos)
    close(cache.get_neuron_results(1, neurons, pos), plain(neurons).apply(every, dim=-2))
    stack = plain(pos).apply(cache.decompose_resid(), dim=2)
    expected = plain(batch).apply(cache.apply_ln_to_stack(stack, pos_slice=pos), dim=1)
    close(cache.apply_ln_to_stack(stack, pos_slice=pos, batch_slice=batch), expected)


@pytest.mark.parametrize("pos", [0, (1, 4), [3, 1]])
@pytest.mark.parametrize("remove", [False, True])
def test_a_cache_cut_by_pos_slice_is_the_slice_of_the_whole(models, pos, remove):
    """Every hook of the cut cache, and every stack built from it."""
    for model in models.values():
        pixels = images(model)[:1]
        _, whole = model.run_with_cache(pixels, remove_batch_dim=remove)
        _, part = model.run_with_cache(pixels, remove_batch_dim=remove, pos_slice=pos)
        at = [pos] if isinstance(pos, int) else pos
        for name, value in whole.items():
            axis = model.pos_axis(name)
            expected = value if axis is None else Slice(at).apply(value, dim=axis - remove)
            close(part[name], expected, 1e-12)
        for apply_ln in (False, True):
            for method in ("stack_head_results", "decompose_resid", "get_full_resid_decomposition"):
                full = getattr(whole, method)(pos_slice=at, apply_ln=apply_ln)
                close(getattr(part, method)(apply_ln=apply_ln), full)


# ---- partial caches ------------------------------------------------------------------------------------------

NEEDS = {  # what each call reads, and nothing else
    "heads": (lambda c: c.stack_head_results(1, pos_slice=0), ["blocks.0.attn.hook_z"]),
    "heads_rest": (
        lambda c: c.stack_head_results(1, incl_remainder=True),
        ["blocks.0.attn.hook_z", "blocks.0.hook_resid_post"],
    ),
    "neurons": (lambda c: c.stack_neuron_results(1), ["blocks.0.mlp.hook_post"]),
    "neuron": (lambda c: c.get_neuron_results(2), ["blocks.2.mlp.hook_post"]),
    "attn": (lambda c: c.decompose_resid(1, mode="attn", incl_embeds=False), ["blocks.0.hook_attn_out"]),
    "all": (
        lambda c: c.decompose_resid(1),
        ["hook_embed", "hook_pos_embed", "blocks.0.hook_attn_out", "blocks.0.hook_mlp_out"],
    ),
    "stream": (lambda c: c.accumulated_resid(1), ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"]),
    "norm": (
        lambda c: c.stack_head_results(1, apply_ln=True),
        ["blocks.0.attn.hook_z", "blocks.1.ln1.hook_scale"],
    ),
    "norm_of_stream": (
        lambda c: c.stack_head_results(1, apply_ln=True),
        ["blocks.0.attn.hook_z", "blocks.1.hook_resid_pre"],
    ),
    "stack": (lambda c: c.stack_activation("pattern", 2), ["blocks.0.attn.hook_pattern", "blocks.1.attn.hook_pattern"]),
    "full": (
        lambda c: c.get_full_resid_decomposition(1, expand_neurons=False),
        ["hook_embed", "hook_pos_embed", "blocks.0.attn.hook_z", "blocks.0.hook_mlp_out"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("need", NEEDS)
def test_partial_caches_serve_what_they_hold(run, need):
    from vit_lens.errors import UnknownHookError

    model, _, cache = run
    call, names = NEEDS[need]
    _, part = model.run_with_cache(images(model), names_filter=names)
    close(call(part), call(cache))
    assert set(part.keys()) == set(names)
    for name in names:
        _, less = model.run_with_cache(images(model), names_filter=[n for n in names if n != name] or "hook_pooled")
        with pytest.raises(UnknownHookError, match=r"reads .*, which this cache does not hold") as caught:
            call(less)
        assert name in str(caught.value) or need == "norm_of_stream"
        advice = re.search(r"names_filter=(.*), without a stop_at_layer", str(caught.value)).group(1)
        _, mended = model.run_with_cache(images(model), names_filter=ast.literal_eval(advice))
        close(call(mended), call(cache))


def test_the_advice_for_many_layers_is_a_predicate(runs):
    from vit_lens.errors import UnknownHookError

    model, _, cache = runs["cls"]
    _, less = model.run_with_cache(images(model), names_filter="hook_embed")
    with pytest.raises(UnknownHookError, match=r"'hook_pos_embed', 'blocks.0.hook_attn_out', .* and 3 more") as caught:
        less.decompose_resid()
    advice = re.search(r"names_filter=lambda name: name.endswith\((.*)\), without a stop", str(caught.value)).group(1)
    ends = ast.literal_eval(advice)
    _, mended = model.run_with_cache(images(model), names_filter=lambda name: name.endswith(ends))
    close(mended.decompose_resid(), cache.decompose_resid())


def test_nothing_large_is_built_for_a_slice(runs):
    """One position of one layer's heads costs that: neither other layers, nor other positions, nor the cache grow."""
    model, _, cache = runs["cls"]
    cfg, before = model.cfg, set(cache.keys())
    weights = max(p.numel() for p in model.blocks[0].attn.parameters())
    all_of_a_layer = 3 * cfg.n_ctx * cfg.n_heads * cfg.d_model
    for apply_ln in (False, True):
        with Watch() as watch:
            cache.stack_head_results(1, pos_slice=0, apply_ln=apply_ln)
        assert watch.numel <= max(3 * cfg.n_heads * cfg.d_model, weights) < all_of_a_layer
        with Watch() as watch:
            cache.stack_head_results(1, apply_ln=apply_ln)
        assert watch.numel == all_of_a_layer
    assert set(cache.keys()) == before


@pytest.mark.parametrize("apply_ln", [False, True])
def test_nothing_large_is_built_for_a_projection(runs, apply_ln):
    """A projection of all neurons and heads costs no tensor of components x d_model."""
    model, _, cache = runs["cls"]
    direction = torch.ones(model.cfg.d_model, dtype=torch.float64)
    for stack in (cache.stack_neuron_results, cache.get_full_resid_decomposition):
        with Watch() as watch:
            whole = stack(layer=3, apply_ln=apply_ln)
        assert watch.numel >= whole.numel()
        with Watch() as watch:
            stack(layer=3, apply_ln=apply_ln, project_output_onto=direction)
        assert watch.numel <= whole.numel() // 10
    with Watch() as watch:
        cache.stack_neuron_results(3, neuron_slice=4, apply_ln=apply_ln)
    assert watch.numel <= 3 * 3 * model.cfg.n_ctx * model.cfg.d_model


def test_head_results_are_computed_once_and_only_on_request(runs, caplog):
    model, _, _ = runs["cls"]
    _, cache = model.run_with_cache(images(model), stop_at_layer=2)
    assert "blocks.0.attn.hook_result" not in cache
    expected = cache.stack_head_results(2)
    cache.compute_head_results()
    close(cache["result", 1], expected[3:].movedim(0, 2))
    assert "blocks.2.attn.hook_result" not in cache
    cache["result", 0][0, 0, 0, 0] = float("inf")
    with caplog.at_level(logging.WARNING):
        cache.compute_head_results()
    assert cache["result", 0][0, 0, 0, 0] == float("inf") and "already cached" in caplog.text
    assert cache.stack_head_results(2)[0, 0, 0, 0] == float("inf")  # cached results are what is read


def test_an_edit_of_head_results_is_what_is_stacked(models):
    """A run in which a head was edited at hook_result: its cached result counts, not what z would give."""
    model = models["cls"]

    def ablate(act, hook):
        out = act.clone()
        out[:, :, 1] = 0
        return out

    with model.hooks([("blocks.1.attn.hook_result", ablate)]):
        _, cache = model.run_with_cache(images(model), names_filter=lambda n: True)
    heads, labels = cache.stack_head_results(return_labels=True)
    assert heads[labels.index("L1H1")].abs().max() == 0
    close(cache.get_full_resid_decomposition().sum(0), cache["resid_post", 2])


# ---- caches of other runs ------------------------------------------------------------------------------------


def test_a_readout_cache_serves_the_algebra(run):
    from vit_lens.errors import LensError, UnknownHookError

    model, out, whole = run
    _, cache = model.run_with_cache(images(model), rows="readout")
    close(cache.stack_head_results(), torch.stack([*map(model.readout_rows, whole.stack_head_results())]))
    close(cache.accumulated_resid(), torch.stack([*map(model.readout_rows, whole.accumulated_resid())]))
    written = cache.decompose_resid(incl_embeds=False)
    close(cache["resid_pre", 0] + written.sum(0), cache["resid_post", 2])
    close(cache.decompose_resid().sum(0), cache["resid_post", 2])
    with pytest.raises(UnknownHookError, match=r"'blocks.0.mlp.hook_post'.*rows='readout' keeps a fixed set"):
        cache.stack_neuron_results(1)
    if model.readout.kind == "pooled":
        with pytest.raises(LensError, match=r"blocks.1.ln1 acts on every token"):
            cache.stack_head_results(1, apply_ln=True)
    else:
        expected = whole.stack_head_results(1, apply_ln=True)
        close(cache.stack_head_results(1, apply_ln=True), torch.stack([*map(model.readout_rows, expected)]))
    if model.cfg.attn_pool is None:
        parts = torch.cat([cache["resid_pre", 0][None], written])
        attrs = cache.logit_attrs(parts, 3, incl_bias=True)
        close(attrs.sum(0).mean(-1), out[:, 3])


@pytest.mark.parametrize("start", [0, 1, -1])
def test_a_run_that_starts_late(run, start):
    """What was given stands for the embeddings and all layers before."""
    from vit_lens.errors import VitLensError
    from vit_lens.towers.cache import ViTActivationCache

    model, out, whole = run
    resid, first = whole["resid_pre", start], start % 3
    again, part = model.run_with_cache(resid, start_at_layer=start)
    close(again, out)
    cache = ViTActivationCache(part.cache_dict, model, start_at_layer=start)
    stack, labels = cache.decompose_resid(return_labels=True)
    close(stack.sum(0), whole["resid_post", 2])
    assert labels[:2] == ["resid_in", f"{first}_attn_out"]
    for mlp_input in (False, True):
        full, labels = cache.get_full_resid_decomposition(2, mlp_input, return_labels=True)
        close(full.sum(0), whole["resid_mid" if mlp_input else "resid_pre", 2])
        assert labels[-2:] == ["resid_in", "bias"]
    heads, labels = cache.stack_head_results(return_labels=True)
    close(heads, whole.stack_head_results()[first * model.cfg.n_heads :])
    assert labels[0] == f"L{first}H0"
    assert cache.accumulated_resid(return_labels=True)[1] == [*(f"{n}_pre" for n in range(first, 3)), "final_post"]
    normed = cache.apply_ln_to_stack(cache.get_full_resid_decomposition(2), 2, incl_bias=True)
    close(normed.sum(0), whole["normalized", 2, "ln1"])
    assert cache.apply_slice_to_batch_dim((2,)).start_at_layer == start
    if first:
        with pytest.raises(VitLensError, match=f"expected {first} to 3, since the run started at layer {first}"):
            cache.decompose_resid(first - 1 or 0)


def test_a_run_that_stops_early(run):
    from vit_lens.errors import UnknownHookError

    model, _, whole = run
    _, cache = model.run_with_cache(images(model), stop_at_layer=2)
    close(cache.get_full_resid_decomposition(2).sum(0), whole["resid_pre", 2])
    close(cache.decompose_resid(1, True, apply_ln=True), whole.decompose_resid(1, True, apply_ln=True))
    with pytest.raises(UnknownHookError, match=r"'blocks.2.hook_attn_out'.* without a stop_at_layer before them"):
        cache.decompose_resid()


@pytest.mark.parametrize(("layer", "mlp_input"), [(0, False), (1, True), (2, False), (None, False)])
def test_a_scale_that_is_not_cached_is_that_of_the_stream(run, layer, mlp_input):
    from vit_lens.errors import UnknownHookError

    model, _, whole = run
    stack = whole.decompose_resid(layer, mlp_input)
    reads = "blocks.2.hook_resid_post"
    if layer is not None:
        reads = f"blocks.{layer}.hook_resid_{'mid' if mlp_input else 'pre'}"
    _, cache = model.run_with_cache(images(model), names_filter=reads)
    close(cache.apply_ln_to_stack(stack, layer, mlp_input), whole.apply_ln_to_stack(stack, layer, mlp_input))
    _, part = model.run_with_cache(images(model), names_filter=reads, pos_slice=(1, 4))
    if layer is None and model.cfg.ln_final == "after_pool":  # the mean over patches is lost
        with pytest.raises(UnknownHookError, match=r"reads 'ln_final.hook_scale'"):
            part.apply_ln_to_stack(stack[:, :, 1:4])
    else:
        close(
            part.apply_ln_to_stack(stack[:, :, 1:4], layer, mlp_input),
            whole.apply_ln_to_stack(stack, layer, mlp_input)[:, :, 1:4],
        )


def test_the_scale_of_the_run_counts(models):
    """A hook on a scale: what is cached is what divides."""
    model = models["cls"]
    with model.hooks([("ln_final.hook_scale", lambda act, hook: act * 2)]):
        _, cache = model.run_with_cache(images(model))
    total = cache.apply_ln_to_stack(cache.decompose_resid(), incl_bias=True).sum(0)
    close(total, cache["ln_final.hook_normalized"])


# ---- the container -------------------------------------------------------------------------------------------


def test_short_names(runs):
    _, _, cache = runs["cls"]
    assert torch.equal(cache["scale", 1, "ln1"], cache["blocks.1.ln1.hook_scale"])
    assert torch.equal(cache["scale", -1, "ln2"], cache["scale2ln2"])
    assert torch.equal(cache["k", -1, None], cache["blocks.2.attn.hook_k"])
    assert torch.equal(cache["embed"], cache["hook_embed"]) and torch.equal(cache["embed", None], cache["hook_embed"])
    assert list(cache.keys()) == list(cache.cache_dict) == list(cache)
    assert all(a is b for a, b in zip(cache.values(), cache.cache_dict.values(), strict=True))
    assert list(cache.items()) == list(cache.cache_dict.items()) and len(cache) == len(cache.cache_dict)


def test_remove_batch_dim_of_one_image(run, caplog):
    from vit_lens.errors import BatchAxisError

    model, _, cache = run
    with pytest.raises(BatchAxisError, match="batch axis of 3 images; take one"):
        cache.remove_batch_dim()
    _, one = model.run_with_cache(images(model)[:1])
    assert one.has_batch_dim and one._batch_size() == 1
    shapes = {name: value.shape for name, value in one.items()}
    with caplog.at_level(logging.WARNING):
        assert one.remove_batch_dim() is one and not caplog.text
        one.remove_batch_dim()
    assert not one.has_batch_dim and "removed before" in caplog.text
    assert {name: value.shape for name, value in one.items()} == {name: shape[1:] for name, shape in shapes.items()}
    close(one.get_full_resid_decomposition(apply_ln=True), cache.get_full_resid_decomposition(apply_ln=True)[:, 0])
    with pytest.raises(BatchAxisError, match="no batch axis to slice"):
        one.apply_slice_to_batch_dim(0)
    with pytest.raises(BatchAxisError, match="batch_slice has nothing to slice"):
        one.apply_ln_to_stack(one.decompose_resid(), batch_slice=0)
    assert one.apply_slice_to_batch_dim(None).keys() == one.keys()


def test_apply_slice_to_batch_dim(run):
    from vit_lens.errors import BatchAxisError

    _, _, cache = run
    two = cache.apply_slice_to_batch_dim(Slice((1, 3)))
    assert type(two) is type(cache) and two.has_batch_dim and two.rows == cache.rows
    assert all(torch.equal(cache[name][1:3], two[name]) for name in cache)
    one = cache.apply_slice_to_batch_dim(2)
    assert not one.has_batch_dim and all(torch.equal(cache[name][2], one[name]) for name in cache)
    for wrong, match in ((3, "out of range for 3 images"), ((5, 7), "none of 3 images"), ([0, 3], "out of range")):
        with pytest.raises(BatchAxisError, match=match):
            cache.apply_slice_to_batch_dim(wrong)


def test_entries_of_the_user_are_left_alone(runs):
    """A mean without a batch axis, or a bank of prompts, is neither sliced nor counted."""
    from vit_lens.errors import BatchAxisError
    from vit_lens.towers.cache import ViTActivationCache

    model, _, cache = runs["cls"]
    extra = {f"mean.{i}": torch.zeros(7, 2) for i in range(200)} | {"one": torch.tensor(1.0)}
    mixed = ViTActivationCache({**extra, **cache.cache_dict}, model)
    assert mixed._batch_size() == 3
    part = mixed.apply_slice_to_batch_dim((1,))
    assert part["mean.0"].shape == (7, 2) and part["one"].ndim == 0 and part["embed"].shape[0] == 1
    assert part.remove_batch_dim()["mean.0"].shape == (7, 2)
    odd = ViTActivationCache({**cache.cache_dict, "hook_embed": cache["embed"][:2]}, model)
    with pytest.raises(BatchAxisError, match="2 in 'hook_embed'"):
        odd.remove_batch_dim()


def test_to_moves_and_keeps_what_it_is(runs):
    """``meta`` stands for another device: results follow the activations, not the weights."""
    from vit_lens.towers.cache import ViTActivationCache

    model, _, _ = runs["cls"]
    _, cache = model.run_with_cache(images(model), rows="readout")
    moved = cache.to("meta")
    assert moved is cache and type(moved) is ViTActivationCache and moved.rows == "readout" and moved.has_batch_dim
    assert moved.stack_head_results(1).device.type == "meta"
    _, cache = model.run_with_cache(images(model))
    cache.to("meta")
    for apply_ln in (False, True):
        full = cache.get_full_resid_decomposition(apply_ln=apply_ln, project_output_onto=model.W_U)
        assert full.device.type == "meta"
    assert cache.logit_attrs(cache.decompose_resid(), torch.tensor([1, 2, 3]), incl_bias=True).device.type == "meta"
    assert cache.get_neuron_results(1, pos_slice=0).device.type == "meta"


def test_mixed_dtypes(models):
    """A cache in half precision: norms are taken in float32, as in the run."""
    from vit_lens import HookedViT

    model = HookedViT(models["cls"].cfg)
    model.load_state_dict(models["cls"].state_dict())
    half = model.to(torch.bfloat16).requires_grad_(False)
    _, cache = half.run_with_cache(images(half).bfloat16())
    normed = cache.apply_ln_to_stack(cache.decompose_resid(), incl_bias=True)
    assert normed.dtype == torch.float32
    assert (normed.sum(0) - cache["ln_final.hook_normalized"]).abs().max() < 0.1
    direction = torch.ones(33, dtype=torch.float32)
    assert cache.stack_neuron_results(1, project_output_onto=direction).dtype == torch.float32
    assert cache.stack_head_results(1).dtype == torch.bfloat16


def test_toggle_autodiff(runs):
    _, _, cache = runs["cls"]
    was = torch.is_grad_enabled()
    try:
        cache.toggle_autodiff(mode=False)
        assert not torch.is_grad_enabled()
        cache.toggle_autodiff(mode=True)
        assert torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(was)


def test_stack_activation(runs):
    from vit_lens.errors import UnknownHookError

    _, _, cache = runs["cls"]
    close(cache.stack_activation("scale", -1, "ln1"), torch.stack([cache["scale", n, "ln1"] for n in range(3)]))
    close(cache.stack_activation("z", 2), torch.stack([cache["z", 0], cache["z", 1]]))
    with pytest.raises(UnknownHookError, match=r"nearest: 'blocks.0.attn.hook_z'"):
        cache.stack_activation("zz", 2, "attn")
    with pytest.raises(UnknownHookError, match=r"stack_activation\('result'\) reads 'blocks.0.attn.hook_result'"):
        cache.stack_activation("result", 2)


def test_gradients_in_the_cache(models):
    """With incl_bwd, gradients sit beside the activations, and are sliced with them."""
    from vit_lens import HookedViT
    from vit_lens.errors import UnknownHookError

    model = HookedViT(models["cls"].cfg).double()
    model.load_state_dict(models["cls"].state_dict())
    _, cache = model.run_with_cache(images(model), incl_bwd=True)
    assert cache["blocks.1.hook_resid_pre_grad"].shape == cache["resid_pre", 1].shape
    part = cache.apply_slice_to_batch_dim([2, 0])
    assert torch.equal(part["hook_embed_grad"], cache["hook_embed_grad"][[2, 0]])
    close(part.decompose_resid().sum(0), cache["resid_post", 2][[2, 0]])
    _, cache = model.run_with_cache(images(model))
    with pytest.raises(UnknownHookError, match="'hook_embed_grad': run with incl_bwd=True"):
        cache["hook_embed_grad"]


def test_repr(runs):
    from vit_lens.towers.cache import ViTActivationCache

    model, _, cache = runs["cls"]
    assert re.fullmatch(
        r"ViTActivationCache\(3 images, all rows; \d+ activations, 0.\d MB, float64 on cpu: hook_embed_raw, "
        r"hook_pos_embed_raw, ..., hook_pooled, hook_image_embeds\)",
        repr(cache),
    )
    started = ViTActivationCache({"ln_final.hook_scale": torch.ones(10, 1)}, model, False, "cut", -1)
    assert repr(started) == (
        "ViTActivationCache(1 image, no batch axis, cut rows, from layer 2; 1 activations, 0.0 MB, float32 on cpu: "
        "ln_final.hook_scale)"
    )
    assert repr(ViTActivationCache({}, model)) == "ViTActivationCache(empty)"


@pytest.mark.parametrize("kind", KINDS)
def test_readout_rows_of_every_activation_are_those_of_its_positions(kind, models):
    """Also of patterns, whose positions are the queries' axis, of what has none, and of gradients."""
    model, pixels = copy.deepcopy(models[kind]).requires_grad_(True), images(models[kind])
    _, whole = model.run_with_cache(pixels, incl_bwd=True)
    _, kept = model.run_with_cache(pixels, rows="readout", incl_bwd=True)
    for name in kept.cache_dict:
        close(whole.readout(name), kept[name])
    assert torch.equal(whole.readout("hook_pooled"), whole["hook_pooled"])
    pattern, rows = whole["pattern", 0], model.readout.rows(whole["pattern", 0].transpose(1, 2))
    assert torch.equal(whole.readout("blocks.0.attn.hook_pattern"), rows.transpose(1, 2)), pattern.shape
