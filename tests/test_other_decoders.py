"""A decoder, a lens and settings of other kinds go everywhere that the first ones go, and nothing knows their names."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tiny_sweep
import tiny_token
import torch
from tiny_sweep import contents

ROOT = Path(__file__).parent.parent
SITES = ["L0.resid_pre", "resid_post"]


@pytest.fixture(scope="module")
def model():
    return tiny_sweep.tower()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny_sweep.pictures(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def pair(model):
    return tiny_token.make(model)


@pytest.fixture
def run(model, images, pair):
    from vit_lens import sweep

    def run(out, decoder=None, lens=None, n=2, **overrides):
        grid, patch_lens = pair
        lenses = [patch_lens(), patch_lens(gain=2.0)] if lens is None else lens
        settings = dict(lens=lenses, sites=SITES, batch_size=3, controls=False) | overrides
        return sweep(model, grid if decoder is None else decoder, images[:n], out=out, **tiny_sweep.options(**settings))

    return run


def test_a_sweep_of_tokens_is_what_lens_and_decoder_say(run, model, images, pair, tmp_path):
    """Pictures and numbers, recomputed with numpy and calls of their own."""
    grid, patch_lens = pair
    record = run(tmp_path / "out")
    assert record.complete and len(record.table) == 2 * 2 * 3
    assert [(r.label, r.settings) for r in record.readings.values()] == [
        ("PatchLens, gain 1", {"gain": 1.0}), ("PatchLens, gain 2", {"gain": 2.0})
    ]  # fmt: skip
    asked, clean = record.conditions["lens"], record.conditions["clean"]
    assert asked.tokens.shape == (12, 4, 32) and clean.tokens.shape == (2, 4, 32) and asked.pooled is None
    assert "negative" not in record.conditions
    for row in record.frame().to_dict("records"):
        _, cache = model.run_with_cache(model.preprocess([images[row["input"]]]))
        tokens = patch_lens(gain=row["gain"]).read(cache, row["site"]).tokens[0, 0]
        stored = asked.tokens[row["row"]]
        assert torch.allclose(stored, tokens, atol=1e-5)
        alone = grid.decode(asked[[row["row"]]], negative=None, settings=grid.defaults, batch_size=1)[0]
        picture = np.asarray(record.picture(row["row"]))
        assert np.array_equal(picture, alone.numpy()) and picture.shape == (16, 16, 3)
        again = grid.read(model, model.preprocess([picture])).tokens[0].double().flatten().numpy()
        for name, other in (("faithfulness", stored), ("cos_input", clean.tokens[row["input"]])):
            other = other.double().flatten().numpy()
            expected = again @ other / np.linalg.norm(again) / np.linalg.norm(other)
            assert row[name] == pytest.approx(expected, abs=1e-5)
    assert record.manifest["decoder"]["settings"] == {"contrast": 1.0}


def test_it_divides_resumes_and_merges_to_the_same_bits(run, pair, tmp_path, monkeypatch):
    from vit_lens.records import merge

    grid, _ = pair
    whole = run(tmp_path / "whole", n=1)
    parts = [run(tmp_path / f"{i}", n=1, shard=(i, 3)) for i in range(3)]
    merge([p.path for p in parts], tmp_path / "joined")
    one, other = contents(tmp_path / "whole"), contents(tmp_path / "joined")
    assert {**one, "record.json": b"", ".vit_lens.lock": b""} == {**other, "record.json": b"", ".vit_lens.lock": b""}
    original = type(grid).decode

    def killed(self, condition, **arguments):
        if len(self.calls) == n_before + 1:
            raise KeyboardInterrupt
        return original(self, condition, **arguments)

    n_before = len(grid.calls)
    monkeypatch.setattr(type(grid), "decode", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", n=1)
    monkeypatch.undo()
    run(tmp_path / "out", n=1)
    assert contents(tmp_path / "out") == contents(whole.path)


def test_a_budget_without_coarse_settings_only_orders_rows(run, tmp_path):
    record = run(tmp_path / "out", budget=3)
    drawn = record.table["drawn"].tolist()
    assert set(drawn) == {"full", ""} and not record.complete
    assert record.manifest["batch_plan"]["budget"]["coarse"] is None
    assert set(record.table.loc[record.table["drawn"] == "full", "input"]) == {0, 1}  # evenly
    assert run(tmp_path / "out").complete


def test_controls_of_tokens_are_drawn_beside_sites(model, images, pair, tmp_path):
    """On a lens that reads what is written to the stream, so that it has something to control."""
    from vit_lens import sweep

    grid, patch_lens = pair

    class Written(patch_lens):
        def reads(self, site):
            return site.kind in ("attn", "mlp")

    record = sweep(model, grid, images[:1], lens=Written(), sites=["attn", "mlp"], out=tmp_path / "out", controls=True)
    table = record.frame()
    assert table.groupby("control").size().to_dict() == {"": 4, "random": 4}
    assert table.loc[table["control"] == "", "cos_lens_control"].notna().all()
    own, control = (record.conditions["lens"].tokens[table.index[table["control"] == c]] for c in ("", "random"))
    torch.testing.assert_close(own.norm(dim=-1), control.norm(dim=-1), rtol=1e-4, atol=1e-4)
    assert (own - control).abs().max() > 0.1


def test_report_figures_and_doctor_take_them(run, model, images, pair, tmp_path):
    from vit_lens import write_report
    from vit_lens.doctor import examine

    record = run(tmp_path / "out")
    page = write_report(record).read_text()
    assert "PatchLens, gain 2" in page and "test/grid" in page
    report = examine(model, pair[0], images=images)
    rows = {check.name: check for check in report.checks}
    assert rows["decoder loads"].passed and rows["contract"].passed and rows["round trip"].passed is not None
    assert "stock pipeline" not in rows and report.command == "" and "called from Python" in report.to_text()
    expected = torch.nn.functional.cosine_similarity(
        *(torch.cat([found.tokens.flatten(1)]) for found in _round_trip(model, pair[0], images)), dim=-1
    )
    assert rows["round trip"].values["matched"] == pytest.approx(float(expected.mean()), abs=1e-5)


def test_doctor_finds_a_decoder_whose_pictures_follow_their_place(model, images):
    from vit_lens.doctor import examine

    def rows(decoder):
        return {check.name: check for check in examine(model, decoder, images=images).checks}["rows"]

    grid, _ = tiny_token.make(model)
    sound, decode = rows(grid), grid.decode
    assert sound.passed and sound.values["same row"] == 0 < sound.values["other row"]
    grid.decode = lambda condition, **options: decode(condition, **options).roll(1, 0)
    assert rows(grid).passed is False


def _round_trip(model, grid, images):
    with torch.no_grad():
        asked = grid.read(model, model.preprocess(images))
        drawn = grid.decode(asked, negative=None, settings=grid.defaults, batch_size=len(images))
        return asked, grid.read(model, model.preprocess(list(drawn.numpy())))


def test_the_plan_says_what_it_cannot_know(model, images, pair):
    from vit_lens import plan

    grid, patch_lens = pair
    said = str(plan(model, grid, images, lens=patch_lens(), sites=SITES))
    assert "rows: 9" in said and "not known: the decoder does not say what it costs" in said


# ---- studies


@pytest.fixture(scope="module")
def study(model, pair, tmp_path_factory):
    from vit_lens.studies import Judge, make_setup
    from vit_lens.studies.content.mini_set import pair_images, study_pairs

    judge = tiny_sweep.tower()
    judge = type(judge)(judge.cfg, preprocess_spec=judge.preprocess_spec, encoder_id="test/judge")
    from conftest import randomize

    randomize(judge, seed=5)
    grid, patch_lens = pair
    pairs = study_pairs(4, seed=0)
    words = torch.randn(len(pairs.captions), 32, generator=torch.Generator().manual_seed(1))

    def bank(encoder):
        from vit_lens import TextBank

        return TextBank(
            encoder_id=encoder.encoder_id, captions=tuple(pairs.captions), embeds=words, logit_scale=10.0,
            logit_bias=None,
        )  # fmt: skip

    setup = make_setup(
        model, pair_images(pairs, seed=0), lenses=[patch_lens(), patch_lens(gain=3.0)], decoder=grid,
        judge=Judge(judge.requires_grad_(False), bank(judge)), out=tmp_path_factory.mktemp("study"), batch_size=16,
        noise_seeds=(0,),
    )  # fmt: skip
    return setup, pairs, bank(model)


def test_faithfulness_accepts_tokens(study):
    from vit_lens.studies import faithfulness_study

    setup, _, _ = study
    result = faithfulness_study(setup, sites=["resid_pre", "resid_post"], n_shuffles=5)
    found = result.score("faithfulness", "PatchLens, gain 1", "decoded")
    assert found.n == len(setup.pixels) and -1 <= found.estimate.value <= 1
    assert result.setup["settings"] == {"contrast": 1.0}


def test_content_accepts_tokens(study):
    from vit_lens.studies import content_study

    setup, pairs, texts = study
    result = content_study(
        setup, pairs, texts, sites=["L0.resid_post", "L1.resid_pre", "L1.resid_post"], n_decoded=2, n_largest=2,
        n_random=1, top=2, n_placebo=2, n_shuffles=5, decoded=["PatchLens, gain 1"],
    )  # fmt: skip
    levels = {(score.reading, score.level) for score in result.scores}
    assert ("PatchLens, gain 1", "decoded") in levels and ("PatchLens, gain 3", "embedding") in levels


@pytest.mark.parametrize("name", ["importance", "overlay", "planted"])
def test_studies_of_pooled_embeddings_say_so(study, name):
    from vit_lens import studies
    from vit_lens.errors import StudyError

    setup, _, texts = study
    calls = {
        "importance": lambda: studies.importance_study(setup),
        "overlay": lambda: studies.overlay_study(setup, []),
        "planted": lambda: studies.planted_study(setup, texts, []),
    }
    with pytest.raises(
        StudyError, match=rf"study {name}: pooled embeddings alone are read, and lens PatchLens, gain 1 reads"
    ):
        calls[name]()


def test_the_papers_figures_say_so(model, images, pair, tmp_path):
    from vit_lens.errors import StudyError
    from vit_lens.studies.paper import make_paper

    many = [np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8) for i in range(8)]
    with pytest.raises(
        StudyError, match=r"the paper's figures: pooled embeddings alone are read, and decoder test/grid takes"
    ):
        make_paper(model, pair[0], many, out=tmp_path)


# ---- a user's own lens on the decoder that ships


@dataclass(frozen=True)
class _Settings:
    k: int


def _own_lens(k, hidden=False):
    from vit_lens import Condition, Lens

    class MyLens(Lens):
        """Amplifies what a head writes, in my way."""

        def __init__(self, k):
            if hidden:
                self._k = k
            else:
                self.k = k

        def reads(self, site):
            return site.head is not None

        def read(self, cache, sites):
            from vit_lens.lenses.residual import site_outputs

            own, strength = self.check_sites(cache.model, sites), self._k if hidden else self.k
            return Condition(pooled=cache.model.streams[0].read(strength * site_outputs(cache, own)))

    return MyLens(k)


def test_two_of_a_users_lenses_stay_apart(model, images, tmp_path):
    from vit_lens import sweep
    from vit_lens.records import over_seeds, select

    record = sweep(model, tiny_sweep.decoder(), images[:1], lens=[_own_lens(1), _own_lens(50)], sites="heads",
                   out=tmp_path / "out")  # fmt: skip
    assert [r.label for r in record.readings.values()] == ["MyLens, k 1", "MyLens, k 50"]
    assert [r.words for r in record.readings.values()] == ["Amplifies what a head writes, in my way."] * 2
    assert len(over_seeds(record.table)) == 12
    first, second = (select(record, lens=f"MyLens, k {k}") for k in (1, 50))
    assert set(first["reading"]) != set(second["reading"]) and len(first) == len(second) == 6
    assert not torch.equal(record.embeddings["lens"][first.index], record.embeddings["lens"][second.index])


def test_two_lenses_that_say_the_same_of_themselves_are_refused(model, images, tmp_path):
    from vit_lens import sweep
    from vit_lens.errors import LensError

    with pytest.raises(LensError, match=r"two lenses say the same of themselves: MyLens.*let settings\(\) tell them"):
        sweep(model, None, images[:1], lens=[_own_lens(1, True), _own_lens(2, True)], sites="heads", out=tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_lens_without_a_control_is_told_where_controls_are_asked_for(model, images, tmp_path):
    from vit_lens import sweep
    from vit_lens.errors import LensError

    with pytest.raises(LensError, match=r"MyLens, k 1 has no control: give it read_control.*or sweep without controls"):
        sweep(model, None, images[:1], lens=_own_lens(1), sites="heads", out=tmp_path / "out", controls=True)
    record = sweep(model, None, images[:1], lens=_own_lens(1), sites="heads", out=tmp_path / "out")
    assert record.table["cos_lens_control"].isna().all()


# ---- what does not keep the contract


def test_lens_and_decoder_of_different_parts_are_told_before_anything_runs(model, images, pair, tmp_path):
    from vit_lens import DiffusionLens, sweep
    from vit_lens.errors import ContractError

    grid, patch_lens = pair
    with pytest.raises(ContractError, match=r"test/grid takes tokens, lens Diffusion Lens reads pooled"):
        sweep(model, grid, images[:1], lens=DiffusionLens(), sites=SITES, out=tmp_path / "out")
    with pytest.raises(ContractError, match=r"takes pooled, lens PatchLens, gain 1 reads tokens"):
        sweep(model, tiny_sweep.decoder(), images[:1], lens=patch_lens(), sites=SITES, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_seeds_of_a_decoder_without_noise_are_refused(run, tmp_path):
    from vit_lens.errors import VitLensError

    with pytest.raises(VitLensError, match=r"seeds=\[0, 1\]: decoder test/grid draws no noise"):
        run(tmp_path / "out", seeds=[0, 1])


BROKEN = """
import sys; sys.path.insert(0, "tests")
import torch, tiny_sweep, tiny_token, tempfile, pathlib
import vit_lens as vl
from vit_lens.errors import VitLensError
model = tiny_sweep.tower()
images = tiny_sweep.pictures(pathlib.Path(tempfile.mkdtemp()))[:1]
Grid, Patch = tiny_token.make(model)
Grid = type(Grid)

