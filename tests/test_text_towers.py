"""Hooked text towers: equal to their sources in float64, masked and unmasked, and as open to every tool as images'."""

import pytest
import text_towers
import torch
from conftest import randomize

pytestmark = pytest.mark.tl3
# float64 sums of a few dozen terms of order one, over three layers
EXACT = dict(atol=1e-12, rtol=1e-10)


@pytest.fixture(scope="module")
def ids():
    """Three texts of eleven tokens; the end, the highest id, comes at places of their own and fills the rest."""
    end = len(text_towers.clip_tokenizer()) - 1
    found = torch.randint(1, end - 1, (3, 11), generator=torch.Generator().manual_seed(5))
    for text, place in enumerate((4, 10, 7)):
        found[text, place:] = end
    return found


@pytest.fixture(scope="module")
def t5_ids():
    """Three texts of eleven tokens for T5, whose end is 1 and whose filling is 0."""
    found = torch.randint(2, 30, (3, 11), generator=torch.Generator().manual_seed(6))
    for text, place in enumerate((4, 10, 7)):
        found[text, place:], found[text, place] = 0, 1
    return found


def hooked(source, **given):
    from vit_lens import HookedTextEncoder

    return HookedTextEncoder.from_module(source, **given).requires_grad_(False)


@pytest.fixture(scope="module")
def clip():
    """Hugging Face's CLIP text encoder, and the tower of the same weights."""
    source = text_towers.clip_text(randomize)
    return source, hooked(source)


@pytest.fixture(scope="module", params=[True, False], ids=["gated", "relu"])
def t5(request):
    """Hugging Face's T5 encoder, and the tower of the same weights."""
    source = text_towers.t5_encoder(randomize, gated=request.param)
    return source, hooked(source)


def masked(ids, model):
    """Attention masks: none, what is no filling, and holes."""
    holes = torch.ones_like(ids)
    holes[:, 2] = 0
    return None, model.attention_mask(ids), holes


CLIPS = {
    "projected": dict(),
    "legacy end": dict(eos_token_id=2),
    "plain": dict(projected=False, hidden_act="gelu"),
    "one head": dict(num_attention_heads=1, num_hidden_layers=1, hidden_act="gelu_pytorch_tanh"),
    "narrow heads": dict(num_attention_heads=15, layer_norm_eps=1e-3),
}


@pytest.mark.parametrize("kind", CLIPS)
def test_a_clip_text_tower_equals_its_source(kind, ids):
    source = text_towers.clip_text(randomize, **CLIPS[kind])
    model = hooked(source)
    layers = range(model.cfg.n_layers)
    for mask in masked(ids, model):
        theirs = source(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        out, cache = model.run_with_cache(ids, attention_mask=mask)
        expected = theirs.text_embeds if hasattr(source, "text_projection") else theirs.pooler_output
        torch.testing.assert_close(out, expected, **EXACT)
        states = [*(cache["resid_pre", layer] for layer in layers), cache["resid_post", layers[-1]]]
        torch.testing.assert_close(states, list(theirs.hidden_states), **EXACT)
        torch.testing.assert_close(cache["ln_final.hook_normalized"], theirs.last_hidden_state, **EXACT)
        torch.testing.assert_close(model(ids, attention_mask=mask), out, **EXACT)  # with fused attention
        found = model.states(ids, attention_mask=mask)
        torch.testing.assert_close(found.residual, theirs.hidden_states[-1], **EXACT)
        torch.testing.assert_close(found.tokens, theirs.last_hidden_state, **EXACT)
        torch.testing.assert_close(found.embeds, expected, **EXACT)
        where = model.ends(ids)
        torch.testing.assert_close(found.pooled, theirs.last_hidden_state[torch.arange(3), where], **EXACT)
    assert (cache["pattern", 0].triu(1) == 0).all() and where.tolist() == [4, 10, 7]


def test_a_mask_changes_what_is_read(clip, ids):
    _, model = clip
    _, filling, holes = masked(ids, model)
    assert (model(ids, attention_mask=holes) - model(ids)).abs().max() > 1e-3
    torch.testing.assert_close(model(ids, attention_mask=filling), model(ids), **EXACT)  # which is behind the ends
    both = torch.ones(11, 11, dtype=torch.bool)
    both[5:, 3] = False
    seen = both & holes.bool()[:, None]
    torch.testing.assert_close(model(ids, attention_mask=holes, mask=both), model(ids, mask=seen[:, None]), **EXACT)


def test_both_layouts_and_a_whole_clip(ids):
    from transformers import CLIPConfig, CLIPModel

    text, vision = text_towers.clip_config().to_dict(), dict(hidden_size=20, num_attention_heads=2, num_hidden_layers=1)
    whole = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=13))
    whole = randomize(whole.double()).eval().requires_grad_(False)
    expected = whole.get_text_features(input_ids=ids)
    expected = getattr(expected, "pooler_output", expected)
    torch.testing.assert_close(hooked(whole)(ids), expected, **EXACT)
    alone = hooked(whole.text_model)
    torch.testing.assert_close(alone(ids), whole.text_model(input_ids=ids).pooler_output, **EXACT)


