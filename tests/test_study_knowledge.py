"""Study knowledge: effects of layers against loops by hand, planted tables, rare against common, and end to end."""

import copy

import numpy as np
import pytest
import text_towers
import torch
from conftest import randomize

from vit_lens.errors import StudyError
from vit_lens.mini.still_life import Lexicon
from vit_lens.studies.asked import Asked, ask_of_world
from vit_lens.studies.layer_answers import LayerAnswers
from vit_lens.studies.layer_statistics import half_rise

EXACT = dict(atol=1e-9, rtol=0)
PROMPTS = ("a red star", "a star blue", "a blue red", "a red of star", "a of star star", "a star of red", "a of, of of")
IN_ONE_ORDER = ("a red star", "a star of", "a blue blue", "a of star star", "a of blue star", "a star red red", "a")
MEANINGS = (0, 1, 0, 3, 4, 3, 6)  # the first and third mean the same, and so do the fourth and sixth


def hooked(kind, prompts=PROMPTS, **changes):
    """A small text tower in float64 and its prompts, filled up to 19 tokens or as many as T5 is given."""
    from vit_lens import HookedTextEncoder

    if kind == "clip":
        source, tokenizer = text_towers.clip_text(randomize, **changes), text_towers.clip_tokenizer()
    else:
        source, tokenizer = text_towers.t5_encoder(randomize, gated=True, **changes), text_towers.t5_tokenizer()
    tower = HookedTextEncoder.from_module(source, tokenizer=tokenizer).requires_grad_(False)
    return tower, tower.to_tokens(list(prompts), pad_to=11)


def runs_of(kind, *, read=None, norm=True, masked=False, **changes):
    from vit_lens.studies.knowledge.name_runs import NameRuns

    tower, ids = hooked(kind, **changes)
    return NameRuns.of(
        tower, ids, meanings=MEANINGS, generator=np.random.default_rng(3), read=read, norm=norm,
        mask=tower.attention_mask(ids).long() if masked else None,
    )  # fmt: skip


# ---- which prompts, and where


def test_names_are_where_prompts_of_one_length_differ_and_partners_mean_something_else():
    runs = runs_of("clip")
    assert runs.kept == tuple(range(6))  # "of, of of" is longer than all others
    ends = runs.tower.ends(runs.ids).tolist()
    for i, j in enumerate(runs.other.tolist()):
        assert ends[i] == ends[j] and MEANINGS[i] != MEANINGS[j]
        assert runs.end[i].nonzero()[:, 0].tolist() == list(range(ends[i], 11))
    words = {4: [2, 3], 5: [2, 3, 4]}  # behind the start and "a"
    assert [one.nonzero()[:, 0].tolist() for one in runs.name] == [words[end] for end in ends]


def test_a_name_reaches_from_the_first_to_the_last_difference():
    """What two names share within is theirs; what all of them share at a rim tells nothing."""
    from vit_lens.studies.knowledge.name_runs import NameRuns

    tower, _ = hooked("clip")
    ids = tower.to_tokens(["a red of star", "a star of blue", "a red of red"])
    runs = NameRuns.of(tower, ids, meanings="abc", generator=np.random.default_rng(0))
    assert runs.name.nonzero()[:, 1].tolist() == [2, 3, 4] * 3
    ids = tower.to_tokens(["a red of star", "a red of blue"])
    runs = NameRuns.of(tower, ids, meanings="ab", generator=np.random.default_rng(0))
    assert runs.name.nonzero()[:, 1].tolist() == [4, 4]
    with pytest.raises(StudyError, match="no two of these names"):
        NameRuns.of(tower, ids, meanings="aa", generator=np.random.default_rng(0))


# ---- effects, one name at a time