class Duck:  # has every attribute, and is none
    decoder_id, encoder_id, takes, defaults, fingerprint = "duck", None, {"tokens": 32}, Grid.defaults, "x"
    def decode(self, condition, **arguments): ...

class NoTakes(Grid):
    def __init__(self): super().__init__(); self.takes = {}
class Floats(Grid):
    def decode(self, condition, **arguments): return torch.zeros(len(condition), 3, 8, 8)
class TooFew(Grid):
    def decode(self, condition, **arguments): return super().decode(condition, **arguments)[:1]
class NoSettings(Grid): defaults = {"contrast": 1}
class ReadsEmbeddings(Grid):
    def read(self, model, pixels): return vl.Condition(pooled=model(pixels))
class Rude(Patch):
    def read(self, cache, sites): return super().read(cache, sites).tokens
class Pooled(Patch):
    def read(self, cache, sites): return vl.Condition(pooled=super().read(cache, sites).vector)
class Short(Patch):
    def read(self, cache, sites): return super().read(cache, sites)[:, :1]
class Odd(Patch):
    def settings(self): return {"f": lambda: 0}

cases = [(Duck(), Patch()), (NoTakes(), Patch()), (Floats(), Patch()), (TooFew(), Patch()), (NoSettings(), Patch()),
         (ReadsEmbeddings(), Patch()), (Grid(), Rude()), (Grid(), Pooled()), (Grid(), Short()), (Grid(), object())]
