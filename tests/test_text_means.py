"""Means of prompts: kept on file, refused for other encoders, started from in sweeps, and the leak index with them."""

import functools
import math

import pytest
import tiny_pipelines
import torch

# diffusers hands torch tensors to numpy 2 in a way that it is leaving.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = ["a red star", "a blue ring and a star"]
OTHERS = ["a green cross", "two small stars", "a big blue cross and a ring", "a ring left of a star"]
SITES = ["L0H1", "L1.attn", "L1.mlp", "L0.mlp"]


@functools.cache
def encoder(name="sd1", dtype=torch.float32, length=None):
    from vit_lens.decoders import PromptEncoder

    made = PromptEncoder(tiny_pipelines.make(name), length=length)
    for each in made.encoders.values():
        each.to(dtype).requires_grad_(False)
    return made


def others(name):
    return [text.replace("stars", "star") for text in OTHERS]


@functools.cache
def means(name="sd1", dtype=torch.float32, length=None):
    import vit_lens as vl

    return vl.TextMeans.of(encoder(name, dtype, length), others(name))


@pytest.mark.parametrize("name", ["sd1", "sdxl", "schnell"])
def test_means_come_back_from_their_file(name, tmp_path):
    import vit_lens as vl

    length = 11 if name == "schnell" else None
    made, run = means(name, length=length), vl.TextRun.of(encoder(name, length=length), PROMPTS)
    found = vl.TextMeans.load(made.save(tmp_path / "means.safetensors"))
    assert (found.encoder_id, found.n, found.content) == (made.encoder_id, 4, made.content)
    assert found.encoder_id == encoder(name, length=length).encoder_id
    for encoded, of in made.values.items():
        assert torch.equal(found.counts[encoded], made.counts[encoded])
        assert all(torch.equal(found.values[encoded][kind], value) for kind, value in of.items())
    ours, theirs = (vl.TextSteeringLens(alpha=3, reference=each) for each in (made, found))
    assert torch.equal(ours.read(run, SITES).flat, theirs.read(run, SITES).flat)
    assert ours.describe().id == theirs.describe().id


def test_means_are_refused_for_others(tmp_path, unchecked):
    import vit_lens as vl
    from vit_lens import errors
    from vit_lens.decoders import PromptEncoder

    made = means()
    path = made.save(tmp_path / "means.safetensors")
    run = vl.TextRun.of(encoder("sd2"), PROMPTS)
    with pytest.raises(errors.ReferenceMismatchError, match=f"made with {made.encoder_id}; the encoders are text@"):
        vl.TextSteeringLens(alpha=2, reference=vl.TextMeans.load(path)).read(run, "L0H1")
    with pytest.raises(errors.ReferenceMismatchError, match="or the same in another precision"):
        vl.plan(encoder("sd1", torch.float64), None, PROMPTS, lens="dsl-mean:alpha=2", sites="heads", reference=made)
    pipe = tiny_pipelines.make("sd1")
    nudged = PromptEncoder(pipe)
    nudged.encoder_id  # noqa: B018, which looks at the weights before they change
    with torch.no_grad():
        next(pipe.text_encoder.parameters()).view(-1)[3] += 1e-6
    with pytest.raises(errors.ReferenceMismatchError):
        made.check(nudged)
    assert made.check(encoder()) is made
    longer = encoder("schnell", length=13)
    with pytest.raises(errors.LensError, match="are of 11 positions of text_encoder_2, which reads 13 now; make them"):
        means("schnell", length=11).average(vl.TextRun.of(longer, PROMPTS))
    for reference, message in (
        (vl.ReferenceMeans.load("mini"), "holds means of images; prompts take TextMeans"),
        ("means.safetensors", "reference is 'means.safetensors'; expected such as ReferenceMeans.load"),
    ):
        with pytest.raises(errors.VitLensError, match=message):
            vl.plan(encoder(), None, PROMPTS, lens="dsl-mean:alpha=2", sites="heads", reference=reference)
    with pytest.raises(errors.LensError, match="holds means of prompts; a model that sees images takes ReferenceMeans"):
        vl.plan(vl.HookedViT.from_pretrained("mini"), None, "x.png", reference=made)
    with pytest.raises(errors.LensError, match="dsl-mean needs means over other prompts through these encoders"):
        vl.plan(encoder(), None, PROMPTS, lens="dsl-mean:alpha=2", sites="heads")
    with pytest.raises(errors.VitLensError, match=r"no means of prompts at .*; make them with TextMeans.of"):
        vl.TextMeans.load(tmp_path / "none.safetensors")
    with pytest.raises(errors.VitLensError, match="does not hold means of prompts"):
        vl.TextMeans.load(vl.ReferenceMeans.load("mini").save(tmp_path / "images.safetensors"))
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(errors.VitLensError, match="is not what was written there"):
        vl.TextMeans.load(path)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "if"])
