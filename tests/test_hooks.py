"""Hooks are loud: nothing that a user asks of a hook point is ignored in silence."""

import pytest
import torch

pytestmark = pytest.mark.tl3


def keep(act, hook):
    return act


def test_every_hook_point_changes_the_output(vit, pixels):
    """Each point is an intervention point: an edit there reaches the embedding, which stays finite."""
    clean = vit(pixels)
    for name in vit.hook_dict:

        def edit(act, hook, name=name):
            return act * 2 if name.endswith("hook_scale") else act * 0

        edited = vit.run_with_hooks(pixels, fwd_hooks=[(name, edit)])
        assert torch.isfinite(edited).all(), name
        assert (edited - clean).abs().max() > 1e-6, name


def test_a_hook_that_changes_nothing_changes_nothing(vit, pixels):
    """Unfused attention and the hooked norms are the same function as the fast path."""
    clean = vit(pixels)
    for name in vit.hook_dict:
        assert (vit.run_with_hooks(pixels, fwd_hooks=[(name, keep)]) - clean).abs().max() < 1e-12, name


def test_head_results_and_bias_add_up(vit, pixels):
    _, cache = vit.run_with_cache(pixels, names_filter=lambda n: n.endswith(("hook_result", "hook_attn_out")))
    for layer, block in enumerate(vit.blocks):
        total = cache["result", layer].sum(2) + block.attn.b_O
        assert (total - cache[f"blocks.{layer}.hook_attn_out"]).abs().max() < 1e-12


def test_embed_and_pos_embed_are_the_first_residual(readout_vit):
    model, tower = readout_vit
    x = torch.randn(2, 3, 21, 21, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, cache = model.run_with_cache(x)
    assert (cache["embed"] + cache["pos_embed"] - cache["resid_pre", 0]).abs().max() < 1e-12
    raw = cache["hook_embed_raw"] + cache["hook_pos_embed_raw"]
    assert (tower.ln_pre(raw) - cache["resid_pre", 0]).abs().max() < 1e-12
    assert (cache.decompose_resid().sum(0) - cache["resid_post", 2]).abs().max() < 1e-12


def test_unknown_names_give_the_nearest(vit, pixels):
    from vit_lens.errors import UnknownHookError

    match = r"no hook point 'blocks.1.attn.hook_zz'; nearest: 'blocks.1.attn.hook_z'"
    with pytest.raises(UnknownHookError, match=match):
        vit.run_with_hooks(pixels, fwd_hooks=[("blocks.1.attn.hook_zz", keep)])
    with pytest.raises(UnknownHookError, match=match):
        vit.add_hook("blocks.1.attn.hook_zz", keep)
    with pytest.raises(UnknownHookError, match=match):
        vit.run_with_cache(pixels, names_filter=["hook_embed", "blocks.1.attn.hook_zz"])
    with (
        pytest.raises(UnknownHookError, match=r"no hook point 'blocks\.1\.attn'"),
        vit.hooks([("blocks.1.attn", keep)]),
    ):
        pass
    assert not vit.list_hooks()


def test_a_filter_that_matches_nothing_raises(vit, pixels):
    from vit_lens.errors import UnknownHookError

    for call in (
        lambda: vit.run_with_hooks(pixels, fwd_hooks=[(lambda n: "hook_zz" in n, keep)]),
        lambda: vit.add_hook(lambda n: False, keep),
        lambda: vit.run_with_cache(pixels, names_filter=lambda n: n == "typo"),
    ):
        with pytest.raises(UnknownHookError, match="matches none of the"):
            call()
    with pytest.raises(UnknownHookError, match="names_filter is empty"):
        vit.run_with_cache(pixels, names_filter=[])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda act, hook: act[:1], r"returned \(1, 5, 35\) float64 .* for \(3, 5, 35\) float64"),
        (lambda act, hook: act.float(), "float32"),
        (lambda act, hook: [act], "returned list; return a tensor or None"),
    ],
)
def test_a_hook_may_not_change_shape_or_dtype(vit, pixels, edit, message):
    from vit_lens.errors import HookShapeError

    with pytest.raises(HookShapeError, match=message):
        vit.run_with_hooks(pixels, fwd_hooks=[("blocks.1.hook_resid_pre", edit)])
    assert not vit.list_hooks()


def test_a_hook_that_cannot_fire_raises(vit, pixels):
    from vit_lens.errors import UnfiredHookError

    with pytest.raises(UnfiredHookError, match=r"'blocks.2.hook_mlp_out'\] cannot fire: stop_at_layer=2"):
        vit.run_with_hooks(pixels, fwd_hooks=[("blocks.2.hook_mlp_out", keep)], stop_at_layer=2)
    with pytest.raises(UnfiredHookError, match="cannot be cached: stop_at_layer=-2"):
        vit.run_with_cache(pixels, names_filter="hook_image_embeds", stop_at_layer=-2)
    with (
        pytest.raises(UnfiredHookError, match="cannot fire"),
        vit.hooks(bwd_hooks=[("blocks.2.hook_mlp_out", keep)]),
    ):
        vit(pixels, stop_at_layer=1)
    with pytest.raises(UnfiredHookError, match="reset_hooks_end=False"):
        vit.run_with_hooks(pixels, bwd_hooks=[("hook_embed", keep)])


