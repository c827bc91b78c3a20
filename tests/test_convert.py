"""Converted weights give the source tower's numbers in a forward pass that uses nothing of the package."""

import pytest
import torch
import towers

# float64 sums of a few hundred terms of order one, over two or three blocks
EXACT = 1e-9


@pytest.fixture(scope="module")
def convert():
    """What the weight maps of the families make of a state dict."""
    from types import SimpleNamespace

    from vit_lens.sources.families import clip, open_clip
    from vit_lens.sources.recipe import build

    def by(family):
        def convert(state_dict, cfg, *, copy=True):
            tensors = {name: state_dict[key] for name, key in family.FAMILY.names(state_dict).items()}
            recipe = family.FAMILY.recipe(cfg, tensors)
            recipe.check(tensors)
            return build(recipe, tensors, next(iter(tensors.values())).dtype, copy=copy)

        return convert

    return SimpleNamespace(
        from_open_clip=by(open_clip),
        from_hf_clip=by(clip),
        open_clip_recipe=open_clip.FAMILY.recipe,
        hf_clip_recipe=clip.FAMILY.recipe,
    )


@pytest.fixture(scope="module")
def errors():
    import vit_lens.errors

    return vit_lens.errors


@pytest.fixture(scope="module")
def read_module():
    from vit_lens.sources import read_module

    return read_module


def config_of(read_module, tower):
    return read_module(tower).cfg


@pytest.mark.parametrize("name", towers.native_names())
def test_open_clip_weights_in_every_structure(name, convert, read_module):
    visual = towers.shrunk_open_clip(name).visual
    cfg = config_of(read_module, visual)
    weights = convert.from_open_clip(visual.state_dict(), cfg)
    pixels = towers.pixels_of(cfg.image_size, batch=1)
    expected, residuals = towers.block_outputs(visual, visual.transformer.resblocks, pixels, visual)
    embedding, ours = towers.brute_force(weights, cfg, pixels)
    assert len(ours) == len(residuals) == 2
    for mine, theirs in zip(ours, residuals, strict=True):
        assert (mine - theirs).abs().max() < EXACT
    assert (embedding - expected).abs().max() < EXACT


@pytest.mark.parametrize("kind", ["CLIPVisionModelWithProjection", "CLIPVisionModel"])
@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_hf_weights(kind, act, convert, read_module):
    tower = towers.hf_tower(kind, hidden_act=act, layer_norm_eps=3e-4)
    cfg = config_of(read_module, tower)
    assert (cfg.act_fn, cfg.eps, cfg.has_proj) == (act, 3e-4, kind.endswith("Projection"))
    weights = convert.from_hf_clip(tower.state_dict(), cfg)
    pixels = towers.pixels_of(cfg.image_size)
    with torch.no_grad():
        out = tower(pixels, output_hidden_states=True)
    embedding, ours = towers.brute_force(weights, cfg, pixels)
    for mine, theirs in zip(ours, out.hidden_states[1:], strict=True):
        assert (mine - theirs).abs().max() < EXACT
    assert (embedding - (out.image_embeds if cfg.has_proj else out.pooler_output)).abs().max() < EXACT


def test_the_wrong_activation_or_eps_shows(convert, read_module):
    """The reference can tell; otherwise the tests above would prove little."""
    import dataclasses

    visual = towers.tiny_visual()
    cfg = config_of(read_module, visual)
    weights = convert.from_open_clip(visual.state_dict(), cfg)
    pixels = towers.pixels_of(cfg.image_size)
    right, _ = towers.brute_force(weights, cfg, pixels)
    for change in ({"act_fn": "quick_gelu"}, {"eps": 1e-6}, {"pool": "avg"}):
        wrong, _ = towers.brute_force(weights, dataclasses.replace(cfg, **change), pixels)
        assert (wrong - right).abs().max() > 1e-7, change


