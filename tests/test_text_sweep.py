"""Sweeps over prompts: what is recorded, that it goes on, and that pictures are the pipeline's own where it reads."""

import functools
import json
import shutil

import numpy as np
import pytest
import tiny_pipelines
import torch

# diffusers hands torch tensors to numpy 2 in a way that it is leaving.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = ["a red star", "a blue ring and a green cross"]
SITES = ["L0.resid_pre", "L2.resid_post"]


@functools.cache
def pair(name="sd1"):
    from vit_lens.decoders import PromptEncoder, TextDecoder

    pipe = tiny_pipelines.make(name)
    length = 11 if name == "schnell" else None
    return PromptEncoder(pipe, length=length), TextDecoder(pipe)


def drawing(name="sd1", **more):
    from vit_lens import Drawing

    size = dict(height=16, width=12) if name == "schnell" else {}
    return Drawing(settings=pair(name)[1].settings(steps=1, **size), **{"batch_size": 4} | more)


def swept(out, prompts=PROMPTS, name="sd1", **options):
    import vit_lens as vl

    given = {"sites": SITES, "drawing": drawing(name)} | options
    return vl.sweep(*pair(name), prompts, out=out, **given)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """Two lenses with every control."""
    import vit_lens as vl

    kinds = ["random", "other", "shuffled", "empty"]
    return swept(tmp_path_factory.mktemp("text") / "r", controls=vl.Controls(kinds=kinds, draws=2))


def test_a_record_of_prompts(record):
    import vit_lens as vl

    table, manifest = record.table, record.manifest
    assert record.complete and len(table) == 2 * 2 * 5
    assert [(one["kind"], one["name"], one["text"]) for one in manifest["inputs"]] == [("text", p, p) for p in PROMPTS]
    assert manifest["model"]["encoder_id"] == pair()[0].encoder_id and manifest["model"]["preprocess"]["format"] == "sd"
    assert list(record.conditions) == ["lens", "clean", "negative"]
    assert table["faithfulness"].isna().all() and table["cos_input"].isna().all()
    own = table[~table["reading"].str.contains(".", regex=False)]
    assert own["cos_lens_control"].notna().all()
    read = own[own["site"] == "L2.resid_post"]
    assert (read["cos_lens_clean"] == 1).all() and (read["cos_lens_control"] < 0.5).all()
    encoder, decoder = pair()
    for row, text in zip(read["row"], PROMPTS, strict=True):
        asked = encoder.encode([text])
        assert torch.equal(record.conditions["lens"][[row]].tokens, asked.tokens)
        assert torch.equal(record.conditions["clean"][[int(table["input"][row])]].tokens, asked.tokens)
        rows = vl.Condition(tokens=record.conditions["lens"][list(range(row - row % 4, row - row % 4 + 4))].tokens)
        again = decoder.decode(rows, negative=encoder.negative(), settings=drawing().settings, batch_size=4)
        assert (np.asarray(record.picture(row)) == again[row % 4].numpy()).all()
    with pytest.raises(vl.errors.RecordError, match="input 0 is a text, which has no picture"):
        record.input(0)
    with pytest.raises(vl.errors.RecordError, match="no input 7; the record has"):
        record.entry(7)


def test_controls_say_what_stands_in(record):
    """Each is the reading of another text or of a direction; at "" the condition is that of the empty text."""
    import vit_lens as vl

    encoder, lens = pair()[0], vl.TextDiffusionLens()
    rows = record.table.set_index(["input", "reading", "site"])["row"]
    (own,) = [one.id for one in record.readings.values() if not one.control]
    assert [one.control for one in record.readings.values()] == ["", "random", "other", "shuffled", "empty"]
    for index, (text, other) in enumerate(zip(PROMPTS, PROMPTS[::-1], strict=True)):
        run = vl.TextRun.of(encoder, text)
        for control, stands_in in (("other", other), ("empty", "")):
            expected = lens.read_other(run, SITES, vl.TextRun.of(encoder, stands_in))[0]
            found = record.conditions["lens"][[rows[index, f"{own}.{control}", site] for site in SITES]]
            assert torch.equal(found.tokens, expected.tokens), control
    # After the final norm a length is forgotten, so that what stands in for the last layer is drawn as the other text.
    empty = record.conditions["lens"][[rows[0, f"{own}.empty", SITES[1]]]].tokens
    assert torch.allclose(empty, encoder.encode([""]).tokens, atol=1e-4)
    mixed = record.conditions["lens"][[rows[1, f"{own}.shuffled", SITES[0]]]].tokens
    assert (mixed - record.conditions["lens"][[rows[1, own, SITES[0]]]].tokens).abs().max() > 1e-2


