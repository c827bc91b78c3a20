"""Dictionaries of hooked diffusion models: tokens by step and branch, splices, the denoising loss, cards and pages."""

import dataclasses

import pytest
import tiny_dictionaries as tiny
import torch
from test_diffusion import flux, hooked, sd, sd3

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers, under numpy 2

PROMPTS = ["a red star", "", "a blue ring and a green cross", "a red star", "two small rings"]
FLUX = dict(height=6, width=10, max_sequence_length=11, steps=3)
UNET = dict(height=16, width=24, steps=3, guidance_scale=3.0)
WIDE = torch.float64
SITE = "double.0.hook_resid_post"


@pytest.fixture(scope="module")
def model():
    return hooked(flux(dtype=WIDE))


@pytest.fixture(scope="module")
def unet():
    return hooked(sd(dtype=WIDE))


def source(model, site, prompts=PROMPTS, **options):
    from vit_lens import ActivationSource

    return ActivationSource.of_model(model, prompts, site, **options)


def tokens(source):
    batches = list(source.in_order())
    return torch.cat([b.tokens for b in batches]), torch.cat([b.labels for b in batches])


def origin(source):
    from vit_lens.dictionaries import Origin

    return Origin(**vars(source.provenance))


def seeds(indices, noise_seed=0):
    """The noise of inputs, as the documentation has it: of (seed, index) alone."""
    import hashlib

    digests = [hashlib.sha256(repr((noise_seed, index)).encode()).digest() for index in indices]
    return [int.from_bytes(digest[:7], "little") for digest in digests]


# ---- sources -----------------------------------------------------------------------------------------------------


def stock_outputs(pipe, module, prompt, seed, take, **options):
    """What a module of the stock pipeline returns in each pass of one prompt's draw, without our hooks."""
    found = []
    handle = module.register_forward_hook(lambda module, args, output: found.append(take(output).clone()))
    try:
        options["num_inference_steps"] = options.pop("steps")
        pipe(prompt=[prompt], generator=[torch.Generator().manual_seed(seed)], output_type="latent", **options)
    finally:
        handle.remove()
    return found


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_tokens_are_those_of_the_stock_pipeline_one_prompt_at_a_time(model, at_once):
    from vit_lens.dictionaries import step_and_position

    for site, item in (("double.1.hook_resid_post", 1), ("double.1.text.hook_resid_post", 0)):
        own = source(model, site, at_steps=[2, 0], inputs_at_once=at_once, noise_seed=4, **FLUX)
        found, labels = tokens(own)
        block = model.denoiser.transformer_blocks[1]
        expected = []
        for prompt, seed in zip(PROMPTS, seeds(range(5), 4), strict=True):
            passes = stock_outputs(model.pipeline, block, prompt, seed, lambda out: out[item], **FLUX)  # noqa: B023
            expected += [passes[0][0], passes[2][0]]
        torch.testing.assert_close(found, torch.cat(expected), atol=1e-9, rtol=0)
        assert own.provenance.at_steps == (0, 2) and own.provenance.branch == "cond"
        assert own.provenance.sigmas == pytest.approx((1, 1 / 3)) and own.provenance.run["noise_seed"] == 4
        n = 15 if item else 11
        said = [(int(i), *step_and_position(int(place))) for i, place in labels]
        assert said == [(i, step, position) for i in range(5) for step in (0, 2) for position in range(n)]


@pytest.mark.parametrize("branch", ["cond", "uncond"])
def test_maps_of_a_unet_are_tokens_of_one_branch(unet, branch):
    own = source(unet, "mid.0.hook_update", at_steps=[1], branch=branch, **UNET)
    found, _ = tokens(own)
    module = unet.denoiser.mid_block.attentions[0].proj_out
    expected = []
    for prompt, seed in zip(PROMPTS, seeds(range(5)), strict=True):
        rows = stock_outputs(unet.pipeline, module, prompt, seed, lambda out: out, **UNET)[1]
        row = rows[["uncond", "cond"].index(branch)]
        expected.append(row.flatten(1).T if row.ndim == 3 else row)
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-9, rtol=0)