def test_controls_of_the_mean_anchor_are_as_far_from_the_mean(name):
    """Where the lens starts from the mean, a control's deviation from it stands in for the site's, at its length."""
    import vit_lens as vl

    text = encoder(name, torch.float64)
    known, run = means(name, torch.float64), vl.TextRun.of(text, PROMPTS[:1])
    other = vl.TextRun.of(text, "a big ring")
    lens = vl.TextSteeringLens(alpha=2.5, reference=known, norm="none")
    moved = lens.moved_in(run)
    width, seen = run.tower(moved.encoder).cfg.d_model, (lambda x: x)
    if moved.norm and moved.kind == "clip":
        seen = lambda x: x - x.mean(-1, keepdim=True)  # noqa: E731
    anchor = known.average(run).read_residual(moved)
    added = (lens.read(run, SITES).tokens[0, ..., -width:] - anchor) / 2.5
    for found in (
        lens.read_control(run, SITES, generator=torch.Generator().manual_seed(3)),
        lens.read_other(run, SITES, other),
    ):
        control = (found.tokens[0, ..., -width:] - anchor) / 2.5
        assert torch.allclose(seen(control).norm(dim=-1), seen(added).norm(dim=-1), atol=1e-9)
        assert (control - added).abs().max() > 1e-2
    theirs = other.caches[moved.encoder]["mlp_out", 1] - known.average(other).caches[moved.encoder]["mlp_out", 1]
    exchanged = (lens.read_other(run, "L1.mlp", other).tokens[0, 0, :, -width:] - anchor[0]) / 2.5
    alike = torch.nn.functional.cosine_similarity(seen(exchanged), seen(theirs[0]), dim=-1)
    assert torch.allclose(alike[1:5], torch.ones(4, dtype=alike.dtype), atol=1e-9)