def test_a_sweep_goes_on_and_its_parts_join(record, tmp_path, monkeypatch):
    """Killed, divided or undisturbed: the same bits."""
    import vit_lens as vl
    from vit_lens.sweeping import stages

    whole = swept(tmp_path / "whole")
    embed, seen = stages.embed_input, []

    def counted(kind, entry, *rest, **more):
        seen.append(entry["index"])
        if len(seen) == 2:
            raise KeyboardInterrupt
        return embed(kind, entry, *rest, **more)

    monkeypatch.setattr(stages, "embed_input", counted)
    with pytest.raises(KeyboardInterrupt):
        swept(tmp_path / "killed")
    again = swept(tmp_path / "killed")
    parts = [swept(tmp_path / f"part{i}", execution=vl.Execution(shard=(i, 2))).path for i in range(2)]
    joined = vl.records.merge(parts, tmp_path / "joined")
    for other in (again, joined):
        assert other.complete
        for name in ("table.csv", *(f"pictures/{row:06d}.png" for row in range(4))):
            assert (other.path / name).read_bytes() == (whole.path / name).read_bytes(), name
        assert torch.equal(other.conditions["lens"][:].tokens, whole.conditions["lens"][:].tokens)
    lost = tmp_path / "lost"
    shutil.copytree(whole.path, lost)
    (lost / "pictures/000001.png").unlink()
    assert not vl.Record.load(lost).complete
    assert (
        swept(lost).complete
        and (lost / "pictures/000001.png").read_bytes() == (whole.path / "pictures/000001.png").read_bytes()
    )


def test_one_noise_for_every_layer_and_every_seed_its_own(tmp_path):
    """Equal conditions are equal pictures, in rows of layers, heads and controls alike."""
    import vit_lens as vl

    lens = vl.TextSteeringLens(alpha=1)
    found = swept(tmp_path / "r", PROMPTS[:1], lens=lens, sites=["L0H0", "L1.mlp"], drawing=drawing(seeds=[0, 1]))
    pictures = [found.path.joinpath(f"pictures/{row:06d}.png").read_bytes() for row in range(4)]
    assert found.table["seed"].tolist() == [0, 0, 1, 1]
    assert pictures[0] == pictures[1] != pictures[2] == pictures[3]


def test_a_budget_orders_prompts(tmp_path):
    """It draws what it may, and the same call again goes on."""
    part = swept(tmp_path / "r", budget=2, drawing=drawing(batch_size=2))
    assert not part.complete and (part.table["drawn"] == "full").sum() == 2
    assert swept(tmp_path / "r", drawing=drawing(batch_size=2)).complete


def test_formats_of_several_encoders(tmp_path):
    """Both parts of a condition are kept, and the pooled vector is held by default."""
    found = swept(tmp_path / "r", PROMPTS[:1], name="schnell", controls=True)
    own = pair("schnell")[0].encode(PROMPTS[:1])
    lens = found.conditions["lens"][:]
    assert torch.equal(lens.pooled, own.pooled.expand(4, -1)) and torch.equal(lens.tokens[1], own.tokens[0])
    assert "negative" not in found.conditions


def test_truncation_is_recorded(tmp_path):
    import vit_lens as vl

    long = "red " * 20
    with pytest.raises(vl.errors.TextError, match="has 22 tokens, and text_encoder reads 16"):
        swept(tmp_path / "r", [long])
    with pytest.raises(vl.errors.TextError, match="has 22 tokens, and text_encoder reads 16"):
        vl.plan(*pair(), [long])
    assert not (tmp_path / "r").exists()
    found = swept(tmp_path / "r", vl.Prompts([long, "a red star"], truncate=True))
    assert [one.get("truncated") for one in found.manifest["inputs"]] == [True, None]
    assert json.loads((tmp_path / "r/record.json").read_text())["model"]["preprocess"]["truncate"] is True


