"""Text encoders that go through TransformerLens' bridge: conditions and pictures of the stock pipelines, and lenses."""

import functools
import inspect
import json

import pytest
import tiny_bridged_pipelines as tiny
import torch

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = tiny.PROMPTS
NAMES = ["hunyuandit", "sana", "lumina2", "qwenimage", "flux2", "flux2klein"]
LENGTH = {"sana": 11, "lumina2": 40, "flux2": 60, "flux2klein": 13, "distilled": 13}
SIZE = dict(height=32, width=64)
MOVED = {"hunyuandit": "text_encoder"}  # the T5 beside BERT is one of our own towers

pipeline = functools.cache(tiny.make)


@functools.cache
def encoder(name, dtype=torch.float32):
    from vit_lens.decoders import PromptEncoder

    made = PromptEncoder(pipeline(name) if dtype == torch.float32 else tiny.make(name), length=LENGTH.get(name))
    for each in made.encoders.values():
        each.to(dtype).requires_grad_(False)
    return made


@functools.cache
def decoder(name):
    from vit_lens.decoders import TextDecoder

    return TextDecoder(pipeline(name))


@functools.cache
def run_of(name, dtype=torch.float32):
    import vit_lens as vl

    return vl.TextRun.of(encoder(name, dtype), PROMPTS)


def lens(name, **more):
    import vit_lens as vl

    return vl.TextDiffusionLens(encoder=MOVED.get(name), **more)


def read_layer(name, run):
    reading = lens(name).moved_in(run)
    return reading.layer(run.tower(reading.encoder).cfg.n_layers)


def settings(name, **more):
    return decoder(name).settings(**{"steps": 2, "seed": 7} | SIZE | more)


def own_picture(name, prompts, how):
    """The stock pipeline's picture of prompts, and what its denoiser was told in the first step."""
    pipe, told = pipeline(name), []
    more = {"max_sequence_length": LENGTH[name]} if name in LENGTH else {}
    more |= {"use_resolution_binning": False} if name in ("sana", "hunyuandit") else {}
    if name == "qwenimage":
        more |= {"true_cfg_scale": how.guidance} | (
            {"negative_prompt": [""] * len(prompts)} if how.guidance > 1 else {}
        )
    else:
        more |= {"guidance_scale": how.guidance}
    handle = pipe.transformer.register_forward_pre_hook(lambda m, args, kwargs: told.append(kwargs), with_kwargs=True)
    generators = [torch.Generator().manual_seed(how.seed) for _ in prompts]
    with handle:
        found = pipe(
            prompt=list(prompts), num_inference_steps=how.steps, generator=generators, output_type="np", **SIZE, **more
        ).images
    return torch.from_numpy(found).permute(0, 3, 1, 2), told


def told_of(name, told, n):
    """Tokens and masks of the prompts and of what guidance leads away from, as the denoiser was told them."""
    one = told[0]
    if name == "hunyuandit":
        pairs = [(one["encoder_hidden_states"], one["text_embedding_mask"]),
                 (one["encoder_hidden_states_t5"], one["text_embedding_mask_t5"])]  # fmt: skip
        tokens = torch.cat([torch.nn.functional.pad(pairs[0][0], (0, 8)), pairs[1][0]], 1)
        mask = torch.cat([pairs[0][1], pairs[1][1]], 1)
        return (tokens[n:], mask[n:].bool()), (tokens[:n], mask[:n].bool())
    if name == "sana":
        tokens, mask = one["encoder_hidden_states"], one["encoder_attention_mask"].bool()
        return (tokens[n:], mask[n:]), (tokens[:n], mask[:n])
    mask = {"lumina2": "encoder_attention_mask", "qwenimage": "encoder_hidden_states_mask"}.get(name)
    both = [(step["encoder_hidden_states"], step.get(mask)) for step in told[: 1 if name == "flux2" else 2]]
    if name == "qwenimage":  # no mask where all of it is True
        both = [(tokens, tokens.new_ones(tokens.shape[:2]) if seen is None else seen) for tokens, seen in both]
    both = [(tokens, None if seen is None else seen.bool()) for tokens, seen in both]
    return both[0], both[1] if len(both) > 1 else None


# ---- conditions and pictures are the pipelines' own


