"""The counterfactual lens of prompts: hooks, closed form and a formula written out; its norms, what is refused."""

import functools
import itertools
import math

import pytest
import tiny_pipelines
import torch

# diffusers hands torch tensors to numpy 2 in a way that it is leaving.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CLOSE = dict(atol=1e-9, rtol=0)
PROMPTS = ["a red star", "a ring and a star"]
ANCHORS = ["a big blue cross and a ring", "two small ring left of a star"]
OTHERS = ["a green cross", "two small star", "a big blue cross and a ring", "a ring left of a star"]
SITES = ["L0H1", "L1.attn", "L1.mlp", "L0.mlp"]


@functools.cache
def encoder(name):
    from vit_lens.decoders import PromptEncoder

    made = PromptEncoder(tiny_pipelines.make(name), length=15 if name == "schnell" else None)
    for each in made.encoders.values():
        each.double().requires_grad_(False)
    return made


@functools.cache
def means(name):
    import vit_lens as vl

    return vl.TextMeans.of(encoder(name), OTHERS)


def lens_of(name, anchors=ANCHORS, **given):
    import vit_lens as vl

    anchors = vl.TextAnchors.of(encoder(name), anchors)
    return vl.TextCounterfactualLens(anchors=anchors, reference=means(name), **given)


def by_role(run, name, x):
    """What each token says, by role: position by position, the end, the filling."""
    end = int(run.ends(name)[0])
    return {**{place: x[place] for place in range(end)}, "end": x[end], "pad": x[-1] if end + 1 < len(x) else None}


def typical(name, moved, site):
    """The root mean square distance over pairs of prompts and roles up to the end, as a loop."""
    import vit_lens as vl

    text, centre = encoder(name), encoder(name).readouts[moved].centre
    runs = [vl.TextRun.of(text, one) for one in OTHERS]
    roles = [by_role(run, moved, centre(run.output(moved, site)[0])) for run in runs]
    total = count = 0
    for role in [*range(30), "end"]:
        there = [one[role] for one in roles if role in one]
        if len(there) < 2:
            continue
        pairs = [float((a - b).square().sum()) for a, b in itertools.combinations(there, 2)]
        total, count = total + len(there) * sum(pairs) / len(pairs), count + len(there)
    return math.sqrt(total / count)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "schnell"])
def test_closed_form_hooks_and_formula_agree(name):
    import vit_lens as vl

    text, lens = encoder(name), lens_of(name, share=0.8)
    run = vl.TextRun.of(text, PROMPTS)
    reading = lens.moved_in(run)
    moved, centre = reading.encoder, text.readouts[reading.encoder].centre
    for anchor, one in zip(ANCHORS, lens.each(), strict=True):
        start = vl.TextRun.of(text, anchor)
        end = int(start.ends(moved)[0])
        last = start.read_residual(reading)[0]
        size = float(centre(last[: end + 1]).square().sum(-1).mean().sqrt())
        found = one.read(run, SITES)
        for at, site in enumerate(one.check_sites(run.tower(moved), SITES)):
            scale = 0.8 * size / typical(name, moved, site)
            before = start.output(moved, site)[0]
            state = torch.empty_like(run.residual(moved, 0))
            for row, own in enumerate(run.ends(moved).tolist()):
                for place in range(state.shape[1]):
                    there = slice(place, place + 1) if place < own else slice(end, end + 1)  # role by role
                    there = slice(end + 1, None) if place > own else there
                    change = run.output(moved, site)[row, place] - before[there].mean(0)
                    state[row, place] = last[there].mean(0) + scale * change
            seen = run.format_norm(reading, state)
            tokens = found.tokens[:, at, :, -seen.shape[-1] :]  # of SDXL behind those of the other encoder
            assert torch.allclose(tokens, seen, **CLOSE), site
            hooked = run.edited(moved, one.hooks(run, site))
            assert torch.allclose(run.format_norm(reading, hooked.read_residual(reading)), seen, **CLOSE), site
        if name == "sdxl":  # the other encoder, and the pooled vector, say the anchor
            alone = lens.anchors.at(ANCHORS.index(anchor)).roles[0].average(run).condition
            assert torch.allclose(found.pooled[:, 0], alone.pooled, **CLOSE)
            assert torch.allclose(
                found.tokens[:, 0, :, : -seen.shape[-1]], alone.tokens[..., : -seen.shape[-1]], **CLOSE
            )


def test_norms_are_kept_on_file(tmp_path):
    import vit_lens as vl

    made = means("sd1")
    found = vl.TextMeans.load(made.save(tmp_path / "means.safetensors"))
    assert found.content == made.content and list(found.differences) == ["text_encoder"]
    for kind, value in made.differences["text_encoder"].items():
        assert torch.equal(found.differences["text_encoder"][kind], value)
    for site in map(vl.Site.parse, SITES):
        assert found.difference("text_encoder", site) == pytest.approx(typical("sd1", "text_encoder", site), rel=1e-9)