OPEN_CLIPS = {
    "argmax": dict(),
    "eos": dict(pool_type="eos", eos_id=22, ls_init_value=None, norm_eps=1e-3),
    "both ways": dict(no_causal_mask=True, proj_bias=True, ls_init_value=None),
    "no projection": dict(output_dim=None, quick_gelu=True),
}


@pytest.mark.parametrize("kind", OPEN_CLIPS)
def test_a_text_tower_of_open_clip_equals_its_source(kind):
    from functools import partial

    from open_clip.transformer import LayerNorm, QuickGELU

    changes = dict(OPEN_CLIPS[kind])
    if eps := changes.pop("norm_eps", None):
        changes["norm_layer"] = partial(LayerNorm, eps=eps)
    if changes.pop("quick_gelu", False):
        changes["act_layer"] = QuickGELU
    source = text_towers.open_clip_text(randomize, **changes)
    model = hooked(source)
    ids = torch.randint(1, 22, (3, 11), generator=torch.Generator().manual_seed(5))
    ids[[0, 1, 2], [4, 10, 7]] = 22
    theirs = source.forward_intermediates(ids, output_fmt="NLC")
    out, cache = model.run_with_cache(ids)
    torch.testing.assert_close(out, source(ids), **EXACT)
    states = [cache["resid_post", layer] for layer in range(3)]
    torch.testing.assert_close(states, list(theirs["text_intermediates"]), **EXACT)


def test_whole_models_of_open_clip_have_text_towers():
    import open_clip

    sizes = dict(embed_dim=13, vision_cfg=dict(image_size=14, layers=1, width=24, head_width=8, patch_size=7))
    text = dict(context_length=11, vocab_size=23, width=30, heads=3, layers=2)
    ids = torch.randint(1, 23, (3, 11), generator=torch.Generator().manual_seed(5))
    for kind in (open_clip.CLIP, open_clip.CustomTextCLIP):
        whole = randomize(kind(**sizes, text_cfg=text, quick_gelu=True).double().eval()).requires_grad_(False)
        torch.testing.assert_close(hooked(whole)(ids), whole.encode_text(ids), **EXACT)


def test_a_t5_encoder_equals_its_source(t5, t5_ids, monkeypatch):
    text_towers.exact_t5_norms(monkeypatch)
    source, model = t5
    for mask in masked(t5_ids, model):
        theirs = source(input_ids=t5_ids, attention_mask=mask, output_hidden_states=True)
        out, cache = model.run_with_cache(t5_ids, attention_mask=mask)
        torch.testing.assert_close(out, theirs.last_hidden_state, **EXACT)
        for layer, state in enumerate(theirs.hidden_states[:-1]):
            torch.testing.assert_close(cache["resid_pre", layer], state, **EXACT)
        torch.testing.assert_close(model(t5_ids, attention_mask=mask), out, **EXACT)
        found = model.states(t5_ids, attention_mask=mask)
        torch.testing.assert_close(model.ln_final.read(found.residual), found.tokens, **EXACT)
        torch.testing.assert_close(found.tokens, out, **EXACT)
        assert found.pooled is None and found.embeds is None
    assert (out - model(t5_ids)).abs().max() > 1e-3
    assert not [name for name in model.state_dict() if name.rsplit(".", 1)[-1].startswith("b_")]
    assert cache["rel_bias.hook_rel_bias"].shape == (3, 3, 11, 11)