def test_a_hook_that_never_fired_is_reported(vit, pixels, monkeypatch):
    """The last net: a part of the model that a user has replaced no longer passes its hook points."""
    from vit_lens.errors import UnfiredHookError

    monkeypatch.setattr(vit.blocks[1].mlp, "forward", lambda x: x)
    hooks = [("blocks.1.mlp.hook_pre", keep), ("blocks.0.mlp.hook_pre", keep)]
    with pytest.raises(UnfiredHookError, match=r"never fired in this call: \['blocks.1.mlp.hook_pre'\]"):
        vit.run_with_hooks(pixels, fwd_hooks=hooks)


def test_a_context_says_which_hooks_never_fired(vit, pixels):
    with pytest.warns(UserWarning, match=r"never fired inside their `with` block: \['hook_embed'\]"):
        with vit.hooks([("hook_embed", keep)]):
            pass
    with pytest.warns(UserWarning, match="blocks.1.hook_mlp_out"):
        with vit.hooks(bwd_hooks=[("blocks.1.hook_mlp_out", keep)]):
            vit(pixels)  # nobody calls backward()
    assert not vit.list_hooks()


def test_a_hook_on_a_gated_point_fires_without_its_switch(vit, pixels):
    clean = vit(pixels)
    for part in ("attn.hook_result", "hook_attn_in", "hook_q_input", "hook_mlp_in"):
        edited = vit.run_with_hooks(pixels, fwd_hooks=[(f"blocks.1.{part}", lambda act, hook: act * 0)])
        assert (edited - clean).abs().max() > 1e-6


def test_switches_add_gated_points_to_a_full_cache(vit, pixels):
    setters = {
        "attn.hook_result": vit.set_use_attn_result,
        "hook_attn_in": vit.set_use_attn_in,
        "hook_k_input": vit.set_use_split_qkv_input,
        "hook_mlp_in": vit.set_use_hook_mlp_in,
    }
    clean = vit(pixels)
    for part, switch in setters.items():
        assert f"blocks.1.{part}" not in vit.run_with_cache(pixels)[1]
        switch(True)
        out, cache = vit.run_with_cache(pixels)
        switch(False)
        assert f"blocks.1.{part}" in cache and (out - clean).abs().max() < 1e-12


def test_stop_at_layer_returns_the_residual(vit, pixels):
    _, cache = vit.run_with_cache(pixels)
    for stop in (0, 1, 2, -1):
        assert (vit(pixels, stop_at_layer=stop) - cache["resid_pre", stop]).abs().max() < 1e-12
    resid, part = vit.run_with_cache(pixels, stop_at_layer=1)
    assert torch.equal(resid, cache["resid_post", 0])
    assert not any(n.startswith(("blocks.1", "ln_final", "hook_image")) for n in part.keys())


