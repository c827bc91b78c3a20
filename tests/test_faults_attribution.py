"""Hostile input to attribution: nothing silent, no bare error, nothing shared."""

import numpy as np
import pytest
import torch
from faults import outcomes, pickled

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture
def cache(vit, pixels):
    """One of its own for each test: some spoil it."""
    return vit.run_with_cache(pixels)[1]


@pytest.fixture(scope="module")
def bank(vit):
    from vit_lens import TextBank

    embeds = torch.randn(3, 13, generator=torch.Generator().manual_seed(5))
    return TextBank(
        captions=("a cup", "a dog", "a car"), embeds=embeds, logit_scale=90.0, logit_bias=None,
        encoder_id=vit.encoder_id,
    )  # fmt: skip


# ---- H7 ---------------------------------------------------------------------------------------------------------


def test_a_run_that_is_not_finite_is_not_said_to_be_edited(cache, bank, errors):
    from vit_lens import attribution as at

    for name in ("blocks.1.hook_mlp_out", "blocks.2.hook_resid_post"):
        cache.cache_dict[name] = cache.cache_dict[name].clone()
        cache.cache_dict[name][1, 0, 3] = torch.nan
    tools = [at.split_embedding, lambda c: at.direct_attribution(c, bank), at.token_parts, at.FrozenReadout]
    for tool in tools:
        with pytest.raises(
            errors.LensError, match=r"the last residual reads as nan.*image 1: so is blocks\.1\.hook_mlp_"
        ):
            tool(cache)


# ---- H2, H3: what the caller gets is his ------------------------------------------------------------------------


def test_nothing_that_is_handed_out_shares_memory(vit, cache, bank):
    """Edited in place, as users do with what they are given; nothing else moves."""
    from vit_lens import attribution as at

    parts, found = at.split_embedding(cache), at.token_attribution(cache, bank)
    held = {**cache.cache_dict, **dict(vit.named_parameters()), "parts": parts.values, "found": found.values}
    before = {name: value.clone() for name, value in held.items()}
    patches, readout = at.attention_map(cache, 1, 1), at.FrozenReadout(cache)
    handed = [
        patches.values, patches.prefix["cls"], at.read_rows(cache, "blocks.1.attn.hook_z"), parts["L1H2"],
        parts.select("head").values, parts.total, found.map(layer=1, head=2).values, found.map().values, readout.scale,
        readout.weights, readout.embedding, readout.normed, readout.pull_back(bank.embeds), at.token_parts(cache),
        *(value.clone() for value in readout.constants.values()),
    ]  # fmt: skip
    for value in handed:
        value.mul_(0).add_(7)
    changed = [name for name, value in held.items() if not torch.equal(value, before[name])]
    assert not changed


# ---- silent, wrong ----------------------------------------------------------------------------------------------


def test_layers_and_neurons_that_are_given_twice_count_once(cache, bank):
    """A sum over "all layers" would hold the layer twice."""
    from vit_lens import attribution as at

    once, twice = (at.token_attribution(cache, bank, layers=layers) for layers in ([1], [1, 1]))
    assert torch.equal(once.map().values, twice.map().values) and twice.layers == (1,)
    assert at.neuron_parts(cache, 0, [3, 7, 3]).labels == ["L0N3", "L0N7"]
    assert at.token_parts(cache, layers=[1, 1]).shape[1] == 1


def test_labels_are_what_parts_hold(cache):
    from vit_lens.attribution import split_embedding

    parts = split_embedding(cache)
    assert "L1H2" in parts and "nose" not in parts and list(parts) == parts.labels


# ---- pickle, repr -----------------------------------------------------------------------------------------------


def test_results_print_in_a_line_and_go_through_pickle(cache, bank):
    from vit_lens import attribution as at

    parts = at.split_embedding(cache)
    assert repr(parts) == f"EmbeddingParts(components=<{len(parts)}>, values=[{len(parts)}, 3, 13])"
    found = [
        parts,
        at.direct_attribution(cache, bank),
        at.token_attribution(cache, bank),
        at.attention_map(cache, 0, 0),
    ]
    for one in found:
        assert len(repr(one)) < 800 and "tensor" not in repr(one) and "\n" not in repr(one)
        assert torch.equal(pickled(one).values, one.values)


# ---- arguments --------------------------------------------------------------------------------------------------


