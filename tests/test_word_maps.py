"""Word maps against softmaxes by hand, of what stock modules were given; pictures with and without them, to the bit."""

import functools
import math
from contextlib import contextmanager

import numpy as np
import PIL.Image
import pytest
import tiny_pipelines
import torch
from test_diffusion import flux, hooked, state_of
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers, under numpy 2

PROMPTS = ["a red star", "a blue ring and a green cross"]
FLUX = dict(height=6, width=10, max_sequence_length=11, output_type="latent", steps=3)
UNET = dict(height=24, width=40, output_type="latent", steps=3)
GUIDED = UNET | dict(guidance_scale=4.0, negative_prompt="a ring")
TRUE_CFG = FLUX | dict(true_cfg_scale=3.0, negative_prompt="a ring")


def sd(dtype=torch.float64, cross=True):
    """Latents of 3 x 5, blocks of 2 x 3; two transformer blocks, heads of two widths; queries and keys have biases."""
    import diffusers

    pipe = tiny_pipelines.make("sd1")
    kinds = ("CrossAttnDownBlock2D",) * 2 if cross else ("DownBlock2D",) * 2
    with torch.random.fork_rng():
        torch.manual_seed(2)
        unet = diffusers.UNet2DConditionModel(
            sample_size=16, layers_per_block=1, norm_num_groups=8, attention_head_dim=4, block_out_channels=(16, 24),
            transformer_layers_per_block=(1, 2), cross_attention_dim=32, down_block_types=kinds,
            up_block_types=tuple(kind.replace("Down", "Up") for kind in kinds),
            mid_block_type="UNetMidBlock2DCrossAttn" if cross else None,
        )  # fmt: skip
        for attn in [one for name, one in unet.named_modules() if name.endswith("attn2")]:
            attn.to_q = nn.Linear(attn.to_q.in_features, attn.to_q.out_features)
            attn.to_k = nn.Linear(attn.to_k.in_features, attn.to_k.out_features)
        pipe.register_modules(unet=tiny_pipelines.perturbed(unet), vae=tiny_pipelines.vae((8, 8, 8, 8)))
    pipe.vae_scale_factor = 8
    return hooked(pipe.to(dtype))


