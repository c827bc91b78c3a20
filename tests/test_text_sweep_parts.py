"""Sweeps over prompts, the rest: few sites held at once, legacy noise, and probes beside the pictures."""

import functools
import gc
import json
import re

import numpy as np
import pytest
import tiny_pipelines
import torch
from test_report import browser, needs_browser  # noqa: F401
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

# diffusers hands torch tensors to numpy 2 in a way that it is leaving.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = ["a red star", "a blue ring and a green cross"]


@functools.cache
def pair(name="sd1"):
    from vit_lens.decoders import PromptEncoder, TextDecoder

    pipe = tiny_pipelines.make(name)
    return PromptEncoder(pipe), TextDecoder(pipe)


# ---- few sites at once


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside hold at once, garbage left out."""

    def __init__(self):
        super().__init__()
        self.peak, self._alive = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, torch.Tensor):
                storage = each.untyped_storage()
                self._alive.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        if self._held() > 1.02 * self.peak:  # so that little is looked through in vain
            gc.collect()
            self.peak = max(self.peak, self._held())
        return out

    def _held(self):
        self._alive = {key: one for key, one in self._alive.items() if not one[0].expired()}
        return sum(size for _, size in self._alive.values())


def peak_of(out, sites, controls):
    import vit_lens as vl

    encoder, _ = pair("if")
    means = vl.TextMeans.of(encoder, ["two small star", "a big green cross and a ring", "a star left of a ring"])
    given = {"lens": "dsl-mean:alpha=5", "reference": means, "sites": sites, "controls": controls}
    gc.collect()
    gc.freeze()
    with Peak() as seen:
        record = vl.sweep(encoder, None, PROMPTS[:1], out=out, **given)
    gc.unfreeze()
    return seen.peak, record


def test_heads_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    """Of many heads no more is held than of few, at the same bits as all at once; a T5-XXL's are 13 GB of a prompt."""
    import vit_lens as vl
    from vit_lens.records import row_files
    from vit_lens.sweeping import text_inputs

    controls = vl.Controls(kinds=["random"], draws=2)
    few, many = [f"L0H{head}" for head in range(4)], "heads"
    _, whole = peak_of(tmp_path / "whole", many, controls)
    one = 77 * 32
    monkeypatch.setattr(text_inputs, "_NUMBERS_AT_ONCE", 2 * one)
    monkeypatch.setattr(row_files, "_HELD_BYTES", 4 * 4 * one)
    monkeypatch.setattr(row_files, "_PART_BYTES", 2 * 4 * one)
    small, _ = peak_of(tmp_path / "few", few, controls)
    large, parts = peak_of(tmp_path / "many", many, controls)
    assert len(parts.table) == 24 and len(list(tmp_path.glob("many/embeddings/lens/*"))) == 12
    assert large - small < 4 * 4 * one  # as much as may wait to be written; sixteen rows more are 16 * 4 * one
    assert (parts.path / "table.csv").read_bytes() == (whole.path / "table.csv").read_bytes()
    assert torch.equal(parts.conditions["lens"][:].tokens, whole.conditions["lens"][:].tokens)
    assert whole.table["leak"].notna().any() and whole.table["cos_lens_control"].notna().sum() == 12