def test_positions_that_are_held_are_those_of_the_anchor():
    import vit_lens as vl

    run = vl.TextRun.of(encoder("sd1"), PROMPTS)
    lens = lens_of("sd1", ANCHORS[0], positions="eos")
    alone = lens.anchors.roles[0].average(run).condition.tokens
    whole = lens_of("sd1", ANCHORS[0]).read(run, "L1.mlp").tokens[:, 0]
    found = lens.read(run, "L1.mlp").tokens[:, 0]
    ends = run.places("text_encoder", "eos")
    assert torch.equal(found[ends], whole[ends]) and torch.allclose(found[~ends], alone[~ends], **CLOSE)
    assert not torch.allclose(found[ends], alone[ends])


def test_a_sweep_of_prompts_draws_each_anchor_and_loads_again(tmp_path):
    import vit_lens as vl

    record = vl.sweep(
        encoder("sd1"), None, PROMPTS, lens="counterfactual:share=0.5", anchors=ANCHORS, reference=means("sd1"),
        sites="mlp", controls=True, out=tmp_path / "out",
    )  # fmt: skip
    again = vl.Record.load(tmp_path / "out")
    said = [(one.lens, one.settings["anchor"], one.control) for one in again.readings.values()]
    assert said == [("counterfactual", anchor, control) for anchor in ANCHORS for control in ("", "random")]
    own = again.table["reading"] == list(again.readings)[1 - 1]
    lens = lens_of("sd1", ANCHORS[0])
    expected = lens.read(vl.TextRun.of(encoder("sd1"), PROMPTS[0]), "mlp").flat[0]
    rows = again.table[own & (again.table["input"] == 0)]["row"].tolist()
    assert torch.allclose(record.conditions["lens"].flat[rows].double(), expected, atol=1e-4)
    assert again.table["leak"].notna().any()


def test_what_does_not_fit_is_refused(errors, unchecked):
    import vit_lens as vl

    text = encoder("sd1")
    run = vl.TextRun.of(text, PROMPTS)
    cases = [
        (lambda: vl.TextAnchors.of(text, []), errors.LensError, r"no anchors"),
        (lambda: vl.TextAnchors.of(text, [3]), errors.TextError, r"an anchor is a int"),
        (lambda: vl.TextAnchors.of(text, ["a ring", "a ring"]), errors.LensError, r"two are the same"),
        (lambda: lens_of("sd1", share=0), errors.LensError, r"share=0; expected a number above 0"),
        (lambda: lens_of("sd1", share=math.nan), errors.LensError, r"share=nan"),
        (lambda: lens_of("sd1").read(run, "mlp"), errors.LensError, r"2 anchors have a picture each"),
        (lambda: lens_of("sd1", PROMPTS[1]).read(run, "mlp"), errors.LensError, r"'a ring and a star' is the anchor"),
        (lambda: lens_of("sd1", "a ring").read(run, "mlp"), errors.LensError, r"anchor 'a ring' has 4 of 16 tokens"),
        (
            lambda: vl.TextCounterfactualLens(
                anchors=vl.TextAnchors.of(encoder("sd2"), ANCHORS[0]), reference=means("sd1")
            ).read(run, "mlp"),
            errors.ReferenceMismatchError, r"were made with",
        ),
        (
            lambda: vl.TextCounterfactualLens(
                anchors=vl.TextAnchors.of(text, ANCHORS[0]), reference=vl.TextMeans.of(text, ["a ring"])
            ),
            errors.LensError, r"hold no norms of differences",
        ),
        (lambda: lens_of("sd1", ANCHORS[0]).read(run, "L1.resid_post"), errors.LensError, r"not defined on"),
        (
            lambda: vl.plan(text, None, PROMPTS, lens="counterfactual", reference=means("sd1"), sites="mlp"),
            errors.LensError, r"starts from other prompts: give --anchors",
        ),
        (
            lambda: vl.plan(text, None, PROMPTS, lens="counterfactual", anchors=ANCHORS, sites="mlp"),
            errors.LensError, r"counterfactual needs means over other prompts",
        ),
        (
            lambda: vl.plan(text, None, PROMPTS, lens="counterfactual:shar=2", anchors=ANCHORS, sites="mlp"),
            errors.LensError, r"has no setting 'shar'; nearest: 'share'",
        ),
        (
            lambda: vl.plan(text, None, PROMPTS, anchors=ANCHORS, sites="mlp"),
            errors.LensError, r"anchors= serve the lens counterfactual alone",
        ),
    ]  # fmt: skip
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()