class ByHand:
    """The same effects, by runs of single prompts, each hooked at positions that are counted out."""

    def __init__(self, runs, first):
        self.runs, self.tower, self.first = runs, runs.tower, first  # position of the name
        self.n = len(runs.ids)
        self.caches = [self.run(i, []) for i in range(self.n)]

    def run(self, i, hooks):
        mask = None if self.runs.mask is None else self.runs.mask[i : i + 1]
        with self.tower.hooks(fwd_hooks=hooks):
            return self.tower.run_with_cache(self.runs.ids[i : i + 1], attention_mask=mask)[1]

    def outcomes(self, i, cache):
        end = int(self.runs.group[i])
        last = cache["ln_final.hook_normalized"][0]
        layer = self.runs.read
        raw = cache[f"blocks.{layer - 1}.hook_resid_post"][0]
        return {"end": last[end], "whole": (self.tower.ln_final(raw) if self.runs.norm else raw).flatten()}

    def share(self, i, moved):
        """<moved - other, clean - other> / |clean - other|^2, of both outcomes."""
        j = int(self.runs.other[i])
        clean, other = self.outcomes(i, self.caches[i]), self.outcomes(j, self.caches[j])
        return {
            o: float(sum(moved[o].sub(other[o]) * (clean[o] - other[o])) / sum((clean[o] - other[o]) ** 2))
            for o in clean
        }

    def places(self, i, place):
        end = int(self.runs.group[i])
        return range(end, self.runs.ids.shape[1]) if place == "end" else range(self.first, end)

    def restored(self, i, point, place):
        def put(act, hook):
            act = act.clone()
            for position in self.places(i, place):
                act[0, position] = self.caches[i][point][0, position]
            return act

        j = int(self.runs.other[i])
        return self.share(i, self.outcomes(j, self.run(j, [(point, put)])))

    def lost(self, i, hooks_of):
        j = int(self.runs.other[i])
        without = [self.outcomes(k, self.run(k, hooks_of(k))) for k in (i, j)]
        other = self.outcomes(j, self.caches[j])
        moved = {o: other[o] + without[0][o] - without[1][o] for o in other}
        return {o: 1 - share for o, share in self.share(i, moved).items()}

    def knocked_out(self, layer):
        def hooks(k):
            def put(pattern, hook):
                pattern = pattern.clone()
                for query in self.places(k, "end"):
                    for key in self.places(k, "name"):
                        pattern[0, :, query, key] = 0
                    pattern[0, :, query] /= pattern[0, :, query].sum(-1, keepdim=True)
                return pattern

            return [(f"blocks.{layer}.attn.hook_pattern", put)]

        return hooks

    def averaged(self, point, head=None):
        def hooks(k):
            alike = [m for m in range(self.n) if self.runs.group[m] == self.runs.group[k]]
            mean = sum(self.caches[m][point][0] for m in alike) / len(alike)

            def put(act, hook):
                act = act.clone()
                if head is None:
                    act[0] = mean
                else:
                    act[0, :, head] = mean[:, head]
                return act

            return [(point, put)]

        return hooks


