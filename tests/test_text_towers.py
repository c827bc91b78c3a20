"""Text towers made of the package's parts: equal to Hugging Face's in float64, and as open to every tool."""

import pytest
import text_towers
import torch
from conftest import randomize

pytestmark = pytest.mark.tl3
EXACT = dict(atol=1e-12, rtol=1e-10)


@pytest.fixture(scope="module")
def ids():
    """Three texts of eleven tokens; the end, 18, comes at places of their own."""
    found = torch.randint(1, 17, (3, 11), generator=torch.Generator().manual_seed(5))
    for text, end in enumerate((4, 10, 7)):
        found[text, end:] = 0
        found[text, end] = 18
    return found


@pytest.fixture(scope="module")
def clip():
    """Hugging Face's CLIP text encoder, and the tower of the same weights."""
    source = text_towers.clip_text(randomize)
    tower = text_towers.load_clip_text(text_towers.text_tower(text_towers.text_config(), positions=True), source)
    return source, tower.requires_grad_(False)


@pytest.fixture(scope="module", params=[True, False], ids=["gated", "relu"])
def t5(request):
    """Hugging Face's T5 encoder, and the tower of the same weights."""
    source = text_towers.t5_encoder(randomize, gated=request.param)
    tower = text_towers.text_tower(text_towers.t5_config(gated=request.param), positions=False)
    return source, text_towers.load_t5(tower, source).requires_grad_(False)


def test_a_causal_clip_text_tower_equals_its_source(clip, ids):
    source, tower = clip
    theirs = source(input_ids=ids, output_hidden_states=True)
    out, cache = tower.run_with_cache(ids)
    torch.testing.assert_close(out, theirs.text_embeds, **EXACT)
    for layer, state in enumerate(theirs.hidden_states[:-1]):
        torch.testing.assert_close(cache["resid_pre", layer], state, **EXACT)
    torch.testing.assert_close(cache["ln_final.hook_normalized"], theirs.last_hidden_state, **EXACT)
    torch.testing.assert_close(tower(ids), out, **EXACT)  # with the fused attention of an unhooked run
    assert (cache["pattern", 1].triu(1) == 0).all()
    whole = text_towers.text_tower(text_towers.pooled_at_every_token(tower.cfg), positions=True)
    whole.load_state_dict(tower.state_dict())
    projected = theirs.last_hidden_state @ source.text_projection.weight.T
    torch.testing.assert_close(whole(ids), projected, **EXACT)


def test_a_mask_adds_to_the_causal_one(clip, ids):
    source, tower = clip
    seen = torch.ones_like(ids, dtype=torch.bool)
    seen[:, 2] = False
    theirs = source(input_ids=ids, attention_mask=seen.long()).text_embeds
    torch.testing.assert_close(tower(ids, mask=seen[:, None, None].expand(-1, 1, 11, -1)), theirs, **EXACT)
    assert (tower(ids) - theirs).abs().max() > 1e-3


def test_a_t5_encoder_equals_its_source(t5, ids, monkeypatch):
    from transformers.models.t5 import modeling_t5

    def in_float64(self, x):  # the source takes the mean square in float32, whatever the weights are
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(modeling_t5.T5LayerNorm, "forward", in_float64)
    source, tower = t5
    theirs = source(input_ids=ids, output_hidden_states=True)
    out, cache = tower.run_with_cache(ids)
    torch.testing.assert_close(out, theirs.last_hidden_state, **EXACT)
    for layer, state in enumerate(theirs.hidden_states[:-1]):
        torch.testing.assert_close(cache["resid_pre", layer], state, **EXACT)
    torch.testing.assert_close(tower(ids), out, **EXACT)
    assert not [name for name in tower.state_dict() if name.rsplit(".", 1)[-1].startswith("b_")]
    assert cache["rel_bias.hook_rel_bias"].shape == (3, 11, 11)


def test_buckets_are_those_of_t5():
    from transformers.models.t5.modeling_t5 import T5Attention

    from vit_lens.config import RelativeBiasConfig
    from vit_lens.towers.layers import RelativeBias

    distance = torch.arange(-300, 301)
    for n_buckets, max_distance in ((8, 20), (32, 128), (12, 37)):
        bias = RelativeBias(RelativeBiasConfig(n_buckets=n_buckets, max_distance=max_distance), 2)
        theirs = T5Attention._relative_position_bucket(distance, True, n_buckets, max_distance)
        assert torch.equal(bias.buckets(distance), theirs)


def test_the_algebra_of_caches_holds_for_texts(clip, t5, ids):
    for _, tower in (clip, t5):
        out, cache = tower.run_with_cache(ids)
        last = cache["resid_post", 2]
        torch.testing.assert_close(
            cache.decompose_resid(incl_embeds=False).sum(0) + cache["resid_pre", 0], last, **EXACT
        )
        heads = cache.stack_head_results()
        biases = torch.stack([block.attn.b_O for block in tower.blocks]).sum(0)
        written = torch.stack([cache["attn_out", layer] for layer in range(3)]).sum(0)
        torch.testing.assert_close(heads.sum(0) + biases, written, **EXACT)
        normed = cache.apply_ln_to_stack(heads, pos_slice=None)
        scale = cache["ln_final.hook_scale"]
        by_hand = heads - heads.mean(-1, keepdim=True) if tower.cfg.normalization_type == "LN" else heads
        torch.testing.assert_close(normed, by_hand / scale * tower.ln_final.w, **EXACT)
        torch.testing.assert_close(tower.readout_of(ids).read(tower.readout_of(ids).rows(last)), out, **EXACT)


@pytest.mark.parametrize("pool", ["eos", "all"])
def test_readouts_of_texts_in_three_forms(clip, ids, pool):
    from dataclasses import replace

    _, tower = clip
    model = text_towers.text_tower(replace(tower.cfg, pool=pool), positions=True)
    model.load_state_dict(tower.state_dict())
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
    with pytest.raises(InterventionError, match=r"tokens='cls': this tower sees no patches; give positions, 0 to 10"):
        zero(tower, "L1H2@cls")
