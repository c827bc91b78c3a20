"""Conditions of text and their pictures are those of the stock pipelines, bit for bit, in every format."""

import functools

import pytest
import tiny_pipelines
import torch

# diffusers hands torch tensors to numpy 2 in a way that it is leaving.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = tiny_pipelines.PROMPTS
NAMES = ["sd1", "sdt5", "taesd", "sd2", "sdxl", "if", "schnell", "dev", "sd3", "pixart"]
# Lengths at which T5 reads and sizes that a pipeline is called at, where its own would be large.
LENGTH = {"schnell": 11, "dev": 11, "sd3": 11, "pixart": 11}
SIZE = {"schnell": dict(height=16, width=12), "dev": dict(height=16, width=12), "sd3": dict(height=16, width=12)}
GUIDED = [name for name in NAMES if name not in ("schnell", "dev")]

pipeline = functools.cache(tiny_pipelines.make)


@functools.cache
def encoder(name):
    from vit_lens.decoders import PromptEncoder

    return PromptEncoder(pipeline(name), length=LENGTH.get(name))


@functools.cache
def decoder(name, upscaler=False):
    from vit_lens.decoders import TextDecoder

    return TextDecoder(pipeline(name), upscaler=pipeline("if2") if upscaler else None)


def settings(name, **overrides):
    how = {"steps": 2, "seed": 7} | SIZE.get(name, {})
    return decoder(name).settings(**how | overrides)


def own_picture(name, prompts, how, **arguments):
    """What the stock pipeline draws of prompts, in [0, 1]: its own embeddings, its own negative."""
    more = {"max_sequence_length": LENGTH[name]} if name in LENGTH else {}
    more |= {"use_resolution_binning": False} if name == "pixart" else {}
    more |= {"clean_caption": False} if name in ("if", "pixart") else {}
    n = len(prompts) * arguments.get("num_images_per_prompt", 1)
    generators = [torch.Generator().manual_seed(how.seed) for _ in range(n)]
    found = pipeline(name)(
        list(prompts), num_inference_steps=how.steps, guidance_scale=how.guidance, height=how.height, width=how.width,
        **{"generator": generators, "output_type": "np"} | more | arguments,
    ).images  # fmt: skip
    return torch.from_numpy(found).permute(0, 3, 1, 2) if arguments.get("output_type", "np") == "np" else found


def drawn(name, condition, how, **arguments):
    """The negative is "" as an encoder sees it among as many rows: equal bits hold within one batch shape alone."""
    text, n = encoder(name), arguments.get("batch_size", len(condition))
    negative = text.encode([""] * n)[:1] if text.format.negative == "empty" else text.negative()
    return decoder(name).decode(condition, negative=negative, settings=how, **arguments)


# ---- conditions