@pytest.mark.parametrize("name", NAMES)
def test_conditions_are_what_the_denoiser_is_told(name):
    """Prompts of two lengths and what guidance leads away from, bit for bit, templates cut as pipelines cut them."""
    text = encoder(name)
    _, told = own_picture(name, PROMPTS, settings(name))
    asked, away = told_of(name, told, 2)
    for one in (text.encode(PROMPTS), run_of(name).condition, run_of(name).condition_of({}, {})):
        assert torch.equal(one.tokens, asked[0])
        assert (one.mask is None) == (asked[1] is None) == (name in ("flux2", "flux2klein"))
        assert one.mask is None or torch.equal(one.mask, asked[1])
    _, told = own_picture(name, PROMPTS[:1], settings(name))
    away = told_of(name, told, 1)[1]
    negative = text.negative()
    assert (negative is None) == (away is None) == (name == "flux2")
    if negative is not None:
        assert torch.equal(negative.tokens, away[0])
        assert negative.mask is None or torch.equal(negative.mask, away[1])
        assert negative.tokens.shape != asked[0][:1].shape or not torch.equal(negative.tokens, asked[0][:1])


@pytest.mark.parametrize("name", NAMES)
def test_the_picture_is_the_pipelines_own(name):
    """One prompt with guidance, two without; and the lens at the layer that is read is the clean picture."""
    how, text = settings(name), encoder(name)
    own, _ = own_picture(name, PROMPTS[:1], how)
    asked, negative = text.encode(PROMPTS[:1]), text.negative()
    found = decoder(name).decode(asked, negative=negative, settings=how, output="float")
    assert torch.equal(found, own * 2 - 1)
    import vit_lens as vl

    run = vl.TextRun.of(text, PROMPTS[:1])
    layer = read_layer(name, run)
    rows = lens(name).read(run, [f"L{layer - 1}.resid_post", "L0.resid_pre"]).flatten_rows()
    clean = decoder(name).decode(rows[:1], negative=negative, settings=how, output="float")
    other = decoder(name).decode(rows[1:], negative=negative, settings=how, output="float")
    assert torch.equal(clean, own * 2 - 1) and (other - clean).abs().max() > 1e-4
    plain = settings(name, guidance=1.0)
    both, _ = own_picture(name, PROMPTS, plain)
    assert torch.equal(decoder(name).decode(text.encode(PROMPTS), settings=plain, output="float"), both * 2 - 1)
    assert (both[0] - both[1]).abs().max() > 1e-4


def test_a_distilled_one_reads_no_negative():
    from vit_lens.decoders import TextDecoder
    from vit_lens.errors import DecoderError

    made = TextDecoder(pipeline("distilled"))
    assert (made.defaults.steps, made.defaults.guidance) == (4, 0.0)
    with pytest.raises(DecoderError, match="distilled without guidance, and would ignore it; take guidance=0"):
        made.check_settings(made.settings(guidance=4.0))
    how = made.settings(seed=7, **SIZE)
    own, told = own_picture("distilled", PROMPTS, how)
    assert len(told) == 4
    assert torch.equal(made.decode(encoder("distilled").encode(PROMPTS), settings=how, output="float"), own * 2 - 1)


# ---- layers


