"""Hostile use of towers, hooks and caches: what came out wrong or without a word, a section for each case."""

import copy
import dataclasses
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from kinds import close, images, own_tower
from torch import nn

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(scope="module", params=["registers", "map", "coca"])
def tower(request):
    """Towers with every hook point that there is, ``ln_pre`` and attention pooling among them."""
    return own_tower(request.param).requires_grad_(False)


@pytest.fixture(scope="module")
def model():
    return own_tower("registers")


def double(module, args, output=None):
    return 2 * (args[0] if output is None else output)


def double_in_place(module, args, output):
    output.mul_(2)


# ---- H1: hooks of plain PyTorch fire in every kind of run -----------------------------------------------------------


SKIPPED = (
    "hook_scale", "hook_normalized", "hook_attn_scores", "hook_pattern", "hook_result", "_in", "_input", "hook_embed",
    "hook_pos_embed", "hook_pos_embed_raw",
)  # fmt: skip
"""What a run leaves out where no hook asks for it."""


def test_a_plain_hook_fires_wherever_a_hook_of_transformer_lens_would():
    tower = own_tower("coca").requires_grad_(False)
    px = images(tower, 1)
    names = [n for n in tower.hook_dict if n.endswith(SKIPPED) and not n.startswith(("blocks.0", "blocks.2"))]
    assert len(names) >= 20
    for name in names:
        point = tower.hook_dict[name]
        edited = tower.run_with_hooks(px, fwd_hooks=[(name, lambda x, hook: 2 * x)])
        for register in (point.register_forward_hook, point.register_forward_pre_hook):
            handle = register(double)
            assert (tower(px) - edited).abs().max() < 1e-10, name
            handle.remove()


def test_plain_backward_hooks_see_what_a_cache_keeps(model):
    px = images(model, 2)
    names = ["blocks.1.attn.hook_pattern", "ln_pre.hook_scale", "blocks.2.ln1.hook_normalized", "hook_embed"]
    _, cache = model.run_with_cache(px, names_filter=names, incl_bwd=True)
    for name in names:
        point, seen = model.hook_dict[name], []
        for register in (point.register_full_backward_hook, point.register_full_backward_pre_hook):
            handle = register(lambda module, *grads, seen=seen: seen.append(grads[-1][0]))
            model(px).sum().backward()
            handle.remove()
        assert len(seen) == 2 and all((grad - cache[f"{name}_grad"]).abs().max() < 1e-10 for grad in seen), name
    model.zero_grad()


def test_a_plain_hook_on_any_module_fires(tower):
    px, fired = images(tower, 1), []
    modules = [module for module in tower.modules() if not isinstance(module, nn.ModuleList)]
    handles = [module.register_forward_hook(lambda module, *_: fired.append(module)) for module in modules]
    tower(px)
    for handle in handles:
        handle.remove()
    assert set(map(id, fired)) == set(map(id, modules))
    alone = tower.ln_pre if tower.ln_pre is not None else tower.blocks[1].ln1
    handle = alone.register_forward_hook(lambda module, *_: fired.append("alone"))
    tower(px)
    handle.remove()
    assert fired[-1] == "alone"


def test_a_plain_hook_that_edits_a_scale_in_place_counts(model):
    """And one that edits positions does not reach the weights."""
    px, point = images(model, 1), model.ln_final.hook_scale
    with torch.no_grad():
        edited = model.run_with_hooks(px, fwd_hooks=[("ln_final.hook_scale", lambda scale, hook: 2 * scale)])
        handle = point.register_forward_hook(double_in_place)
        assert (model(px) - edited).abs().max() < 1e-10
        handle.remove()
        before = model.W_pos.clone()
        handle = model.hook_pos_embed_raw.register_forward_hook(double_in_place)
        model(px)
        handle.remove()
    assert torch.equal(model.W_pos, before)


def test_what_cannot_say_that_hooks_were_on_refuses_plain_ones_too(model, errors):
    from vit_lens import ReferenceMeans

    for name in ("blocks.1.attn.hook_pattern", "blocks.1.mlp", "unembed"):
        handle = model.get_submodule(name).register_forward_pre_hook(lambda module, args: None)
        with pytest.raises(errors.VitLensError, match=rf"hooks are on \['{name}'\].*handle\.remove\(\)"):
            ReferenceMeans.from_images(model, images(model))
        handle.remove()
    assert ReferenceMeans.from_images(model, images(model)).n == 3


