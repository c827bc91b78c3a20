"""Hooked diffusion pipelines against the stock ones, and against plain forward hooks on stock modules, to the bit."""

from contextlib import contextmanager

import pytest
import tiny_pipelines
import torch
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers, under numpy 2

PROMPTS = ["a red star", "a blue ring and a green cross"]
FLUX = dict(height=6, width=10, max_sequence_length=11, output_type="latent", steps=3, seed=[5, 8])
UNET = dict(height=16, width=24, output_type="latent", steps=3, seed=[5, 8])
N_IMAGE, N_TEXT = 15, 11


def flux(name="schnell", dtype=torch.float32):
    """Two double and three single blocks, with random weights and biases."""
    import diffusers

    pipe = tiny_pipelines.make(name)
    config = dict(pipe.transformer.config) | dict(num_layers=2, num_single_layers=3)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        blocks = tiny_pipelines.perturbed(diffusers.FluxTransformer2DModel.from_config(config))
    pipe.register_modules(transformer=blocks)
    return pipe.to(dtype)


def sd(name="sd1", dtype=torch.float32):
    return tiny_pipelines.make(name).to(dtype)


def sd3(dtype=torch.float32):
    """Three blocks, of which the last leaves no text, and the first two attend twice, as in SD 3.5 [medium]."""
    import diffusers

    pipe = tiny_pipelines.make("sd3")
    config = dict(pipe.transformer.config) | dict(num_layers=3, dual_attention_layers=(0, 1), qk_norm="rms_norm")
    del config["_use_default_values"]  # it names what was not given before, which from_config then leaves out
    with torch.random.fork_rng():
        torch.manual_seed(1)
        blocks = tiny_pipelines.perturbed(diffusers.SD3Transformer2DModel.from_config(config))
    pipe.register_modules(transformer=blocks)
    return pipe.to(dtype)


CALLS = {
    "schnell": (lambda dtype: flux("schnell", dtype), FLUX),
    "dev": (lambda dtype: flux("dev", dtype), FLUX | dict(guidance_scale=2.5)),
    "true-cfg": (lambda dtype: flux("dev", dtype), FLUX | dict(true_cfg_scale=3.0, negative_prompt="a ring")),
    "sd": (lambda dtype: sd("sd1", dtype), UNET | dict(guidance_scale=1.0)),
    "sd-guided": (lambda dtype: sd("sd1", dtype), UNET | dict(guidance_scale=4.0, negative_prompt="a ring")),
    "sdxl-guided": (lambda dtype: sd("sdxl", dtype), UNET | dict(guidance_scale=4.0)),
    "sd3-guided": (sd3, UNET | dict(guidance_scale=4.0, max_sequence_length=11)),
}


def hooked(pipe):
    import vit_lens as vl

    return vl.HookedDiffusion.from_pipeline(pipe)


def stock(pipe, prompts, *, steps, seed, **options):
    """The pipeline itself, called as its documentation says."""
    generators = [torch.Generator("cpu").manual_seed(one) for one in seed]
    if isinstance(options.get("negative_prompt"), str):
        options["negative_prompt"] = [options["negative_prompt"]] * len(prompts)
    return pipe(prompt=prompts, num_inference_steps=steps, generator=generators, **options).images


def state_of(pipe):
    """Whatever hooks, attributes and forwards the stock modules have."""
    return {
        (part, name): sorted(
            (key, repr(one) if key.endswith("hooks") else id(one)) for key, one in vars(module).items()
        )
        for part, model in pipe.components.items()
        if isinstance(model, nn.Module)
        for name, module in model.named_modules()
    }