@contextmanager
def given(modules, seen):
    """What modules are given in every call, by name and number of the call."""

    def before(key):
        return lambda module, args, kwargs: seen.setdefault(key, []).append((args, kwargs))

    handles = [one.register_forward_pre_hook(before(key), with_kwargs=True) for key, one in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def cubic(n, size):
    """The matrix that enlarges n numbers to size, by cubic convolution (a = -0.75), edges repeated."""
    made = torch.zeros(size, n, dtype=torch.float64)
    for row in range(size):
        place = (row + 0.5) * n / size - 0.5
        for k in range(math.floor(place) - 1, math.floor(place) + 3):
            d, a = abs(place - k), -0.75
            w = (a + 2) * d**3 - (a + 3) * d**2 + 1 if d <= 1 else a * (d**3 - 5 * d**2 + 8 * d - 4)
            made[row, min(max(k, 0), n - 1)] += w
    return made


def softmax_by_hand(q, k):
    """[row head query key] of [row pos head d_head]."""
    found = torch.zeros(len(q), q.shape[2], q.shape[1], k.shape[1], dtype=torch.float64)
    for row in range(len(q)):
        for head in range(q.shape[2]):
            scores = (q[row, :, head].double() @ k[row, :, head].double().T / math.sqrt(q.shape[-1])).exp()
            found[row, head] = scores / scores.sum(1, keepdim=True)
    return found


def unet_by_hand(model, call, n, left_out=("mid_block",)):
    """[step picture token h w] of the last n rows of every pass."""
    unet = model.denoiser
    paths = [name for name, _ in unet.named_modules() if name.endswith("attn2") and not name.startswith(left_out)]
    seen, inner = {}, {path: unet.get_submodule(path) for path in paths}
    outer = {
        path.split(".transformer_blocks")[0]: unet.get_submodule(path.split(".transformer_blocks")[0]) for path in paths
    }
    with given(inner | outer | {"unet": unet}, seen):
        latents = model(PROMPTS, **call)
    steps = []
    for step, (args, _) in enumerate(seen["unet"]):
        height, width = args[0].shape[2:]
        maps = []
        for path in paths:
            attn, ((x,), kwargs) = inner[path], seen[path][step]
            (outside, _) = seen[path.split(".transformer_blocks")[0]][step]
            h, w = outside[0].shape[2:]
            text = kwargs["encoder_hidden_states"]
            q = (x @ attn.to_q.weight.T + attn.to_q.bias).reshape(*x.shape[:2], 4, -1)
            k = (text @ attn.to_k.weight.T + attn.to_k.bias).reshape(*text.shape[:2], 4, -1)
            small = softmax_by_hand(q, k).mean(1).reshape(len(x), h, w, -1)
            maps.append(torch.einsum("yh,xw,bhwt->btyx", cubic(h, height), cubic(w, width), small)[-n:])
        steps.append(torch.stack(maps).mean(0))
    return torch.stack(steps), latents, len(paths)


def recorded(model, call, **how):
    from vit_lens.diffusion.attention import recorded_attention

    kept, plan = (
        {},
        model._call(PROMPTS, call["steps"], None, {k: v for k, v in call.items() if k not in ("steps", "seed")}),
    )
    with recorded_attention(model.denoiser, plan.of_step, kept.__setitem__, **how) as blocks:
        latents = model(PROMPTS, **call)
    return torch.stack(list(kept.values())), latents, blocks


# ---- a UNet


@torch.no_grad()
@pytest.mark.parametrize("call", [UNET | dict(guidance_scale=1.0), GUIDED], ids=["one branch", "guided"])
def test_maps_of_a_unet_are_softmaxes_by_hand(call):
    model, call = sd(), call | dict(seed=[5, 8])
    expected, latents, n = unet_by_hand(model, call, 2)
    found, same, blocks = recorded(model, call)
    assert (
        found.shape == (3, 2, 16, 3, 5) and len(blocks) == n == 9 and not any(one.startswith("mid") for one in blocks)
    )
    assert torch.allclose(found, expected, atol=1e-9, rtol=0) and torch.equal(latents, same)
    assert torch.allclose(found.sum(2), torch.ones(3, 2, 3, 5, dtype=torch.float64), atol=1e-12)
    assert (found.std((-1, -2)) > 1e-4).all() and not torch.allclose(found[:, 0], found[:, 1], atol=1e-4)
    with_mid = unet_by_hand(model, call, 2, left_out=("nothing",))[0]
    every = recorded(model, call, blocks=["down", "mid.0", "up"], at_steps=[2])
    assert torch.allclose(every[0], with_mid[2:], atol=1e-9, rtol=0) and len(every[2]) == n + 2
    assert not torch.allclose(with_mid, expected, atol=1e-4)


@torch.no_grad()
def test_words_are_means_over_their_tokens_and_steps():
    import vit_lens as vl

    model = sd()
    expected = unet_by_hand(model, GUIDED | dict(seed=[5, 5]), 2)[0][:, 1]
    maps = vl.word_maps(model, PROMPTS[1], ["ring", "a", "green cross"], seed=5, **GUIDED)
    places = {"ring": [3], "a": [1, 5], "green cross": [6, 7, 8, 9, 10]}  # green is four pieces here
    assert maps.words == tuple(places) and maps.n_tokens == (1, 2, 5) and maps.steps == (0, 1, 2)
    for word, tokens in places.items():
        assert torch.allclose(maps[word].double(), expected[:, tokens].mean((0, 1)), atol=1e-6)
        assert torch.allclose(maps.at_step(2)[word].double(), expected[2, tokens].mean(0), atol=1e-6)
    whole = {word: float(expected[:, tokens].sum(1).mean()) for word, tokens in places.items()}
    assert maps.attention == pytest.approx(whole, abs=1e-6)
    assert maps.mass == pytest.approx({word: one / sum(whole.values()) for word, one in whole.items()}, abs=1e-6)
    assert vl.word_maps(model, PROMPTS[0], seed=5, at_steps=[1], **GUIDED).steps == (1,)
    assert vl.word_maps(model, PROMPTS[0], **UNET).words == ("a", "red", "star")


def test_the_centre_is_that_of_what_stands_out():
    from vit_lens import WordMaps

    values = torch.full((1, 2, 3, 5), 0.25)
    values[0, 0, 0, 4] = 0.75
    maps = WordMaps(
        prompt="a b", words=("a", "b"), values=values, steps=(0,), n_tokens=(1, 1), picture=None, kind="attention"
    )
    assert maps.centre("a") == pytest.approx((1 / 6, 0.9)) and maps.centre("b") == pytest.approx((0.5, 0.5))


# ---- FLUX


def turned(x, turn):
    from diffusers.models.embeddings import apply_rotary_emb

    return apply_rotary_emb(x, turn, sequence_dim=1)


def normed(x, norm):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight


def heads(x, linear):
    return (x @ linear.weight.T + linear.bias).reshape(*x.shape[:2], 2, 16)


def flux_by_hand(model, call):
    """[pass picture token h w] of double and of single blocks."""
    body, seen = model.denoiser, {}
    attns = {f"d{i}": block.attn for i, block in enumerate(body.transformer_blocks)}
    attns |= {f"s{i}": block.attn for i, block in enumerate(body.single_transformer_blocks)}
    with given(attns, seen):
        latents = model(PROMPTS, **call)
    found = []
    for which in range(len(seen["d0"])):
        maps = {}
        for key, attn in attns.items():
            kwargs = seen[key][which][1]
            x, turn = kwargs["hidden_states"], kwargs["image_rotary_emb"]
            q, k = normed(heads(x, attn.to_q), attn.norm_q), normed(heads(x, attn.to_k), attn.norm_k)
            if key[0] == "d":
                text = kwargs["encoder_hidden_states"]
                q = torch.cat([normed(heads(text, attn.add_q_proj), attn.norm_added_q), q], 1)
                k = torch.cat([normed(heads(text, attn.add_k_proj), attn.norm_added_k), k], 1)
            whole = softmax_by_hand(turned(q, turn), turned(k, turn)).mean(1)
            assert torch.allclose(whole.sum(-1), torch.ones_like(whole[..., 0]), atol=1e-12)
            maps[key] = whole[:, 11:, :11].transpose(1, 2).reshape(2, 11, 3, 5)
        found.append(maps)
    return found, latents


@torch.no_grad()
@pytest.mark.parametrize("call", [FLUX, TRUE_CFG], ids=["one branch", "guided"])
def test_maps_of_flux_are_the_text_s_part_of_softmaxes_by_hand(call):
    model, call = hooked(flux("dev", torch.float64)), call | dict(seed=[5, 8])
    found, latents = flux_by_hand(model, call)
    n = len(found) // 3  # with guidance, "cond" runs first
    expected = torch.stack([torch.stack(list(maps.values())).mean(0) for maps in found[::n]])
    maps, same, blocks = recorded(model, call)
    assert blocks == ["double.0", "double.1", "single.0", "single.1", "single.2"] and torch.equal(latents, same)
    assert torch.allclose(maps, expected, atol=1e-7, rtol=0) and (0 < maps.sum(2)).all() and (maps.sum(2) < 1).all()
    assert (maps.std((-1, -2)) > 1e-5).all()
    alone = recorded(model, call, blocks="single.1", at_steps={1})[0]
    assert torch.allclose(alone[0], found[n]["s1"], atol=1e-7, rtol=0)


def silu(x):
    return x / (1 + (-x).exp())


def layer_norm(x):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


@torch.no_grad()
@pytest.mark.parametrize("call", [FLUX, TRUE_CFG], ids=["one branch", "guided"])
def test_concepts_are_a_stream_of_their_own_by_hand(call):
    """The text stream's equations, written out; only T5, CLIP and the embedding of the step are the stock modules'."""
    import vit_lens as vl

    words, model = ["star", "ring", "two"], hooked(flux("dev", torch.float64))
    pipe, body, seen, wrote = model.pipeline, model.denoiser, {}, {}
    parts = {"time": body.time_text_embed} | {f"d{i}": block.attn for i, block in enumerate(body.transformer_blocks)}
    hooks = [
        block.attn.register_forward_hook(lambda m, a, out, i=i: wrote.setdefault(i, []).append(out[0]))
        for i, block in enumerate(body.transformer_blocks)
    ]
    with given(parts, seen):
        expected_latents = model(PROMPTS[0], seed=5, **call)
    for hook in hooks:
        hook.remove()
    encode = dict(prompt_2=None, max_sequence_length=11)
    start = torch.cat([pipe.encode_prompt(prompt=one, **encode)[0][:, 0] for one in words])[None]
    pooled = pipe.encode_prompt(prompt="star ring two", **encode)[1]
    n, steps = len(seen["time"]) // 3, []
    for which in range(0, 3 * n, n):
        temb = silu(body.time_text_embed(*seen["time"][which][0][:2], pooled))
        held, maps = start @ body.context_embedder.weight.T + body.context_embedder.bias, []
        for i, block in enumerate(body.transformer_blocks):
            attn, kwargs = block.attn, seen[f"d{i}"][which][1]
            x, turn = kwargs["hidden_states"], [part[11:] for part in kwargs["image_rotary_emb"]]
            linear = block.norm1_context.linear
            shift, scale, gate, shift_2, scale_2, gate_2 = (temb @ linear.weight.T + linear.bias).chunk(6, -1)
            c = layer_norm(held) * (1 + scale) + shift
            k = torch.cat(
                [
                    normed(heads(c, attn.add_k_proj), attn.norm_added_k),
                    turned(normed(heads(x, attn.to_k), attn.norm_k), turn),
                ],
                1,
            )
            v = torch.cat([heads(c, attn.add_v_proj), heads(x, attn.to_v)], 1)
            weights = softmax_by_hand(normed(heads(c, attn.add_q_proj), attn.norm_added_q), k)
            read = torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)
            written = read @ attn.to_add_out.weight.T + attn.to_add_out.bias
            scores = (wrote[i][which] @ written[0].T).exp()
            maps.append((scores / scores.sum(-1, keepdim=True))[0].T.reshape(3, 3, 5))
            held = held + gate * written
            held = held + gate_2 * block.ff_context(layer_norm(held) * (1 + scale_2) + shift_2)
        steps.append(torch.stack(maps))
    expected = torch.stack(steps)  # step block word h w
    maps = vl.word_maps(model, PROMPTS[0], words, kind="concepts", seed=5, **call)
    assert torch.allclose(maps.values.double(), expected.mean(1), atol=1e-6) and torch.equal(
        maps.picture, expected_latents[0]
    )
    assert maps.values.std() > 1e-3 and sum(maps.mass.values()) == pytest.approx(1)
    alone = vl.word_maps(model, PROMPTS[0], words, kind="concepts", blocks=["double.1"], at_steps=[2], seed=5, **call)
    assert torch.allclose(alone.values[0].double(), expected[2, 1], atol=1e-6)
    assert not torch.allclose(alone.values[0].double(), expected[2, 0], atol=1e-4)


