"""How hooked diffusion models are called, loaded and identified, what they cost, and what they refuse."""

import copy

import pytest
import tiny_pipelines
import torch
from test_diffusion import CALLS, FLUX, PROMPTS, UNET, flux, hooked, sd, sd3, state_of, stock
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers, under numpy 2


# ---- costs


@pytest.mark.parametrize("name", ["schnell", "true-cfg", "sd-guided", "sdxl-guided", "sd3-guided"])
@pytest.mark.parametrize("branch", ["cond", "both"])
def test_costs_are_what_a_cache_holds(name, branch):
    make, call = CALLS[name]
    if name == "schnell" and branch == "both":
        return
    model = hooked(make(torch.bfloat16))
    asked = dict(at_steps=[0, 2], branch=branch, **call)
    for names in (None, lambda n: "attn" in n or "update" in n):
        found = model.run_with_cache(PROMPTS, names_filter=names, **asked)[1]
        caches = found.values() if branch == "both" else [found]
        held = sum(cache[n].numel() * cache[n].element_size() for cache in caches for n in cache)
        kept = {v.untyped_storage().data_ptr(): v for c in caches for i in (0, 2) for v in c.at_step(i).values()}
        assert model.cache_cost(PROMPTS, names_filter=names, **asked) == held
        assert sum(v.untyped_storage().nbytes() for v in kept.values()) == held  # no views that keep more


def test_a_schedule_of_odd_latents_has_odd_grids():
    model = hooked(sd())
    call = UNET | dict(height=24, width=40)
    cache = model.run_with_cache(PROMPTS[0], **call | dict(seed=1), names_filter=lambda n: "resid" in n)[1]
    assert cache["mid.0.hook_resid_post"].shape == (3, 1, 60, 32)
    assert cache["down.0.hook_resid_pre"].shape == (3, 1, 240, 16)


def test_what_would_not_fit_is_refused_before_anything_runs(monkeypatch, errors):
    from vit_lens.diffusion import hooked as home

    model = hooked(flux())
    monkeypatch.setattr(home, "free_memory", lambda device: 1000)
    monkeypatch.setattr(model.pipeline, "encode_prompt", lambda *args, **kwargs: pytest.fail("it ran"))
    with pytest.raises(errors.VitLensError, match=r"69 hook points.*3 steps of 2 pictures.*names_filter=.*at_steps"):
        model.run_with_cache(PROMPTS, **FLUX)
    monkeypatch.setattr(type(model), "device", torch.device("meta"))
    monkeypatch.setattr(home, "_MEMORY_KINDS", ("cpu", "meta"))
    with pytest.raises(errors.VitLensError, match='device="cpu"'):
        model.run_with_cache(PROMPTS, **FLUX)


def test_the_full_size_costs_what_the_paper_has():
    """FLUX.1 [schnell] at 1024 x 1024 and 512 tokens of text: 57 residuals of 4,608 positions and 3,072 channels."""
    import diffusers

    pipe = tiny_pipelines.make("schnell")
    with torch.device("meta"):
        body = diffusers.FluxTransformer2DModel(num_layers=19, num_single_layers=38)
    small = tiny_pipelines.vae(
        (8, 8, 8, 8), 16, shift_factor=0.1, scaling_factor=0.3, use_quant_conv=False, use_post_quant_conv=False
    )
    pipe = diffusers.FluxPipeline(**{**pipe.components, "transformer": body.to(torch.bfloat16), "vae": small})
    model = hooked(pipe)
    cost = model.cache_cost("a star", steps=4, at_steps=[0], names_filter=lambda n: n.endswith("hook_resid_post"))
    assert cost == 57 * 4608 * 3072 * 2


# ---- calls


@pytest.fixture(scope="module")
def model():
    return hooked(flux())


@pytest.fixture(scope="module")
def unet():
    return hooked(sd())