# ---- H2, H3: what a caller gives or gets shares no memory with a cache, nor do entries with another -----


def memory(tensor):
    return tensor.untyped_storage().data_ptr()


def test_an_edit_in_place_of_the_output_leaves_the_cache(tower):
    px = images(tower, 2)
    for kwargs in ({}, {"names_filter": "hook_image_embeds"}):
        out, cache = tower.run_with_cache(px, **kwargs)
        kept = cache["hook_image_embeds"].clone()
        out /= out.norm(dim=-1, keepdim=True)
        assert torch.equal(cache["hook_image_embeds"], kept)
    kept, hooks, _ = tower.get_caching_hooks()
    with tower.hooks(hooks):
        out = tower(px)
    assert memory(out) not in {memory(x) for x in kept.values()}


def test_no_entry_of_a_cache_shares_memory(tower):
    weights = {memory(weight) for weight in tower.parameters()}
    for px in (images(tower, 1), images(tower, 2)):
        _, cache = tower.run_with_cache(px)
        held = [memory(x) for x in cache.values()]
        assert len(set(held)) == len(held) and not weights & set(held)


def test_gradients_share_no_memory_either(model):
    _, cache = model.run_with_cache(images(model, 2), incl_bwd=True)
    held = [memory(x) for x in cache.values()] + [memory(weight.grad) for weight in model.parameters()]
    assert len(set(held)) == len(held)
    model.zero_grad()


def test_a_stream_that_is_given_or_returned_is_the_callers(tower):
    given, cache = tower.run_with_cache(images(tower, 2), stop_at_layer=2)
    assert memory(given) != memory(cache["resid_post", 1])
    kept = given.clone()
    for stop in (None, 3):
        out, later = tower.run_with_cache(given, start_at_layer=2, stop_at_layer=stop)
        assert memory(given) not in {memory(x) for x in (out, *later.values())}
    double_stream = [("blocks.2.hook_resid_pre", lambda x, hook: x.mul_(2))]
    tower.run_with_hooks(given, start_at_layer=2, fwd_hooks=double_stream)
    assert torch.equal(given, kept)
    assert memory(tower(given, start_at_layer=2, stop_at_layer=2)) != memory(given)


def test_caches_are_kept_within_transforms_of_functions(model):
    px, kept = images(model, 1), []

    def norm(x):
        out, cache = model.run_with_cache(x)
        kept.append(cache)
        return out.square().sum()

    slope = torch.func.grad(norm)(px)
    x = px.clone().requires_grad_()
    model(x).square().sum().backward()
    close(slope, x.grad)
    model.zero_grad()


def test_the_output_of_any_hooked_module_is_the_callers():
    from transformer_lens.hook_points import HookPoint

    from vit_lens.hooking import LoudHookedRootModule

    class Twice(LoudHookedRootModule):
        def __init__(self):
            super().__init__()
            self.hook_x = HookPoint()
            self.setup()

        def forward(self, x):
            return self.hook_x(2 * x)

    out, cache = Twice().run_with_cache(torch.ones(2, 4))
    out += 1
    assert torch.equal(cache["hook_x"], torch.full((2, 4), 2.0))


def test_what_a_hook_returns_stays_the_callers(tower):
    """The patch of one cache in another run: neither cache may follow the other."""
    px, name = images(tower, 2), "blocks.1.hook_resid_pre"
    _, clean = tower.run_with_cache(px)
    patched, hooks, _ = tower.get_caching_hooks(name)
    tower.run_with_hooks(-px, fwd_hooks=[(name, lambda x, hook: clean[name]), *hooks])
    assert torch.equal(patched[name], clean[name]) and memory(patched[name]) != memory(clean[name])
    out = tower.run_with_hooks(px, fwd_hooks=[("hook_image_embeds", lambda x, hook: clean["hook_image_embeds"])])
    assert memory(out) != memory(clean["hook_image_embeds"])