def test_updates_and_positions(model):
    both = source(model, "single.1.hook_resid_post", stream="update", tokens="3,7", at_steps=[1], **FLUX)
    direct = source(model, "single.1.hook_update", at_steps=[1], **FLUX)
    found, labels = tokens(both)
    whole, every = tokens(direct)
    at = torch.isin(every[:, 1] % 2**20, torch.tensor([3, 7]))
    torch.testing.assert_close(found, whole[at], atol=1e-9, rtol=0)
    assert torch.equal(labels, every[at]) and len(found) == 10


def test_noise_is_of_seed_and_index_alone(model):
    site = "double.0.hook_resid_post"
    found, labels = tokens(source(model, site, **FLUX))
    rows = [found[labels[:, 0] == index] for index in range(5)]
    assert not torch.allclose(rows[0], rows[3], atol=1e-3)  # one prompt, two draws
    moved, places = tokens(source(model, site, [PROMPTS[0], *PROMPTS[4:], PROMPTS[2]], **FLUX))
    torch.testing.assert_close(moved[places[:, 0] == 0], rows[0], atol=1e-9, rtol=0)
    torch.testing.assert_close(moved[places[:, 0] == 2], rows[2], atol=1e-9, rtol=0)
    other, _ = tokens(source(model, site, noise_seed=1, **FLUX))
    assert not torch.allclose(other, found, atol=1e-3)


def test_a_prompt_is_on_one_side_and_streams_go_on(model):
    own = source(model, "double.0.hook_resid_post", at_steps=[0], batch_size=7, buffer=2, **FLUX)
    for seed in range(6):
        train, held = dataclasses.replace(own, seed=seed).split(0.4)
        texts = [{PROMPTS[i] for i in side.inputs} for side in (train, held)]
        assert not texts[0] & texts[1] and sorted(train.inputs + held.inputs) == [0, 1, 2, 3, 4]
    batches = list(own.stream(epochs=1))
    rest = list(own.stream(batches[4].then, epochs=1))
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(rest, batches[5:], strict=True)) and rest
    first, third = dataclasses.replace(own, inputs=(0, 1)), dataclasses.replace(own, inputs=(1, 3))
    swapped = source(
        model, "double.0.hook_resid_post", ["", "a red star"], at_steps=[0], batch_size=7, buffer=2, **FLUX
    )
    assert len({own.content, first.content, third.content, swapped.content}) == 4


def test_shards_keep_places_and_where_tokens_are_from(model, tmp_path):
    from vit_lens import ActivationSource
    from vit_lens.dictionaries import ITDA, Dictionary, fit, step_and_position

    own = source(model, "double.0.text.hook_resid_post", tokens="2,5,9", at_steps=[0, 2], **FLUX)
    folder = own.write(tmp_path / "kept", dtype=torch.float32, inputs_per_shard=2)
    again = ActivationSource.open(folder)
    assert again.provenance == own.provenance and again.reader.keys == PROMPTS
    (found, labels), (expected, places) = tokens(again), tokens(own)
    assert torch.equal(labels, places) and torch.equal(found, expected.float())
    (folder / "activations_00001.safetensors").unlink()
    own.write(folder, dtype=torch.float32, inputs_per_shard=2)  # goes on
    assert torch.equal(tokens(ActivationSource.open(folder))[1], places)
    learnt = fit(again, ITDA(k=3, threshold=0.2), held_out=0.3)
    said = {step_and_position(place) for place in learnt.labels[:, 1].tolist()}
    assert said <= {(step, position) for step in (0, 2) for position in (2, 5, 9)} and len(said) > 1
    loaded = Dictionary.load(learnt.save(tmp_path / "itda.safetensors"))
    assert loaded.origin == learnt.origin and loaded.origin.run["max_sequence_length"] == 11
    assert loaded.origin.at_steps == (0, 2)