WRONG = {
    "unknown argument": (dict(guidance=3.0), r"a FluxPipeline takes no 'guidance'; nearest: 'guidance_scale'"),
    "their word": (dict(num_inference_steps=3), "num_inference_steps is called steps here"),
    "dict": (dict(return_dict=True), "return_dict is not taken"),
    "no steps": (dict(steps=0), "steps=0; expected a whole number from 1"),
    "half steps": (dict(steps=2.5), "steps=2.5; expected a whole number"),
    "seeds": (dict(seed=[1, 2, 3]), "expected a whole number, or one for each of the 2 pictures"),
    "no seed": (dict(seed="one"), "seed='one'; expected a whole number"),
    "two noises": (dict(seed=1, latents=torch.zeros(2, 15, 4)), "both say what the noise is"),
    "late step": (dict(at_steps=[0, 3]), r"at_steps=\[3\]: a run of steps=3 has the steps 0 to 2"),
    "early step": (dict(at_steps=[-1]), r"at_steps=\[-1\]"),
    "no step": (dict(at_steps=[]), r"at_steps=\[\]; expected a list of steps"),
    "no branch": (dict(branch="negative"), "expected 'cond', 'uncond' or 'both'"),
    "no second branch": (dict(branch="uncond"), "no unconditional branch. It comes with negative_prompt= and true_cfg"),
    "name": (dict(names_filter="double.0.hook_resid_pst"), "no hook point .*; nearest: 'double.0.hook_resid_post'"),
    "device": (dict(device="abacus"), "device='abacus'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_are_refused(model, errors, name, unchecked):
    given, told = WRONG[name]
    with pytest.raises(errors.VitLensError, match=told):
        model.run_with_cache(PROMPTS, **FLUX | given)
    assert not model.hooked_names() and model.current_step is None


@pytest.mark.parametrize("prompts", [None, [], [3], 7], ids=str)
def test_prompts_are_texts(model, errors, prompts, unchecked):
    with pytest.raises(errors.VitLensError, match="prompts="):
        model(prompts, **FLUX)


def test_guidance_scale_one_has_one_branch(unet, errors):
    with pytest.raises(errors.VitLensError, match="guidance_scale= above 1"):
        unet.run_with_cache(PROMPTS, branch="both", **UNET | dict(guidance_scale=1.0))
    with pytest.raises(errors.VitLensError, match="skip_guidance_layers is not taken here: it runs passes"):
        hooked(sd3())(PROMPTS, skip_guidance_layers=[1])


def test_embedded_prompts_and_given_noise_are_taken():
    pipe = flux()
    model, call = hooked(pipe), {key: value for key, value in FLUX.items() if key != "seed"}
    embeds, pooled, _ = pipe.encode_prompt(PROMPTS, None, max_sequence_length=11)
    noise = torch.randn(2, 15, 4)
    given = dict(prompt_embeds=embeds, pooled_prompt_embeds=pooled, latents=noise)
    found, cache = model.run_with_cache(None, **call, **given)
    expected = pipe(**{k: v for k, v in call.items() if k != "steps"}, num_inference_steps=3, **given).images
    assert torch.equal(found, expected) and cache["single.0.text.hook_resid_post"].shape == (3, 2, 11, 32)


def test_several_pictures_of_a_prompt_have_seeds_of_their_own():
    model = hooked(sd())
    call = UNET | dict(num_images_per_prompt=2, seed=[1, 2, 3, 4], guidance_scale=3.0)
    out, cache = model.run_with_cache(PROMPTS, **call, names_filter="mid.0.hook_update")
    assert len(out) == 4 and cache["mid.0.hook_update"].shape == (3, 4, 24, 32)
    assert not torch.equal(out[0], out[1])


def test_nothing_is_left_behind_by_what_breaks_off():
    pipe = flux("dev")
    model, call = hooked(pipe), CALLS["true-cfg"][1]
    expected, before = stock(pipe, PROMPTS, **call), state_of(pipe)  # diffusers leaves a registry of its own
    for error in (KeyboardInterrupt, RuntimeError):

        def stop(x, hook, error=error):
            if hook.step.index == 1 and hook.branch == "uncond":
                raise error

        with pytest.raises(error):
            model.run_with_hooks(PROMPTS, **call, fwd_hooks=[("single.1.hook_update", stop)])
        assert state_of(pipe) == before and not model.hooked_names()
        assert (model.current_step, model.current_branch, model.row_branches) == (None, None, ())
    assert torch.equal(model(PROMPTS, **call), expected)


def test_hooks_of_a_context_are_for_calls_of_the_model(model):
    with model.hooks([("double.0.hook_resid_post", lambda x, hook: x + 1)]):
        edited = model(PROMPTS, **FLUX)
        assert torch.equal(stock(model.pipeline, PROMPTS, **FLUX), model_free(model))
        with model.attached():
            assert torch.equal(stock(model.pipeline, PROMPTS, **FLUX), edited)
    assert not torch.equal(edited, model_free(model))
    with pytest.warns(UserWarning, match="never fired inside their `with` block: \\['double.0.hook_mlp_out'\\]"):
        with model.hooks([("double.0.hook_mlp_out", lambda x, hook: x)]):
            stock(model.pipeline, PROMPTS, **FLUX)


def model_free(model):
    return stock(model.pipeline, PROMPTS, **FLUX)


def test_a_hook_must_keep_the_shape(model, errors):
    with pytest.raises(errors.HookShapeError, match=r"returned \(2, 15, 1\) float32"):
        model.run_with_hooks(PROMPTS, **FLUX, fwd_hooks=[("double.0.hook_resid_post", lambda x, hook: x[..., :1])])
    with pytest.raises(errors.UnfiredHookError, match="backward hooks could never fire"):
        model.run_with_hooks(PROMPTS, **FLUX, bwd_hooks=[("double.0.hook_resid_post", lambda x, hook: None)])


def test_a_step_of_ones_own_is_refused(model, errors):
    model.add_hook("double.0.hook_resid_post", lambda x, hook: x)
    with model.step(3), pytest.raises(errors.VitLensError, match="counts its steps itself"):
        model(PROMPTS, **FLUX)
    with model.attached(), pytest.raises(errors.VitLensError, match="attached already"), model.attached():
        pass
    model.reset_hooks()


# ---- gradients


def test_gradients_of_a_pass_are_those_of_the_stock_module():
    pipe = flux(dtype=torch.float64)
    body, model, generator = pipe.transformer, hooked(pipe), torch.Generator().manual_seed(0)
    given = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in model._row.inputs(pipe, {"max_sequence_length": 11}, 2, 6, 10).items() if shape
    }  # fmt: skip
    kept = []
    with body_hook(body.transformer_blocks[1], kept):
        out = body(**given, return_dict=False)[0]
    expected = torch.autograd.grad(out.pow(2).sum(), kept)
    names = ["double.1.hook_resid_post", "double.1.text.hook_resid_post"]
    cache, fwd, bwd = model.get_caching_hooks([*names, "double.0.hook_attn_out"], incl_bwd=True)
    with model.hooks(fwd, bwd), model.attached():
        again = body(**given, return_dict=False)[0]
        again.pow(2).sum().backward()
    assert torch.equal(again, out)
    for name, gradient in zip(names, reversed(expected), strict=True):
        assert (cache[f"{name}_grad"] - gradient).abs().max() < 1e-10 and gradient.abs().max() > 1e-3
    assert cache["double.0.hook_attn_out_grad"].abs().max() > 1e-6


class body_hook:
    """Keeps the streams that a block returns, in the graph."""

    def __init__(self, block, kept):
        self.handle = block.register_forward_hook(lambda module, args, out: kept.extend(out))

    def __enter__(self):
        return self

    def __exit__(self, *given):
        self.handle.remove()


# ---- adapters, offloading, what is not hooked


class Adapted(nn.Module):
    """A projection with a low-rank term beside it, as adapters wrap it."""

    def __init__(self, base, scale=0.3):
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, 3, bias=False)
        self.lora_B = nn.Linear(3, base.out_features, bias=False)
        self.scale = scale

    def forward(self, x, *args, **kwargs):
        return self.base_layer(x) + self.scale * self.lora_B(self.lora_A(x))


