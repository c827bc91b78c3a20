"""The lens of text encoders: the pipeline's own condition at the layer that it reads, brute force elsewhere."""

import functools

import pytest
import tiny_pipelines
import torch
from text_towers import exact_t5_norms

PROMPTS = tiny_pipelines.PROMPTS
NAMES = ["sd1", "sdt5", "sd2", "sdxl", "if", "schnell", "sd3", "pixart"]
LENGTH = {"schnell": 11, "sd3": 11, "pixart": 11}
SITES = ["L0.resid_pre", "L1.resid_pre", "L1.resid_mid", "L1.resid_post", "L0H1", "L1H3", "L0.attn", "L1.mlp"]


@functools.cache
def encoder(name, dtype=torch.float32):
    from vit_lens.decoders import PromptEncoder

    pipe = tiny_pipelines.make(name)
    made = PromptEncoder(pipe, length=LENGTH.get(name))
    for each in made.encoders.values():
        each.to(dtype).requires_grad_(False)
    return made


@functools.cache
def run_of(name, dtype=torch.float32):
    import vit_lens as vl

    return vl.TextRun.of(encoder(name, dtype), PROMPTS)


def read_layer(run, name):
    """How many blocks of an encoder have run where the format reads it."""
    reading = next(one for one in run.format.readings if one.encoder == name)
    return reading.layer(run.tower(name).cfg.n_layers)


def worst(one, other):
    parts = [(a - b).abs().max().item() for a, b in zip(one.parts().values(), other.parts().values(), strict=True)
             if a.dtype != torch.bool]  # fmt: skip
    return max(parts)


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_of_the_encoder_has_hooked_towers_of_its_own_weights(name):
    """Copied parameters are shared no more: towers made before the copy would go on showing the first weights."""
    import copy

    import vit_lens as vl

    first = encoder(name)
    assert first.towers
    made = copy.deepcopy(first)
    assert made.encoder_id == first.encoder_id
    with torch.no_grad():
        for each in made.encoders.values():
            for weight in each.parameters():
                weight.mul_(1.5)
    run, own = vl.TextRun.of(made, PROMPTS), run_of(name)
    for each in made.encoders:
        again = run.edited(each, [])
        assert worst(again.condition, run.condition) < 1e-4 < worst(run.condition, own.condition)
    assert worst(own.condition, first.encode(PROMPTS)) == 0


# ---- the condition