def by_hand(name, text, pipe, layer, dtype):
    """The condition of an early layer, from the stock module's hidden states: tokenised, normed and cut here."""
    module, tokenizer = pipe.text_encoder, pipe.tokenizer
    length, kept = LENGTH.get(name), slice(None)
    how = dict(padding="max_length", truncation=True, return_tensors="pt")
    texts = list(PROMPTS)
    if name == "hunyuandit":
        given = tokenizer(texts, max_length=77, **how)
    elif name == "sana":
        instruction = "\n".join(inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default)
        whole = len(tokenizer(instruction).input_ids) + length - 2
        given = tokenizer([instruction + one for one in texts], max_length=whole, **how)
        kept = [0, *range(whole - length + 1, whole)]
    elif name == "lumina2":
        texts = [f"{pipe.system_prompt} <Prompt Start> {one}" for one in texts]
        given = tokenizer(texts, max_length=length, **how)
    elif name == "qwenimage":
        given = tokenizer([pipe.prompt_template_encode.format(one) for one in texts], padding=True, return_tensors="pt")
        kept = slice(34, None)
    elif name == "flux2":
        talk = [[{"role": role, "content": [{"type": "text", "text": said}]} for role, said in
                 (("system", pipe.system_message), ("user", one))] for one in texts]  # fmt: skip
        given = tokenizer.apply_chat_template(talk, tokenize=True, return_dict=True, max_length=length, **how)
    else:
        given = tokenizer([f"<user> {one} <assistant>" for one in texts], max_length=length, **how)
    with torch.no_grad():
        states = module(**{key: given[key] for key in ("input_ids", "attention_mask")}, output_hidden_states=True)
        states = states.hidden_states
        if name == "flux2":
            return torch.cat([states[min(at, layer)] for at in (10, 20, 30)], -1)
        if name == "flux2klein":
            return torch.cat([states[min(at, layer)] for at in (9, 18, 27)], -1)
        found = states[layer]
        if name == "sana":
            found = module.norm(found)
        if name == "qwenimage":
            found = module.model.language_model.norm(found)
    found = found[:, kept]
    if name == "qwenimage":
        found = found * given.attention_mask[:, kept, None].to(dtype)
    if name == "hunyuandit":
        with torch.no_grad():
            second = text.encode(PROMPTS).tokens[:, 77:]
        found = torch.cat([torch.nn.functional.pad(found, (0, 8)), second], 1)
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_early_layer_is_the_condition_made_by_hand(name, dtype):
    """In both precisions bit for bit; every layer but the last of transformers' hidden states, which it has normed."""
    run = run_of(name, dtype)
    text, moved = encoder(name, dtype), lens(name).moved_in(run)
    pipe = text._pipe
    last = read_layer(name, run)
    layers = [0, 1, last - 1] if not moved.at else [0, moved.at[0], moved.at[0] + 4, moved.at[1] + 2]
    sites = [f"L{layer - 1}.resid_post" if layer else "L0.resid_pre" for layer in layers]
    found = lens(name).read(run, sites)
    for index, layer in enumerate(layers):
        expected = by_hand(name, text, pipe, layer, dtype)
        assert found.tokens.dtype == dtype
        assert torch.equal(found.tokens[:, index], expected), layer
        assert (expected - run.condition.tokens).abs().max() > 1e-3
        assert found.mask is None or torch.equal(found.mask[:, index], run.condition.mask)


@pytest.mark.parametrize("name", NAMES)
def test_any_other_reading_would_be_seen(name):
    """Another norm, layer or template than the table's makes another condition."""
    from dataclasses import replace

    text, run = encoder(name), run_of(name)
    right, format = run.condition, text.format
    seen = {name: mask.bool() for name, mask in run.masks.items() if mask is not None}
    one = format.readings[0]
    others = [replace(one, at=(*one.at[:2], one.at[2] - 1))] if one.at else [replace(one, below=1 - one.below)]
    others += [replace(one, norm=not one.norm)] if name != "hunyuandit" else []  # BERT ends with no norm
    others += [replace(one, dropped=33)] if one.template == "dropped" else []
    for other in others:
        wrong = replace(format, readings=(other, *format.readings[1:]))
        tokens = {
            each.encoder: torch.cat([run.residual(each.encoder, at) for at in
                                     each.layers(run.tower(each.encoder).cfg.n_layers)], -1)
            for each in wrong.readings
        }  # fmt: skip
        if one.at and other.norm:  # three layers side by side are wider than the norm
            continue
        with torch.no_grad():
            found = wrong.condition(tokens, {}, text.readouts, right.mask, seen)
        assert (found.tokens - right.tokens).abs().max() > 1e-3, other
    if one.template in ("cut", "dropped"):
        stream, n = run.residual(one.encoder, 0), right.tokens.shape[1]
        kept = replace(one, template="kept").handed(stream, seen[one.encoder], n)
        assert kept.shape[1] > n == one.handed(stream, seen[one.encoder], n).shape[1]


def test_the_table_is_what_diffusers_says():
    """Constants of templates and layers, in the installed release."""
    import diffusers

    from vit_lens.text_formats import TEXT_FORMATS

    assert pipeline("qwenimage").prompt_template_encode_start_idx == TEXT_FORMATS["qwenimage"].readings[0].dropped == 34
    for name in ("flux2", "flux2klein"):
        one = TEXT_FORMATS[name]
        said = inspect.signature(getattr(diffusers, one.pipeline).__call__).parameters
        assert said["text_encoder_out_layers"].default == one.readings[0].at
    for name in ("sana", "lumina2", "flux2", "flux2klein"):
        one = TEXT_FORMATS[name]
        said = inspect.signature(getattr(diffusers, one.pipeline).__call__).parameters
        assert said["max_sequence_length"].default == one.length
    for name in NAMES:
        said = inspect.signature(type(pipeline(name)).__call__).parameters
        drawn = decoder(name)._first.drawn
        assert said["num_inference_steps"].default == drawn.steps and said[drawn.guided_by].default == drawn.guidance