WRONG_SOURCES = {
    "no step": (dict(at_steps=[3]), r"at_steps=\[3\]: a run of steps=3 has the steps 0 to 2"),
    "steps of words": (dict(at_steps=["one"]), r"at_steps=\['one'\]"),
    "no branch": (dict(branch="uncond"), "no unconditional branch"),
    "both": (dict(branch="both"), "a source reads one: 'cond' or 'uncond'"),
    "no token": (dict(tokens="15"), r"has positions 0 to 14, not \[15\]"),
    "a token of towers": (dict(tokens="cls"), "tokens='cls': of a denoiser's stream give 'all', or positions"),
    "half a rule": (dict(tokens="3,x"), "tokens='3,x'"),
    "heads": (dict(site="double.0.attn.hook_z"), "is .batch pos head d_head.; a dictionary is of tokens"),
    "a gate": (dict(site="double.0.hook_attn_gate"), "is .batch d_model.; a dictionary is of tokens"),
    "no site": (dict(site="double.9.hook_resid_post"), "no hook point 'double.9.hook_resid_post'"),
    "update of attention": (dict(site="double.0.hook_attn_out", stream="update"), "no hook_resid_post"),
    "seed": (dict(seed_=1), "takes no 'seed_'"),
    "noise": (dict(noise_seed="x"), "noise_seed='x'; expected a whole number"),
    "latents": (dict(latents=torch.zeros(1, 15, 4)), "latents= is not taken of a source"),
    "embeddings": (dict(prompt_embeds=torch.zeros(1, 11, 32)), "prompt_embeds: expected numbers or words"),
    "an option": (dict(heigth=6), "nearest: 'height'"),
    "prompts": (dict(prompts=[torch.zeros(3, 4, 4)]), "draws prompts: give a list of texts"),
    "one prompt": (dict(prompts="a star"), "a star"),
}


@pytest.mark.parametrize("name", WRONG_SOURCES)
def test_sources_that_cannot_be_are_refused(model, errors, name, unchecked):
    given, told = WRONG_SOURCES[name]
    options = {"site": SITE, **FLUX, **given}
    with pytest.raises(errors.VitLensError, match=told):
        source(model, options.pop("site"), **options)


def test_what_is_of_diffusion_models_is_refused_of_others(vit, pixels, unet, errors):
    from vit_lens import ActivationSource
    from vit_lens.dictionaries import fidelity, random_dictionary

    with pytest.raises(errors.DictionaryError, match="a HookedViT takes no at_steps"):
        ActivationSource.of_model(vit, pixels, "L1.resid_post", at_steps=[0])
    with pytest.raises(errors.DictionaryError, match="nothing is added to what it is given"):
        source(unet, "down.1.hook_resid_post", stream="update", **UNET)
    with pytest.raises(errors.DictionaryError, match="denoising_fidelity measures it"):
        fidelity(unet, random_dictionary(32, 40, k=2, site="mid.0.hook_update"), PROMPTS)


# ---- splices -------------------------------------------------------------------------------------------------------


def replaced_by_hand(model, site, dictionary, prompts, *, at_steps, branch, before=None, **options):
    """A run in which a plain hook function puts what the dictionary decodes into chosen steps and one branch."""
    held = {}

    def keep(x, hook):
        held[hook.branch] = x.clone()

    def put(x, hook):
        if hook.step.index not in at_steps or hook.branch != branch:
            return None
        start = held[hook.branch] if before else 0
        return dictionary.decode(dictionary.encode(x - start), x - start) + start

    hooks = [(before, keep)] if before else []
    return model.run_with_hooks(prompts, fwd_hooks=[*hooks, (site, put)], output_type="latent", **options)


@pytest.mark.parametrize("branch", ["cond", "uncond"])
@pytest.mark.parametrize("stream", ["output", "update"])
def test_a_splice_acts_at_the_steps_and_in_the_branch_it_was_learnt_at(unet, stream, branch):
    site, before = "mid.0.hook_resid_post", "mid.0.hook_resid_pre"
    own = source(unet, site, at_steps=[0, 2], branch=branch, stream=stream, **UNET)
    found = tiny.make("topk", d=32, origin=origin(own))
    options = UNET | dict(seed=seeds(range(2)))
    plain = unet(PROMPTS[:2], output_type="latent", **options)
    expected = replaced_by_hand(
        unet, site, found, PROMPTS[:2], at_steps=(0, 2), branch=branch, before=before if stream == "update" else None,
        **options,
    )  # fmt: skip
    codes = f"{site}.hook_sae_acts_post"
    with unet.spliced(found, error_term=False):
        out, caches = unet.run_with_cache(
            PROMPTS[:2], names_filter=codes, branch="both", output_type="latent", **options
        )
    torch.testing.assert_close(out, expected, atol=1e-9, rtol=0)
    assert not torch.allclose(out, plain, atol=1e-4)
    other = {"cond": "uncond", "uncond": "cond"}[branch]
    fires = [[bool(step.any()) for step in caches[each][codes]] for each in (branch, other)]
    assert fires == [[True, False, True], [False, False, False]]
    with unet.spliced(found):
        assert torch.equal(unet(PROMPTS[:2], output_type="latent", **options), plain)
    with unet.spliced(found, edit=lambda codes, hook: codes + 1):
        edited, codes = [unet(PROMPTS[:2], output_type="latent", **options) for _ in range(2)]
    assert torch.equal(edited, codes) and not torch.equal(edited, plain)