@pytest.mark.parametrize("name", NAMES)
def test_at_the_layer_that_is_read_the_condition_is_the_pipelines_own(name):
    """Bit for bit, whichever encoder is moved, from the run that keeps all that every part writes."""
    import vit_lens as vl

    run, own = run_of(name), encoder(name).encode(PROMPTS)
    for reading in run.format.readings:
        if reading.below is None:
            continue
        layer = read_layer(run, reading.encoder)
        found = vl.TextDiffusionLens(encoder=reading.encoder).read(run, [f"L{layer - 1}.resid_post", "L0.resid_pre"])
        assert list(found.parts()) == list(own.parts())
        for part, value in own.parts().items():
            assert torch.equal(found[:, 0].parts()[part], value), (reading.encoder, part)
        assert worst(found[:, 1], own) > 1e-3
        steered = vl.TextSteeringLens(alpha=1, encoder=reading.encoder).read(run, "L0H1")[:, 0]
        assert all(torch.equal(a, b) for a, b in zip(steered.parts().values(), own.parts().values(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_is_its_own(name):
    """L + 1 rows, no two alike; in T5 the last is not normed twice."""
    import vit_lens as vl

    run = run_of(name)
    moved = vl.TextDiffusionLens().moved_in(run)
    n_layers = run.tower(moved.encoder).cfg.n_layers
    found = vl.TextDiffusionLens().read(run, ["L0.resid_pre", "resid_post"])
    assert found.rows == (2, n_layers + 1)
    rows = found.tokens.unbind(1)
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(rows) for b in rows[:i])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("alpha", [None, -2.5])
def test_closed_forms_are_the_hooked_runs(name, alpha, monkeypatch):
    """In float64, for residuals, heads, attention and MLPs: what a forward pass under hooks leaves where it is read."""
    import vit_lens as vl

    exact_t5_norms(monkeypatch)
    lens = vl.TextDiffusionLens() if alpha is None else vl.TextSteeringLens(alpha=alpha)
    run = vl.TextRun.of(encoder(name, torch.float64), PROMPTS)
    moved = lens.moved_in(run).encoder
    again = run.edited(moved, [])
    for point, value in run.caches[moved].items():
        assert (value - again.caches[moved][point]).abs().max() < 1e-11, point
    assert worst(again.condition, run.condition) < 1e-12
    for site in [site for site in SITES if alpha is None or "resid" not in site]:
        found = lens.read(run, site)[:, 0]
        hooked = run.edited(moved, lens.hooks(run, site))
        assert (hooked.condition.tokens - found.tokens).abs().max() < 1e-11, site
        assert worst(found, run.condition) > 1e-4, site


def test_behind_what_is_read_there_are_no_hooks_and_nothing_to_steer():
    """SDXL reads the last but one residual: the last block is off its path, and its residual can be looked at alone."""
    import vit_lens as vl
    from vit_lens.errors import LensError

    run = run_of("sdxl")
    assert read_layer(run, "text_encoder_2") == 3 and run.tower("text_encoder_2").cfg.n_layers == 4
    vl.TextDiffusionLens().read(run, ["L3.resid_post", "L3H0"])
    for lens in (vl.TextDiffusionLens(), vl.TextSteeringLens(alpha=2)):
        with pytest.raises(LensError, match="L3H0 lies behind what format sdxl reads of text_encoder_2, the residual "):
            lens.hooks(run, "L3H0")
    with pytest.raises(LensError, match="after 3 blocks, so there are no states that it adds to"):
        vl.TextSteeringLens(alpha=2).read(run, "L3.mlp")


# ---- norms, positions, pooled vectors


def test_norms():
    """Four ways out of an encoder, each against its own words."""
    import vit_lens as vl

    for name, is_normed in (("sd1", True), ("sdxl", False), ("if", True)):
        run = run_of(name)
        moved = vl.TextDiffusionLens().moved_in(run)
        norm, state = encoder(name).readouts[moved.encoder].norm, run.residual(moved.encoder, 1)
        kept, width = run.read_residual(moved), state.shape[-1]
        scaled = state * (kept.norm(dim=-1, keepdim=True) / state.norm(dim=-1, keepdim=True))
        expected = {
            "format": norm(state) if is_normed else state, "final": norm(state), "none": state,
            "match": norm(scaled) if is_normed else scaled,
        }  # fmt: skip
        for how, wanted in expected.items():
            found = vl.TextDiffusionLens(norm=how).read(run, "L0.resid_post").tokens[:, 0, :, -width:]
            assert torch.allclose(found, wanted, rtol=0, atol=1e-6), (name, how)
        if not is_normed:
            read = vl.TextDiffusionLens(norm="match").read(run, "L0.resid_post").tokens[:, 0, :, -width:]
            assert torch.allclose(read.norm(dim=-1), kept.norm(dim=-1), rtol=1e-5)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "if", "pixart"])
def test_positions_are_moved_or_held(name):
    """The named ones come of the layer and the others of the read layer, and the reverse; nothing else is touched."""
    import vit_lens as vl

    run = run_of(name)
    lens = vl.TextDiffusionLens()
    site, moved = "L0.resid_post", lens.moved_in(run).encoder
    early, late = lens.read(run, site).tokens[:, 0], run.condition.tokens
    ends = [row.index(end) for row, end in zip(
        run.ids[moved].tolist(), [tiny_end(run, moved, row) for row in range(2)], strict=True)]  # fmt: skip
    position = torch.arange(early.shape[1])
    expected = {
        "eos": [position == end for end in ends], "pad": [position > end for end in ends],
        1: [position == 1 for _ in ends],
        ("eos", "pad"): [position >= end for end in ends],
    }  # fmt: skip
    for named, places in expected.items():
        where = torch.stack(places)[..., None]
        found = vl.TextDiffusionLens(positions=named).read(run, site).tokens[:, 0]
        assert torch.equal(found, torch.where(where, early, late)), named
        found = vl.TextDiffusionLens(held=named).read(run, site).tokens[:, 0]
        assert torch.equal(found, torch.where(where, late, early)), named