def test_words_of_the_table():
    from vit_lens.text_formats import TEXT_FORMATS

    assert TEXT_FORMATS["sana"].words() == (
        "tokens: text_encoder after all blocks, normed, without its template but for the first token"
    )
    assert TEXT_FORMATS["flux2"].words() == (
        "tokens: text_encoder after blocks 10, 20, 30, not normed, with its template"
    )


# ---- the bridge


@pytest.mark.parametrize("name", NAMES)
def test_the_bridge_runs_what_the_pipeline_runs(name):
    """BERT and Gemma 2 to rounding; the others with their softmax in float32, as the bridge computes it."""
    import vit_lens as vl
    from vit_lens.decoders import PromptEncoder

    if name == "flux2":  # filling in front, which sees nothing: eager attention alone gives the same numbers there
        text = PromptEncoder(tiny.make(name), length=LENGTH[name])
        text.encoders["text_encoder"].set_attn_implementation("eager")
        run = vl.TextRun.of(text, PROMPTS)  # in float64 transformers makes of a mask more than a float32 holds, and nan
    else:
        run = run_of(name, torch.float64)
    moved = lens(name).moved_in(run).encoder
    again = run.edited(moved, [])
    close = 1e-12 if name in ("hunyuandit", "sana", "lumina2") else 1e-5
    assert set(again.caches[moved]) == set(run.caches[moved])
    for point, value in run.caches[moved].items():
        assert (value - again.caches[moved][point]).abs().max() < close, point
    assert (again.condition.tokens - run.condition.tokens).abs().max() < close
    for site in ("L0.resid_pre", "L1.resid_post"):
        found = lens(name).read(run, site)[:, 0]
        hooked = run.edited(moved, lens(name).hooks(run, site))
        assert (hooked.condition.tokens - found.tokens).abs().max() < close
        assert (hooked.condition.tokens - run.condition.tokens).abs().max() > 1e-3
    silent = run.edited(moved, [("blocks.1.hook_mlp_out", lambda act, hook: 0 * act)])
    assert (silent.condition.tokens - run.condition.tokens).abs().max() > 1e-3