def test_other_steps_are_said_or_refused(model, errors, unchecked):
    own = source(model, SITE, at_steps=[1, 2], **FLUX)
    found = tiny.make("topk", d=32, origin=origin(own))
    run = dict(FLUX, seed=[3], output_type="latent")
    with pytest.raises(errors.DictionaryError, match=r"step 1 with noise level 0.6667, which is 0.75 in this run"):
        with model.spliced(found, error_term=False):
            model(PROMPTS[:1], **run | dict(steps=4))
    with pytest.raises(errors.DictionaryError, match=r"acts at steps \[2\], too, and no run came to them"):
        with model.spliced(dataclasses.replace(found, origin=dataclasses.replace(found.origin, sigmas=None))):
            model(PROMPTS[:1], **run | dict(steps=2))
    wide = run | dict(steps=4)
    expected = replaced_by_hand(
        model, SITE, found, PROMPTS[:1], at_steps=(0, 3), branch="cond",
        **{key: value for key, value in wide.items() if key != "output_type"},
    )  # fmt: skip
    with model.spliced(found, error_term=False, at_steps=[0, 3]):
        out = model(PROMPTS[:1], **wide)
    torch.testing.assert_close(out, expected, atol=1e-9, rtol=0)
    lost = dataclasses.replace(found, origin=dataclasses.replace(found.origin, branch="uncond"))
    with pytest.raises(errors.DictionaryError, match=r"acts in the branch 'uncond', and runs had \['cond'\] alone"):
        with model.spliced(lost):
            model(PROMPTS[:1], **run)
    with model.spliced(lost, branch="both", error_term=False):
        out = model(PROMPTS[:1], **run)
    assert not torch.equal(out, model(PROMPTS[:1], **run))
    for wrong in (dict(at_steps=[]), dict(at_steps=["x"]), dict(branch="all")):
        with pytest.raises(errors.DictionaryError, match="expected"), model.spliced(found, **wrong):
            pass
    far = dataclasses.replace(found, origin=dataclasses.replace(found.origin, tokens="40"))
    with pytest.raises(errors.DictionaryError, match="has positions 0 to 14 in this run"), model.spliced(far):
        model(PROMPTS[:1], **run)
    with pytest.raises(errors.DictionaryError, match="its features mean nothing there"):
        with hooked(flux("dev", WIDE)).spliced(found):
            pass


def test_steps_of_a_model_without_any_are_refused(vit, pixels, errors):
    made = tiny.make("topk", d=35)
    with pytest.raises(errors.DictionaryError, match="the model runs in no steps"):
        with vit.spliced(made, "L1.resid_post", at_steps=[0]):
            vit(pixels)


def test_a_source_of_other_steps_is_refused_in_statistics(model, errors):
    from vit_lens.dictionaries import evaluate

    found = tiny.make("topk", d=32, origin=origin(source(model, SITE, at_steps=[1], **FLUX)))
    with pytest.raises(errors.DictionaryError, match=r"at_steps \(1,\), the activations are of \(0,\)"):
        evaluate(found, source(model, SITE, at_steps=[0], **FLUX))


# ---- the denoising loss --------------------------------------------------------------------------------------------


def slow_noise(latents, seed):
    rows = [torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(one ^ 0x5EED)) for one in seed]
    return torch.stack(rows).to(latents)