def test_a_sweep_in_portions_draws_and_goes_on(tmp_path, monkeypatch):
    """Conditions that left memory are read again for drawing; killed in the middle of an input, it ends the same."""
    import vit_lens as vl
    from vit_lens.records import row_files
    from vit_lens.sweeping import ledger, text_inputs

    encoder, decoder = pair()
    given = {"sites": "heads", "controls": vl.Controls(kinds=["shuffled", "empty"])}
    given["drawing"] = vl.Drawing(settings=decoder.settings(steps=1), batch_size=5)
    whole = vl.sweep(encoder, decoder, PROMPTS, out=tmp_path / "whole", **given)
    one = 16 * 32
    monkeypatch.setattr(text_inputs, "_NUMBERS_AT_ONCE", 3 * one)
    monkeypatch.setattr(row_files, "_HELD_BYTES", 4 * 4 * one)
    monkeypatch.setattr(row_files, "_PART_BYTES", 2 * 4 * one)
    keep, kept = ledger.Ledger._keep_part, []

    def killed(self, seen, found, places):
        kept.append(found.start)
        if len(kept) == 17:
            raise KeyboardInterrupt
        keep(self, seen, found, places)

    monkeypatch.setattr(ledger.Ledger, "_keep_part", killed)
    with pytest.raises(KeyboardInterrupt):
        vl.sweep(encoder, decoder, PROMPTS, out=tmp_path / "parts", **given)
    assert kept[:13] == [*range(0, 36, 3), 0]
    again = vl.sweep(encoder, decoder, PROMPTS, out=tmp_path / "parts", **given)
    assert again.complete and len(again.table) == 72
    for name in ("table.csv", *(f"pictures/{row:06d}.png" for row in range(72))):
        assert (again.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    assert torch.equal(again.conditions["lens"][:].tokens, whole.conditions["lens"][:].tokens)


# ---- legacy noise


def test_legacy_noise_is_consumed_site_after_site(tmp_path):
    """For each prompt and reading one generator, several pictures of a site; parts of a sweep agree, and it goes on."""
    import vit_lens as vl
    from vit_lens import errors

    encoder, decoder = pair()
    settings = decoder.settings(steps=1, seed=42)
    drawing = vl.Drawing(settings=settings, noise="legacy", seeds=[0, 1, 2])
    given = {"sites": ["L0.resid_pre", "resid_post"], "drawing": drawing, "controls": vl.Controls(kinds=["empty"])}
    record = vl.sweep(encoder, decoder, PROMPTS, out=tmp_path / "r", **given)
    assert record.manifest["batch_plan"]["noise"] == "legacy" and record.manifest["decoder"]["settings"]["seed"] == 42
    table = record.table
    assert len(table) == 2 * 3 * 8 and sorted(table["seed"].unique()) == [0, 1, 2]
    for index in range(2):
        for reading in record.readings:
            rows = table[(table["input"] == index) & (table["reading"] == reading)]
            rows = rows.sort_values("layer", key=lambda layer: layer, kind="stable")
            rows = [row for site in dict.fromkeys(rows["site"]) for row in rows["row"][rows["site"] == site]]
            rows = sorted(rows, key=lambda row: (list(dict.fromkeys(table["site"])).index(table["site"][row]), row))
            asked = record.conditions["lens"][rows]
            expected = decoder.decode(
                asked, negative=encoder.negative(), settings=settings, batch_size=3, noise="legacy"
            )  # fmt: skip
            for row, picture in zip(rows, expected, strict=True):
                assert (np.asarray(record.picture(row)) == picture.numpy()).all(), (index, reading, row)
    same = [np.asarray(record.picture(row)) for row in table["row"][table["site"] == "L2.resid_post"][:2]]
    assert (same[0] != same[1]).any()
    parts = [
        vl.sweep(encoder, decoder, PROMPTS, out=tmp_path / f"p{i}", execution=vl.Execution(shard=(i, 2)), **given).path
        for i in range(2)
    ]
    joined = vl.records.merge(parts, tmp_path / "joined")
    (record.path / "pictures/000005.png").unlink()
    again = vl.sweep(encoder, decoder, PROMPTS, out=tmp_path / "r", **given)
    for row in range(48):
        name = f"pictures/{row:06d}.png"
        assert (joined.path / name).read_bytes() == (again.path / name).read_bytes(), row
    with pytest.raises(errors.RecordError, match="holds another sweep"):
        shared = vl.Drawing(settings=settings, seeds=[0, 1, 2])
        vl.sweep(encoder, decoder, PROMPTS, out=tmp_path / "r", **given | {"drawing": shared})
    assert "noise is another in every column" in vl.write_report(again).read_text()


def test_wrong_legacy_noise(unchecked):
    import vit_lens as vl

    encoder, decoder = pair()
    legacy = vl.Drawing(noise="legacy")
    assert vl.plan(encoder, decoder, PROMPTS, drawing=legacy).seeds == [0, 1, 2, 3]
    model, mini = vl.HookedViT.from_pretrained("mini"), vl.load_decoder("mini")
    for message, make in (
        ("noise='old'; expected 'shared' or 'legacy'", lambda: vl.Drawing(noise="old")),
        ("leave batch_size out", lambda: vl.Drawing(noise="legacy", batch_size=4)),
        ("number the pictures of a site: give range", lambda: vl.Drawing(noise="legacy", seeds=[1, 2])),
        ("a budget draws them in another order", lambda: vl.plan(encoder, decoder, PROMPTS, drawing=legacy, budget=3)),
        ("noise=, labels= and budget= would have no", lambda: vl.plan(encoder, None, PROMPTS, drawing=legacy)),
        (
            "is that of a TextDecoder; vit_lens/mini draws",
            lambda: vl.plan(model, mini, np.zeros((64, 64, 3), np.uint8), drawing=legacy),
        ),
    ):
        with pytest.raises(vl.VitLensError, match=message):
            make()


# ---- probes

TOLD = [
    f"a {colour} {shape}" for colour in ("red", "blue", "green", "big", "small") for shape in ("star", "ring", "cross")
]


@functools.cache
def probe(name="sd1", **how):
    import vit_lens as vl

    return vl.readers.TextProbe.fit(pair(name)[0], TOLD, [text.split()[-1] for text in TOLD], **how)


@pytest.mark.parametrize("name", ["sd1", "if"])
def test_a_probe_is_the_solution_of_its_problem(name):
    """Where the gradient of the penalised likelihood is zero, for every site; scores are its probabilities."""
    import vit_lens as vl

    found, text = probe(name), pair(name)[0]
    assert found.answers == ("cross", "ring", "star") and str(found.sites[0]) == "L0.resid_pre"
    runs = [vl.TextRun.of(text, one) for one in TOLD]
    target = torch.tensor([found.answers.index(one.split()[-1]) for one in TOLD])
    for place, site in enumerate(found.sites):
        layer = place  # how many blocks have run
        x = torch.stack([
            run.residual("text_encoder", layer)[0, int(run.tower("text_encoder").ends(run.ids["text_encoder"])[0])]
            for run in runs
        ]).double()  # fmt: skip
        spread = x.std(0, correction=0)
        z = torch.where(spread > 1e-9 * x.abs().max(), (x - x.mean(0)) / spread, torch.zeros_like(x))
        weight = found.weight[place].double() * torch.where(spread > 1e-9 * x.abs().max(), spread, 0.0)
        scores = torch.cat([found.scores(run, site) for run in runs])
        by_hand = (x @ found.weight[place].T + found.bias[place]).softmax(-1)
        assert torch.allclose(scores, by_hand, atol=1e-9) and torch.allclose(scores.sum(-1), torch.ones(15).double())
        wrong = scores - torch.nn.functional.one_hot(target, 3)
        assert (wrong.T @ z + weight).abs().max() < 1e-5 and wrong.sum(0).abs().max() < 1e-5
    assert found.accuracy(text, TOLD, [one.split()[-1] for one in TOLD])["L2.resid_post"] == 1.0
    held = found.accuracy(text, ["two star", "left of a ring"], ["star", "ring"])
    assert set(held) == {str(site) for site in found.sites} and all(0 <= share <= 1 for share in held.values())


def test_probes_stand_beside_pictures(tmp_path):
    """Kept by row, for what the encoder itself has: no control has an answer. They join, and the page shows them."""
    import vit_lens as vl

    encoder, decoder = pair()
    beside = vl.Beside(probes={"shape": probe(), "word": probe(position="2", sites=("L1.resid_post", "L0H1"))})
    given = {
        "beside": beside,
        "sites": ["L0.resid_pre", "resid_post", "L0H1"],
        "controls": vl.Controls(kinds=["empty"]),
    }
    given["drawing"] = vl.Drawing(settings=decoder.settings(steps=1), batch_size=4)
    record = vl.sweep(encoder, decoder, PROMPTS, out=tmp_path / "r", **given)
    said = record.manifest["beside"]["probes"]
    assert said["shape"] == {"answers": ["cross", "ring", "star"], "content": probe().content}
    for row, index, site, reading in record.table[["row", "input", "site", "reading"]].itertuples(index=False):
        answers = record.readouts.of(row)["probes"]
        run = vl.TextRun.of(encoder, PROMPTS[index])
        for name, one in beside.probes.items():
            own = not record.readings[reading].control and one.reads(vl.Site.parse(site))
            assert len(answers[name]) == (3 if own else 0), (row, name)
            if own:
                scores = one.scores(run, vl.Site.parse(site))[0]
                best = scores.sort(descending=True, stable=True).indices.tolist()
                assert [one.answers.index(answer["answer"]) for answer in answers[name]] == best
                assert answers[name][0]["probability"] == pytest.approx(scores.max().item(), abs=1e-6)
    parts = [
        vl.sweep(encoder, decoder, PROMPTS, out=tmp_path / f"p{i}", execution=vl.Execution(shard=(i, 2)), **given).path
        for i in range(2)
    ]
    joined = vl.records.merge(parts, tmp_path / "joined")
    for name in beside.probes:
        for part in ("index", "cosine"):
            both = [getattr(one.readouts.by_probe[name], part) for one in (joined, record)]
            assert torch.equal(both[0].nan_to_num(-1), both[1].nan_to_num(-1))
    text = vl.write_report(record).read_text()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])
    assert data["beside"]["probes"]["shape"]["k"] == 3 and data["beside"]["answers"]["word"] == [
        "cross",
        "ring",
        "star",
    ]