def test_places_in_a_map_are_whole_numbers_of_any_kind(cache, bank):
    from vit_lens.attribution import token_attribution

    found = token_attribution(cache, bank)
    expected = found.map(layer=1, head=2, direction="a dog")
    for layer, head, direction in ((np.int64(1), np.int32(2), np.int64(1)), (torch.tensor(1), torch.tensor(2), 1)):
        assert torch.equal(found.map(layer=layer, head=head, direction=direction).values, expected.values)


def test_wrong_arguments_are_refused_in_words(vit, cache, bank, errors):
    from vit_lens import PreprocessSpec, Site
    from vit_lens import attribution as at

    found, readout = at.token_attribution(cache, bank), at.FrozenReadout(cache)
    parts, kind, whole = at.split_embedding(cache), "LensError", {"title": "", "units": "", "signed": False}
    spec = PreprocessSpec(
        size=(22, 22), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", resize_mode="shortest"
    )
    direct, texts = at.direct_attribution, "expected a list of texts"
    cases = {
        "layer True": (lambda: found.map(layer=True), kind, "layer True: this attribution holds layers [0, 1, 2]"),
        "head of text": (lambda: found.map(head="1"), kind, "head '1': a layer has heads 0 to 4"),
        "head 1.0": (lambda: found.map(head=1.0), kind, "head 1.0: a layer has heads 0 to 4"),
        "direction 1.0": (lambda: found.map(direction=1.0), kind, "direction 1.0; expected one of ['a cup'"),
        "direction None": (lambda: found.map(direction=None), kind, "direction None; expected"),
        "direction -1": (lambda: found.map(direction=-1), kind, "direction -1; expected"),
        "one number": (lambda: direct(cache, torch.tensor(1.0)), kind, "directions= (no TextBank) is torch.float32"),
        "on meta": (lambda: direct(cache, torch.zeros(13, device="meta")), kind, "on meta; expected a float tensor"),
        "whole numbers": (lambda: direct(cache, torch.ones(13, dtype=torch.long)), kind, "is torch.int64"),
        "other width": (lambda: direct(cache, torch.randn(2, 5)), kind, "expected a float tensor [direction 13]"),
        "none at all": (lambda: direct(cache, torch.zeros(0, 13)), kind, "0 captions for 0 directions; give at least"),
        "list": (lambda: direct(cache, [0.5] * 13), kind, "directions= (no TextBank) is a list"),
        "no captions": (lambda: direct(cache, bank, captions=[]), kind, texts),
        "captions 3": (lambda: direct(cache, bank, captions=3), kind, texts),
        "captions of numbers": (lambda: direct(cache, bank, captions=[0]), kind, texts),
        "captions of none": (lambda: direct(cache, torch.randn(13), captions=[None]), kind, texts),
        "minus 0": (lambda: direct(cache, bank, minus=0), kind, "minus= is a int; expected a float tensor [13]"),
        "minus of a list": (lambda: direct(cache, bank, minus=["a cup"]), kind, "minus= is a list"),
        "minus on meta": (lambda: direct(cache, bank, minus=torch.ones(13, device="meta")), kind, "on meta"),
        "neurons of texts": (lambda: at.neuron_parts(cache, 0, slice("a", "b")), kind, "neurons slice('a', 'b'"),
        "neurons in steps of 0": (lambda: at.neuron_parts(cache, 0, slice(0, 3, 0)), kind, "neurons slice(0, 3, 0)"),
        "component 0": (lambda: parts[0], "UnknownSiteError", "no component '0'"),
        "rows": (lambda: readout(torch.zeros(2, 2)), kind, "expected a float tensor [*part 3 1 d]"),
        "rows of other images": (lambda: readout.reduce(torch.zeros(2, 1, 35)), kind, "[*part 3 1 d]"),
        "pull back": (lambda: readout.pull_back(torch.zeros(5)), kind, "expected a float tensor [*direction 13]"),
        "pull back numpy": (lambda: readout.pull_back(np.zeros(13)), kind, "a direction is a ndarray"),
        "reduced": (lambda: readout.project(None), kind, "a reduced part is a NoneType"),
        "reduced width": (lambda: readout.project(torch.zeros(3, 1, 5)), kind, "[*part batch pool_head 35]"),
        "pooled": (lambda: readout.pooled_to_embed([1.0]), kind, "a part of the pooled vector is a list"),
        "pooled width": (lambda: readout.pooled_to_embed(torch.zeros(3, 5)), kind, "[*part batch 35]"),
        "rows of a dict": (lambda: at.read_rows({}, "hook_embed"), kind, "not dict"),
        "names of a name": (lambda: at.hook_names("mini"), kind, "expected a HookedViT, not str"),
        "tokens of one axis": (lambda: at.PatchMap.of_tokens(torch.zeros(5), vit.cfg, **whole), kind, "[batch token]"),
        "tokens of numpy": (lambda: at.PatchMap.of_tokens(np.zeros((2, 5)), vit.cfg, **whole), kind, "is a ndarray"),
        "size 0": (lambda: at.Placement.of_size((0, 5), spec), "PreprocessError", "size=(0, 5); expected (height"),
        "size -4": (lambda: at.Placement.of_size((-4, 5), spec), "PreprocessError", "size=(-4, 5)"),
        "size of text": (lambda: at.Placement.of_size("ab", spec), "PreprocessError", "size='ab'"),
        "size nan": (lambda: at.Placement.of_size((float("nan"), 5), spec), "PreprocessError", "size=(nan, 5)"),
        "size of three": (lambda: at.Placement.of_size((1, 2, 3), spec), "PreprocessError", "size=(1, 2, 3)"),
        "layer of a site": (lambda: at.attention_map(cache, Site.parse("L0H0"), 0), "UnknownSiteError", "whole n"),
    }  # fmt: skip
    assert not outcomes(errors, cases)