# ---- pictures are those without maps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["sd", "sdxl", "flux", "concepts"])
def test_pictures_are_the_same_to_the_bit_and_nothing_is_left(name, dtype):
    import vit_lens as vl

    make = {"sd": lambda: sd(dtype), "sdxl": lambda: hooked(tiny_pipelines.make("sdxl").to(dtype))}
    model = make.get(name, lambda: hooked(flux("dev", dtype)))()
    call = dict(GUIDED, height=16) if name in make else TRUE_CFG
    kind = "concepts" if name == "concepts" else "attention"
    expected, before = model(PROMPTS[1], seed=3, **call), state_of(model.pipeline)
    maps = vl.word_maps(model, PROMPTS[1], kind=kind, seed=3, **call)
    assert torch.equal(maps.picture, expected[0]) and state_of(model.pipeline) == before and not model.hooked_names()
    assert maps.words == ("a", "blue", "ring", "and", "green", "cross") and maps.values.isfinite().all()
    if kind == "attention":  # hooks on the model act, and maps are of what they leave
        point = next(one for one in model.hook_dict if one.endswith("hook_resid_post"))
        with model.hooks([(point, lambda x, hook: 1.5 * x)]):
            edited = vl.word_maps(model, PROMPTS[1], seed=3, **call)
        again = model.run_with_hooks(PROMPTS[1], seed=3, **call, fwd_hooks=[(point, lambda x, hook: 1.5 * x)])
        assert torch.equal(edited.picture, again[0]) and not torch.equal(edited.values, maps.values)