@pytest.mark.parametrize("name", NAMES)
def test_conditions_are_the_pipelines_own(name):
    """Prompt, negative, both pooled vectors and both masks, from the pipeline and from residuals."""
    import vit_lens as vl

    pipe, text = pipeline(name), encoder(name)
    more = {"max_sequence_length": LENGTH[name]} if name in LENGTH else {}
    more |= dict.fromkeys({"flux": ["prompt_2"], "sdxl": ["prompt_2"], "sd3": ["prompt_2", "prompt_3"]}.get(
        text.format.name, []
    ))  # fmt: skip
    if text.format.negative is not None:
        more["do_classifier_free_guidance"] = True
    with torch.no_grad():
        own, alone = (
            pipe.encode_prompt(prompt=prompts, num_images_per_prompt=1, device="cpu", **more)
            for prompts in (PROMPTS, PROMPTS[:1])
        )
    asked, negative = text.encode(PROMPTS), text.negative()
    at = tiny_pipelines.at(vl.TextRun.of(text, PROMPTS))
    places = {
        "sd": {"tokens": (0, 1)}, "if": {"tokens": (0, 1)}, "flux": {"tokens": (0, None), "pooled": (1, None)},
        "pixart": {"tokens": (0, 2), "mask": (1, 3)},
    }.get(text.format.name, {"tokens": (0, 1), "pooled": (2, 3)})  # fmt: skip
    assert list(asked.parts()) == list(at.parts()) == [n for n in ("tokens", "mask", "pooled") if n in places]
    for part, (first, second) in places.items():
        expected = own[first].bool() if part == "mask" else own[first]
        assert torch.equal(getattr(asked, part), expected), part
        assert torch.equal(getattr(at, part), expected), part
        if second is not None:
            assert torch.equal(getattr(negative, part), alone[second].to(expected.dtype)), part
    assert (negative is None) == (text.format.negative is None)
    if text.format.name == "sdxl":
        assert not negative.flat.any()


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_residuals_are_the_embedding_and_every_block(name):
    """None is normed: the last of T5, which its hidden_states hold normed, is not normed twice."""
    import vit_lens as vl

    text = encoder(name)
    run = vl.TextRun.of(text, PROMPTS)
    streams = {part: tiny_pipelines.stream(run, part) for part in text.encoders}
    for part, stream in streams.items():
        blocks = tiny_depth(text.encoders[part])
        assert len(stream) == blocks + 1
        assert all((one - other).abs().max() > 1e-3 for i, one in enumerate(stream) for other in stream[:i])
        final = text.readouts[part].norm(stream[-1])
        assert (final - stream[-1]).abs().max() > 1e-2
    whole = tiny_pipelines.at(run)
    for reading in text.format.readings:
        if reading.below is None:
            continue
        depth = len(streams[reading.encoder]) - 1
        assert torch.equal(tiny_pipelines.at(run, {reading.encoder: depth - reading.below}).tokens, whole.tokens)
        elsewhere = [layer for layer in range(depth + 1) if layer != depth - reading.below]
        others = [tiny_pipelines.at(run, {reading.encoder: layer}) for layer in elsewhere]
        assert all((one.tokens - whole.tokens).abs().max() > 1e-3 for one in others)
        assert all(torch.equal(one.pooled, whole.pooled) for one in others if one.pooled is not None)


@pytest.mark.parametrize("name", NAMES)
def test_any_other_reading_would_be_seen(name):
    """Another norm, layer or pooled vector than the table's makes another condition: these tests can fail."""
    from dataclasses import replace

    import vit_lens as vl

    text = encoder(name)
    run, format = vl.TextRun.of(text, PROMPTS), text.format
    right = tiny_pipelines.at(run)
    for index, one in enumerate(format.readings):
        others = [] if one.below is None else [replace(one, norm=not one.norm), replace(one, below=1 - one.below)]
        others += [replace(one, pooled="end")] if one.pooled == "projected" else []
        for other in others:
            readings = [*format.readings[:index], other, *format.readings[index + 1 :]]
            wrong = replace(format, readings=tuple(readings))
            layers = {each.encoder: each.layer(tiny_depth(text.encoders[each.encoder])) for each in readings}
            tokens = {part: run.residual(part, layer) for part, layer in layers.items()}
            ends = {part: run.end_residual(part) for part in text.encoders}
            with torch.no_grad():
                found = wrong.condition(tokens, ends, text.readouts, run.condition.mask)
            assert (found.flat - right.flat).abs().max() > 1e-3, other


def tiny_depth(encoder):
    return getattr(encoder.config, "num_hidden_layers", None) or encoder.config.num_layers