def slow_flux_loss(pipe, prompts, latents, seed, index, *, height, width, steps, max_sequence_length, change=None):
    """The stock transformer, called by hand with what the paper says, one picture at a time."""
    noise, found = slow_noise(latents, seed), []
    sigma = 1 - index / steps  # of schnell: shift 1
    for prompt, x, n in zip(prompts, latents, noise, strict=True):
        embeds, pooled, text_ids = pipe.encode_prompt(prompt, None, max_sequence_length=max_sequence_length)
        grid = torch.zeros(height // 2, width // 2, 3, dtype=x.dtype)
        grid[..., 1] += torch.arange(height // 2)[:, None]
        grid[..., 2] += torch.arange(width // 2)[None]
        with torch.no_grad():
            said = pipe.transformer(
                hidden_states=((1 - sigma) * x + sigma * n)[None], timestep=torch.tensor([sigma], dtype=x.dtype),
                pooled_projections=pooled, encoder_hidden_states=embeds, txt_ids=text_ids,
                img_ids=grid.flatten(0, 1),
            ).sample[0]  # fmt: skip
        found.append((said - (n - x)).square().mean())
    return torch.stack(found)


def test_the_flow_loss_is_that_of_the_paper(model):
    options = dict(FLUX, seed=seeds(range(3)))
    x = model(PROMPTS[:3], output_type="latent", **options)
    found = model.denoising_loss(PROMPTS[:3], x, **options)
    assert found.shape == (3, 3) and found.dtype == WIDE
    options.pop("seed")
    for index in range(3):
        expected = slow_flux_loss(model.pipeline, PROMPTS[:3], x, seeds(range(3)), index, **options)
        torch.testing.assert_close(found[index], expected, atol=1e-7, rtol=1e-6)  # sigmas are of float32
    some = model.denoising_loss(PROMPTS[:3], x, at_steps=[2], seed=seeds(range(3)), **options)
    assert torch.equal(some, found[2:])
    alone = model.denoising_loss(PROMPTS[2:3], x[2:], seed=seeds([2]), **options)
    torch.testing.assert_close(alone, found[:, 2:], atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "euler"])
def test_the_loss_of_a_diffusion_is_by_its_schedulers_prediction(kind):
    """The stock scheduler adds the noise, and scales it as it asks for; SDXL's is Euler's."""
    pipe = sd("sdxl" if kind == "euler" else "sd1", WIDE)
    if kind != "euler":
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=kind)
    own, seed, prompts = hooked(pipe), [3, 8], [PROMPTS[0], PROMPTS[2]]
    x = tiny.randn(2, 4, 8, 12)
    run = UNET | dict(seed=seed)
    found = {branch: own.denoising_loss(prompts, x, branch=branch, **run) for branch in ("cond", "uncond")}
    noise, times = slow_noise(x, seed), pipe.scheduler.timesteps
    if kind == "euler":
        embeds, empty, pooled, pooled_empty = pipe.encode_prompt(prompts, device="cpu")
        ids = torch.tensor([[16.0, 24, 0, 0, 16, 24]] * 2, dtype=WIDE)
        more = {
            "cond": dict(added_cond_kwargs=dict(text_embeds=pooled, time_ids=ids)),
            "uncond": dict(added_cond_kwargs=dict(text_embeds=pooled_empty, time_ids=ids)),
        }
    else:
        embeds, empty = pipe.encode_prompt(prompts, "cpu", 1, True)
        more = {"cond": {}, "uncond": {}}
    for index, time in enumerate(times):
        scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)  # it counts steps of its own
        scheduler.set_timesteps(3)
        seen = scheduler.scale_model_input(scheduler.add_noise(x, noise, time.repeat(2)), time)
        kept = float(scheduler.alphas_cumprod[int(time)])
        truth = {
            "epsilon": noise, "euler": noise, "sample": x,
            "v_prediction": kept**0.5 * noise - (1 - kept) ** 0.5 * x,
        }[kind]  # fmt: skip
        for branch, text in {"cond": embeds, "uncond": empty}.items():
            with torch.no_grad():
                said = pipe.unet(seen, time, encoder_hidden_states=text, **more[branch]).sample
            expected = (said - truth).square().flatten(1).mean(1)
            torch.testing.assert_close(found[branch][index], expected, atol=1e-6, rtol=1e-5)