def test_nothing_is_left_where_a_run_fails():
    import vit_lens as vl
    from vit_lens.errors import HookShapeError

    model = sd(torch.float32)
    model(PROMPTS[0], **UNET)
    before = state_of(model.pipeline)
    with pytest.raises(HookShapeError), model.hooks([("mid.0.hook_update", lambda x, hook: x[:, :1])]):
        vl.word_maps(model, PROMPTS[0], **UNET)
    assert state_of(model.pipeline) == before


# ---- conditions, those of lenses among them


@functools.cache
def pair(name):
    from vit_lens.decoders import PromptEncoder, TextDecoder

    pipe = tiny_pipelines.make(name) if name != "sd" else sd(torch.float32).pipeline
    return PromptEncoder(pipe, length=11 if name == "schnell" else None), TextDecoder(pipe)


@pytest.mark.parametrize("name", ["sd", "sdxl", "schnell"])
def test_conditions_are_drawn_as_the_decoder_draws_them(name):
    import vit_lens as vl

    encoder, decoder = pair(name)
    settings = decoder.settings(steps=2, **(dict(height=24, width=40) if name == "sd" else dict(height=16, width=24)))
    run, last_run = vl.TextRun.of(encoder, PROMPTS), vl.TextRun.of(encoder, PROMPTS[1])
    conditions = vl.TextDiffusionLens().read(run, ["L0.resid_pre", "L1.resid_post", "L2.resid_post"]).flatten_rows()
    for how in ({}, {"batch_size": 4}):
        found = vl.diffusion.maps_of(decoder, conditions, settings, [5, 8], **how)
        expected = [
            decoder.decode(conditions, settings=decoder.settings(**{**settings.to_dict(), "seed": seed}), **how)
            for seed in (5, 8)
        ]
        assert torch.equal(found.pictures, torch.cat(expected)) and len(found.maps) == 12
        total = found.maps.sum(1)
        assert torch.allclose(total, torch.ones_like(total), atol=1e-5) if name != "schnell" else (total < 1).all()
        assert not torch.allclose(found.maps[0], found.maps[1], atol=1e-5)  # of two layers
        first = vl.diffusion.maps_of(decoder, conditions[4:5], settings, 8).maps
        assert torch.allclose(found.maps[10], first[0], atol=1e-4)
    by_layer = vl.diffusion.lens_maps(encoder, decoder, PROMPTS[1], ["green cross"], settings=settings, seed=8)
    assert list(by_layer) == ["L0.resid_pre", *(f"L{layer}.resid_post" for layer in range(len(by_layer) - 1))]
    last = by_layer["L2.resid_post"]
    places = last_run.places(encoder.format.readings[-1].encoder, '"green cross"')[0]
    assert torch.allclose(last["green cross"], found.maps[11][places].mean(0), atol=1e-4) and last.steps == (0, 1)
    assert np.array_equal(np.asarray(last.picture).shape[:2], found.pictures.shape[1:3])