def test_adapters_that_come_later_are_hooked():
    pipe = flux()
    model = hooked(pipe)
    plain, before = model(PROMPTS, **FLUX), model.fingerprint
    double, single = pipe.transformer.transformer_blocks[1], pipe.transformer.single_transformer_blocks[0]
    double.attn.to_out[0] = Adapted(double.attn.to_out[0])
    double.ff.net[2], single.proj_out = Adapted(double.ff.net[2]), Adapted(single.proj_out)
    expected = stock(pipe, PROMPTS, **FLUX)
    found, cache = model.run_with_cache(PROMPTS, **FLUX)
    assert torch.equal(found, expected) and not torch.equal(found, plain) and model.fingerprint != before
    assert torch.equal(
        cache["double.1.hook_resid_pre"] + cache["double.1.hook_attn_out"], cache["double.1.hook_resid_mid"]
    )
    z = cache["double.1.attn.hook_z"][0].flatten(-2)
    written = cache["double.1.hook_attn_gate"][0][:, None] * double.attn.to_out[0](z)
    assert (written - cache["double.1.hook_attn_out"][0]).abs().max() < 1e-5
    assert torch.equal(
        cache["single.0.hook_resid_pre"] + cache["single.0.hook_update"], cache["single.0.hook_resid_post"]
    )