def tiny_end(run, name, row):
    """The id that ends a prompt: CLIP's is the highest, T5's has a name."""
    ids = run.ids[name][row]
    return 1 if run.tower(name).cfg.pool == "all" else int(ids.max())


def test_words_have_positions():
    import vit_lens as vl
    from vit_lens.errors import InterventionError, LensError, UnknownSiteError

    for name in ("sd1", "if"):
        run = vl.TextRun.of(encoder(name), "a red star")
        (moved,) = run.caches
        pieces = run.tower(moved).tokenizer.convert_ids_to_tokens(run.ids[moved][0].tolist())
        (place,) = run.places(moved, '"star"')[0].nonzero().flatten().tolist()
        assert "star" in pieces[place]
        with pytest.raises(InterventionError, match='"ring"'):
            vl.TextDiffusionLens(positions='"ring"').read(run, "L0.resid_post")
        with pytest.raises(LensError, match=r"has no position 99: text_encoder reads (16|77) tokens"):
            vl.TextDiffusionLens(positions=99).read(run, "L0.resid_post")
        with pytest.raises(LensError, match="position cls is one of an image"):
            vl.TextDiffusionLens(positions="cls").read(run, "L0.resid_post")
        with pytest.raises(UnknownSiteError, match="no position 'eso'; nearest: 'eos'"):
            vl.TextDiffusionLens(held="eso").read(run, "L0.resid_post")
    full = vl.TextRun.of(encoder("sd1"), " ".join(["a"] * 14))
    assert full.tower("text_encoder").ends(full.ids["text_encoder"]).tolist() == [15]
    with pytest.raises(LensError, match="has no position pad: text_encoder reads 16 tokens of it, of which 15 is the"):
        vl.TextDiffusionLens(positions="pad").read(full, "L0.resid_post")


@pytest.mark.parametrize("name", ["sdxl", "schnell", "sd3"])
def test_pooled_vectors(name):
    """Of the last layer by default, of the state's own end, or of no words."""
    import vit_lens as vl
    from vit_lens.errors import LensError

    run, text = run_of(name), encoder(name)
    reading = next(one for one in reversed(run.format.readings) if one.pooled)
    own = run.condition.pooled
    how = {"encoder": reading.encoder}
    if reading.below is not None:
        assert torch.equal(vl.TextDiffusionLens(**how).read(run, "L0.resid_post").pooled[:, 0], own)
    layer = vl.TextDiffusionLens(pooled="layer", **how).read(run, "L0.resid_post").pooled[:, 0]
    readout = text.readouts[reading.encoder]
    end = readout.norm(run.at_end(reading.encoder, run.residual(reading.encoder, 1)))
    end = end if reading.pooled == "end" else readout.projection(end)
    others = own.shape[1] - end.shape[1]
    assert torch.equal(layer[:, others:], end) and torch.equal(layer[:, :others], own[:, :others])
    last = vl.TextDiffusionLens(pooled="layer", **how).read(
        run, f"L{run.tower(reading.encoder).cfg.n_layers - 1}.resid_post"
    )
    assert torch.equal(last.pooled[:, 0], own)
    empty = vl.TextDiffusionLens(pooled="empty", **how).read(run, "L0.resid_post").pooled[:, 0]
    assert torch.equal(empty, text.encode([""]).pooled.expand_as(own))
    if name != "sdxl":
        t5 = run.format.readings[-1].encoder
        with pytest.raises(LensError, match=f"makes no pooled vector of {t5}; take pooled='final'"):
            vl.TextDiffusionLens(pooled="layer").read(run, "L0.resid_post")


def test_an_encoder_that_gives_no_tokens_moves_the_pooled_vector():
    import vit_lens as vl

    run = run_of("schnell")
    found = vl.TextDiffusionLens(encoder="text_encoder").read(run, ["L0.resid_post", "L2.resid_post"])
    assert torch.equal(found.tokens[:, 0], run.condition.tokens)
    assert torch.equal(found.pooled[:, 1], run.condition.pooled)
    assert (found.pooled[:, 0] - run.condition.pooled).abs().max() > 1e-2