def test_losses_that_cannot_be_are_refused(model, unet, errors, unchecked):
    import diffusers

    x = torch.zeros(2, 15, 4, dtype=WIDE)
    for given, told in {
        "three": (dict(latents=torch.zeros(3, 15, 4, dtype=WIDE)), "expected those of 2 pictures"),
        "size": (dict(latents=torch.zeros(2, 12, 4, dtype=WIDE)), "give height= and width="),
        "step": (dict(at_steps=[7]), "has the steps 0 to 2"),
        "branch": (dict(branch="uncond"), "no unconditional branch"),
        "both": (dict(branch="both"), "branch="),
    }.values():
        with pytest.raises(errors.VitLensError, match=told):
            model.denoising_loss(PROMPTS[:2], **{"latents": x, **FLUX, **given})
    assert not model.hooked_names() and model.current_step is None
    odd = hooked(sd(dtype=WIDE))
    odd.pipeline.scheduler = diffusers.EDMEulerScheduler()
    with pytest.raises(errors.VitLensError, match="a EDMEulerScheduler with prediction_type='epsilon'"):
        odd.denoising_loss(PROMPTS[:1], torch.zeros(1, 4, 8, 12, dtype=WIDE), **UNET)


@pytest.mark.parametrize("name", ["flux", "sd", "sd3"])
def test_pictures_are_latents_as_the_pipeline_has_them(name):
    """What the stock pipeline's own steps of decoding undo."""
    pipe = {"flux": flux, "sd": sd, "sd3": sd3}[name](dtype=WIDE)
    own = hooked(pipe)
    pixels = tiny.randn(2, 3, 6, 10).clamp(-1, 1) if name == "flux" else tiny.randn(2, 3, 16, 24).clamp(-1, 1)
    x = own.latents_of((pixels + 1) / 2, height=pixels.shape[2], width=pixels.shape[3])
    back = pipe._unpack_latents(x, 6, 10, pipe.vae_scale_factor) if name == "flux" else x
    back = back / pipe.vae.config.scaling_factor + (pipe.vae.config.shift_factor or 0)
    with torch.no_grad():
        expected = pipe.vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(back, expected, atol=1e-6, rtol=0)


# ---- fidelity ------------------------------------------------------------------------------------------------------


def basis_and_mean(own):
    d = tokens(own)[0].shape[1]
    said = origin(own)
    basis = dataclasses.replace(tiny.make("signed", d=d, n=d, k=d, origin=said), W_dec=torch.eye(d, dtype=WIDE))
    silent = dict(b_enc=torch.full((53,), -1e4, dtype=WIDE), b_dec=tokens(own)[0].mean(0))
    return basis, tiny.make("relu", d=d, origin=said, **silent)


def test_fidelity_is_one_for_a_whole_basis_and_zero_for_the_mean(model):
    from vit_lens.dictionaries import denoising_fidelity

    own = source(model, SITE, at_steps=[0, 2], tokens="0,3,4,11", noise_seed=2, **FLUX)
    basis, mean = basis_and_mean(own)
    named, d = {"basis": basis, "mean": mean}, basis.d
    found = denoising_fidelity(model, named, PROMPTS, ks=[1, 9, d], batch_size=2)
    assert [(p.name, p.k) for p in found.points] == [("basis", 1), ("basis", 9), ("basis", d), ("mean", None)]
    assert found.n == 5 and found.metric == "denoising loss at steps 0, 2 (noise levels 1, 0.3333), branch cond"
    assert found.points[2].fidelity == pytest.approx(1, abs=1e-9) and found.points[2].l0 == pytest.approx(d)
    assert found.points[3].fidelity == pytest.approx(0, abs=1e-9) and found.points[3].l0 == 0
    assert found.points[0].l0 == 1 and abs(found.points[0].fidelity - 1) > 1e-3
    seed = seeds(range(5), 2)
    x = model(PROMPTS, seed=seed, output_type="latent", **FLUX)
    rows = torch.stack([slow_flux_loss(model.pipeline, PROMPTS, x, seed, index, **FLUX) for index in (0, 2)])
    assert found.clean == pytest.approx(float(rows.mean()), abs=1e-7)
    pixels = tiny.randn(5, 3, 6, 10).clamp(-1, 1) / 2 + 0.5
    given = model.latents_of(pixels, height=6, width=10)
    other = denoising_fidelity(model, basis, own, latents=given)
    rows = torch.stack([slow_flux_loss(model.pipeline, PROMPTS, given, seed, index, **FLUX) for index in (0, 2)])
    assert other.clean == pytest.approx(float(rows.mean()), abs=1e-7)
    assert other.points[0].fidelity == pytest.approx(1, abs=1e-9)

    def ablate(act, hook):
        if hook.step.index not in (0, 2):
            return None
        act[:, [0, 3, 4, 11]] = mean.b_dec
        return act

    with model.hooks([(SITE, ablate)]):
        rows = model.denoising_loss(PROMPTS, x, at_steps=[0, 2], seed=seed, **FLUX)
    assert found.ablated == pytest.approx(float(rows.mean()), abs=1e-9)