def test_what_is_read_off_a_model_or_its_means_is_a_copy(tower):
    from vit_lens import ReferenceMeans, Site

    direction = tower.tokens_to_residual_directions(3)
    assert memory(direction) not in {memory(weight) for weight in tower.parameters()}
    means = ReferenceMeans.from_images(tower, images(tower))
    held = [memory(x) for x in (means.resid_pre, means.z, means.mlp_out)]
    for site in (Site(1, "mlp"), Site(0, "resid_pre"), Site(1, "attn")):
        assert memory(means.output(tower, site)) not in held
    assert memory(means.z_of(Site(1, "head", 0))) not in held
    weights = {memory(weight) for weight in tower.parameters()}
    frozen = tower.readout.frozen(tower.run_with_cache(images(tower))[1])
    assert not weights & {memory(x) for x in frozen.constants(tower.ln_final.b.detach(), 3).values()}
    pooled = torch.randn(2, tower.cfg.d_pooled, dtype=torch.float64)
    assert memory(tower.readout.read_pooled(pooled)) != memory(pooled)


# ---- H4: threads ----------------------------------------------------------------------------------------------------


def in_a_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_another_thread_is_told_of_hooks(model, errors):
    px, hooks = images(model, 2), [("hook_pooled", lambda x, hook: 0 * x)]
    plain, told = model(px), pytest.raises(errors.VitLensError, match=r"another thread.*copy\.deepcopy\(model\)")
    for second in (
        lambda: model(px),
        lambda: model.run_with_cache(px),
        lambda: model.add_hook("hook_pooled", hooks[0][1]),
        lambda: model.reset_hooks(),
        lambda: copy.deepcopy(model),
    ):
        with model.hooks(hooks):
            with told:
                in_a_thread(second)
            assert not torch.equal(model(px), plain)
    assert torch.equal(in_a_thread(lambda: model(px)), plain)
    alone = copy.deepcopy(model)
    with model.hooks(hooks):
        assert not torch.equal(model(px), plain) and torch.equal(in_a_thread(lambda: alone(px)), plain)


def test_hooks_wait_for_no_run_of_another_thread(model, errors):
    """Hooks that come while another thread is inside of a plain run are refused; that run stays what it is."""
    px, inside, go_on = images(model, 2), threading.Event(), threading.Event()

    def pause(module, args):
        inside.set()
        assert go_on.wait(30)

    plain = model(px)
    handle = model.blocks[1].register_forward_pre_hook(pause)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(model, px)
        assert inside.wait(30)
        with pytest.raises(errors.VitLensError, match="another thread"):
            model.run_with_cache(px)
        handle.remove()
        go_on.set()
        assert torch.equal(first.result(), plain)


def test_plain_runs_go_on_side_by_side(model):
    px = images(model, 2)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(out, model(px)) for out in pool.map(model, [px] * 12))


def test_a_hook_may_run_the_model_again(model):
    px = images(model, 1)
    other, again = images(model, 1, seed=8), []

    def second(x, hook):
        if not again:
            again.append(None)
            again[0] = model(other)

    with model.hooks([("hook_pooled", second)]):
        assert model(px).shape == (1, 12)


# ---- H7: NaN and inf are refused, with their place -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "place"),
    [
        ("embed.W_E", "hook_embed_raw"), ("ln_pre.w", "ln_pre.hook_scale|hook_embed"),
        ("blocks.1.attn.W_Q", r"blocks\.1\.attn\.hook_q"), ("blocks.1.attn.b_O", r"blocks\.1\.hook_attn_out"),
        ("blocks.2.mlp.W_in", r"blocks\.2\.mlp\.hook_pre"), ("ln_final.b", r"ln_final\.hook_normalized"),
        ("unembed.W_U", "hook_image_embeds"),
    ],
)  # fmt: skip
def test_a_weight_that_is_not_finite_is_named(weight, place, errors):
    from vit_lens import ReferenceMeans

    for value in (float("nan"), float("inf")):
        model = own_tower("registers").requires_grad_(False)
        tensor = model.get_parameter(weight)
        tensor[(0,) * tensor.ndim] = value
        told = rf"^({place}) is the first activation that holds NaN or inf.*so do the weights \['{weight}'\]"
        for run in (model, model.run_with_cache, lambda px, model=model: ReferenceMeans.from_images(model, px)):
            with pytest.raises(errors.VitLensError, match=told):
                run(images(model))
        assert not model.hooked_names() and not model._users