CASES = {
    "clip": dict(kind="clip"), "clip, read one block earlier, raw": dict(kind="clip", read=2, norm=False),
    "t5, masked": dict(kind="t5", masked=True),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_effects_are_those_of_single_runs(case):
    from vit_lens.studies.knowledge.effects import HEADS, KNOCKED_OUT, MLPS, trace

    runs = runs_of(**case)
    found, hand = trace(runs), ByHand(runs, first=2 if case["kind"] == "clip" else 1)  # T5 has no start
    n_layers, n_heads = 3, 3
    assert len(found.effects) == 18 and found.heads["end"].shape == (len(runs.ids), n_layers, n_heads)
    for i in range(len(runs.ids)):
        for place in ("name", "end"):
            points = ["blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in range(n_layers))]
            curve = [hand.restored(i, point, place) for point in points]
            for outcome, n in (("end", n_layers), ("whole", runs.read)):
                told, sign = [one[outcome] for one in curve][: n + 1], 1 if place == "end" else -1
                key = (f"state at the {place}", outcome)
                assert np.allclose(found.states[key][i], told, **EXACT)
                assert np.allclose(found.effects[key][i], sign * np.diff(told), **EXACT)
        for layer in range(n_layers):
            told = {
                f"{part} at the {place}": hand.restored(i, f"blocks.{layer}.{point}", place)
                for part, point in (("attention", "hook_attn_out"), ("MLP", "hook_mlp_out"))
                for place in ("name", "end")
            }
            told[KNOCKED_OUT] = hand.lost(i, hand.knocked_out(layer))
            told[MLPS] = hand.lost(i, hand.averaged(f"blocks.{layer}.hook_mlp_out"))
            z = f"blocks.{layer}.attn.hook_z"
            each = [hand.lost(i, hand.averaged(z, head)) for head in range(n_heads)]
            told[HEADS] = {o: sum(one[o] for one in each) for o in ("end", "whole")}
            for outcome, n in (("end", n_layers), ("whole", runs.read)):
                if layer >= n:
                    continue
                assert np.allclose(found.heads[outcome][i, layer], [one[outcome] for one in each], **EXACT)
                for effect, share in told.items():
                    assert np.allclose(found.effects[effect, outcome][i, layer], share[outcome], **EXACT), effect


@pytest.mark.parametrize("read", [3, 2])
def test_whole_states_are_all_there_is(read):
    """The name's embeddings are all of the name, and the end behind the last block is all of the end."""
    from vit_lens.studies.knowledge.effects import trace

    found = trace(runs_of("clip", read=read), heads=False)
    assert not found.heads and len(found.effects) == 16
    for outcome in ("end", "whole"):
        name, end = (found.states[f"state at the {place}", outcome] for place in ("name", "end"))
        assert np.allclose(name[:, 0], 1, **EXACT) and np.allclose(end[:, 0], 0, **EXACT)
        assert np.allclose(name[:, -1] + end[:, -1], 1, **EXACT)  # a causal tower has nothing else that differs
    assert np.allclose(found.states["state at the end", "end"][:, -1], 1, **EXACT)


# ---- planted tables


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_a_planted_table_says_what_the_tower_says_and_is_found_where_it_is(case):
    from vit_lens.studies.knowledge.concentration import best_layer, concentration
    from vit_lens.studies.knowledge.effects import trace
    from vit_lens.studies.knowledge.planted_table import plant_table

    if case["kind"] == "t5":
        with pytest.raises(StudyError, match="words in another order"):
            plant_table(runs_of(**case), 0)
        case = case | {"prompts": IN_ONE_ORDER}
    runs = runs_of(**case)
    own = trace(runs, heads=False)
    before = copy.deepcopy(runs.tower.state_dict())
    told = [
        ("state at the name", "end"), ("state at the end", "end"), ("MLP at the end", "end"),
        ("attention at the end", "end"), ("attention from end to name, knocked out", "end"), ("MLP, averaged", "end"),
    ]  # fmt: skip
    for layer in range(3):
        planted = plant_table(runs, layer)
        assert all(torch.equal(x, before[name]) for name, x in runs.tower.state_dict().items())
        assert planted.tower.blocks[layer].mlp is not runs.tower.blocks[layer].mlp
        assert torch.allclose(planted.clean.end, runs.clean.end, atol=1e-6)
        if runs.read == 3:
            assert torch.allclose(planted.clean.whole, runs.clean.whole, atol=1e-6)
        found = trace(planted, heads=False)
        for key in told:
            assert concentration(found.effects[key]) == pytest.approx(1, abs=1e-6), key
            assert best_layer(found.effects[key]) == layer
            assert concentration(own.effects[key]) < 0.99
        for effects in found.effects.values():  # nowhere else is anything known
            others = np.delete(effects, layer, axis=1) if layer < effects.shape[1] else effects
            assert np.allclose(others, 0, atol=1e-6)


def test_a_table_reads_the_value_of_the_nearest_key():
    from vit_lens.studies.knowledge.planted_table import KeyValueMLP

    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(7, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    x = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator)
    sharp = KeyValueMLP(keys, values, 3000.0).double()(x)
    soft = KeyValueMLP(keys, values, 0.7).double()(x)
    for batch in range(2):
        for pos in range(3):
            distance = [float(sum((x[batch, pos] - key) ** 2)) for key in keys]
            assert torch.allclose(sharp[batch, pos], values[int(np.argmin(distance))], atol=1e-6)
            weight = [np.exp(-0.35 * d) for d in distance]
            told = sum(w * value for w, value in zip(weight, values, strict=True)) / sum(weight)
            assert torch.allclose(soft[batch, pos], told, atol=1e-9)


def test_tables_that_cannot_be_planted_are_refused(monkeypatch):
    from vit_lens.studies.knowledge import planted_table
    from vit_lens.studies.knowledge.planted_table import plant_table

    runs = runs_of("clip")
    with pytest.raises(StudyError, match="blocks 0 to 2"):
        plant_table(runs, 3)
    runs.tower.blocks[0].attn.W_O.zero_()
    with pytest.raises(StudyError, match="reads different names alike"):
        plant_table(runs, 1)
    monkeypatch.setattr(planted_table, "_sharpness", lambda *given: 1.0)  # softer than keys are apart
    with pytest.raises(StudyError, match="does not say what the encoder says"):
        plant_table(runs_of("clip"), 1)


# ---- how concentrated


def test_concentration_is_the_share_of_the_best_layer():
    from vit_lens.studies.knowledge.concentration import best_layer, concentration

    effects = np.array([[0.5, 0.1, -0.3], [0.3, 0.3, -0.1]])
    assert concentration(effects) == pytest.approx(0.4 / 0.6) and best_layer(effects) == 0
    assert concentration(np.full((4, 8), 0.125)) == pytest.approx(1 / 8)
    assert concentration(np.eye(5)[[2, 2]]) == 1 and best_layer(np.eye(5)[[2, 2]]) == 2
    for nothing in (np.zeros((3, 4)), np.full((3, 4), -0.2), np.full((3, 4), np.nan)):
        assert concentration(nothing) is None and best_layer(nothing) is None


def test_scores_of_concentration_stand_beside_nulls_and_planted_tables():
    from vit_lens.studies.knowledge.concentration import BEST, CONCENTRATION, PLANTED, concentration_scores
    from vit_lens.studies.knowledge.effects import Traced

    generator = np.random.default_rng(0)
    own = generator.random((12, 4)) + np.array([0, 0, 2.0, 0])

    def traced(effects):
        return Traced(effects={("MLP, averaged", "end"): effects}, states={}, heads={})

    plants = {1: traced(np.tile(np.eye(4)[1], (12, 1))), 3: traced(np.tile([0.0, 0.1, 0, 0.9], (12, 1)))}
    scores = concentration_scores(traced(own), plants, generator, 50)
    by = {(score.measure, score.reading): score for score in scores}
    score = by[CONCENTRATION, "MLP, averaged; end"]
    mean = own.mean(0)
    assert score.estimate.value == pytest.approx(mean[2] / mean.sum()) and score.n == 12
    assert score.estimate.low < score.estimate.value < score.estimate.high
    null = score.nulls["layers shuffled within each name"]
    assert 0.25 < null.mean < null.high < score.estimate.low
    assert score.controls == {
        "even spread": 0.25, "whole effect": pytest.approx(mean.sum()), "planted tables, least": pytest.approx(0.9),
        "planted tables found at their layer": 1.0,
    }  # fmt: skip
    assert by[PLANTED, "table in L3: MLP, averaged; end"].estimate.value == pytest.approx(0.9)
    assert by[BEST, "MLP, averaged; end"].estimate.value == 2
    elsewhere = concentration_scores(traced(own), {2: plants[1], 3: plants[3]}, generator, 5)
    assert elsewhere[0].controls["planted tables found at their layer"] == 0.5  # one is not where it was said to be


# ---- common against rare


def answers(kind, onset, n=9, sites=6, seed=0):
    """Names that are right from a layer on, one apart from name to name."""
    generator = np.random.default_rng(seed)
    since = onset + generator.integers(0, 2, size=(n, 1))
    right = (np.arange(sites) >= since).astype(float)[:, None, :, None].repeat(2, 1)
    return LayerAnswers(
        kind=kind, prompts=tuple(f"{kind} {i}" for i in range(n)), sites=tuple(f"L{i}" for i in range(sites)),
        parts=("object 1",), right=right, mismatched=np.full_like(right, 0.1),
        residual=np.full(right.shape[:3], np.nan),
    )  # fmt: skip


def test_rare_names_that_rise_later_are_told_from_such_that_do_not():
    from vit_lens.studies.knowledge.frequency import HALF, LATER, frequency_rows, frequency_scores

    common, rare, same = answers("c", 1, n=11), answers("r", 3, seed=1), answers("r", 1, seed=2)
    scores = {(s.measure, s.reading): s for s in frequency_scores(common, rare, np.random.default_rng(0), 300)}
    score = scores[LATER, "object 1"]
    halves = [half_rise((one.of("object 1") - 0.1).mean((0, 1))) for one in (common, rare)]
    assert score.estimate.value == pytest.approx(halves[1] - halves[0]) and score.n == 20
    for kind, half in zip("cr", halves, strict=True):
        assert scores[HALF, f"{kind}: object 1"].estimate.value == pytest.approx(half)
    null = score.nulls["frequency labels permuted"]
    assert score.estimate.value > null.high > 0 > null.low and abs(null.mean) < 0.2 and score.estimate.low > 0
    told = next(frequency_scores(common, same, np.random.default_rng(0), 300))
    null = told.nulls["frequency labels permuted"]
    assert null.low <= told.estimate.value <= null.high and told.estimate.low < 0 < told.estimate.high
    rows = frequency_rows(rare)
    assert [row["share of the last"] for row in rows][-1] == 1 and len(rows) == 6
    above = rare.of("object 1").mean((0, 1)) - 0.1
    assert [row["share of the last"] for row in rows] == pytest.approx(list(above / above[-1]), abs=1e-4)


def test_a_jackknife_of_a_difference_of_two_kinds_is_as_wide_as_it_should_be():
    """For a plain difference of means it comes to the textbook's error, within a few percent."""
    from vit_lens.studies.statistics import jackknife

    generator = np.random.default_rng(0)
    x, labels = generator.normal(size=60), np.arange(60) >= 25
    found = jackknife(lambda rows: float(x[rows][labels[rows]].mean() - x[rows][~labels[rows]].mean()), 60, most=9.0)
    error = np.sqrt(x[~labels].var(ddof=1) / 25 + x[labels].var(ddof=1) / 35)
    assert (found.high - found.low) / 2 == pytest.approx(2.001 * error, rel=0.04)


# ---- end to end


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """A setup on the embedded model that draws in two steps."""
    from vit_lens.decoders import PromptEncoder, TextDecoder
    from vit_lens.studies.scene_judges import ExactSceneJudge
    from vit_lens.studies.text_setup import TextSetup

    decoder = TextDecoder.from_pretrained("mini-sd")
    return TextSetup(
        reader=PromptEncoder.from_pretrained("mini-sd"), decoder=decoder, judge=ExactSceneJudge(), lexicon=Lexicon(0),
        settings=decoder.settings(steps=2), noise=(0, 3), seed=5, out=tmp_path_factory.mktemp("study"),
    )  # fmt: skip


def changed(setup, **changes):
    return type(setup)(**{name: getattr(setup, name) for name in setup.__dataclass_fields__} | changes)


def test_the_study_of_the_embedded_model_goes_on_and_finds_its_planted_tables(setup):
    from vit_lens.studies import load_result
    from vit_lens.studies.knowledge.concentration import CONCENTRATION, PLANTED
    from vit_lens.studies.knowledge.study import HEADLINES, knowledge_study

    asked = ask_of_world({"common name": 3, "rare name": 3}, setup.lexicon, seed=5)
    result = knowledge_study(setup, asked, plant=[6], n_shuffles=7, command="it")
    result.save(setup.out)
    assert load_result(setup.out).scores == result.scores and set(HEADLINES) <= {s.measure for s in result.scores}
    record = setup.out / "layers" / "record.json"
    before = record.stat().st_mtime_ns
    again = knowledge_study(setup, asked, plant=[6], n_shuffles=7, command="it")
    assert again.scores == result.scores and again.tables == result.tables and record.stat().st_mtime_ns == before
    for kind in ("state at the name", "state at the end", "MLP at the end", "MLP, averaged"):
        own = result.score(CONCENTRATION, f"{kind}; end", "embedding")
        assert own.controls["planted tables, least"] == pytest.approx(1, abs=1e-4)
        assert own.controls["planted tables found at their layer"] == 1 and own.estimate.value < 0.95
        assert result.score(PLANTED, f"table in L6: {kind}; whole", "embedding").estimate.value > 0.999
    effects, states = result.frame("effects"), result.frame("states")
    assert {"all names", "common name names", "rare name names"} <= set(effects.columns)
    assert len(result.frame("curves")) == 2 * 4 * 9 and len(result.frame("heads")) == 2 * 8 * 8
    first = states[(states["state"] == "state at the name") & (states["layer"] == 0)]
    assert first["restored"].tolist() == pytest.approx([1, 1], abs=1e-5)


def test_a_table_of_ones_own_is_read_by_its_kinds(setup, tmp_path):
    """Other names and kinds, and a judge of one's own: the world is not asked for."""
    from vit_lens.studies.knowledge.study import knowledge_study

    class Bright:
        name = "bright"

        def look(self, pictures):
            return pictures.reshape(len(pictures), -1).mean(1) / 255

        def right(self, seen, asked, part):
            return seen * np.array([len(one.prompt) % 3 for one in asked]) / 3

        def residual(self, seen):
            return None

    texts = {"often": ("a red star", "a blue ring"), "seldom": ("a green heart", "a pink cross")}
    asked = [Asked(prompt=text, kind=kind, questions={"it": "?"}) for kind, some in texts.items() for text in some] + [
        Asked(prompt="a star", kind="else", questions={"other": "?"})
    ]
    own = changed(setup, judge=Bright(), lexicon=None, out=tmp_path)
    result = knowledge_study(own, asked, common="often", rare="seldom", plant=[], n_shuffles=3)
    assert result.options["kinds"] == {"often": 2, "seldom": 2} and result.options["plant"] == []
    assert {"often names", "seldom names"} <= set(result.frame("effects").columns)
    assert set(result.frame("curves")["part"]) == {"it"}


def test_names_that_cannot_be_traced_or_held_against_each_other_are_told(setup):
    from vit_lens.studies.knowledge.study import _left_out, knowledge_study

    asked = ask_of_world({"common name": 2, "rare name": 2}, setup.lexicon, seed=5)
    with pytest.raises(StudyError, match="nearest: 'rare name'"):
        knowledge_study(setup, asked, rare="rar name")
    with pytest.raises(StudyError, match="give two kinds"):
        knowledge_study(setup, asked, rare="common name")
    with pytest.raises(StudyError, match="only one is asked 'colour 1'"):
        knowledge_study(setup, [*asked[:2], Asked(prompt="a star", kind="rare name", questions={"x": ""})])
    with pytest.raises(StudyError, match="blocks 0 to 7"):
        knowledge_study(setup, asked, plant=[8])
    runs = runs_of("clip")
    texts = [Asked(prompt=text, kind="x") for text in PROMPTS]
    assert _left_out(texts, runs) == [
        "1 names have no partner of their length and are not traced, such as 'a of, of of'."
    ]


def test_an_encoder_that_cannot_be_restored_is_refused(setup):
    """TransformerLens' bridge hooks between blocks, and not what is in them."""
    import tiny_bridged_pipelines

    from vit_lens.decoders import PromptEncoder
    from vit_lens.studies.knowledge.name_runs import NameRuns

    reader = PromptEncoder(tiny_bridged_pipelines.make("sana"))
    asked = [Asked(prompt=text, kind="x") for text in ("a red star", "a blue ring")]
    with pytest.raises(StudyError, match="hooks between blocks alone"):
        NameRuns.of_setup(changed(setup, reader=reader), asked, np.random.default_rng(0))


def test_a_command_runs_and_draws(vit_lens, tmp_path):
    out = tmp_path / "knowledge"
    command = ("study", "knowledge", "--n", 3, "--steps", 2, "--decoder-seed", 0, "--plant", 2, "--out", out)
    status, output, error = vit_lens(*command)
    assert status == 0 and "study knowledge: " in output, error
    names = ("rise", "effects-end", "effects-whole", "concentration")
    assert (out / "result.json").is_file() and all((out / f"{name}.html").is_file() for name in names)
    assert "6 names" in (out / "effects-end.html").read_text()
    assert "half-rise, rare less common" in output


def test_wrong_words_are_told_in_one_line_before_anything_is_drawn(vit_lens, tmp_path):
    for given, said in (
        (["--n", "33"], "there are 32 such names"), (["--rare", "names"], "nearest:"),
        (["--plant", "9"], "blocks 0 to 7"),
    ):  # fmt: skip
        status, output, error = vit_lens("study", "knowledge", "--n", 2, *given, "--out", tmp_path / "out")
        assert status != 0 and said in error and not output, (output, error)
        assert not (tmp_path / "out").exists()