@pytest.mark.parametrize("branch", ["cond", "uncond"])
def test_judged_pictures_are_a_metric(unet, branch, errors):
    import numpy as np

    from vit_lens.dictionaries import denoising_fidelity

    own = source(unet, "mid.0.hook_update", at_steps=[1, 2], branch=branch, **UNET)
    basis, mean = basis_and_mean(own)

    def redness(pictures):
        return torch.tensor([float(np.asarray(one, dtype=float)[..., 0].mean()) for one in pictures])

    found = denoising_fidelity(unet, {"basis": basis, "mean": mean}, PROMPTS[:3], redness, batch_size=2)
    assert found.metric == "redness of pictures" and found.n == 3
    clean = redness(unet(PROMPTS[:3], seed=seeds(range(3)), **UNET)).double().mean()
    assert found.clean == pytest.approx(float(clean)) and found.points[0].fidelity == pytest.approx(1, abs=1e-6)
    few = tokens(source(unet, "mid.0.hook_update", PROMPTS[:3], at_steps=[1, 2], branch=branch, **UNET))[0]
    still = dataclasses.replace(mean, b_dec=few.mean(0))
    found = denoising_fidelity(unet, {"mean": still}, PROMPTS[:3], redness)
    assert found.points[0].fidelity == pytest.approx(0, abs=1e-6)
    with pytest.raises(errors.DictionaryError, match="expected a number for each"):
        denoising_fidelity(unet, basis, PROMPTS[:3], lambda pictures: torch.zeros(2))
    with pytest.raises(errors.DictionaryError, match="without metric="):
        denoising_fidelity(unet, basis, PROMPTS[:3], redness, latents=torch.zeros(3, 4, 8, 12))
    later = dataclasses.replace(mean, origin=dataclasses.replace(mean.origin, at_steps=(0,)))
    with pytest.raises(errors.DictionaryError, match="'mean' is of other steps"):
        denoising_fidelity(unet, {"basis": basis, "mean": later}, PROMPTS[:3])


# ---- cards and pages -----------------------------------------------------------------------------------------------


MANY = [
    f"a {size} {colour} {shape}"
    for size in ("small", "big")
    for colour in ("red", "blue")
    for shape in ("star", "ring")
]


def test_cards_have_the_loss_recovered_beside_controls(model, tmp_path):
    from vit_lens import ActivationSource
    from vit_lens.dictionaries import Dictionary, card, verdicts, with_controls

    own = source(model, SITE, MANY, at_steps=[0, 2], batch_size=64, **FLUX)
    live = own.split(0.4)
    folder = own.write(tmp_path / "kept", dtype=torch.float32)
    train, held = ActivationSource.open(folder, batch_size=64).split(0.4)
    found = tiny.make("topk", d=32, n=40, k=4, origin=origin(own))
    measured = with_controls(found, train, held, live=live[1])
    curve, other = measured.statistics["fidelity"], with_controls(found, *live).statistics["fidelity"]
    values = [[point["value"] for point in one["points"] if point["name"] == "dictionary"] for one in (curve, other)]
    assert values[0] == pytest.approx(values[1], abs=1e-9) and len(values[0]) == 4
    assert (
        curve["is_loss"]
        and curve["metric"].startswith("denoising loss at steps 0, 2")
        and curve["n"] == len(held.inputs)
    )
    names = {point["name"] for point in curve["points"]}
    assert names == {"dictionary", "untrained", "random data points", "principal components"}
    assert [p["k"] for p in curve["points"] if p["name"] == "dictionary"] == [1, 2, 4, 8]
    text = card(Dictionary.load(measured.save(tmp_path / "measured.safetensors")))
    assert "- at steps: 0, 2\n- noise levels: 1, 0.3333\n- branch: cond\n- run: " in text and "noise_seed=0" in text
    assert f"Measured: {curve['metric']}." in text
    harmless = dataclasses.replace(measured, statistics={"fidelity": {**curve, "clean": 2.0, "ablated": 1.5}})
    harmful = dataclasses.replace(measured, statistics={"fidelity": {**curve, "clean": 1.0, "ablated": 1.5}})
    assert [one.words[:51] for one in verdicts(harmless)] == ["Mean ablation does not raise the model's loss (1.5 "]
    assert verdicts(harmful)[0].words.startswith("With the dictionary alone in its place the model keeps")
    with pytest.raises(ValueError, match="live= is of other inputs"):
        with_controls(found, train, held, live=source(model, SITE, MANY, at_steps=[0], **FLUX))