def test_wrong_input(unchecked, tmp_path):
    import vit_lens as vl
    from vit_lens import errors

    encoder, decoder = pair()
    cases = [
        (errors.TextError, "no prompts given", dict(prompts=[])),
        (errors.TextError, "prompt 1 is empty; leave it out: with Controls", dict(prompts=["a", " "])),
        (errors.TextError, "is given twice", dict(prompts=["a", "a"])),
        (errors.TextError, "prompt 0 is a int; expected texts", dict(prompts=[3])),
        (errors.LensError, "DiffusionLens reads no prompts; take TextDiffusionLens", dict(lens=vl.DiffusionLens())),
        (errors.LensError, "has no setting 'nrom'; nearest: 'norm'", dict(lens="diffusion:nrom=match")),
        (errors.LensError, "give its strength as dsl:alpha=NUMBER", dict(lens="dsl")),
        (errors.LensError, "could not convert", dict(lens="dsl:alpha=loud")),
        (errors.LensError, "no encoder 't5' in format sd", dict(lens="diffusion:encoder=t5")),
        (errors.UnknownSiteError, "the model has layers L0 to L2", dict(sites="L7.resid_post")),
        (errors.LensError, "DSL, alpha 5 is not defined on L0.resid_pre", dict(lens="dsl:alpha=5")),
        (errors.VitLensError, "stand beside images; leave them out", dict(beside=vl.Beside(live=True))),
        (errors.VitLensError, "no control 'mixed'", dict(controls=lambda: vl.Controls(kinds=["mixed"]))),
        (errors.VitLensError, "needs another prompt", dict(prompts=["a"], controls=vl.Controls(kinds=["other"]))),
        (errors.VitLensError, "have no other order", dict(prompts=["a"], controls=vl.Controls(kinds=["shuffled"]))),
        (errors.LensError, "prompt 'a red star' has no position 40", dict(lens="diffusion:positions=40")),
        (errors.InterventionError, 'has no word "dog"', dict(lens='diffusion:held="dog"')),
    ]
    for error, message, options in cases:
        with pytest.raises(error, match=message):
            controls = options.pop("controls", False)
            swept(tmp_path / "r", controls=controls() if callable(controls) else controls, **options)
        assert not (tmp_path / "r").exists(), message
    with pytest.raises(errors.ContractError, match="draws format sd, and these encoders are of format flux"):
        vl.plan(pair("schnell")[0], decoder, PROMPTS)
    with pytest.raises(errors.ContractError, match="draws no text-to-image format"):
        vl.plan(encoder, vl.load_decoder("mini"), PROMPTS)
    encoder.towers["text_encoder"].add_hook("blocks.0.hook_mlp_out", lambda act, hook: act)
    try:
        with pytest.raises(errors.VitLensError, match="made of the pipeline's own text_encoder"):
            vl.plan(encoder, decoder, PROMPTS)
    finally:
        encoder.towers["text_encoder"].reset_hooks()


def test_an_encoder_of_another_width_than_the_denoiser_is_refused_before_anything_is_written(tmp_path):
    import vit_lens as vl
    from vit_lens.decoders import PromptEncoder
    from vit_lens.errors import ContractError

    pipe = tiny_pipelines.make("sd1")
    wide, tokenizer = tiny_pipelines.clip(width=40)
    pipe.register_modules(text_encoder=wide, tokenizer=tokenizer, unet=None)
    with pytest.raises(ContractError, match="40 wide, but the decoder takes 32"):
        vl.sweep(PromptEncoder(pipe), pair()[1], PROMPTS, sites=SITES, drawing=drawing(), out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


# ---- the page and the command


def data_of(page):
    import re

    text = page.read_text()
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1]), text