def test_hidden_states_are_the_residuals():
    """Against what transformers itself hands out, but for T5's last, which is normed there."""
    import vit_lens as vl

    for name, part in (("sdxl", "text_encoder_2"), ("if", "text_encoder")):
        text, pipe = encoder(name), pipeline(name)
        tokenizer = getattr(pipe, part.replace("text_encoder", "tokenizer"))
        length = 77 if name == "if" else tokenizer.model_max_length
        given = tokenizer(PROMPTS, padding="max_length", max_length=length, return_tensors="pt")
        mask = given.attention_mask if name == "if" else None
        with torch.no_grad():
            states = getattr(pipe, part)(given.input_ids, attention_mask=mask, output_hidden_states=True).hidden_states
        stream = tiny_pipelines.stream(vl.TextRun.of(text, PROMPTS), part)
        last = text.readouts[part].norm(stream[-1]) if name == "if" else stream[-1]
        for own, found in zip(states, [*stream[:-1], last], strict=True):
            assert torch.equal(own, found)


def test_an_edit_of_the_last_residual_is_the_lens_of_the_edited_residual():
    """A hook of the stock encoder against the closed form, in float64."""
    import copy

    import vit_lens as vl
    from vit_lens.decoders import PromptEncoder

    pipe = tiny_pipelines.make("sd2")
    pipe.text_encoder = copy.deepcopy(pipe.text_encoder).double()
    text = PromptEncoder(pipe)
    last = vl.TextRun.of(text, PROMPTS).residual("text_encoder", 3)
    edit = torch.randn(last.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tower = getattr(pipe.text_encoder, "text_model", pipe.text_encoder)
    handle = tower.encoder.layers[-1].register_forward_hook(
        lambda module, args, out: (out[0] + edit,) if isinstance(out, tuple) else out + edit
    )
    hooked = text.encode(PROMPTS)
    handle.remove()
    closed = text.format.condition({"text_encoder": last + edit}, {}, text.readouts)
    assert hooked.tokens.dtype == torch.float64
    torch.testing.assert_close(closed.tokens, hooked.tokens, rtol=0, atol=1e-12)


# ---- pictures


@pytest.mark.parametrize("name", NAMES)
def test_the_picture_is_the_pipelines_own(name):
    """Two prompts in a batch, negative left to the pipeline; and in a batch of one shape, alone or not."""
    how, asked = settings(name), encoder(name).encode(PROMPTS)
    own = own_picture(name, PROMPTS, how)
    found = drawn(name, asked, how, output="float")
    assert torch.equal(found, own * 2 - 1)
    pictures = drawn(name, asked, how)
    assert torch.equal(pictures, (own * 255).round().to(torch.uint8).permute(0, 2, 3, 1))
    assert (own[0] - own[1]).abs().max() > 0.02
    assert torch.equal(drawn(name, asked, how), pictures) and not found.is_inference()
    permuted = drawn(name, asked[torch.tensor([1, 0])], how)
    assert torch.equal(permuted.flip(0), pictures)
    padded = drawn(name, asked[:1], how, batch_size=2)
    assert torch.equal(padded[0], pictures[0])


@pytest.mark.parametrize("name", NAMES)
def test_equal_conditions_are_equal_pictures_and_seeds_are_not(name):
    from vit_lens.decoders import check_decoder

    asked, how = encoder(name).encode(PROMPTS[:1]).padded(3), settings(name)
    assert check_decoder(decoder(name)) is decoder(name)
    pictures = drawn(name, asked, how)
    assert torch.equal(pictures[0], pictures[1]) and torch.equal(pictures[0], pictures[2])
    other = drawn(name, asked[:1], settings(name, seed=8), batch_size=3)
    assert not torch.equal(other[0], pictures[0])


@pytest.mark.parametrize("name", NAMES)
def test_layers_draw_other_pictures(name):
    """What a lens is for: the residual of another layer where the format reads one."""
    from vit_lens import Condition, TextRun

    text, how = encoder(name), settings(name)
    run = TextRun.of(text, PROMPTS[:1])
    moved = [one.encoder for one in text.format.readings if one.below is not None][-1]
    n_layers = run.tower(moved).cfg.n_layers
    layers = Condition.cat([tiny_pipelines.at(run, {moved: layer}) for layer in range(n_layers + 1)])
    pictures = decoder(name).decode(layers, negative=text.negative(), settings=how)
    read = len(pictures) - 1 - next(one.below for one in text.format.readings if one.encoder == moved)
    own = own_picture(name, PROMPTS[:1], how, num_images_per_prompt=len(pictures))
    assert torch.equal(pictures[read], (own[0] * 255).round().to(torch.uint8).permute(1, 2, 0))
    flat = pictures.flatten(1)
    assert len(flat.unique(dim=0)) == len(flat)


@pytest.mark.parametrize("name", GUIDED)
def test_without_guidance_no_negative_is_needed(name):
    how, asked = settings(name, guidance=1.0), encoder(name).encode(PROMPTS)
    found = decoder(name).decode(asked, settings=how, output="float")
    assert torch.equal(found, own_picture(name, PROMPTS, how) * 2 - 1)


def test_the_second_stage_is_the_pipelines_own():
    """Both stages by hand, one list of generators through them, against the decoder's; from given negatives too."""
    both, text = decoder("if", True), encoder("if")
    how = both.settings(steps=2, upscale_steps=3, seed=5, noise_level=100)
    asked, negative = text.encode(PROMPTS), text.negative()
    generators = [torch.Generator().manual_seed(5) for _ in PROMPTS]
    small = own_picture("if", PROMPTS, how, generator=generators, output_type="pt")
    own = pipeline("if2")(
        prompt_embeds=asked.tokens, negative_prompt_embeds=negative.tokens.expand(2, -1, -1), image=small,
        num_inference_steps=3, guidance_scale=4.0, noise_level=100, generator=generators, output_type="np",
    ).images  # fmt: skip
    found = both.decode(asked, settings=how, output="float")
    assert found.shape == (2, 3, 32, 32)
    assert torch.equal(found, torch.from_numpy(own).permute(0, 3, 1, 2) * 2 - 1)
    same = both.decode(asked[:1].padded(2), settings=how)
    assert torch.equal(same[0], same[1])
    assert both.settings_words(how) == "2 steps, guidance 7, then 3 steps, guidance 4, to 32 x 32"
    from vit_lens.errors import DecoderError

    with pytest.raises(DecoderError, match=r"noise_level=1000, but the second stage was trained with 0 to 999"):
        both.check_settings(both.settings(noise_level=1000))
    assert both.work(how) == 10 and both.identity()["upscaler"]["image_noising_scheduler"]["class"] == "DDPMScheduler"


# ---- noise


def test_step_noise_is_the_same_for_every_row():
    """Ancestral sampling draws noise in every step; rows of one generator would get different numbers."""
    import diffusers

    from vit_lens.decoders import TextDecoder

    pipe = tiny_pipelines.make("sd1")
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    asked = encoder("sd1").encode(PROMPTS[:1]).padded(2)
    made = TextDecoder(pipe)
    how = made.settings(steps=3, seed=3)
    pictures = made.decode(asked, settings=how)
    assert torch.equal(pictures[0], pictures[1])
    one = pipe(PROMPTS[0], num_inference_steps=3, num_images_per_prompt=2, generator=torch.Generator().manual_seed(3),
               output_type="np").images  # fmt: skip
    assert abs(one[0] - one[1]).max() > 0.05
    alone = pipe(PROMPTS[0], num_inference_steps=3, generator=torch.Generator().manual_seed(3), output_type="np").images
    assert abs(alone[0] * 255 - pictures[0].numpy()).max() <= 1.0


def test_the_seed_alone_decides_the_noise():
    """Not the state of the global generator, nor what was drawn before."""
    for name in ("if", "dev"):
        asked, how = encoder(name).encode(PROMPTS), settings(name)
        first = drawn(name, asked, how)
        torch.manual_seed(99)
        drawn(name, asked, settings(name, seed=1))
        assert torch.equal(drawn(name, asked, how), first)


@pytest.mark.parametrize("name", ["sd1", "if"])
@pytest.mark.parametrize("scheduler", ["dpm++", "own"])
def test_legacy_noise_is_the_released_codes(name, scheduler):
    """As it calls diffusers: four pictures of a layer, latents=None, one generator that is never seeded again."""
    import diffusers

    from vit_lens import Condition, TextRun

    text, pipe = encoder(name), pipeline(name)
    run, negative = TextRun.of(text, PROMPTS[:1]), text.negative()
    layers = [tiny_pipelines.at(run, {"text_encoder": layer}) for layer in (0, 2, 3)]
    how = settings(name, seed=42, scheduler=scheduler)
    own_scheduler, generator, expected = pipe.scheduler, torch.Generator().manual_seed(42), []
    if scheduler == "dpm++":
        pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(own_scheduler.config)
    for layer in layers:
        expected += [pipe(
            prompt_embeds=layer.tokens, negative_prompt_embeds=negative.tokens, num_images_per_prompt=4,
            generator=generator, num_inference_steps=2, guidance_scale=how.guidance, output_type="np",
        ).images]  # fmt: skip
    pipe.scheduler = own_scheduler
    rows = Condition.cat([layer.padded(4) for layer in layers])
    found = drawn(name, rows, how, noise="legacy", output="float")
    own = torch.cat([torch.from_numpy(each) for each in expected]).permute(0, 3, 1, 2)
    assert torch.equal(found, own * 2 - 1)
    assert (own[0] - own[1]).abs().max() > 0.05


def test_legacy_noise_is_one_draw_of_all_rows():
    """Notes of the released code's numbers: without noise in steps, starts are consecutive rows of one draw."""
    from vit_lens import Condition, TextRun

    text, pipe = encoder("sd1"), pipeline("sd1")
    run, negative = TextRun.of(text, PROMPTS[:1]), text.negative()
    rows = Condition.cat([tiny_pipelines.at(run, {"text_encoder": layer}).padded(4) for layer in (0, 3)])
    how, away = settings("sd1", seed=42), negative.tokens.expand(4, -1, -1)
    latents = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(42))
    expected = [
        pipe(prompt_embeds=rows.tokens[at], negative_prompt_embeds=away, latents=latents[at],
             num_inference_steps=2, guidance_scale=how.guidance, output_type="np").images
        for at in (slice(0, 4), slice(4, 8))
    ]  # fmt: skip
    found = drawn("sd1", rows, how, noise="legacy", output="float")
    assert torch.equal(found, torch.cat([torch.from_numpy(each) for each in expected]).permute(0, 3, 1, 2) * 2 - 1)