for decoder, lens in cases:
    try:
        vl.sweep(model, decoder, images, lens=lens, sites=["resid_post"], out=tempfile.mkdtemp() + "/out")
        print("nothing was said of", decoder, lens)
    except VitLensError as error:
        print(type(error).__name__, str(error).replace("\\n", " "))
try:
    vl.Decoder()
except TypeError as error:
    print("TypeError", error)
"""
SAID = [
    "ContractError Duck is not a decoder: subclass vit_lens.Decoder, which asks for decoder_id, takes, defaults",
    "ContractError NoTakes.takes is {}; expected widths of 'pooled', 'tokens' or both",
    "ContractError decoder test/grid drew torch.float32 [16, 3, 8, 8] for 16 rows; expected torch.uint8 [16, height",
    "ContractError decoder test/grid drew torch.uint8 [1, 16, 16, 3] for 16 rows; expected",
    "ContractError NoSettings.defaults is {'contrast': 1}; expected a frozen dataclass",
    "ContractError the decoder reads pooled [32] of a picture, and the lens tokens [4, 32] of an input",
    "LensError Rude read a Tensor; a lens returns a vit_lens.Condition",
    "LensError Pooled says that it reads tokens, and read pooled [32]: it lacks tokens",
    "LensError Short read rows [1, 1] of 1 images and 2 sites; expected [1, 2]",
    "LensError lens=<object object at",
    "TypeError Can't instantiate abstract class Decoder with",
]


def test_a_directory_of_other_files_is_loaded_by_name(model, pair, tmp_path, monkeypatch):
    """The index says which class reads the rest; nothing else about the directory is assumed."""
    import json

    from safetensors.torch import load_file, save_file

    from vit_lens.decoders import by_name, load_decoder, reads_layout

    monkeypatch.setattr(by_name, "_BY_PIPELINE", dict(by_name._BY_PIPELINE))
    grid, _ = pair

    @reads_layout("GridPipeline")
    class Saved(type(grid)):
        @classmethod
        def from_pretrained(cls, name, *, encoder, dtype, device):
            made = cls()
            made.paint.load_state_dict(load_file(Path(name) / "paint.safetensors"))
            return made

    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "GridPipeline"}))
    changed = {name: 2 * weight for name, weight in grid.paint.state_dict().items()}
    save_file(changed, tmp_path / "paint.safetensors")
    loaded = load_decoder(tmp_path)
    assert isinstance(loaded, Saved) and torch.equal(loaded.paint.weight, changed["weight"])
    assert load_decoder("mini").takes.keys() == {"pooled"}


def test_what_does_not_keep_the_contract_is_told_in_a_line():
    """As users call it, without the type checks of this suite."""
    done = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True, cwd=ROOT)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == len(SAID), done.stdout + done.stderr
    for line, said in zip(lines, SAID, strict=True):
        assert line.startswith(said), (line, said)


def test_nothing_else_knows_the_decoder_that_ships():
    """Only its own room, its checks in the doctor, and the embedded pair's evaluation name it."""
    named = [
        str(path.relative_to(ROOT / "vit_lens"))
        for path in sorted((ROOT / "vit_lens").rglob("*.py"))
        if "KandinskyDecoder" in path.read_text()
    ]
    assert {Path(name).parts[0] for name in named} == {"__init__.py", "decoders", "doctor", "mini"}
    assert not [name for name in named if "sweep" in name or "records" in name or "studies" in name]