# ---- controls


@pytest.mark.parametrize("name", ["sd1", "sdxl", "if"])
def test_controls_are_as_long_at_every_position(name):
    import vit_lens as vl

    lens, run = vl.TextDiffusionLens(norm="none"), run_of(name)
    moved = lens.moved_in(run)
    width = run.tower(moved.encoder).cfg.d_model
    seen = (lambda x: x - x.mean(-1, keepdim=True)) if name == "sd1" else (lambda x: x)
    other = vl.TextRun.of(encoder(name), ["a small ring", "two stars"])
    own = seen(lens.read(run, SITES).tokens[..., -width:])
    controls = {
        "random": lens.read_control(run, SITES, generator=torch.Generator().manual_seed(0)),
        "other": lens.read_other(run, SITES, other),
    }
    for found in controls.values():
        control = seen(found.tokens[..., -width:])
        assert torch.allclose(control.norm(dim=-1), own.norm(dim=-1), rtol=1e-4)
        assert torch.nn.functional.cosine_similarity(control, own, dim=-1).flatten(1).mean() < 0.95
    theirs = seen(lens.read(other, SITES).tokens[..., -width:])
    same = torch.nn.functional.cosine_similarity(seen(controls["other"].tokens[..., -width:]), theirs, dim=-1)
    assert torch.allclose(same, torch.ones_like(same), atol=1e-4)
    again = lens.read_control(run, SITES, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.tokens, controls["random"].tokens)


# ---- means


@pytest.mark.parametrize("name", ["sd1", "sdxl", "if"])
def test_the_mean_anchor(name):
    """Means by role against a loop over prompts; deviations of all parts add up to that of what is read."""
    import vit_lens as vl
    from vit_lens.errors import LensError, ReferenceMismatchError, TextError

    text = encoder(name, torch.float64)
    known = ["a red star", "two small green stars", "a big blue ring", "a ring and a cross left of two red stars"]
    known = [" ".join(one.split()[:5]) for one in known]
    means, run = vl.TextMeans.of(text, known), vl.TextRun.of(text, "a green cross")
    lens = vl.TextSteeringLens(alpha=2.5, reference=means)
    moved = lens.moved_in(run)
    tower = run.tower(moved.encoder)
    others = [vl.TextRun.of(text, one) for one in known]

    def mean_of(point, position):
        own_end = int(tower.ends(run.ids[moved.encoder])[0])
        rows = []
        for other in others:
            end, value = int(tower.ends(other.ids[moved.encoder])[0]), other.caches[moved.encoder][point][0]
            if position > own_end:
                rows += list(value[end + 1 :])
            elif position == own_end:
                rows.append(value[end])
            elif position < end:
                rows.append(value[position])
        return torch.stack(rows).mean(0)

    aligned = means.average(run).caches[moved.encoder]
    for point in ("blocks.1.hook_resid_post", "blocks.0.attn.hook_z"):
        for position in range(aligned[point].shape[1]):
            assert torch.allclose(aligned[point][0, position], mean_of(point, position), atol=1e-12), (point, position)
    bare = vl.TextSteeringLens(alpha=2.5, reference=means, norm="none")
    width, layer = tower.cfg.d_model, read_layer(run, moved.encoder)
    sites = [f"L{i}.{part}" for i in range(layer) for part in ("attn", "mlp")]
    one = replace_alpha(bare, 1).read(run, sites).tokens[0, ..., -width:]
    anchor = aligned["blocks.0.hook_resid_pre"] if layer == 0 else aligned[f"blocks.{layer - 1}.hook_resid_post"]
    start = run.residual(moved.encoder, 0) - aligned["blocks.0.hook_resid_pre"]
    deviations = (one - anchor).sum(0) + start[0]
    assert (deviations - (run.read_residual(moved) - anchor)[0]).abs().max() < 1e-10
    zero = replace_alpha(bare, 0).read(run, "L0H1").tokens[0, 0, :, -width:]
    assert torch.allclose(zero, (anchor - 0)[0], atol=1e-12)
    assert lens.label == "DSL, mean-anchored, alpha 2.5" and lens.settings()["reference_n"] == 4
    with pytest.raises(LensError, match="has words, or filling, where no reference prompt has: add longer"):
        lens.read(vl.TextRun.of(text, "a red star and a blue ring and two small big"), "L0H1")
    with pytest.raises(ReferenceMismatchError, match="these means of 4 prompts were made with text@"):
        lens.read(run_of("sd2"), "L0H1")
    with pytest.raises(LensError, match="has no hook functions"):
        lens.hooks(run, "L0H1")
    with pytest.raises(TextError, match="means are over several texts"):
        vl.TextMeans.of(text, "a red star")