def test_overflow_is_told_of_a_stream_and_of_a_hook(model, errors):
    px = images(model, 2)
    with torch.no_grad():
        large = copy.deepcopy(model)
        large.blocks[1].mlp.W_in *= 1e200
        large.blocks[1].mlp.W_out *= 1e200
    with pytest.raises(
        errors.VitLensError, match=r"blocks\.1\.(mlp\.hook_\w+|hook_mlp_out) is the first .* values\), so"
    ):
        large(px)
    told = r"blocks\.1\.(mlp\.hook_\w+|hook_mlp_out) is the first .* values\), so"
    for stop in (None, 2):
        with pytest.raises(errors.VitLensError, match=told):
            large(px, stop_at_layer=stop)
    with pytest.raises(errors.VitLensError, match=r"without the hooks on \['blocks\.1\.hook_mlp_out'\] it does not"):
        model.run_with_hooks(px, fwd_hooks=[("blocks.1.hook_mlp_out", lambda x, hook: x / 0)])
    handle = model.blocks[1].register_forward_hook(lambda module, args, output: output / 0)
    with pytest.raises(errors.VitLensError, match=r"without the hooks on \['blocks\.1'\] it does not"):
        model(px)
    handle.remove()
    mask = torch.ones(model.cfg.n_ctx, model.cfg.n_ctx, dtype=torch.bool).tril()
    assert torch.isfinite(model.run_with_cache(px, mask=mask)[0]).all()


# ---- M4: preprocessing of another size ------------------------------------------------------------------------------