@pytest.mark.parametrize("how", ["sequential", "whole"])
@pytest.mark.parametrize("name", ["schnell", "sd-guided"])
def test_offloaded_weights_are_hooked(name, how, errors):
    """accelerate's hooks, which take weights away behind every module, with this CPU in the place of the device."""
    import accelerate

    make, call = CALLS[name]
    pipe = make(torch.float32)
    expected = stock(pipe, PROMPTS, **call)
    plain = hooked(pipe).run_with_cache(PROMPTS, **call)[1]
    part = pipe.transformer if name == "schnell" else pipe.unet
    if how == "sequential":
        accelerate.cpu_offload(part, torch.device("cpu"))
        assert next(part.parameters()).is_meta
    else:
        accelerate.cpu_offload_with_hook(part, torch.device("cpu"))
    model = hooked(pipe)
    found, cache = model.run_with_cache(PROMPTS, **call)
    assert torch.equal(found, expected) and all(torch.equal(cache[key], plain[key]) for key in plain)
    if how == "sequential":
        with pytest.raises(errors.VitLensError, match="meta device"):
            _ = model.fingerprint
    edited = model.run_with_hooks(PROMPTS, **call, fwd_hooks=[(lambda n: "resid_mid" in n, lambda x, hook: 0 * x)])
    assert not torch.equal(edited, expected)


def test_denoisers_that_do_not_run_module_by_module_are_refused(errors):
    model = hooked(sd())
    point = [("mid.0.hook_update", lambda x, hook: x)]
    model.denoiser.mid_block.compile()
    with pytest.raises(errors.VitLensError, match="compiled, and hooks inside would be left out"):
        model.run_with_hooks(PROMPTS, **UNET, fwd_hooks=point)
    model.denoiser.mid_block._compiled_call_impl = None
    inner = model.denoiser.mid_block.attentions[0].transformer_blocks[0]
    inner.set_chunk_feed_forward(1, 1)
    with pytest.raises(errors.VitLensError, match="set_chunk_feed_forward\\(None\\)"):
        model.run_with_hooks(PROMPTS, **UNET, fwd_hooks=point)
    inner.set_chunk_feed_forward(None)
    assert len(model.run_with_hooks(PROMPTS, **UNET, fwd_hooks=point)) == 2


def test_denoisers_that_skip_blocks_are_refused(errors):
    from diffusers import FirstBlockCacheConfig

    model = hooked(flux())
    model.denoiser.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    with pytest.raises(errors.VitLensError, match="call its disable_cache"):
        model.run_with_cache(PROMPTS, **FLUX)
    model.denoiser.disable_cache()
    assert len(model.run_with_cache(PROMPTS, **FLUX)[1]) == 69


@pytest.mark.parametrize("index", [0, 1, 2])
def test_outputs_of_another_structure_are_refused(errors, index):
    """A single block that returns one sequence, as of old; an IP adapter's third output; no tensor at all."""
    pipe = flux()
    block = [pipe.transformer.single_transformer_blocks[1], pipe.transformer.transformer_blocks[0].attn,
             pipe.transformer.transformer_blocks[0].ff][index]  # fmt: skip
    own = block.forward
    change = [lambda out: torch.cat(out, 1), lambda out: (*out, out[0]), lambda out: [out]][index]
    block.forward = lambda *args, **kwargs: change(own(*args, **kwargs))
    point = ["single.1.hook_resid_post", "double.0.hook_attn_out", "double.0.hook_mlp_out"][index]
    told = ["returned a Tensor; expected a tuple of 2", "a tuple of 3; expected a tuple of 2", "gave a list where"][
        index
    ]
    with pytest.raises(errors.VitLensError, match=told):
        hooked(pipe).run_with_cache(PROMPTS, **FLUX, names_filter=point)