def test_a_t5_encoder_in_float32_equals_its_source_as_it_is(t5_ids):
    source = text_towers.t5_encoder(randomize, gated=True).float()
    theirs = source(input_ids=t5_ids).last_hidden_state
    torch.testing.assert_close(hooked(source)(t5_ids), theirs, atol=1e-5, rtol=1e-5)


def test_a_whole_t5_has_an_encoder(t5_ids, monkeypatch):
    from transformers import T5ForConditionalGeneration

    text_towers.exact_t5_norms(monkeypatch)
    config = text_towers.t5_config(gated=False, is_encoder_decoder=True, d_kv=10, num_layers=2)
    whole = randomize(T5ForConditionalGeneration(config).double()).eval().requires_grad_(False)
    theirs = whole.encoder(input_ids=t5_ids).last_hidden_state
    torch.testing.assert_close(hooked(whole)(t5_ids), theirs, **EXACT)


def test_shared_weights_are_shared(ids):
    source = text_towers.clip_text(randomize)
    model = hooked(source, copy=False)
    source.text_model.encoder.layers[1].mlp.fc2.bias += 1
    torch.testing.assert_close(model(ids), source(input_ids=ids).text_embeds, **EXACT)


def test_buckets_are_those_of_t5():
    from transformers.models.t5.modeling_t5 import T5Attention

    from vit_lens.config import RelativeBiasConfig
    from vit_lens.towers.layers import RelativeBias

    distance = torch.arange(-300, 301)
    for n_buckets, max_distance in ((8, 20), (32, 128), (12, 37)):
        bias = RelativeBias(RelativeBiasConfig(n_buckets=n_buckets, max_distance=max_distance), 2)
        theirs = T5Attention._relative_position_bucket(distance, True, n_buckets, max_distance)
        assert torch.equal(bias.buckets(distance), theirs)


def test_the_algebra_of_caches_holds_for_texts(clip, t5, ids, t5_ids):
    for (_, tower), given in ((clip, ids), (t5, t5_ids)):
        out, cache = tower.run_with_cache(given)
        last = cache["resid_post", 2]
        parts, labels = cache.decompose_resid(return_labels=True)
        torch.testing.assert_close(parts.sum(0), last, **EXACT)
        assert labels[: 1 + tower.cfg.has_pos_embed] == ["embed", "pos_embed"][: 1 + tower.cfg.has_pos_embed]
        torch.testing.assert_close(cache.get_full_resid_decomposition().sum(0), last, **EXACT)
        one = cache.apply_slice_to_batch_dim([1])
        torch.testing.assert_close(one.decompose_resid().sum(0), last[1:2], **EXACT)
        heads = cache.stack_head_results()
        biases = torch.stack([block.attn.b_O for block in tower.blocks]).sum(0)
        written = torch.stack([cache["attn_out", layer] for layer in range(3)]).sum(0)
        torch.testing.assert_close(heads.sum(0) + biases, written, **EXACT)
        normed = cache.apply_ln_to_stack(heads, pos_slice=None)
        scale = cache["ln_final.hook_scale"]
        by_hand = heads - heads.mean(-1, keepdim=True) if tower.cfg.normalization_type == "LN" else heads
        torch.testing.assert_close(normed, by_hand / scale * tower.ln_final.w, **EXACT)
        torch.testing.assert_close(tower.readout_of(given).read(tower.readout_of(given).rows(last)), out, **EXACT)