@torch.no_grad()
def test_maps_of_a_condition_are_those_of_its_prompt():
    import vit_lens as vl

    model = sd(torch.float32)
    encoder, decoder = vl.decoders.PromptEncoder(model.pipeline), vl.decoders.TextDecoder(model.pipeline)
    settings = decoder.settings(steps=3, guidance=4.0, height=24, width=40)
    call = dict(steps=3, guidance_scale=4.0, height=24, width=40)
    mine = vl.diffusion.lens_maps(encoder, decoder, PROMPTS[1], sites="L2.resid_post", settings=settings, seed=6)
    maps = vl.word_maps(model, PROMPTS[1], seed=6, **call)
    (last,) = mine.values()
    assert last.words == maps.words and torch.allclose(last.values, maps.values, atol=1e-5)


# ---- what is wrong


def refused(error, words, call):
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value), caught.value


def test_wrong_input_is_refused_with_what_there_is():
    import vit_lens as vl
    from vit_lens.errors import DecoderError, InterventionError, TextError, UnsupportedTowerError, VitLensError

    model, two = sd(torch.float32), hooked(flux("schnell", torch.float32))
    maps = functools.partial(vl.word_maps, model, PROMPTS[0])
    refused(InterventionError, "nearest: 'star'", lambda: maps(["stars"], **UNET))
    refused(TextError, "list of at least one word", lambda: maps([], **UNET))
    refused(VitLensError, "one prompt and one picture", lambda: maps(num_images_per_prompt=2, **UNET))
    refused(VitLensError, "steps 0 to 2", lambda: maps(at_steps=[3], **UNET))
    refused(VitLensError, "nearest: 'mid.0'", lambda: maps(blocks=["mid.1"], **UNET))
    refused(UnsupportedTowerError, "kind='attention'", lambda: maps(kind="concepts", **UNET))
    refused(TextError, "two words", lambda: vl.word_maps(two, PROMPTS[0], ["star"], kind="concepts", **FLUX))
    refused(
        VitLensError, "nearest: 'double.1'",
        lambda: vl.word_maps(two, PROMPTS[0], kind="concepts", blocks=["double.7"], **FLUX),
    )  # fmt: skip
    two.add_hook("double.0.hook_attn_out", lambda x, hook: None)
    refused(VitLensError, "take it off", lambda: vl.word_maps(two, PROMPTS[0], kind="concepts", **FLUX))
    two.reset_hooks()
    refused(
        UnsupportedTowerError, "no cross-attention", lambda: vl.word_maps(sd(torch.float32, False), PROMPTS[0], **UNET)
    )
    refused(
        UnsupportedTowerError, "not known here", lambda: vl.word_maps(hooked(tiny_pipelines.make("sd3")), PROMPTS[0])
    )
    found = maps(["star"], **UNET)
    refused(TextError, "nearest: 'star'", lambda: found["stars"])
    refused(VitLensError, "recorded are 0, 1, 2", lambda: found.at_step(3))
    encoder, decoder = pair("sd")
    condition, settings = encoder.encode(PROMPTS), decoder.settings(steps=2, height=24, width=40)
    drawn = functools.partial(vl.diffusion.maps_of, decoder, condition, settings)
    refused(VitLensError, "steps 0 to 1", lambda: drawn(at_steps=[2]))
    refused(VitLensError, "steps 0 to 1", lambda: drawn(at_steps=[]))
    refused(DecoderError, "batch_size", lambda: drawn(batch_size=0))
    model.denoiser.fuse_qkv_projections()
    refused(VitLensError, "fuse", lambda: maps(**UNET))