def test_pipelines_that_run_other_passes_are_refused(errors, monkeypatch):
    model = hooked(sd())
    own = type(model.pipeline).__call__
    monkeypatch.setattr(
        type(model.pipeline), "do_classifier_free_guidance", property(lambda self: not self._guidance_scale > 1)
    )
    with pytest.raises(errors.VitLensError, match=r"4 rows; expected passes \[\('cond',\)\] of 2 rows"):
        model.run_with_cache(PROMPTS, **UNET | dict(guidance_scale=1.0))
    assert own is type(model.pipeline).__call__


def test_other_pipelines_are_refused_with_the_nearest(errors):
    import vit_lens as vl

    pixart = tiny_pipelines.make("pixart")
    with pytest.raises(errors.UnsupportedTowerError, match="a PixArtAlphaPipeline is not hooked here; nearest: "):
        vl.HookedDiffusion.from_pipeline(pixart)
    with pytest.raises(errors.UnsupportedTowerError, match=r"'FluxPipeline' of diffusers; HookedDiffusion\.from"):
        vl.HookedFlux.from_pipeline(sd())
    pipe = sd()
    pipe.register_modules(unet=None)
    with pytest.raises(errors.UnsupportedTowerError, match="is a NoneType; expected a UNet2DConditionModel"):
        vl.HookedUNet(pipe)
    assert type(vl.HookedDiffusion.from_pipeline(sd3())) is vl.HookedDiffusion
    assert type(hooked(flux())) is vl.HookedFlux and type(hooked(sd("sdxl"))) is vl.HookedUNet


# ---- where models come from, and which they are