# ---- what the denoiser reads of padding


@pytest.mark.parametrize("name", ["sd1", "if", "dev", "pixart"])
def test_padding_is_read_but_where_a_mask_is_told(name):
    from vit_lens import Condition

    asked, how = encoder(name).encode(PROMPTS[:1]), settings(name)
    tokens = asked.tokens.clone()
    tokens[:, -3:] += 1.0
    changed = Condition(tokens=tokens, mask=asked.mask, pooled=asked.pooled)
    one, other = (drawn(name, each, how) for each in (asked, changed))
    assert torch.equal(one, other) == (name == "pixart")


@pytest.mark.parametrize("name", NAMES)
def test_what_was_changed_in_memory_is_in_the_identity(name):
    """An epsilon, of a norm or of attention's, changes pictures; the configuration does not say it."""
    from vit_lens.decoders import TextDecoder

    pipe = tiny_pipelines.make(name)
    before = TextDecoder(pipe).identity()
    assert not any("edited" in one for one in before.values() if isinstance(one, dict))
    part = "unet" if hasattr(pipe, "unet") else "transformer"
    norm = next(module for module in getattr(pipe, part).modules() if isinstance(getattr(module, "eps", None), float))
    norm.eps = 0.5
    after = TextDecoder(pipe).identity()
    (changed,) = after[part].pop("edited").items()
    assert changed[0].endswith("eps") and changed[1] == "0.5" and after == before