@contextmanager
def watched(modules, seen):
    """Plain PyTorch hooks: what each module is given and returns, in every call, copied."""

    def before(key):
        return lambda module, args, kwargs: seen.setdefault((key, "in"), []).append(_copied((args, kwargs)))

    def after(key):
        return lambda module, args, output: seen.setdefault((key, "out"), []).append(_copied(output))

    handles = [module.register_forward_pre_hook(before(key), with_kwargs=True) for key, module in modules.items()]
    handles += [module.register_forward_hook(after(key)) for key, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _copied(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    return tuple(_copied(one) for one in value) if isinstance(value, (tuple, list)) else value


# ---- the stock pipeline, to the bit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", CALLS)
def test_pictures_are_the_stock_pipelines_without_hooks_and_with_hooks_that_read(name, dtype):
    make, call = CALLS[name]
    pipe = make(dtype)
    expected, before = stock(pipe, PROMPTS, **call), state_of(pipe)
    model = hooked(pipe)
    assert torch.equal(model(PROMPTS, **call), expected)
    found, cache = model.run_with_cache(PROMPTS, **call)
    assert torch.equal(found, expected) and expected.isfinite().all() and expected.std() > 0
    assert len(cache) == len(model.hook_dict) and len(cache.steps) == 3
    assert all(value.isfinite().all() for value in map(cache.__getitem__, cache))
    assert state_of(pipe) == before and not model.hooked_names()
    nudged = model.run_with_hooks(PROMPTS, **call, fwd_hooks=[(lambda n: "hook_resid_mid" in n, lambda x, hook: x)])
    assert torch.equal(nudged, expected)


@pytest.mark.parametrize("name", ["schnell", "true-cfg"])
def test_caches_of_flux_are_what_stock_modules_were_given_and_returned(name):
    make, call = CALLS[name]
    pipe = make(torch.float32)
    body, n = pipe.transformer, 2 if name == "true-cfg" else 1
    modules = {f"double.{i}": block for i, block in enumerate(body.transformer_blocks)}
    modules |= {f"single.{i}": block for i, block in enumerate(body.single_transformer_blocks)}
    for key, block in list(modules.items()):
        for part in ("attn", "attn.to_out.0", "attn.to_add_out", "ff", "ff_context", "norm1", "norm2", "norm1_context",
                     "norm2_context", "norm", "proj_out", "act_mlp"):  # fmt: skip
            try:
                modules[f"{key}:{part}"] = block.get_submodule(part)
            except AttributeError:
                continue
    seen = {}
    with watched(modules, seen):
        stock(pipe, PROMPTS, **call)
    caches = hooked(pipe).run_with_cache(PROMPTS, branch="both" if n == 2 else "cond", **call)[1]
    caches = caches if n == 2 else {"cond": caches}
    for order, branch in enumerate(["cond", "uncond"][:n]):
        cache = caches[branch]

        def ran(key, side, order=order):
            return seen[(key, side)][order::n]

        def same(name, values, cache=cache):
            assert torch.equal(cache[name], torch.stack(values)), name

        for i in range(2):
            block = f"double.{i}"
            same(f"{block}.hook_resid_pre", [kwargs["hidden_states"] for _, kwargs in ran(block, "in")])
            same(f"{block}.text.hook_resid_pre", [kwargs["encoder_hidden_states"] for _, kwargs in ran(block, "in")])
            same(f"{block}.hook_resid_post", [out[1] for out in ran(block, "out")])
            same(f"{block}.text.hook_resid_post", [out[0] for out in ran(block, "out")])
            for item, end, text, out_proj in ((0, "", "", "to_out.0"), (1, "_context", "text.", "to_add_out")):
                attended = [one[item] for one in ran(f"{block}:attn", "out")]
                norms = ran(f"{block}:norm1{end}", "out")
                gated = [norm[1][:, None] * one for norm, one in zip(norms, attended, strict=True)]
                same(f"{block}.{text}hook_attn_out", gated)
                same(f"{block}.{text}hook_attn_gate", [norm[1] for norm in norms])
                same(f"{block}.{text}hook_mlp_gate", [norm[4] for norm in norms])
                z = [args[0].unflatten(-1, (2, 16)) for args, _ in ran(f"{block}:attn.{out_proj}", "in")]
                same(f"{block}.{text}attn.hook_z", z)
                same(f"{block}.{text}hook_resid_mid", [args[0] for args, _ in ran(f"{block}:norm2{end}", "in")])
                ff = [norm[4][:, None] * one for norm, one in zip(norms, ran(f"{block}:ff{end}", "out"), strict=True)]
                same(f"{block}.{text}hook_mlp_out", ff)
        for i in range(3):
            block = f"single.{i}"
            same(f"{block}.hook_gate", [norm[1] for norm in ran(f"{block}:norm", "out")])
            updates = [
                norm[1][:, None] * one
                for norm, one in zip(ran(f"{block}:norm", "out"), ran(f"{block}:proj_out", "out"), strict=True)
            ]
            for text, part, item in (("text.", slice(0, N_TEXT), 0), ("", slice(N_TEXT, None), 1)):
                same(f"{block}.{text}hook_resid_post", [out[item] for out in ran(block, "out")])
                same(f"{block}.{text}hook_update", [one[:, part] for one in updates])
                z = [one[:, part].unflatten(-1, (2, 16)) for one in ran(f"{block}:attn", "out")]
                same(f"{block}.{text}attn.hook_z", z)
                same(f"{block}.{text}mlp.hook_post", [one[:, part] for one in ran(f"{block}:act_mlp", "out")])
    if n == 2:
        assert not torch.equal(
            caches["cond"]["double.0.text.hook_resid_pre"], caches["uncond"]["double.0.text.hook_resid_pre"]
        )


@pytest.mark.parametrize("name", ["schnell", "true-cfg", "sd3-guided"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_residuals_are_the_sums_that_were_computed(name, dtype):
    make, call = CALLS[name]
    model = hooked(make(dtype))
    cache = model.run_with_cache(PROMPTS, **call)[1]
    blocks = sorted({name.split(".hook_resid_post")[0] for name in model.hook_dict if name.endswith("hook_resid_post")})
    assert ("double.1.hook_attn2_out" in model.hook_dict) == (name == "sd3-guided")
    for block in blocks:
        pre, post = cache[f"{block}.hook_resid_pre"], cache[f"{block}.hook_resid_post"]
        if block.startswith("single"):
            assert torch.equal(pre + cache[f"{block}.hook_update"], post), block
            continue
        mid = pre + cache[f"{block}.hook_attn_out"]
        mid = mid + cache[f"{block}.hook_attn2_out"] if f"{block}.hook_attn2_out" in cache else mid
        assert torch.equal(mid, cache[f"{block}.hook_resid_mid"]), block
        assert torch.equal(mid + cache[f"{block}.hook_mlp_out"], post), block
    assert len(blocks) == (5 if name == "sd3-guided" else 10)
    for text in ("", "text."):
        after, before = cache[f"double.0.{text}hook_resid_post"], cache[f"double.1.{text}hook_resid_pre"]
        assert torch.equal(after, before)


def test_heads_write_what_attention_writes():
    pipe = flux(dtype=torch.float64)
    cache = hooked(pipe).run_with_cache(PROMPTS, **FLUX)[1]
    for i, block in enumerate(pipe.transformer.transformer_blocks):
        for text, out in (("", block.attn.to_out[0]), ("text.", block.attn.to_add_out)):
            z, gate = cache[f"double.{i}.{text}attn.hook_z"], cache[f"double.{i}.{text}hook_attn_gate"]
            heads = torch.einsum("...hd,ohd->...ho", z, out.weight.unflatten(-1, (2, 16)))
            written = gate[:, :, None] * (heads.sum(-2) + out.bias)
            assert (written - cache[f"double.{i}.{text}hook_attn_out"]).abs().max() < 1e-12
    for i, block in enumerate(pipe.transformer.single_transformer_blocks):
        for text in ("", "text."):
            z, post = cache[f"single.{i}.{text}attn.hook_z"], cache[f"single.{i}.{text}mlp.hook_post"]
            of_heads, of_mlp = block.proj_out.weight.split([32, 128], dim=1)
            written = z.flatten(-2) @ of_heads.T + post @ of_mlp.T + block.proj_out.bias
            written = cache[f"single.{i}.hook_gate"][:, :, None] * written
            assert (written - cache[f"single.{i}.{text}hook_update"]).abs().max() < 1e-12


# ---- edits


def test_image_and_text_are_not_swapped():
    model = hooked(flux(dtype=torch.float64))
    plain = model.run_with_cache(PROMPTS, **FLUX)[1].at_step(0)
    shapes = {"": (2, N_IMAGE, 32), "text.": (2, N_TEXT, 32)}
    for block in ("double.1", "single.0"):
        for edited, other in (("", "text."), ("text.", "")):
            kept, fwd, _ = model.get_caching_hooks()
            hook = (f"{block}.{edited}hook_resid_post", lambda x, hook: x + 1)
            with model.hooks([hook, *fwd]):
                model(PROMPTS, **FLUX)
            name = f"{block}.{edited}hook_resid_post~0"
            assert kept[name].shape == shapes[edited] and torch.equal(kept[name], plain[name[:-2]] + 1)
            same = f"{block}.{other}hook_resid_post"
            assert torch.equal(kept[f"{same}~0"], plain[same])
            after = {"double.1": "single.0", "single.0": "single.1"}[block]
            assert torch.equal(kept[f"{after}.{edited}hook_resid_pre~0"], plain[name[:-2]] + 1)
            assert torch.equal(kept[f"{after}.{other}hook_resid_pre~0"], plain[same])
            assert not torch.equal(kept[f"{after}.{other}hook_resid_post~0"], plain[f"{after}.{other}hook_resid_post"])


def patched(module, change):
    """A stock module whose forward is another, until the test ends with it."""
    own = module.forward
    module.forward = lambda *args, **kwargs: change(own, *args, **kwargs)


NOISE = torch.Generator().manual_seed(4)


def _noise(*shape):
    return torch.randn(shape, generator=NOISE, dtype=torch.float64)


def _image_zero(own, *args, **kwargs):
    text, image = own(*args, **kwargs)
    return text, torch.zeros_like(image)


EDITS = {
    "zero attention": (
        "double.1.hook_attn_out", lambda x, hook: 0 * x,
        lambda t: patched(t.transformer_blocks[1].attn, lambda own, **kw: (own(**kw)[0] * 0, own(**kw)[1])),
    ),
    "zero text attention": (
        "double.1.text.hook_attn_out", lambda x, hook: 0 * x,
        lambda t: patched(t.transformer_blocks[1].attn, lambda own, **kw: (own(**kw)[0], own(**kw)[1] * 0)),
    ),
    "zero head": (
        "double.0.attn.hook_z", lambda z, hook: z * torch.tensor([0.0, 1]).to(z)[:, None],
        lambda t: patched(
            t.transformer_blocks[0].attn.to_out[0], lambda own, z: own(torch.cat([0 * z[..., :16], z[..., 16:]], -1))
        ),
    ),
    "zero MLP": (
        "double.0.hook_mlp_out", lambda x, hook: 0 * x,
        lambda t: patched(t.transformer_blocks[0].ff, lambda own, x: 0 * own(x)),
    ),
    "double the text MLP": (
        "double.0.text.hook_mlp_out", lambda x, hook: 2 * x,
        lambda t: patched(t.transformer_blocks[0].ff_context, lambda own, x: 2 * own(x)),
    ),
    "zero neurons": (
        "double.1.mlp.hook_post", lambda x, hook: torch.cat([0 * x[..., :50], x[..., 50:]], -1),
        lambda t: patched(
            t.transformer_blocks[1].ff.net[2], lambda own, x: own(torch.cat([0 * x[..., :50], x[..., 50:]], -1))
        ),
    ),
    "zero gate": (
        "double.1.hook_mlp_gate", lambda x, hook: 0 * x,
        lambda t: patched(t.transformer_blocks[1].ff, lambda own, x: 0 * own(x)),
    ),
    "zero residual": (
        "double.1.hook_resid_post", lambda x, hook: 0 * x, lambda t: patched(t.transformer_blocks[1], _image_zero)
    ),
    "zero residual before": (
        "single.1.hook_resid_pre", lambda x, hook: 0 * x,
        lambda t: patched(t.single_transformer_blocks[0], _image_zero),
    ),
    "zero update": (
        "single.1.hook_update", lambda x, hook: 0 * x,
        lambda t: patched(
            t.single_transformer_blocks[1].proj_out,
            lambda own, x: torch.cat([own(x)[:, :N_TEXT], 0 * own(x)[:, N_TEXT:]], 1),
        ),
    ),
    "zero single residual": (
        "single.2.hook_resid_post", lambda x, hook: 0 * x,
        lambda t: patched(t.single_transformer_blocks[2], _image_zero),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_as_if_the_stock_module_had_returned_it(name):
    point, hook, patch = EDITS[name]
    pipe = flux()
    plain = stock(pipe, PROMPTS, **FLUX)
    found = hooked(pipe).run_with_hooks(PROMPTS, **FLUX, fwd_hooks=[(point, hook)])
    assert torch.equal(stock(pipe, PROMPTS, **FLUX), plain)
    patch(pipe.transformer)
    assert torch.equal(found, stock(pipe, PROMPTS, **FLUX)) and not torch.equal(found, plain)


@pytest.mark.parametrize("text", ["", "text."])
def test_the_middle_of_a_block_is_edited_for_all_that_comes_behind(text):
    """Against the same amount added before the block's attention sum, by its output and its gate."""
    pipe = flux(dtype=torch.float64)
    model, delta = hooked(pipe), _noise(2, N_TEXT if text else N_IMAGE, 32)
    point = f"double.1.{text}hook_resid_mid"
    cache = model.run_with_cache(PROMPTS, **FLUX)[1]
    kept, fwd, _ = model.get_caching_hooks([point, f"double.1.{text}hook_resid_post"])
    with model.hooks([*fwd[:1], (point, lambda x, hook: x + delta), *fwd[1:]]):
        found = model(PROMPTS, **FLUX)
    assert torch.equal(kept[f"{point}~0"], cache[point][0])  # kept before the edit, and not written over
    expected = model.run_with_hooks(
        PROMPTS, **FLUX, fwd_hooks=[(f"double.1.{text}hook_attn_out", lambda x, hook: x + delta)]
    )
    assert (found - expected).abs().max() < 1e-12
    assert (expected - model(PROMPTS, **FLUX)).abs().max() > 1e-4


# ---- steps and branches


def test_hooks_know_their_step_and_branch():
    pipe = flux("dev")
    model, seen = hooked(pipe), []
    call = CALLS["true-cfg"][1]

    def look(x, hook):
        assert hook.step == model.current_step and hook.branch == model.current_branch
        seen.append((hook.step.index, hook.sigma, hook.branch, len(x)))

    model.run_with_hooks(PROMPTS, **call, fwd_hooks=[("single.2.hook_resid_post", look)])
    sigmas = pipe.scheduler.sigmas.tolist()
    assert seen == [(i, sigmas[i], branch, 2) for i in range(3) for branch in ("cond", "uncond")]
    assert model.current_step is None and model.current_branch is None and model.row_branches == ()


@pytest.mark.parametrize("name", ["sd-guided", "true-cfg", "sdxl-guided", "sd3-guided"])
def test_steering_one_branch_leaves_the_other(name):
    make, call = CALLS[name]
    model = hooked(make(torch.float32))
    point = "mid.0.hook_update" if name.startswith("sd-") or name.startswith("sdxl") else "double.0.hook_resid_post"
    plain = model.run_with_cache(PROMPTS, **call, names_filter=point, branch="both", at_steps=[0])[1]
    for steered, other in (("cond", "uncond"), ("uncond", "cond")):

        def steer(x, hook, steered=steered):
            return x + 1 if hook.branch == steered and hook.step.index == 0 else None

        caches = [model.get_caching_hooks(point, branch=branch) for branch in ("cond", "uncond")]
        with model.hooks([(point, steer), *caches[0][1], *caches[1][1]]):
            out = model(PROMPTS, **call)
        kept = {"cond": caches[0][0], "uncond": caches[1][0]}
        assert torch.equal(kept[steered][f"{point}~0"], plain[steered][point][0] + 1)
        assert torch.equal(kept[other][f"{point}~0"], plain[other][point][0])
        assert not torch.equal(out, model(PROMPTS, **call))


def test_branches_of_guidance_are_those_of_separate_passes():
    """The latents that a guided run had, through the UNet once for each branch, alone."""
    pipe = sd(dtype=torch.float64)
    model, call = hooked(pipe), CALLS["sd-guided"][1]
    seen, mid = {}, pipe.unet.mid_block.attentions[0]
    with watched({"unet": pipe.unet}, seen):
        stock(pipe, PROMPTS, **call)
    caches = model.run_with_cache(PROMPTS, branch="both", **call)[1]
    for step, (args, kwargs) in enumerate(seen[("unet", "in")]):
        for part, branch in ((slice(0, 2), "uncond"), (slice(2, 4), "cond")):
            alone = {}
            with watched({"mid": mid, "update": mid.proj_out}, alone), torch.no_grad():
                pipe.unet(args[0][part], args[1], encoder_hidden_states=kwargs["encoder_hidden_states"][part])
            out = alone[("mid", "out")][0][0].flatten(2).transpose(1, 2)
            found = caches[branch].at_step(step)
            assert (found["mid.0.hook_resid_post"] - out).abs().max() < 1e-11
            update = alone[("update", "out")][0].flatten(2).transpose(1, 2)
            assert (found["mid.0.hook_update"] - update).abs().max() < 1e-11
    both = (caches[branch]["mid.0.hook_update"] for branch in ("cond", "uncond"))
    assert (next(both) - next(both)).abs().max() > 1e-3


@pytest.mark.parametrize("at_steps", [[0], [2, 1], None])
def test_steps_are_chosen(at_steps):
    model = hooked(flux())
    whole = model.run_with_cache(PROMPTS, **FLUX)[1]
    cache = model.run_with_cache(PROMPTS, **FLUX, at_steps=at_steps, names_filter=lambda n: n.startswith("single"))[1]
    chosen = sorted(range(3) if at_steps is None else at_steps)
    assert [step.index for step in cache.steps] == chosen and len(cache) == 3 * 11
    for name in cache:
        assert torch.equal(cache[name], whole[name][chosen]), name


def test_a_batch_is_its_pictures_alone():
    for pipe, call in ((flux(dtype=torch.float64), FLUX), (sd(dtype=torch.float64), UNET)):
        model = hooked(pipe)
        both = model(PROMPTS, **call)
        for i in range(2):
            alone = model(PROMPTS[i], **call | dict(seed=call["seed"][i]))
            assert (alone[0] - both[i]).abs().max() < 1e-9
        assert torch.equal(model(PROMPTS, **call | dict(seed=3)), model(PROMPTS, **call | dict(seed=[3, 3])))


# ---- UNets


@pytest.mark.parametrize("name", ["sd-guided", "sdxl-guided"])
def test_caches_of_a_unet_are_what_stock_modules_were_given_and_returned(name):
    make, call = CALLS[name]
    pipe = make(torch.float32)
    unet, modules = pipe.unet, {}
    outer = {f"down.{i}": one for i, one in enumerate(unet.down_blocks)} | {"mid": unet.mid_block}
    outer |= {f"up.{i}": one for i, one in enumerate(unet.up_blocks)}
    for key, block in outer.items():
        modules[key] = block
        for j, spatial in enumerate(getattr(block, "attentions", ())):
            modules |= {f"{key}.{j}": spatial, f"{key}.{j}:proj_out": spatial.proj_out}
            for k, inner in enumerate(spatial.transformer_blocks):
                at = f"{key}.{j}.blocks.{k}"
                modules |= {at: inner, f"{at}:attn1": inner.attn1, f"{at}:attn2": inner.attn2, f"{at}:ff": inner.ff}
                modules |= {f"{at}:z1": inner.attn1.to_out[0], f"{at}:z2": inner.attn2.to_out[0]}
                modules |= {f"{at}:norm2": inner.norm2, f"{at}:norm3": inner.norm3, f"{at}:ff2": inner.ff.net[2]}
    seen = {}
    with watched(modules, seen):
        stock(pipe, PROMPTS, **call)
    caches = hooked(pipe).run_with_cache(PROMPTS, branch="both", **call)[1]
    checked = set()

    def given(key):
        return [args[0] if args else kwargs["hidden_states"] for args, kwargs in seen[(key, "in")]]

    def gave(key):
        return [one[0] if isinstance(one, tuple) else one for one in seen[(key, "out")]]

    def same(point, values):
        checked.add(point)
        whole = torch.stack([one.flatten(2).transpose(1, 2) if one.ndim == 4 else one for one in values])
        for branch, rows in (("uncond", slice(0, 2)), ("cond", slice(2, 4))):
            found = caches[branch][point]
            assert torch.equal(found.flatten(3), whole[:, rows]), (point, branch)

    for key in modules:
        if ":" in key:
            continue
        same(f"{key}.hook_resid_pre", given(key))
        same(f"{key}.hook_resid_post", gave(key))
        if f"{key}:proj_out" in modules:
            same(f"{key}.hook_update", gave(f"{key}:proj_out"))
        if f"{key}:ff" in modules:
            same(f"{key}.hook_attn_out", gave(f"{key}:attn1"))
            same(f"{key}.hook_cross_attn_out", gave(f"{key}:attn2"))
            same(f"{key}.hook_mlp_out", gave(f"{key}:ff"))
            same(f"{key}.attn.hook_z", given(f"{key}:z1"))
            same(f"{key}.cross_attn.hook_z", given(f"{key}:z2"))
            same(f"{key}.mlp.hook_post", given(f"{key}:ff2"))
            same(f"{key}.hook_resid_mid", given(f"{key}:norm2"))
            same(f"{key}.hook_resid_mid_cross", given(f"{key}:norm3"))
    assert checked == set(caches["cond"])


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_updates_of_a_unet_add_up_to_the_bit(linear, dtype):
    pipe = _sd_of(linear).to(dtype)
    cache = hooked(pipe).run_with_cache(PROMPTS, **UNET)[1]
    spatial = [name.removesuffix(".hook_update") for name in cache if name.endswith("hook_update")]
    assert spatial == ["down.1.0", "mid.0", "up.0.0", "up.0.1"]
    for at in spatial:
        assert torch.equal(cache[f"{at}.hook_update"] + cache[f"{at}.hook_resid_pre"], cache[f"{at}.hook_resid_post"])
        block, x = f"{at}.blocks.0", cache[f"{at}.blocks.0.hook_resid_pre"]
        for part, then in (("attn", "resid_mid"), ("cross_attn", "resid_mid_cross"), ("mlp", "resid_post")):
            x = cache[f"{block}.hook_{part}_out"] + x
            assert torch.equal(x, cache[f"{block}.hook_{then}"]), (at, part)


def _sd_of(linear):
    import diffusers

    pipe = sd()
    with torch.random.fork_rng():
        torch.manual_seed(2)
        config = dict(pipe.unet.config) | dict(use_linear_projection=linear)
        unet = tiny_pipelines.perturbed(diffusers.UNet2DConditionModel.from_config(config))
    pipe.register_modules(unet=unet)
    return pipe


@pytest.mark.parametrize("linear", [False, True])
def test_heads_of_a_unet_write_what_attention_writes(linear):
    pipe = _sd_of(linear).to(torch.float64)
    cache = hooked(pipe).run_with_cache(PROMPTS, **UNET)[1]
    block = pipe.unet.up_blocks[0].attentions[1].transformer_blocks[0]
    for name, attn in (("attn", block.attn1), ("cross_attn", block.attn2)):
        z, out = cache[f"up.0.1.blocks.0.{name}.hook_z"], attn.to_out[0]
        heads = torch.einsum("...hd,ohd->...ho", z, out.weight.unflatten(-1, (attn.heads, -1)))
        written = heads.sum(-2) + out.bias
        assert (written - cache[f"up.0.1.blocks.0.hook_{name}_out"]).abs().max() < 1e-12


UNET_EDITS = {
    "update": (
        "up.0.1.hook_update",
        lambda u: patched(u.up_blocks[0].attentions[1].proj_out, lambda own, x: 0 * own(x)),
    ),
    "attention": (
        "mid.0.blocks.0.hook_attn_out",
        lambda u: patched(u.mid_block.attentions[0].transformer_blocks[0].attn1, lambda own, *a, **k: 0 * own(*a, **k)),
    ),
    "mid": ("mid.hook_resid_post", lambda u: patched(u.mid_block, lambda own, *a, **k: 0 * own(*a, **k))),
    "transformer": (
        "down.1.0.hook_resid_post",
        lambda u: patched(u.down_blocks[1].attentions[0], lambda own, *a, **k: (0 * own(*a, **k)[0],)),
    ),
    "down, across too": ("down.0.hook_resid_post", lambda u: patched(u.down_blocks[0], _both_zero)),
    "down, the last": ("down.1.hook_resid_post", lambda u: patched(u.down_blocks[1], _both_zero)),
}  # fmt: skip


def _both_zero(own, *args, **kwargs):
    x, states = own(*args, **kwargs)
    assert states[-1] is x
    return 0 * x, (*states[:-1], 0 * x)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("name", UNET_EDITS)
def test_an_edit_of_a_unet_is_as_if_the_stock_module_had_returned_it(name, linear):
    point, patch = UNET_EDITS[name]
    pipe, call = _sd_of(linear), CALLS["sd-guided"][1]
    plain = stock(pipe, PROMPTS, **call)
    found = hooked(pipe).run_with_hooks(PROMPTS, **call, fwd_hooks=[(point, lambda x, hook: 0 * x)])
    patch(pipe.unet)
    assert torch.equal(found, stock(pipe, PROMPTS, **call)) and not torch.equal(found, plain)


def test_the_middle_of_a_units_block_is_edited_for_all_that_comes_behind():
    model, delta = hooked(sd(dtype=torch.float64)), _noise(2, 24, 32)
    for mid, out in (("resid_mid", "attn_out"), ("resid_mid_cross", "cross_attn_out")):
        hooks = [(f"mid.0.blocks.0.hook_{each}", lambda x, hook: x + delta) for each in (mid, out)]
        made = [model.run_with_hooks(PROMPTS, **UNET, fwd_hooks=[each]) for each in hooks]
        assert (made[0] - made[1]).abs().max() < 1e-10 and (made[0] - model(PROMPTS, **UNET)).abs().max() > 1e-4