def test_layer_scale_is_folded_along_d_model(convert, read_module):
    visual = towers.tiny_visual(ls_init_value=0.1)
    weights = convert.from_open_clip(visual.state_dict(), config_of(read_module, visual))
    block = visual.transformer.resblocks[1]
    scaled = block.attn.out_proj.weight.T * block.ls_1.gamma
    assert torch.equal(weights["blocks.1.attn.W_O"].flatten(0, 1), scaled)
    assert torch.equal(weights["blocks.1.mlp.b_out"], block.mlp.c_proj.bias * block.ls_2.gamma)
    assert not torch.allclose(weights["blocks.1.attn.b_O"], block.attn.out_proj.bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_and_memory_is_not_shared(dtype, convert, read_module):
    visual = towers.tiny_visual().to(dtype)
    source = visual.state_dict()
    before = {name: tensor.clone() for name, tensor in source.items()}
    weights = convert.from_open_clip(source, config_of(read_module, visual))
    assert {tensor.dtype for tensor in weights.values()} == {dtype}
    assert weights["blocks.0.mlp.W_in"].T.is_contiguous()  # the layout that matrix products read without a copy
    for tensor in weights.values():
        tensor.fill_(7)
    assert all(torch.equal(source[name], before[name]) for name in source)


def test_memory_is_shared_when_asked(convert, read_module):
    visual = towers.tiny_visual()
    weights = convert.from_open_clip(visual.state_dict(), config_of(read_module, visual), copy=False)
    assert weights["embed.W_E"].untyped_storage().data_ptr() == visual.conv1.weight.untyped_storage().data_ptr()


def test_memory_is_not_shared_where_it_cannot_be(convert, read_module, errors):
    visual = towers.tiny_visual(ls_init_value=0.1)
    with pytest.raises(errors.CheckpointError, match=r"cannot share memory for blocks\.0\.attn\.W_O.*LayerScale"):
        convert.from_open_clip(visual.state_dict(), config_of(read_module, visual), copy=False)


def test_every_parameter_of_the_model_is_produced(read_module):
    from vit_lens.models import HookedViT

    for tower in (towers.tiny_visual(), towers.tiny_visual(no_ln_pre=True), towers.hf_tower("CLIPVisionModel")):
        source = read_module(tower)
        expected = {name: tuple(p.shape) for name, p in HookedViT(source.cfg).state_dict().items()}
        assert {name: tuple(t.shape) for name, t in source.state_dict.items()} == expected


def broken(state_dict, fault):
    state_dict = dict(state_dict)
    name = next(n for n in state_dict if n.endswith(("ln_2.bias", "layers.1.layer_norm2.bias")))
    if fault == "missing":
        del state_dict[name]
    elif fault == "extra":
        name = name.replace("bias", "gain")
        state_dict[name] = torch.zeros(3)
    elif fault == "misshapen":
        state_dict[name] = state_dict[name][:-1]
    else:
        state_dict[name] = state_dict[name].int()
    return state_dict, name.removeprefix("vision_model.")


@pytest.mark.parametrize("fault", ["missing", "extra", "misshapen", "not floating point"])
def test_faults_are_named(fault, convert, read_module, errors):
    for tower, function in (
        (towers.tiny_visual(), convert.from_open_clip),
        (towers.hf_tower(), convert.from_hf_clip),
        (towers.hf_tower("CLIPVisionModel"), convert.from_hf_clip),
    ):
        cfg = config_of(read_module, tower)
        state_dict, name = broken(tower.state_dict(), fault)
        with pytest.raises(errors.CheckpointError) as caught:
            function(state_dict, cfg)
        assert f"1 {fault}: {name}" in str(caught.value)


def test_several_faults_come_in_one_message(convert, read_module, errors):
    tower = towers.tiny_visual()
    state_dict = dict(tower.state_dict()) | {"head.weight": torch.zeros(2), "proj": torch.zeros(33, 9)}
    for layer in range(3):
        del state_dict[f"transformer.resblocks.{layer}.ln_1.weight"]
    with pytest.raises(errors.CheckpointError) as caught:
        convert.from_open_clip(state_dict, config_of(read_module, tower))
    message = str(caught.value)
    assert (
        "3 missing" in message and "1 extra: head.weight" in message and "proj [33, 9] instead of [33, 10]" in message
    )


def test_half_a_layer_scale_is_missing_tensors(convert, read_module, errors):
    tower = towers.tiny_visual(ls_init_value=0.1)
    state_dict = dict(tower.state_dict())
    del state_dict["transformer.resblocks.2.ls_2.gamma"]
    with pytest.raises(errors.CheckpointError, match=r"missing: transformer\.resblocks\.2\.ls_2\.gamma"):
        convert.from_open_clip(state_dict, config_of(read_module, tower))


def test_position_ids_are_allowed_and_nothing_else_is(convert, read_module):
    tower = towers.hf_tower()
    cfg = config_of(read_module, tower)
    extra = {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
    weights = convert.from_hf_clip(dict(tower.state_dict()) | extra, cfg)
    assert weights.keys() == convert.from_hf_clip(tower.state_dict(), cfg).keys()
    assert convert.hf_clip_recipe(cfg, {}).allowed == {"embeddings.position_ids"}
    assert not convert.open_clip_recipe(cfg, {}).allowed