def swept(out, name="sd1", **options):
    import vit_lens as vl

    given = {
        "sites": SITES,
        "lens": ["dsl-mean:alpha=5", "dsl:alpha=5", "dsl:alpha=1"],
        "reference": means(name),
    } | options
    return vl.sweep(encoder(name), None, PROMPTS, out=out, **given)


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_sweeps_start_from_means_and_say_how_much_leaks(name, tmp_path):
    """Against the definition, draw by draw: S(random) / S(site), the average prompt's reading taken from both."""
    import vit_lens as vl

    text, known = encoder(name), means(name)
    record = swept(tmp_path / "r", name, controls=vl.Controls(drawn=False, draws=3))
    lenses = [vl.TextSteeringLens(alpha=5, reference=known), *(vl.TextSteeringLens(alpha=alpha) for alpha in (5, 1))]
    assert [one.label for one in record.readings.values()] == [lens.label for lens in lenses]
    said = record.manifest["readings"][0]["settings"]
    assert (said["reference"], said["reference_n"]) == (known.content, 4)
    assert record.manifest["controls"]["reference"] == known.content

    def s(read, mean, clean, mean_clean):
        return torch.nn.functional.cosine_similarity(
            (read - mean).double(), (clean - mean_clean).double(), dim=-1
        ).tolist()

    row = 0
    for index, prompt in enumerate(PROMPTS):
        run = vl.TextRun.of(text, prompt)
        average = known.average(run)
        digits = record.entry(index)["sha256"]
        for lens in lenses:
            read, mean = (lens.read(each, SITES)[0].flat for each in (run, average))
            clean, mean_clean = run.condition.flat, average.condition.flat
            generator = torch.Generator().manual_seed(int(digits[12:24], 16))
            draws = [lens.read_control(run, SITES, generator=generator)[0].flat for _ in range(3)]
            alike = s(read, mean, clean, mean_clean)
            control = [
                sum(some) / 3 for some in zip(*(s(draw, mean, clean, mean_clean) for draw in draws), strict=True)
            ]
            for site in range(len(SITES)):
                leak = record.table["leak"][row]
                if alike[site] <= 0:
                    assert math.isnan(leak)
                else:
                    assert leak == pytest.approx(control[site] / alike[site], rel=1e-4, abs=1e-6)
                row += 1
    assert row == len(record.table) and record.table["leak"].notna().sum() > 8
    # At alpha 1 everything is the prompt itself, whatever the site does: all of it leaks.
    assert record.table["leak"][record.table["reading"] == list(record.readings)[2]].tolist() == pytest.approx(
        [1.0] * 8
    )
    plain = swept(tmp_path / "plain", name, lens="dsl:alpha=5", reference=None)
    assert plain.table["leak"].isna().all() and "reference" not in plain.manifest["controls"]
    with pytest.raises(vl.errors.RecordError, match="reference"):
        swept(tmp_path / "plain", name, lens="dsl:alpha=5")


def test_the_page_says_the_leak(tmp_path):
    import json
    import re

    import vit_lens as vl

    record = swept(tmp_path / "r", lens="dsl-mean:alpha=5")
    text = vl.write_report(record).read_text()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])
    assert data["rows"]["leak"] == [None if math.isnan(one) else round(one, 6) for one in record.table["leak"]]
    meaning = data["numbers"]["leak"]["meaning"]
    assert "the average prompt" in meaning and "gallery" not in meaning


def test_the_command_makes_means_and_sweeps_from_them(vit_lens, tmp_path):
    import vit_lens as vl

    folder, out = tmp_path / "pipe", tmp_path / "means.safetensors"
    tiny_pipelines.make("sd1").save_pretrained(folder, safe_serialization=True)
    (tmp_path / "others.txt").write_text("\n".join(OTHERS))
    given = ("--prompts", tmp_path / "others.txt", "--model", folder)
    status, said, error = vit_lens("reference", *given, "--out", out)
    assert status == 0 and said.splitlines()[-1] == f"means of 4 prompts: {out}", error
    assert vl.TextMeans.load(out).content == vl.TextMeans.of(encoder(), OTHERS).content
    sweep = ("sweep", "--prompts", "a red star", "--model", folder, "--decoder", "none", "--sites", "heads")
    status, said, error = vit_lens(*sweep, "--lens", "dsl-mean:alpha=5", "--reference", out, "--out", tmp_path / "r")
    assert status == 0, error
    record = vl.Record.load(tmp_path / "r")
    assert [one.label for one in record.readings.values()] == ["DSL, mean-anchored, alpha 5"]
    assert record.table["leak"].notna().any()
    for more, message in (
        (["sweep", *sweep[1:], "--lens", "dsl-mean:alpha=5"], "dsl-mean needs means over other prompts"),
        (["reference", *given, "--positions", "all"], "--positions would have no effect on --prompts"),
        (["reference", "x.png", "--truncate"], "--truncate is for --prompts"),
    ):
        status, _, error = vit_lens(*more, "--out", tmp_path / "other.safetensors")
        assert status == 2 and message in error, (more, error)