def test_preprocessing_of_another_size_is_refused_with_both(model, errors):
    from vit_lens import HookedViT, PreprocessSpec

    grey = dict(mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", resize_mode="squash")
    spec, own = PreprocessSpec(size=(32, 32), **grey), PreprocessSpec(size=(21, 15), **grey)
    told = pytest.raises(errors.PreprocessError, match=r"\(32, 32\), the tower sees \(21, 15\).*image_size=\(32, 32\)")
    with told:
        HookedViT(model.cfg, preprocess_spec=spec)
    with told:
        model.preprocess_spec = spec
    turned = replace(own, size=(15, 21))
    with pytest.raises(errors.PreprocessError, match=r"\(15, 21\), the tower sees \(21, 15\)"):
        model.preprocess_spec = turned
    model.preprocess_spec = own
    assert model.spec() is own
    model.preprocess_spec = None


def test_pixels_of_another_size_name_image_size(model, errors):
    with pytest.raises(errors.PreprocessError, match=r"image_size=\(224, 224\)"):
        model(torch.zeros(1, 3, 224, 224, dtype=torch.float64))
    with pytest.raises(errors.PreprocessError) as other:
        model(torch.zeros(1, 1, 21, 15, dtype=torch.float64))
    assert "image_size" not in str(other.value)


# ---- M12, M13: what hooks are asked ---------------------------------------------------------------------------------


def test_the_layer_of_a_point_that_has_none(tower, errors):
    seen = []
    every = lambda name: name.endswith("hook_pattern")  # noqa: E731
    ask = lambda x, hook: seen.append(hook.layer())  # noqa: E731
    px = images(tower, 1)
    if tower.attn_pool is None:
        tower.run_with_hooks(px, fwd_hooks=[(every, ask)])
        assert seen == [0, 1, 2]
    else:
        with pytest.raises(errors.UnknownHookError, match=r"'attn_pool\.attn\.hook_pattern' lies in no block"):
            tower.run_with_hooks(px, fwd_hooks=[(every, ask)])
    with pytest.raises(errors.UnknownHookError, match="'hook_pooled' lies in no block"):
        tower.run_with_hooks(px, fwd_hooks=[("hook_pooled", ask)])
    assert copy.deepcopy(tower).blocks[2].hook_mlp_out.layer() == 2


def test_handles_know_the_functions_that_were_given(model):
    def first(x, hook): ...
    def second(x, hook): ...

    model.add_hook("hook_pooled", first)
    model.add_hook("hook_pooled", second, prepend=True)
    model.add_hook("hook_pooled", first, dir="bwd")
    with model.hooks([("hook_embed", first)]):
        handles = model.list_hooks() if hasattr(model, "list_hooks") else None
        points = {name: model.hook_dict[name] for name in ("hook_pooled", "hook_embed")}
        assert [handle.user_hook for handle in points["hook_pooled"].fwd_hooks] == [second, first]
        assert points["hook_pooled"].bwd_hooks[0].user_hook is points["hook_embed"].fwd_hooks[0].user_hook is first
        assert handles is None or handles["hook_embed"][0].user_hook is first
        model(images(model, 1))
    model.reset_hooks()


# ---- copies of models and caches that have hooks, or had ------------------------------------------------------------


def there_and_back(what):
    return pickle.loads(pickle.dumps(what))  # noqa: S301


def test_a_model_with_hooks_is_copied_and_not_pickled(model, errors):
    px = images(model, 1)
    with model.hooks([("hook_pooled", lambda x, hook: 2 * x)]):
        edited, other = model(px), copy.deepcopy(model)
        for name in ("pickled", "saved"):
            with pytest.raises(errors.VitLensError, match=r"hooks are on \['hook_pooled'\], and a pickled model"):
                pickle.dumps(model.preprocess if name == "pickled" else {"model": model})
    assert torch.equal(other(px), edited) and not torch.equal(model(px), edited)
    other.reset_hooks()
    assert torch.equal(other(px), model(px))
    handle = model.blocks[0].register_forward_hook(lambda *_: None)
    with pytest.raises(errors.VitLensError, match=r"handle\.remove\(\)"):
        pickle.dumps(model)
    handle.remove()
    assert torch.equal(there_and_back(model)(px), model(px))


def test_a_copy_that_is_made_in_a_run_belongs_to_no_thread(model):
    px, copies = images(model, 1), []
    with model.hooks([("hook_pooled", lambda x, hook: copies.append(copy.deepcopy(model)))]):
        model(px)
    copies[0].reset_hooks()
    assert torch.equal(in_a_thread(lambda: copies[0](px)), model(px))


def test_caches_travel(model):
    px = images(model, 2)
    _, cache = model.run_with_cache(px, rows="readout")
    kept, hooks, _ = model.get_caching_hooks("hook_pooled")
    for travel in (there_and_back, copy.deepcopy):
        again = travel(cache)
        assert again.rows == "readout" and torch.equal(again["resid_post", 2], cache["resid_post", 2])
        close(again.read_out.read(again["resid_post", 2]), model(px))
    with model.hooks(hooks):
        for index in range(2):
            with model.step(index):
                model(px)
    from vit_lens.hooking import Step, SteppedCache

    stepped = SteppedCache(kept, [Step(0), Step(1)])
    for travel in (there_and_back, copy.deepcopy):
        assert torch.equal(travel(stepped)["hook_pooled"], stepped["hook_pooled"])


# ---- sizes and switches of configs: of their kind, and in the range that towers have ---------------------------------


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (dict(patch_size=(0, 7)), r"patch_size=\(0, 7\); expected \(height, width\), whole numbers from 1 to 1048576"),
        (dict(patch_size=7), r"patch_size=7; expected \(height"), (dict(patch_size=[7, 7]), r"=\[7, 7\]; exp"),
        (dict(image_size=(21, 2**40)), r"image_size=\(21, 1099511627776\); exp"),
        (dict(image_size=(2**20, 2**20), patch_size=(1, 1)), r"1099511627779 tokens; expected at most 1048576"),
        (dict(eps=float("nan")), "eps=nan; expected a number from 0, and"), (dict(eps=1e30), r"eps=1e\+30; exp"),
        (dict(eps=-1e-5), "eps=-1e-05; exp"), (dict(eps="1e-5"), "eps='1e-5'; exp"), (dict(eps=True), "eps=True; exp"),
        (dict(n_layers=100_000), "n_layers=100000; expected a whole number from 1 to 1000"),
        (dict(n_layers="3"), "n_layers='3'; exp"), (dict(n_layers=3.0), r"n_layers=3\.0; exp"),
        (dict(n_layers=True), "n_layers=True; exp"), (dict(d_head=-5), "d_head=-5; exp"),
        (dict(d_model=10**12), "d_model=1000000000000; exp"), (dict(d_embed=None), "d_embed=None; exp"),
        (dict(n_registers=-1), "n_registers=-1; expected a whole number from 0"),
        (dict(attn_scale=0.0), r"attn_scale=0\.0; exp"), (dict(eps=1), "eps=1; exp"),
        (dict(attn_scale=float("inf")), "attn_scale=inf; exp"), (dict(has_cls="no"), "='no'; expected True"),
        (dict(act_fn="gelu_new"), "act_fn='gelu_new'; expected one of gelu, "),
    ],
)  # fmt: skip
def test_a_value_that_no_tower_has_is_refused_before_memory_is_asked_for(model, value, told, errors):
    with pytest.raises(errors.VitLensError, match=f"^.*{told}"):
        replace(model.cfg, **value)