def test_pos_slice_leaves_pooled_activations_whole(readout_vit):
    from vit_lens import DiffusionLens
    from vit_lens.errors import LensError

    model, _ = readout_vit
    model.set_use_attn_result(True)
    x = torch.randn(4, 3, 21, 21, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, full = model.run_with_cache(x)
    _, cut = model.run_with_cache(x, pos_slice=(1, 4))
    model.set_use_attn_result(False)
    for name in full.keys():
        last = name.rsplit(".", 1)[-1]
        pooled = last in ("hook_pooled", "hook_image_embeds")
        if pooled or (name.startswith("ln_final") and model.cfg.ln_final == "after_pool"):
            assert torch.equal(cut[name], full[name]), name
        elif last in ("hook_attn_scores", "hook_pattern"):
            assert torch.equal(cut[name], full[name][:, :, 1:4]), name
        else:
            assert torch.equal(cut[name], full[name][:, 1:4]), name
    assert DiffusionLens().embed(full, "L0H0").shape == (4, 1, 10)
    with pytest.raises(LensError, match="cut by pos_slice"):
        DiffusionLens().embed(cut, "L0H0")


def test_the_cache_knows_short_names_and_its_model(vit, pixels):
    from transformer_lens import ActivationCache

    from vit_lens.errors import UnknownHookError

    out, cache = vit.run_with_cache(pixels)
    assert isinstance(cache, ActivationCache) and cache.model is vit
    assert torch.equal(cache["z", 2], cache["blocks.2.attn.hook_z"])
    assert torch.equal(cache["hook_image_embeds"], out)
    with pytest.raises(UnknownHookError, match=r"holds no 'blocks.0.attn.hook_zz'; nearest: 'blocks.0.attn.hook_z'"):
        cache["blocks.0.attn.hook_zz"]


def test_remove_batch_dim(vit, pixels):
    from vit_lens import DiffusionLens
    from vit_lens.errors import LensError, VitLensError

    _, cache = vit.run_with_cache(pixels[:1], remove_batch_dim=True)
    assert cache["resid_post", 0].shape == (5, 35)
    with pytest.raises(VitLensError, match="needs one image, not 3"):
        vit.run_with_cache(pixels, remove_batch_dim=True)
    with pytest.raises(LensError, match="no batch axis"):
        DiffusionLens().embed(cache, "L0H0")


def test_quiet_ways_into_the_cache_are_closed(vit, pixels):
    from vit_lens.errors import UnknownHookError, VitLensError

    with pytest.raises(UnknownHookError, match="nearest: 'hook_embed'"):
        vit.add_caching_hooks(names_filter="hook_embd")
    with pytest.raises(VitLensError, match="rows='cut'; expected 'all' or 'readout'"):
        vit.run_with_cache(pixels, rows="cut")
    with pytest.raises(VitLensError, match="needs one image, not 3"):
        vit.run_with_cache(pixels=pixels, remove_batch_dim=True)
    kept = vit.add_caching_hooks(names_filter="blocks.1.hook_mlp_out")
    vit(pixels)
    vit.reset_hooks()
    assert set(kept) == {"blocks.1.hook_mlp_out"} and not vit.list_hooks()


def test_part_of_a_batch_keeps_its_model(vit, pixels):
    from vit_lens import DiffusionLens

    _, cache = vit.run_with_cache(pixels, rows="readout")
    part = cache.apply_slice_to_batch_dim((1, 3))
    lens = DiffusionLens()
    assert (lens.embed(part, "L1H2") - lens.embed(cache, "L1H2")[1:]).abs().max() < 1e-12


def test_accumulated_bias_completes_the_decomposition(vit, pixels):
    _, cache = vit.run_with_cache(pixels)
    parts = cache.get_full_resid_decomposition(expand_neurons=False)
    assert (parts.sum(0) - cache["resid_post", 2]).abs().max() < 1e-12
    assert vit.b_U.shape == (13,) and vit.accumulated_bias(1, mlp_input=True).shape == (35,)


def test_a_readout_cache_is_small_and_equal(readout_vit):
    model, _ = readout_vit
    x = torch.randn(4, 3, 21, 21, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, full = model.run_with_cache(x)
    _, small = model.run_with_cache(x, rows="readout")
    assert len(small.keys()) == 6 * 3 + 3
    for name in small.keys():
        whole = full[name] if model.pos_axis(name) is None else full.readout(name)
        assert (small[name] - whole).abs().max() < 1e-12, name  # fused and open attention
    rows = {"cls": 1, "patches": 9, "pooled": 1}[model.readout.kind]
    assert small["blocks.0.attn.hook_z"].shape == (4, rows, 3, 11)
    # Six residual-sized rows a layer: 6 x 48 x 1664 float32 numbers, 1.9 MB an image, on ViT-bigG/14.
    in_blocks = [value for name, value in small.items() if name.startswith("blocks.")]
    assert sum(value.numel() for value in in_blocks) == 4 * 6 * 3 * rows * 33


def test_backward_hooks_and_gradients(hf_tower, pixels):
    from vit_lens import HookedViT

    model = HookedViT.from_module(hf_tower)
    seen = []
    with model.hooks(bwd_hooks=[("blocks.1.hook_resid_pre", lambda grad, hook: seen.append(grad.clone()))]):
        model(pixels).sum().backward()
    _, cache = model.run_with_cache(pixels, incl_bwd=True, names_filter="blocks.1.hook_resid_pre")
    assert len(seen) == 1 and torch.equal(seen[0], cache["blocks.1.hook_resid_pre_grad"])


def test_an_attention_mask_hides_tokens(vit, pixels):
    """A causal mask makes CLS (position 0) blind to the patches; fused and open attention agree."""
    causal = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    fused = vit(pixels, mask=causal)
    assert (fused - fused[:1]).abs().max() < 1e-12
    opened = vit.run_with_hooks(pixels, mask=causal, fwd_hooks=[("blocks.0.attn.hook_pattern", keep)])
    assert (opened - fused).abs().max() < 1e-12
    _, cache = vit.run_with_cache(pixels, mask=causal)
    assert cache["pattern", 1].triu(1).abs().max() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :, :21], r"shape \(3, 3, 21, 22\); expected \(batch, 3, 22, 22\)"),
        (lambda x: x.float(), "pixels of dtype torch.float32"),
        (lambda x: x[:0], "expected"),
    ],
)
def test_wrong_pixels_are_refused(vit, pixels, change, message):
    from vit_lens.errors import PreprocessError

    with pytest.raises(PreprocessError, match=message):
        vit(change(pixels))


def test_nan_pixels_are_refused(vit, pixels):
    from vit_lens.errors import PreprocessError

    bad = pixels.clone()
    bad[1, 0, 3, 3] = float("nan")
    with pytest.raises(PreprocessError, match="image 1 holds NaN"):
        vit(bad)


def test_a_tower_without_preprocessing_asks_for_it(vit):
    from vit_lens.errors import PreprocessError

    with pytest.raises(PreprocessError, match=r"set model\.preprocess_spec = vit_lens\.PreprocessSpec"):
        vit.preprocess("image.png")