@pytest.mark.parametrize("name", ["schnell", "sd1"])
def test_saved_pipelines_are_loaded(name, tmp_path, errors):
    import vit_lens as vl

    pipe = flux() if name == "schnell" else sd()
    call = FLUX if name == "schnell" else UNET
    pipe.save_pretrained(tmp_path / "mine")
    model = vl.HookedDiffusion.from_pretrained(tmp_path / "mine")
    assert torch.equal(model(PROMPTS, **call), stock(pipe, PROMPTS, **call))
    assert model.fingerprint == hooked(pipe).fingerprint and model.model_id == f"local/mine@{model.fingerprint}"
    assert vl.HookedDiffusion.from_pretrained(tmp_path / "mine", dtype=torch.bfloat16).dtype == torch.bfloat16
    weights = next((tmp_path / "mine").glob("[tu]*n*/diffusion_pytorch_model.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(errors.VitLensError):
        vl.HookedDiffusion.from_pretrained(tmp_path / "mine")


def test_the_embedded_model_draws_as_its_card_says():
    import vit_lens as vl

    model = vl.HookedUNet.from_pretrained("mini-sd")
    expected = model.pipeline(
        ["a red star"], num_inference_steps=8, guidance_scale=1.5, generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images  # fmt: skip
    assert torch.equal(model("a red star", output_type="pt"), expected)
    assert repr(model) == "HookedUNet(StableDiffusionPipeline, 7 transformers, 7 blocks, float32 on cpu)"
    assert model.model_id == "vit_lens/mini-sd" and len(model.fingerprint) == 16


def test_fingerprints_follow_the_weights():
    from vit_lens.identity import fingerprint

    pipe = sd()
    model = hooked(pipe)
    before, exact = model.fingerprint, model.exact_fingerprint()
    assert before == fingerprint(pipe.unet.state_dict()) == hooked(sd()).fingerprint and exact.startswith("float32:")
    assert model.model_id == f"module@{before}"
    with torch.no_grad():
        pipe.unet.conv_in.weight[0, 0, 0, 0] *= 1 + 1e-6
    assert model.fingerprint == before and model.exact_fingerprint() != exact
    pipe.unet.conv_in.weight.data += 1
    assert model.fingerprint == before
    model.forget_fingerprint()
    assert model.fingerprint != before


def test_models_are_moved_and_copied_as_a_whole(errors):
    model = hooked(flux())
    assert model.to(torch.float64).dtype == torch.float64 and model.pipeline.text_encoder_2.dtype == torch.float64
    with pytest.raises(errors.VitLensError, match="moved and cast as a whole"):
        model.half()
    twin = copy.deepcopy(model)
    assert twin.denoiser is not model.denoiser and twin.denoiser is twin.pipeline.transformer
    out, seen = model(PROMPTS, **FLUX), []
    found = twin.run_with_hooks(
        PROMPTS, **FLUX, fwd_hooks=[("double.0.hook_attn_out", lambda x, hook: seen.append(hook.step.index))]
    )
    assert torch.equal(found, out) and seen == [0, 1, 2]
    handle = model.denoiser.norm_out.register_forward_hook(lambda *given: None)
    with pytest.raises(errors.VitLensError, match=r"hooks are on \['transformer.norm_out'\]"):
        model.refuse_hooks("a record")
    handle.remove()
    model.refuse_hooks("a record")


def test_names_are_in_the_docstrings():
    import re

    import vit_lens as vl

    for model in (hooked(flux()), hooked(sd())):
        told = set(re.findall(r"``([\w.{}]+hook_\w+)``", type(model).__doc__))
        names = {re.sub(r"\.\d+", ".{i}", name).replace(".text.", ".") for name in model.hook_dict}
        names = {re.sub(r"^(down\.\{i\}|up\.\{i\}|mid)", "B", name) for name in names}
        told = {re.sub(r"\{\w\}", "{i}", name) for name in told}
        assert names == {name for name in told if not re.search(r"\.\d", name)}
    assert vl.diffusion.DENOISERS["flux"].cls == "FluxTransformer2DModel"


# ---- dictionaries within a denoiser


@pytest.mark.parametrize(("kind", "site"), [("flux", "double.1.hook_resid_post"), ("unet", "mid.0.hook_update")])
def test_a_dictionary_in_a_denoiser(kind, site, request):
    """Nothing edited is the stock picture to the bit; codes are kept by step and branch, at the cost that was said."""
    import vit_lens as vl

    model = request.getfixturevalue({"flux": "model", "unet": "unet"}[kind])
    given = dict(FLUX if kind == "flux" else UNET) | {"output_type": "latent"}
    plain, whole = model.run_with_cache(PROMPTS, **given, names_filter=site)
    d = whole[site].shape[-1]
    found = vl.dictionaries.random_dictionary(d, 2 * d + 1, k=3, site=site)
    codes = f"{site}.hook_sae_acts_post"
    with model.spliced(found):
        assert torch.equal(model(PROMPTS, **given), plain)
        cost = model.cache_cost(PROMPTS, **given, names_filter=[site, codes])
        out, cache = model.run_with_cache(PROMPTS, **given, names_filter=[site, codes])
        edited = model.run_with_hooks(PROMPTS, **given, fwd_hooks=[(codes, lambda act, hook: 0 * act)])
    assert torch.equal(out, plain) and not torch.equal(edited, plain)
    assert cost == sum(cache[name].numel() * cache[name].element_size() for name in (site, codes))
    assert torch.equal(cache[codes], found.encode(whole[site]))


def test_codes_are_kept_of_the_branch_that_is_asked_for(unet):
    import vit_lens as vl

    site = "mid.0.hook_update"
    given = dict(UNET) | {"output_type": "latent", "guidance_scale": 3.0}
    whole = unet.run_with_cache(PROMPTS, **given, names_filter=site, branch="both")[1]
    d = whole["cond"][site].shape[-1]
    found = vl.dictionaries.random_dictionary(d, d + 3, k=2, site=site)
    with unet.spliced(found):
        kept = unet.run_with_cache(PROMPTS, **given, names_filter=f"{site}.hook_sae_acts_post", branch="both")[1]
    for branch, cache in kept.items():
        assert torch.equal(cache[f"{site}.hook_sae_acts_post"], found.encode(whole[branch][site]))


def test_a_dictionary_is_bound_to_a_denoiser_by_its_id():
    import vit_lens as vl
    from vit_lens.dictionaries.belonging import identity_of

    assert identity_of(vl.HookedUNet.from_pretrained("mini-sd"))[0] == "vit_lens/mini-sd"