def test_sizes_of_pooling_and_of_relative_positions_too(errors):
    from vit_lens.config import AttentionPoolConfig, RelativeBiasConfig

    sizes = dict(n_heads=3, d_head=5, d_model=15, d_mlp=None, has_ln_post=False)
    assert AttentionPoolConfig(**sizes).d_mlp is None
    for name, value in (("n_heads", 0), ("d_mlp", 0), ("d_model", 1.5), ("has_ln_post", None)):
        with pytest.raises(errors.VitLensError, match=f"{name}={value}; expected"):
            AttentionPoolConfig(**(sizes | {name: value}))
    for buckets, distance in ((2, 128), (32, 8), (32, 0)):
        with pytest.raises(errors.VitLensError, match="max_distance"):
            RelativeBiasConfig(n_buckets=buckets, max_distance=distance)


# ---- what the caller's surroundings change: autocast, the default dtype and device -----------------------------------


def test_means_weights_and_verdicts_do_not_follow_autocast(model):
    from vit_lens import HookedViT, ReferenceMeans

    single = copy.deepcopy(model).float()
    px = images(model).float()
    means, processed = ReferenceMeans.from_images(single, px), single.process_weights()
    with torch.autocast("cpu", torch.bfloat16):
        assert (single(px) - single(px).float()).abs().max() == 0  # a run is the caller's own
        assert ReferenceMeans.from_images(single, px).content == means.content
        assert single.process_weights().fingerprint == processed.fingerprint
        assert HookedViT.from_pretrained("mini").verify("mini", dtypes=[torch.float32]).passed


def test_the_noise_of_a_verdict_is_the_same_everywhere(model):
    from vit_lens.verification import verifying

    noise = verifying._pixels(model, None, None)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(verifying._pixels(model, None, None), noise)
        with torch.device("meta"):
            assert torch.equal(verifying._pixels(model, None, None), noise)
    finally:
        torch.set_default_dtype(torch.float32)


# ---- files of means, and means of other towers ----------------------------------------------------------------------


def test_means_that_no_tower_has_are_refused(tower, tmp_path, errors):
    from safetensors.torch import load_file

    from vit_lens import ReferenceMeans
    from vit_lens.files import save_tensors

    means = ReferenceMeans.from_images(tower, images(tower))
    path = means.save(tmp_path / "means.safetensors")
    meta = {"format": "vit_lens.reference_means.2", "encoder_id": means.encoder_id, "fingerprint": means.fingerprint}
    meta |= {"n": "3", "positions": "readout"}
    edits = {
        r"means \['z'\] are no finite numbers": lambda x: x["z"].view(-1)[5:6].fill_(float("nan")),
        r"means \['mlp_out'\] are no finite": lambda x: x.update(mlp_out=x["mlp_out"] > 0),
        "where the model has": lambda x: x.update(z=x["z"][:2].clone(), mlp_out=x["mlp_out"][:2].clone()),
        "of shapes {'resid_pre'": lambda x: x.update(resid_pre=x["resid_pre"][..., :-1].clone()),
        "n=0, positions": lambda x: None,
        "positions='some'": lambda x: None,
    }
    for told, edit in edits.items():
        tensors = {name: x for name, x in load_file(path).items() if not name.startswith("difference.")}
        edit(tensors)
        changed = {"n": "0"} if told.startswith("n=0") else {"positions": "some"} if "some" in told else {}
        save_tensors(tensors, tmp_path / "edited.safetensors", meta | changed)
        with pytest.raises(errors.VitLensError, match=told):
            ReferenceMeans.load(tmp_path / "edited.safetensors").check(tower)
    save_tensors(load_file(path), tmp_path / "edited.safetensors", meta)
    assert ReferenceMeans.load(tmp_path / "edited.safetensors").check(tower).n == 3


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000, "[]", '{"n": "3"}', '{"n": "x", "spread": {}, "distance": {}, "halves": {}}',
        '{"n": 0, "spread": {"z": [1]}, "distance": {"1": {"z": [1]}}, "halves": {}}',
        '{"n": 3, "spread": {"z": [NaN]}, "distance": {}, "halves": {}}',
        '{"n": 3, "spread": {"z": [1e999]}, "distance": {}, "halves": {}}',
        '{"n": 3, "spread": {"z": [1]}, "distance": {"5": {"z": [1]}}, "halves": {}}',
        '{"n": 3, "spread": {"z": [1]}, "distance": {"1": {"z": [1, 2]}}, "halves": {}}',
        '{"n": 3, "spread": {"z": [1]}, "distance": {}, "halves": {"q": [1]}}',
        '{"n": 1, "spread": {"z": [1]}, "distance": {}, "halves": {"z": [1]}}',
    ],
)  # fmt: skip
def test_a_damaged_stability_is_refused(text, errors):
    from vit_lens.reference import Stability

    with pytest.raises(errors.VitLensError, match="the stability of these means cannot be read"):
        Stability.from_json(text)