@pytest.mark.parametrize("pool", ["eos", "all"])
def test_readouts_of_texts_in_three_forms(clip, ids, pool):
    from dataclasses import replace

    _, tower = clip
    model = type(tower)(replace(tower.cfg, pool=pool)).double()
    model.load_state_dict(tower.state_dict())
    model.requires_grad_(False)
    out, cache = model.run_with_cache(ids)
    readout, last = model.readout_of(ids), cache["resid_post", 2]
    torch.testing.assert_close(readout.read(readout.rows(last)), out, **EXACT)
    condition = readout.condition(readout.rows(last))
    held = condition.pooled if pool == "eos" else condition.tokens
    torch.testing.assert_close(held, out, **EXACT)
    other = torch.randn_like(readout.rows(last))
    torch.testing.assert_close(readout.rows(readout.with_rows(last, other)), other, **EXACT)
    changed = model.run_with_hooks(
        ids, fwd_hooks=[("blocks.2.hook_resid_post", lambda act, hook: readout.with_rows(act, other))]
    )
    torch.testing.assert_close(changed, readout.read(other), **EXACT)
    parts = torch.cat([cache.stack_head_results(), cache.decompose_resid(mode="mlp", incl_embeds=False)])
    bias = torch.stack([block.attn.b_O for block in model.blocks]).sum(0)
    start = cache["resid_pre", 0] + bias
    whole = torch.cat([parts, start[None]])
    if pool == "all":
        frozen = readout.frozen(cache)
        torch.testing.assert_close(frozen(whole).sum(0) + frozen.constant, out, **EXACT)


def test_where_a_text_ends_must_be_known(clip, ids):
    from vit_lens.errors import VitLensError

    _, tower = clip
    with pytest.raises(VitLensError, match=r"model.readout_of\(tokens\)"):
        tower.readout.rows(torch.zeros(3, 11, 30))
    with pytest.raises(VitLensError, match="known of 3 texts"):
        tower.readout_of(ids).rows(torch.zeros(2, 11, 30))


def test_a_text_tower_keeps_the_contract(clip):
    from vit_lens import HookedViT
    from vit_lens.towers import HookedTower, Tower

    _, tower = clip
    assert isinstance(tower, Tower) and not isinstance(torch.nn.Linear(2, 2), Tower)
    assert issubclass(HookedViT, HookedTower)
    assert [type(stream).__name__ for stream in tower.streams] == ["ResidualStream"]
    assert len(tower.fingerprint) == 16 and tower.encoder_id.startswith("module@")


def test_lenses_and_attribution_read_a_text_where_it_ends(clip, ids):
    from vit_lens import DiffusionLens, DiffusionSteeringLens, Site
    from vit_lens.attribution import split_embedding
    from vit_lens.errors import InterventionError
    from vit_lens.interventions import patch, zero

    _, tower = clip
    out, cache = tower.run_with_cache(ids)
    torch.testing.assert_close(split_embedding(cache).total, out, **EXACT)
    torch.testing.assert_close(DiffusionLens().embed(cache, "L2.resid_post")[:, 0], out, **EXACT)
    kept = tower.run_with_cache(ids, rows="readout")[1]
    for lens in (DiffusionLens(), DiffusionSteeringLens(alpha=3.0)):
        sites = [site for site in (*Site.heads(tower), *Site.mlps(tower)) if lens.reads(site)]
        closed = lens.embed(cache, sites)
        torch.testing.assert_close(lens.embed(kept, sites), closed, **EXACT)
        torch.testing.assert_close(lens.embed(cache.apply_slice_to_batch_dim([2, 0]), sites), closed[[2, 0]], **EXACT)
        for at, site in enumerate(sites):
            hooked = tower.run_with_hooks(ids, fwd_hooks=lens.hooks(cache, site))
            torch.testing.assert_close(hooked, closed[:, at], **EXACT)
    torch.testing.assert_close(tower.run_with_hooks(ids, fwd_hooks=patch(tower, "L1.mlp", cache)), out, **EXACT)
    off = zero(tower, "L1H2", tokens=[4, 7, 10])
    assert (tower.run_with_hooks(ids, fwd_hooks=off) - out).abs().max() > 1e-3
    with pytest.raises(InterventionError, match=r"tokens='cls': this tower sees no patches; give positions, 0 to 18"):
        zero(tower, "L1H2@cls")