@needs_browser
def test_the_page_shows_what_probes_read(browser, tmp_path):  # noqa: F811
    """In the cell of a layer the best answer, with all of them below; nothing at sites that no probe reads."""
    import vit_lens as vl

    given = {"beside": vl.Beside(probes={"shape": probe()}), "sites": ["L0.resid_pre", "resid_post", "mlp"]}
    record = vl.sweep(pair()[0], None, PROMPTS[:1], out=tmp_path / "r", **given)
    browser.get(vl.write_report(record).as_uri())
    said = [record.readouts.of(row)["probes"]["shape"] for row in range(len(record.table))]
    best = [f"{found[0]['answer']} {found[0]['probability']:.2f}" for found in said if found]

    def texts(selector):
        return browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", selector
        )

    assert len(best) == 4 and texts(".cell .probe") == best
    browser.execute_script("document.querySelector('.cell[data-row=\"1\"]').click()")
    every = ", ".join(f"{one['answer']} {one['probability']:.2f}" for one in said[1])
    assert texts("#sites figure[data-row='1'] .probe") == [f"shape: {every}"]
    assert len(texts("#sites figure")) == 2 and len(texts("#sites .probe")) == 1
    assert browser.get_log("browser") == []


def test_random_weights_are_told(tmp_path):
    """Where every norm is as it was made, nothing was trained; weights of which nothing is known are not told so."""
    import vit_lens as vl
    from vit_lens.decoders import PromptEncoder

    pipe = tiny_pipelines.make("sd1")
    for number, told in enumerate(("real weights: not yet run", "random weights: nothing here was trained")):
        record = vl.sweep(PromptEncoder(pipe), None, PROMPTS[:1], sites="L0.mlp", out=tmp_path / str(number))
        assert told in " ".join(vl.write_report(record).read_text().split())
        assert record.manifest["model"].get("untrained", False) == bool(number)
        for name, gain in pipe.text_encoder.named_parameters():
            if "norm" in name and name.endswith("weight"):
                torch.nn.init.ones_(gain)
    assert "untrained" not in pair()[1].identity()