def slow_codes_of(dictionary, own):
    """Codes [input step pos feature] of every draw."""
    found, _ = tokens(own)
    said = own.provenance
    return dictionary.encode(found).view(len(own.inputs), len(said.at_steps), -1, dictionary.n_features)


def test_examples_are_draws_with_the_codes_of_the_strongest_step(model):
    from vit_lens.dictionaries import feature_examples

    own = source(model, SITE, MANY, at_steps=[0, 2], noise_seed=3, **FLUX)
    found = tiny.make("topk", d=32, n=40, k=4, origin=origin(own))
    examples = feature_examples(found, model, MANY, range(40), inputs_at_once=3)
    codes, n = slow_codes_of(found, own), 0
    assert examples.grid == (3, 5) and examples.n_prefix == 0 and not examples.texts
    for k, bands in enumerate(examples.bands):
        each = codes[..., k].flatten(1).abs().amax(1)
        assert examples.n_firing[k] == int((each > 0).sum())
        for one in (one for band in bands for one in band.examples):
            n += 1
            index, position = divmod(int(codes[one.input, ..., k].abs().argmax()), 15)
            assert (one.step, one.position) == ((0, 2)[index], position)
            assert one.activation == pytest.approx(float(codes[one.input, index, position, k]), abs=1e-5)
            torch.testing.assert_close(one.map.double(), codes[one.input, index, :, k], atol=1e-5, rtol=0)
            assert torch.equal(examples.on_grid(one), one.map.view(3, 5))
    assert n > 40
    shown = sorted(examples.pictures)
    drawn = model([MANY[i] for i in shown], seed=seeds(shown, 3), **FLUX)
    assert all(examples.pictures[i].tobytes() == one.tobytes() for i, one in zip(shown, drawn, strict=True))
    assert examples.prompts == {i: MANY[i] for i in shown}


def test_pages_show_what_was_drawn_and_what_was_read(model, tmp_path):
    from vit_lens.dictionaries import feature_examples
    from vit_lens.report import write_dictionary_page

    prompts = ["a red star", "", "a blue <ring>"]
    page = {}
    for site in (SITE, "double.0.text.hook_resid_post"):
        own = source(model, site, prompts, at_steps=[2], **FLUX)
        labels = torch.tensor([[1, 2 * 2**20 + 7]] * 40)
        found = tiny.make("topk", d=32, n=40, k=4, origin=origin(own), labels=labels)
        examples = feature_examples(found, model, prompts, n=3)
        page[site] = write_dictionary_page(found, examples, tmp_path / "page.html").read_text()
        assert "step 2 of 3, cond" in page[site] and "token 7 of input 1 at step 2" in page[site]
    image, text = page.values()
    assert '<span class="prompt">the empty prompt</span>' in image and 'class="heat"' in image
    assert ", step 2</span>" in image and '<p class="tokens">' not in image
    assert '<p class="tokens">' in text and ">star</span>" in text and "&lt;pad&gt;" in text
    assert '<span class="prompt">' not in text and "<span>step 2</span>" in text


@pytest.mark.parametrize(("sides", "n", "grid"), [((6, 10), 15, (3, 5)), ((24, 40), 15, (3, 5)), ((16, 24), 100, None)])
def test_cells_of_a_picture_are_found_by_halving(model, sides, n, grid):
    from vit_lens.dictionaries.drawn import grid_of

    reader = source(model, SITE, **FLUX).reader
    reader.provenance = dataclasses.replace(reader.provenance, run=dict(height=sides[0], width=sides[1]))
    reader.n_positions = n
    assert grid_of(reader) == grid