# ---- arguments that are not what they should be ---------------------------------------------------------------------


def bool_mask(n, **where):
    return torch.ones(n, n, dtype=torch.bool, **where)


WRONG = {
    "mask on meta": (
        lambda m, c, x, vl: m(x, mask=bool_mask(9, device="meta")),
        "mask is on meta, the mod",
    ),
    "device gpu": (lambda m, c, x, vl: m.run_with_cache(x, device="gpu"), "device='gpu': Expected one of cpu"),
    "cache to gpu": (lambda m, c, x, vl: c.to("gpu"), "device='gpu': Expected one of cpu"),
    "position 99": (lambda m, c, x, vl: vl.tokens.describe_position(99, m.cfg), "position 99 is out of range"),
    "position -1": (lambda m, c, x, vl: vl.tokens.describe_position(-1, m.cfg), "position -1 is out of range"),
    "pos_axis": (lambda m, c, x, vl: m.pos_axis("blocks.1.hook_nope"), "no hook point 'blocks.1.hook_nope'; nearest"),
    "cache[None]": (lambda m, c, x, vl: c[None], "holds no 'None'"),
    "cache[3]": (lambda m, c, x, vl: c[3], "holds no '3'"),
    "layer '2'": (lambda m, c, x, vl: c.decompose_resid("2"), "layer='2': expected 0 to 3"),
    "layer 1.5": (lambda m, c, x, vl: c.stack_head_results(1.5), r"layer=1\.5: expected 0 to 3"),
    "no layer": (lambda m, c, x, vl: c.get_neuron_results(None), "layer=None: expected 0 to 2"),
    "list to project on": (
        lambda m, c, x, vl: c.get_neuron_results(1, project_output_onto=[1.0]),
        "of type list; expected",
    ),
    "list of components": (lambda m, c, x, vl: c.apply_ln_to_stack([1.0]), "of type list; expected Tensor"),
    "batch '4'": (
        lambda m, c, x, vl: list(vl.models.batch_starts(9, "4")),
        "batch_size='4'; a batch holds at least one image",
    ),
    "batch 2.0": (lambda m, c, x, vl: list(vl.models.batch_starts(9, 2.0)), r"batch_size=2\.0; a batch holds"),
    "sigma": (lambda m, c, x, vl: m.step(0, sigma=float("nan")).__enter__(), "sigma=nan; expected a finite number"),
    "sigma 'x'": (lambda m, c, x, vl: m.step(0, sigma="x").__enter__(), "sigma='x'; expected a finite number"),
    "no config": (lambda m, c, x, vl: type(m)(None), "cfg is of type NoneType; expected TowerConfig"),
    "id 3": (lambda m, c, x, vl: type(m)(m.cfg, encoder_id=3), "encoder_id is of type int; expected str"),
    "tokens None": (lambda m, c, x, vl: m.tokens_to_residual_directions(None), "tokens of type NoneType; expected a"),
    "tokens of texts": (lambda m, c, x, vl: m.tokens_to_residual_directions(["a"]), "tokens of type list; expected a"),
    "complex tokens": (
        lambda m, c, x, vl: m.tokens_to_residual_directions(torch.zeros(2).cfloat()),
        "tokens of dtype torch.complex64",
    ),
    "activation 3": (lambda m, c, x, vl: c.stack_activation(3), "activation_name is of type int; expected str"),
    "activation None": (lambda m, c, x, vl: c.stack_activation(None), "activation_name is of type NoneType"),
    "layers": (lambda m, c, x, vl: c.stack_activation("z", torch.zeros(2)), "layer=tensor"),
    "means of no model": (lambda m, c, x, vl: vl.ReferenceMeans.from_images(None, x), "expected a HookedViT, not None"),
    "shipped": (lambda m, c, x, vl: vl.ReferenceMeans.shipped("mini"), "expected a HookedViT, not str"),
    **{
        f"means.{name}": (lambda m, c, x, vl, call=call: call(vl.ReferenceMeans.from_images(m, x)), "a HookedViT, not")
        for name, call in {
            "check": lambda means: means.check(None),
            "at_readout": lambda means: means.at_readout("mini"),
            "output": lambda means: means.output(None, "L0.mlp"),
            "resid": lambda means: means.resid(3, 1),
            "last_state": lambda means: means.last_state(None),
        }.items()
    },
    "means.z_of": (lambda m, c, x, vl: vl.ReferenceMeans.from_images(m, x).z_of("L0H0"), "site is of type str"),
    "means' z": (
        lambda m, c, x, vl: dataclasses.replace(vl.ReferenceMeans.from_images(m, x), z=None),
        "z is of type NoneType; expected Tensor",
    ),
    "means' n": (
        lambda m, c, x, vl: dataclasses.replace(vl.ReferenceMeans.from_images(m, x), n="3"),
        "n='3', positions='readout'; expected 1 or more",
    ),
    "stability": (lambda m, c, x, vl: vl.ReferenceMeans.from_images(m, x).stability.error(["z"]), r"no kind \['z'\]"),
    "part": (lambda m, c, x, vl: vl.ReferenceMeans.from_images(m, x).stability.by_chance({}), "no part {}"),
    "narrow rows": (
        lambda m, c, x, vl: m.embed_rows(torch.zeros(2, 1, 3)),
        r"rows of shape \(2, 1, 3\); expected d_model=14",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_refused_in_words(model, name, errors):
    import vit_lens.models
    import vit_lens.tokens

    call, told = WRONG[name]
    px = images(model, 2)
    with pytest.raises(errors.VitLensError, match=told):
        call(model, model.run_with_cache(px)[1], px, vit_lens)


def test_one_dtype_is_a_list_of_one(model):
    from vit_lens.verification import verifying

    assert verifying._dtypes(model, torch.float32) == [torch.float32]


# ---- what PyTorch would say itself ----------------------------------------------------------------------------------


def test_sparse_pixels_are_refused_and_dense_ones_run(model, errors):
    px = images(model)
    with pytest.raises(errors.PreprocessError, match=r"layout torch\.sparse_coo; expected a dense tensor: give x"):
        model(px.to_sparse())
    assert torch.equal(model(px.to_sparse().to_dense()), model(px))


def test_a_block_of_another_dtype_is_named(model, errors):
    mixed = copy.deepcopy(model)
    mixed.blocks[1].float()
    with pytest.raises(errors.VitLensError, match=r"of torch\.float32 on cpu, as blocks\.1\..*model\.to\(dtype\)"):
        mixed(images(model))
    mixed.to(torch.float64)
    mixed(images(model))


# ---- means of images that became other pixels -----------------------------------------------------------------------


def test_means_of_another_preprocessing_are_refused(errors, tmp_path):
    from PIL import Image

    import vit_lens as vl

    model = vl.HookedViT.from_pretrained("mini")
    pictures = [Image.new("RGB", (64, 64), (40 * n, 90, 20)) for n in range(3)]
    means, sites = vl.ReferenceMeans.from_images(model, pictures), vl.Site.heads(model)[:3]
    read = vl.readers.SiteMeans.from_images(model, pictures, sites)
    means.save(tmp_path / "means.safetensors")
    read.save(tmp_path / "read.safetensors")
    model.preprocess_spec = replace(model.spec(), mean=(0.1, 0.2, 0.3))
    for kept in (means, vl.ReferenceMeans.load(tmp_path / "means.safetensors")):
        with pytest.raises(errors.ReferenceMismatchError, match=r"preprocessed with mean \[.*the model has \[0\.1, 0"):
            vl.DiffusionSteeringLens(alpha=10, anchor="mean", reference=kept).read(
                model.run_with_cache(model.preprocess(pictures))[1], sites
            )
    for kept in (read, vl.readers.SiteMeans.load(tmp_path / "read.safetensors")):
        with pytest.raises(errors.ReferenceMismatchError, match="preprocessed with mean"):
            kept.of(model, vl.DiffusionLens(), sites)
    vl.ReferenceMeans.from_images(model, pictures).check(model)
    known = vl.ReferenceMeans.from_images(model, model.preprocess(pictures))  # pixels come from anywhere
    assert known.preprocess == {} and known.check(model) is known