class Length:
    """A probe of anybody's: whether a state is long."""

    answers, encoder, content = ("long", "short"), "text_encoder", "by length"

    def reads(self, site):
        return site.kind == "resid_post"

    def scores(self, run, site):
        length = run.residual("text_encoder", site.layer + 1)[:, -1].norm(dim=-1)
        return torch.stack([length / (1 + length), 1 / (1 + length)], -1)


def test_any_object_with_the_names_of_a_probe_will_do(tmp_path):
    import vit_lens as vl

    encoder, _ = pair()
    record = vl.sweep(encoder, None, PROMPTS, beside=vl.Beside(probes={"size": Length()}), out=tmp_path / "r")
    assert record.manifest["beside"]["probes"]["size"]["content"] == "by length"
    found = record.readouts.by_probe["size"]
    assert found.index[:4].tolist()[0] == [-1, -1] and found.cosine[1:4].sum(-1).tolist() == pytest.approx([1, 1, 1])


def test_wrong_probes(tmp_path, unchecked):
    import vit_lens as vl
    from vit_lens import errors
    from vit_lens.readers import TextProbe

    encoder, labels = pair()[0], ["star"] * 15
    run = vl.TextRun.of(encoder, "a red star")
    model = vl.HookedViT.from_pretrained("mini")
    cases = [
        (errors.TextError, "15 labels with 1 different answers", lambda: TextProbe.fit(encoder, TOLD, labels)),
        (errors.TextError, "has two answers, 'x' and 'y'", lambda: TextProbe.fit(encoder, ["a star"] * 2, "xy")),
        (errors.TextError, "2 labels with 2 different answers", lambda: TextProbe.fit(encoder, TOLD, ["a", "b"])),
        (errors.LensError, "penalty=0; expected more than 0", lambda: TextProbe.fit(encoder, TOLD, TOLD, penalty=0)),
        (errors.LensError, "no encoder 't5'", lambda: TextProbe.fit(encoder, TOLD, TOLD, encoder="t5")),
        (errors.InterventionError, 'no word "dog"', lambda: TextProbe.fit(encoder, TOLD, TOLD, position='"dog"')),
        (errors.LensError, "no probe was fitted at L0H1", lambda: probe().scores(run, vl.Site.parse("L0H1"))),
        (errors.ReferenceMismatchError, "this probe was fitted to", lambda: probe().check(pair("sd2")[0])),
        (errors.ReferenceMismatchError, "this probe was fitted to", lambda: vl.plan(
            pair("sd2")[0], None, PROMPTS, beside=vl.Beside(probes={"shape": probe()}))),
        (errors.VitLensError, "answers at none of the 3 sites", lambda: vl.plan(
            encoder, None, PROMPTS, sites="attn", beside=vl.Beside(probes={"shape": probe()}))),
        (errors.VitLensError, "probes= answer for prompts", lambda: vl.plan(
            model, None, np.zeros((64, 64, 3), np.uint8), beside=vl.Beside(probes={"shape": probe()}))),
        (errors.VitLensError, "probe 'shape' is of type .*; expected", lambda: vl.Beside(probes={"shape": len})),
        (errors.LensError, "no probe at", lambda: TextProbe.load(tmp_path / "none.safetensors")),
    ]  # fmt: skip
    for error, message, make in cases:
        with pytest.raises(error, match=message):
            make()