def test_the_stock_encoder_stays_as_it_is():
    """Weights are shared, modules are not: the pipeline goes on as before, and hooks of the bridge do not reach it."""
    text = encoder("sana")
    before, modules = text.encode(PROMPTS), [type(one) for one in text.encoders["text_encoder"].modules()]
    tower = text.towers["text_encoder"]
    tower.add_hook("blocks.0.hook_resid_post", lambda act, hook: 0 * act)
    try:
        assert torch.equal(text.encode(PROMPTS).tokens, before.tokens)
    finally:
        tower.reset_hooks()
    assert [type(one) for one in text.encoders["text_encoder"].modules()] == modules
    own = {one.data_ptr() for one in text.encoders["text_encoder"].parameters()}
    assert own == {one.data_ptr() for one in tower._encoder[0].parameters()}
    assert text.encoders["text_encoder"].config.architectures != ["Gemma2ForCausalLM"]
    copied = type(tower).from_module(text.encoders["text_encoder"])
    assert not own & {one.data_ptr() for one in copied._encoder[0].parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_positions(name):
    """Where a prompt ends and what fills it up, by the mask; numbers are the encoder's own positions."""
    run = run_of(name)
    moved = lens(name).moved_in(run).encoder
    mask = run.masks[moved].bool()
    assert torch.equal(run.places(moved, "eos").int().argmax(-1), (mask * torch.arange(mask.shape[1])).argmax(-1))
    if not mask[0].all():
        import vit_lens as vl

        short = vl.TextRun.of(run.encoder, PROMPTS[:1])
        if not short.masks[moved].bool().all():
            assert torch.equal(short.places(moved, "pad"), ~short.masks[moved].bool())
    end = lens(name, positions="eos").read(run, "L0.resid_pre")[:, 0]
    held = lens(name, held="eos").read(run, "L0.resid_pre")[:, 0]
    whole = lens(name).read(run, "L0.resid_pre")[:, 0]
    assert not torch.equal(end.tokens, run.condition.tokens) and not torch.equal(held.tokens, whole.tokens)
    mixed = (end.tokens == run.condition.tokens).all(-1) | (end.tokens == whole.tokens).all(-1)
    assert mixed.all()


def test_norms_and_controls():
    import vit_lens as vl

    run = run_of("flux2klein")
    found = {norm: vl.TextDiffusionLens(norm=norm).read(run, "L4.resid_post").tokens for norm in
             ("format", "none", "final", "match")}  # fmt: skip
    assert torch.equal(found["format"], found["none"]) and not torch.equal(found["final"], found["format"])
    lengths = found["match"].unflatten(-1, (3, 32)).norm(dim=-1)
    own = run.condition.tokens.unsqueeze(1).unflatten(-1, (3, 32)).norm(dim=-1)
    torch.testing.assert_close(lengths, own)
    control = vl.TextDiffusionLens().read_control(run, "L4.resid_post", generator=torch.Generator().manual_seed(0))
    assert control.rows == (2, 1) and not torch.equal(control.tokens, found["format"])
    torch.testing.assert_close(control.tokens.norm(dim=-1), found["format"].norm(dim=-1))


def test_a_sweep(tmp_path):
    """A record of prompts through the bridge: at the read layer the picture is the clean one."""
    import vit_lens as vl

    pair = encoder("sana"), decoder("sana")
    drawing = vl.Drawing(settings=settings("sana", steps=1), batch_size=4)
    sites = ["L0.resid_pre", "L3.resid_post"]
    record = vl.sweep(*pair, PROMPTS[:1], out=tmp_path / "r", sites=sites, drawing=drawing)
    assert record.complete and record.manifest["model"]["config"]["text_encoder"]["architecture"] == "Gemma2ForCausalLM"
    own = record.table[~record.table["reading"].str.contains(".", regex=False)]
    assert own[own["site"] == "L3.resid_post"]["cos_lens_clean"].tolist() == [1.0]


# ---- halves from files


@pytest.mark.parametrize("name", NAMES)
def test_halves_from_files_are_the_pipeline_in_memory(name, tmp_path, monkeypatch):
    import socket

    from vit_lens.decoders import PromptEncoder, load_decoder

    def refuse(*args, **kwargs):
        raise AssertionError("a local directory must not reach for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    pipeline(name).save_pretrained(tmp_path / name)
    index = tmp_path / name / "model_index.json"
    said = json.loads(index.read_text())
    said["tokenizer"] = ["transformers", PUBLISHED[name]]
    index.write_text(json.dumps(said))
    text, loaded = (
        PromptEncoder.from_pretrained(tmp_path / name, length=LENGTH.get(name)),
        load_decoder(tmp_path / name),
    )
    asked, negative, how = text.encode(PROMPTS), text.negative(), settings(name)
    assert torch.equal(asked.tokens, encoder(name).encode(PROMPTS).tokens)
    pictures = loaded.decode(asked, negative=negative, encoder=text, settings=how)
    assert torch.equal(pictures, decoder(name).decode(asked, negative=negative, settings=how))
    assert loaded.defaults == decoder(name).defaults and loaded.fingerprint == decoder(name).fingerprint
    assert {**loaded.identity(), "decoder_id": 0} == {**decoder(name).identity(), "decoder_id": 0}


PUBLISHED = {  # what the repositories' indices name
    "hunyuandit": "BertTokenizer", "sana": "GemmaTokenizerFast", "lumina2": "GemmaTokenizerFast",
    "qwenimage": "Qwen2Tokenizer", "flux2": "PixtralProcessor", "flux2klein": "Qwen2TokenizerFast",
}  # fmt: skip


# ---- what is refused


def test_sites_that_are_not_told():
    import vit_lens as vl
    from vit_lens.errors import LensError, UnknownSiteError

    run = run_of("sana")
    for site in ("L1H2", "L1.mlp", "L0.attn", "L1.resid_mid"):
        with pytest.raises(
            LensError, match=r"of a Gemma2ForCausalLM, which TransformerLens' bridge hooks, lenses read"
        ):
            vl.TextDiffusionLens().read(run, site)
    with pytest.raises(LensError, match="lenses read the residuals"):
        vl.TextSteeringLens(alpha=2).read(run, "L1H2")
    with pytest.raises(UnknownSiteError, match=r"L4.resid_post: the model has layers L0 to L3"):
        vl.TextDiffusionLens().read(run, "L4.resid_post")
    with pytest.raises(LensError, match="a template around the prompt, in which the word may stand too"):
        vl.TextDiffusionLens(positions='"red"').read(run, "L1.resid_post")
    with pytest.raises(LensError, match="has no position 400"):
        vl.TextDiffusionLens(positions=400).read(run, "L1.resid_post")
    with pytest.raises(LensError, match="means are of our own towers alone"):
        vl.TextMeans.of(run.encoder, PROMPTS)
    with pytest.raises(LensError, match=r"L30.resid_post lies behind what format flux2 reads of text_encoder"):
        vl.TextDiffusionLens().read(run_of("flux2"), "L30.resid_post")
    with pytest.raises(LensError, match="no encoder 'text_encoder_2' in format sana"):
        vl.TextDiffusionLens(encoder="text_encoder_2").read(run, "L1.resid_post")


def test_layers_and_lengths_that_there_are_not():
    from vit_lens.decoders import PromptEncoder
    from vit_lens.errors import ContractError, DecoderError, TextError

    text = encoder("flux2klein")
    with pytest.raises(ContractError, match="layer 28 of text_encoder: behind layer 27 nothing is read"):
        text.format.readings[0].stopped(28, n_layers=28)
    with pytest.raises(ContractError, match=r"layer 5 of text_encoder: it has 0 \(the embedding\) to 4"):
        encoder("sana").format.readings[0].stopped(5, n_layers=4)
    with pytest.raises(
        ContractError, match=r"text_encoder has 27 blocks, and the format reads it after blocks 9, 18, 27"
    ):
        text.format.readings[0].layers(27)
    for name in ("hunyuandit", "qwenimage"):
        with pytest.raises(DecoderError, match=f"format {name} leaves no choice of length"):
            PromptEncoder(pipeline(name), length=12)
    import vit_lens as vl

    for name in ("hunyuandit", "sana", "lumina2", "qwenimage", "flux2", "flux2klein"):
        with pytest.raises(TextError, match=r"has \d+ tokens, and text_encoder reads \d+; shorten it"):
            vl.TextRun.of(encoder(name), "a red star " * (1 + 1200 // 11 if name == "qwenimage" else 30))


def test_encoders_of_other_kinds_and_dtypes():
    from vit_lens.decoders import PromptEncoder
    from vit_lens.errors import ContractError, DecoderError

    pipe = tiny.make("sana")
    pipe.text_encoder = tiny.bert()[0]
    with pytest.raises(ContractError, match="text_encoder of format sana is a 'bert', expected 'gemma2'"):
        PromptEncoder(pipe)
    pipe = tiny.make("lumina2")
    pipe.text_encoder.half()
    with pytest.raises(DecoderError, match="text_encoder is a Gemma 2 in float16"):
        PromptEncoder(pipe)


def test_what_the_bridge_does_not_take(monkeypatch):
    """Named, with what to do; what needs no bridge goes on without one."""
    from transformer_lens.factories import architecture_adapter_factory

    from vit_lens.decoders import PromptEncoder
    from vit_lens.errors import UnsupportedTowerError
    from vit_lens.models import BridgedTextEncoder

    with pytest.raises(
        UnsupportedTowerError, match=r"a T5EncoderModel does not go through .* HookedTextEncoder.from_mod"
    ):
        BridgedTextEncoder.from_module(tiny.t5()[0])
    known = dict(architecture_adapter_factory.SUPPORTED_ARCHITECTURES)
    known.pop("Gemma2ForCausalLM")
    monkeypatch.setattr(architecture_adapter_factory, "SUPPORTED_ARCHITECTURES", known)
    text = PromptEncoder(pipeline("sana"), length=11)
    with pytest.raises(
        UnsupportedTowerError, match=r"has no bridge for Gemma2ForCausalLM, .*install a later transformer"
    ):
        text.towers  # noqa: B018
    assert torch.equal(text.encode(PROMPTS).tokens, encoder("sana").encode(PROMPTS).tokens)


def test_filling_in_front_of_a_prompt():
    """FLUX.2 hands it over, and attention that sees nothing is computed in as many ways as there are kernels."""
    import vit_lens as vl
    from vit_lens.errors import LensError

    run = vl.TextRun.of(encoder("flux2"), PROMPTS)
    with pytest.raises(LensError, match=r"its 'sdpa' attention .* Call pipeline.text_encoder.set_attn_implementation"):
        run.edited("text_encoder", [])


@pytest.mark.tl3
def test_attention_that_leaves_out_soft_caps_is_refused(monkeypatch):
    """Some versions of transformers run Gemma 2 so, without a word."""
    from vit_lens.errors import UnsupportedTowerError
    from vit_lens.models import BridgedTextEncoder

    module, tokenizer = tiny.gemma2()
    monkeypatch.setattr(module.config, "_attn_implementation_internal", "sdpa")
    with pytest.raises(
        UnsupportedTowerError, match=r"'sdpa', which leaves out .*softcapping=2\.0.*_implementation\('eager"
    ):
        BridgedTextEncoder.from_module(module, tokenizer=tokenizer)
    module.set_attn_implementation("eager")
    BridgedTextEncoder.from_module(module, tokenizer=tokenizer)


@pytest.mark.tl3
@pytest.mark.parametrize("kind", ["bert", "gemma2", "qwen3"])
def test_hooks_through_the_bridge_are_loud(kind):
    from vit_lens.errors import HookShapeError, UnfiredHookError, UnknownHookError, VitLensError
    from vit_lens.models import BridgedTextEncoder

    module, tokenizer = getattr(tiny, kind)()
    tower = BridgedTextEncoder.from_module(module.double(), tokenizer=tokenizer, copy=False)
    ids = torch.tensor([[2, 7, 9, 10, 0], [2, 8, 9, 10, 11]])
    mask = (ids != 0).long()
    with torch.no_grad():
        states = module(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        out, cache = tower.run_with_cache(ids, attention_mask=mask)
        named = tower.run_with_cache(ids, attention_mask=mask, names_filter=["blocks.1.hook_resid_pre"])[1]
    close = 1e-5 if kind == "qwen3" else 1e-12  # its softmax is in float32
    for layer in range(tower.cfg.n_layers):
        assert (cache[f"blocks.{layer}.hook_resid_pre"] - states[layer]).abs().max() < close
    assert (out - states[-1]).abs().max() < 1e-5  # norms take their means in float32
    assert list(named) == ["blocks.1.hook_resid_pre"] and torch.equal(named["blocks.1.hook_resid_pre"],
                                                                      cache["blocks.1.hook_resid_pre"])  # fmt: skip
    assert not [name for name in tower.hook_dict if name.startswith(("unembed", "mlm_head"))]
    with pytest.raises(
        UnknownHookError, match=r"no hook point 'blocks.0.hook_resid_pst'; nearest: 'blocks.0.hook_resid_p"
    ):
        tower.run_with_hooks(ids, fwd_hooks=[("blocks.0.hook_resid_pst", print)])
    with pytest.raises(UnfiredHookError, match=r"never fired in this call: \['blocks.0.attn.hook_result'\]"):
        tower.run_with_hooks(ids, fwd_hooks=[("blocks.0.attn.hook_result", lambda act, hook: act)])
    with pytest.raises(HookShapeError, match=r"the hook on 'blocks.0.hook_resid_post' returned"):
        tower.run_with_hooks(ids, fwd_hooks=[("blocks.0.hook_resid_post", lambda act, hook: act[:1])])
    with pytest.raises(VitLensError, match=r"attention_mask of \(2, 4\); expected \[batch pos\] = \(2, 5\)"):
        tower(ids, attention_mask=mask[:, :4])
    assert not tower.hooked_names() and tower.dtype == torch.float64


@pytest.mark.parametrize("name", ["hunyuandit", "sana"])
def test_a_word_that_a_tokenizer_does_not_know_is_told(name):
    """BERT's pieces and Gemma's have an unknown one, which would be drawn as if it were a word."""
    from vit_lens.errors import TextError

    with pytest.raises(TextError, match=r"the tokenizer does not know .* in the prompt 'a red \u2603'"):
        encoder(name).encode(["a red star", "a red \u2603"])