def test_the_page_has_prompts_as_rows(record, tmp_path):
    import vit_lens as vl

    data, text = data_of(vl.write_report(record, tmp_path / "page.html"))
    assert [image["name"] for image in data["images"]] == PROMPTS
    assert [group["control"] for group in data["groups"]] == ["", "random", "other", "shuffled", "empty"]
    assert all(uri.startswith("data:image/") for uri in data["rows"]["thumb"])
    assert data["numbers"]["cos_lens_clean"]["title"] == "Condition vs. prompt"
    assert 'id="layers"' in text and "default-src 'none'" in text
    assert "a red star" in record._repr_html_()


def test_the_command_sweeps_prompts(vit_lens, tmp_path):
    """Files of prompts and prompts themselves; a pipeline's folder is both halves."""
    from vit_lens import Record

    folder = tmp_path / "pipe"
    tiny_pipelines.make("sd1").save_pretrained(folder, safe_serialization=True)
    (tmp_path / "prompts.txt").write_text("a blue ring\na green cross\n")
    given = ["sweep", "--prompts", "a red star", "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "r"]
    few = ["--steps", "1", "--sites", "L0.resid_pre,L2.resid_post", "--controls", "--control-kind", "empty"]
    status, out, error = vit_lens(*given, "--model", folder, *few)
    assert status == 0 and "page:" in out, error
    record = Record.load(tmp_path / "r")
    names = record.table["input_name"].unique().tolist()
    assert record.complete and names == ["a red star", "a blue ring", "a green cross"]
    assert [one.control for one in record.readings.values()] == ["", "empty"] and len(record.table) == 12
    for more, message in (
        (["--model", folder, "--gallery", tmp_path, "--fast"], "--gallery, --fast would have no effect on --prompts"),
        (["--model", folder, "--decoder", "none", "--steps", "3"], "--steps would have no effect"),
        (["--model", folder, "--prompts", "none.txt"], "none.txt"),
        (["--model", folder, "--prompts", ""], "prompt 3 is empty"),
    ):
        status, _, error = vit_lens(*given[:-1], tmp_path / "other", *more)
        assert status == 2 and message in error, (more, error)
    assert vit_lens("sweep", "x.png", "--truncate")[2].count("--prompts")
    embedded = ["sweep", "--prompts", "a red star", "--out", tmp_path / "embedded", "--steps", "1"]
    assert vit_lens(*embedded)[0] == 0
    record = Record.load(tmp_path / "embedded")
    assert record.manifest["decoder"]["decoder_id"] == "vit_lens/mini-sd" and len(record.table) == 9
    page = (tmp_path / "embedded" / "report.html").read_text()
    assert "Embedded text-to-image model" in page and 'id="real-weights"' not in page


def test_prompts_stand_below_images_on_one_page(record, tmp_path):
    """Every layer of every prompt and of its controls, by row; the page of prompts is written and linked."""
    import html
    import re

    import record_factory

    import vit_lens as vl

    images = record_factory.build(tmp_path / "images").path
    shutil.copytree(record.path, images / "prompts & more")
    page = vl.write_report(images, prompts=images / "prompts & more").read_text()
    strips = page[page.index('id="sentences"') : page.index('id="live-section"')]
    rows = [html.unescape(name) for name in re.findall(r'<th scope="row">(.*?)</th>', strips)]
    assert rows == [
        name for p in PROMPTS for name in (p, *(f"control: {k}" for k in ("random", "other", "shuffled", "empty")))
    ]
    assert re.findall(r'<th scope="col">(.*?)</th>', strips) == ["embedding", "3 blocks"]
    assert strips.count('<img src="data:image/') == 20 and strips.count('title="L2.resid_post"') == 10
    assert (images / "prompts & more" / "report.html").is_file()
    assert 'href="prompts%20%26%20more/report.html"' in strips
    heads = swept(tmp_path / "heads", sites="L1H0", drawing=drawing())
    with pytest.raises(vl.errors.RecordError, match="has no layer of the residual stream; sweep its prompts at"):
        vl.write_report(images, prompts=heads)
    with pytest.raises(vl.errors.RecordError, match="is a record of prompts, and prompts= is one of prompts"):
        vl.write_report(record, prompts=record)
    with pytest.raises(vl.errors.RecordError, match="is a record of images, and prompts= is one of images"):
        vl.write_report(images, prompts=images)