def test_the_command_takes_probes_and_legacy_noise(vit_lens, tmp_path):
    import vit_lens as vl

    folder = tmp_path / "pipe"
    tiny_pipelines.make("sd1").save_pretrained(folder, safe_serialization=True)
    probe().save(tmp_path / "shape.safetensors")
    given = ["sweep", "--prompts", "a red star", "--model", folder, "--steps", "1", "--out", tmp_path / "r"]
    more = ["--probe", tmp_path / "shape.safetensors", "--noise", "legacy", "--decoder-seed", "42"]
    status, _, error = vit_lens(*given, *more)
    assert status == 0, error
    record = vl.Record.load(tmp_path / "r")
    assert list(record.readouts.answers) == ["shape"] and len(record.table) == 4 * 4
    assert record.manifest["decoder"]["settings"]["seed"] == 42
    for more, message in (
        (["--noise", "legacy", "--decoder-seed", "1", "--decoder-seed", "2"], "this command takes one"),
        (["--noise", "legacy", "--decoder", "none"], "--noise would have no effect"),
        (["--probe", tmp_path / "none.safetensors"], "no probe at"),
        (["--probe", tmp_path / "a/x.safetensors", "--probe", tmp_path / "b/x.safetensors"], "different names"),
    ):
        status, _, error = vit_lens(*given[:5], "--out", tmp_path / "other", *more)
        assert status == 2 and message in error, (more, error)
    assert "for --prompts" in vit_lens("sweep", "x.png", "--noise", "legacy")[2]