def replace_alpha(lens, alpha):
    import dataclasses

    return dataclasses.replace(lens, alpha=alpha)


# ---- wrong input


def test_wrong_input(unchecked):
    import vit_lens as vl
    from vit_lens.errors import LensError, TextError, UnknownSiteError

    long = " ".join(["red"] * 20)
    with pytest.raises(TextError, match="has 22 tokens, and text_encoder reads 16; shorten it, or cut its end off"):
        vl.TextRun.of(encoder("sd1"), long)
    assert vl.TextRun.of(encoder("sd1"), long, truncate=True).ids["text_encoder"].shape == (1, 16)
    with pytest.raises(TextError, match="has 14 tokens, and text_encoder_2 reads 11"):
        vl.TextRun.of(encoder("schnell"), long[:51])
    vl.TextRun.of(encoder("if"), "RED STAR " * 36)  # in small letters 73 tokens, and hundreds as it is
    with pytest.raises(TextError, match="expected a list of texts"):
        vl.TextRun.of(encoder("sd1"), [])
    with pytest.raises(LensError, match="a str reads no prompts for a pipeline; expected a PromptEncoder"):
        vl.TextRun.of("sd", "a red star")
    with pytest.raises(TextError, match="prompts is of type NoneType; expected str or Iterable: a prompt, or several"):
        vl.TextRun.of(encoder("sd1"), None)
    run = run_of("sd1")
    with pytest.raises(LensError, match="norm='formt'; nearest: 'format'"):
        vl.TextDiffusionLens(norm="formt")
    with pytest.raises(LensError, match="pooled='last'; nearest:"):
        vl.TextDiffusionLens(pooled="last")
    with pytest.raises(LensError, match="are moved and held='pad' are held: give one of them"):
        vl.TextDiffusionLens(positions="eos", held="pad")
    for name in ("positions", "held"):  # a filter that found none
        with pytest.raises(LensError, match=f"{name} is empty; name positions"):
            vl.TextDiffusionLens(**{name: []})
    with pytest.raises(LensError, match="no encoder 't5' in format sd; it has text_encoder"):
        vl.TextDiffusionLens(encoder="t5").read(run, "L0H1")
    with pytest.raises(LensError, match="no encoder 'text'"):
        run.edited("text", [])
    with pytest.raises(UnknownSiteError, match="the model has layers L0 to L2"):
        vl.TextDiffusionLens().read(run, "L3.resid_post")
    with pytest.raises(LensError, match="format sd has no pooled vector; leave pooled out"):
        vl.TextDiffusionLens(pooled="empty").read(run, "L0H1")
    with pytest.raises(LensError, match="run is of type ViTActivationCache; expected TextRun"):
        vl.TextDiffusionLens().read(run.caches["text_encoder"], "L0H1")
    with pytest.raises(LensError, match="alpha"):
        vl.TextSteeringLens(alpha=float("nan"))


def test_lenses_say_what_they_are():
    import vit_lens as vl

    assert vl.TextDiffusionLens().label == "Diffusion Lens"
    said = vl.TextSteeringLens(alpha=5, positions=["eos", 3], pooled="empty", norm="match").describe()
    assert said.label == "DSL, alpha 5, norm match, pooled empty, positions eos, 3"
    assert said.settings["positions"] == "eos, 3"
    ids = [
        vl.TextDiffusionLens(**how).describe().id
        for how in ({}, {"norm": "none"}, {"positions": "eos"}, {"held": "eos"})
    ]
    assert len(set(ids)) == 4