# ---- autocast: numbers are as wide as their tensors -------------------------------------------------------------


def test_what_is_measured_does_not_follow_autocast(vit, pixels, bank):
    """Autocast rounds products of float32 to bfloat16; those of float64, in which other tests run, it leaves."""
    import copy

    from vit_lens import DiffusionLens, ReferenceMeans, Site, ZeroShotLabels
    from vit_lens import attribution as at
    from vit_lens import readers as ro

    model, pixels = copy.deepcopy(vit).float(), pixels.float()
    found = model.run_with_cache(pixels)[1]
    embeds, readout, reference = model(pixels), at.FrozenReadout(found), ReferenceMeans.from_images(model, pixels)
    labels = ZeroShotLabels({"a": bank.captions}, {"a": bank.embeds})
    parts = dict(encoder_id="x", fingerprint="x", preprocess={}, folder="")
    gallery = ro.Gallery(**parts, **dict.fromkeys(("names", "hashes", "stamps"), tuple("abc")), embeds=embeds)
    calls = {
        "split_embedding": lambda: at.split_embedding(found).values,
        "neuron_parts": lambda: at.neuron_parts(found, 1).values,
        "token_parts": lambda: at.token_parts(found),
        "token_attribution": lambda: at.token_attribution(found, bank).values,
        "direct_attribution": lambda: at.direct_attribution(found, bank).values,
        "FrozenReadout": lambda: at.FrozenReadout(found).embedding,
        "embedding": lambda: readout.embedding,
        "project": lambda: readout.project(readout.final_reduced),
        "pooled_to_embed": lambda: readout.pooled_to_embed(found["blocks.2.hook_resid_post"][:, 0]),
        "pull_back": lambda: readout.pull_back(bank.embeds),
        "bank.logits": lambda: bank.logits(embeds),
        "nearest": lambda: gallery.nearest(embeds, 3)[1],
        "zero_shot_lens": lambda: ro.zero_shot_lens(found, bank, "heads", lens=DiffusionLens()).of(),
        "head_contributions": lambda: ro.head_contributions(model, pixels, "heads"),
        "output": lambda: reference.output(model, Site.parse("L1.attn")),
        "last_state": lambda: reference.last_state(model),
    }
    plain = {name: call() for name, call in calls.items()}
    with torch.autocast("cpu", torch.bfloat16):
        assert (embeds @ embeds.T).dtype == torch.bfloat16
        cast, labelled = {name: call() for name, call in calls.items()}, labels.label(embeds)
    assert labelled == labels.label(embeds)
    assert not [name for name in calls if not torch.equal(cast[name], plain[name])]


def test_pooling_does_not_follow_autocast(pooling_vit, pooling_pixels):
    import copy

    from vit_lens import attribution as at

    found = copy.deepcopy(pooling_vit).float().run_with_cache(pooling_pixels.float())[1]
    for call in (at.pool_token_parts, at.token_parts, lambda cache: at.split_pooling(cache).values):
        plain = call(found)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(call(found), plain)