def test_memory_that_runs_out_is_an_error_with_a_smaller_batch(monkeypatch):
    import vit_lens as vl
    from vit_lens.errors import DecoderError

    encoder, decoder = pair("sd")
    monkeypatch.setattr(type(decoder), "_draw", lambda *given: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    settings = decoder.settings(steps=2, height=24, width=40)
    refused(DecoderError, "batch_size=1", lambda: vl.diffusion.maps_of(decoder, encoder.encode(PROMPTS), settings))


# ---- the embedded model


def test_the_left_object_s_map_is_left_of_the_right_one_s_on_the_embedded_model():
    import vit_lens as vl

    model = vl.HookedUNet.from_pretrained("mini-sd")
    maps = vl.word_maps(model, "a red solid star left of a blue solid ring", seed=1)
    assert (
        maps.centre("star")[1] < maps.centre("ring")[1] - 0.1 and maps.centre("red")[1] < maps.centre("blue")[1] - 0.1
    )
    assert np.array_equal(np.asarray(maps.picture), np.asarray(model(maps.prompt, seed=1)[0]))


# ---- sheets, pages, the command


def by_hand(words=("a", "<b>"), picture=None, steps=(0, 2)):
    from vit_lens import WordMaps

    values = torch.rand(len(steps), len(words), 3, 5, generator=torch.Generator().manual_seed(1)) / 10
    picture = PIL.Image.new("RGB", (10, 6), (200, 0, 0)) if picture is None else picture
    return WordMaps(
        prompt="a <b>", words=words, values=values, steps=steps, n_tokens=(1, 2), picture=picture, kind="attention"
    )


def test_an_overlay_is_the_picture_where_most_was_read_and_fades_where_nothing_was():
    import vit_lens as vl

    maps = by_hand()
    maps.values[:, 0] = 0
    maps.values[:, 0, :, 4] = 0.07
    seen = np.asarray(vl.figures.word_overlay(maps, "a", side=100))
    assert seen.shape == (60, 100, 3) and (seen[:, -8:] == [200, 0, 0]).all()
    assert (seen[:, :40] == np.round(0.1 * np.array([200, 0, 0]) + 0.9 * np.array([252, 251, 248]))).all()


def test_a_sheet_has_words_as_columns_and_steps_or_layers_as_rows():
    import vit_lens as vl
    from vit_lens.errors import TextError, VitLensError

    maps = by_hand()
    figure = vl.figures.word_map_sheet(maps)
    said = [one.text for one in figure.layout.annotations]
    assert len(figure.data) == 9 and [one.split("<br>")[0] for one in said[:3]] == ["all steps", "a", "&lt;b&gt;"]
    assert said[3] == "step 0" and said[6] == "step 2" and f"{maps.mass['a']:.0%}" in said[1]
    layers = vl.figures.word_map_sheet({"L0": maps, "L1": maps}, ["a"])
    assert len(layers.data) == 4 and layers.layout.annotations[2].text == "L1"
    refused(TextError, "nearest: 'a'", lambda: vl.figures.word_map_sheet(maps, ["aa"]))
    refused(TextError, "L1 has other words", lambda: vl.figures.map_rows({"L0": maps, "L1": by_hand(("a", "c"))}))
    refused(VitLensError, "no maps", lambda: vl.figures.map_rows({}))
    refused(VitLensError, "output_type", lambda: vl.figures.word_map_sheet(by_hand(picture=torch.zeros(3, 4))))


def test_a_page_shows_every_map_and_escapes_words(tmp_path):
    from vit_lens.errors import OutputError
    from vit_lens.report import write_word_maps_page

    maps = by_hand()
    text = write_word_maps_page({"L0": maps, "L1": maps}, tmp_path / "maps.html", notes=["<i>random</i>"]).read_text()
    assert text.count("data:image/jpeg") == 6 and "<b>" not in text.split("<tbody>")[0] and "&lt;i&gt;random" in text
    assert f"<b>{maps.mass['a']:.0%}</b>" in text and f"{1 - sum(maps.attention.values()):.0%} else" in text
    assert write_word_maps_page(maps, tmp_path / "steps.html", words=["a"]).read_text().count("data:image/jpeg") == 6
    refused(OutputError, "ends in .html", lambda: write_word_maps_page(maps, tmp_path / "maps.png"))


def test_the_command_writes_a_page_by_step_and_by_layer(tmp_path, monkeypatch, capsys):
    import sys

    from vit_lens.cli import main

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["vit-lens", "maps", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, capsys.readouterr()

    page, call = tmp_path / "maps.html", ("--prompt", "a red star", "--steps", "2", "--word", "red", "--word", "star")
    assert run(*call, "--out", str(page))[0] == 0 and page.read_text().count("data:image/jpeg") == 9
    assert run(*call, "--out", str(page), "--by-layer")[0] == 0 and "L7.resid_post" in page.read_text()
    status, said = run("--prompt", "a red star", "--word", "ring", "--out", str(page))
    assert status == 2 and 'no word "ring"' in said.err
    assert run(*call, "--by-layer", "--kind", "concepts", "--out", str(page))[0] == 2
    assert run(*call, "--out", str(tmp_path / "maps.pdf"))[0] == 2
