"""Studies of text encoders: composition, order and norm against counts by hand, and end to end."""

import itertools

import numpy as np
import pytest

from vit_lens.errors import RecordError, StudyError
from vit_lens.mini.still_life import Lexicon
from vit_lens.studies.asked import Asked, ask_of_world
from vit_lens.studies.findings import load_result
from vit_lens.studies.layer_answers import LayerAnswers
from vit_lens.studies.layer_statistics import half_rise

PAIRS = ("pair, head first", "pair, fronted")


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


def answers(kind, parts, n=11, noises=2, sites=5, seed=0):
    """Answers at random, right more often in later layers."""
    generator = np.random.default_rng(seed)
    shape = (n, noises, sites, len(parts))
    rise = np.linspace(0.2, 0.95, sites)[:, None]
    return LayerAnswers(
        kind=kind, prompts=tuple(f"{kind} {i}" for i in range(n)), sites=tuple(f"L{i}" for i in range(sites)),
        parts=tuple(parts), right=(generator.random(shape) < rise).astype(float),
        mismatched=(generator.random(shape) < 0.1).astype(float), residual=np.full(shape[:3], np.nan),
    )  # fmt: skip


def with_answers(setup, found):
    """The setup, whose judge has looked already."""

    class Looked(type(setup)):
        def answers(self, name, asked, **options):
            return found

    return Looked(**{name: getattr(setup, name) for name in setup.__dataclass_fields__})


def asked_of(found):
    """The prompts that the answers are of."""
    return [
        Asked(prompt=prompt, kind=kind, questions=dict.fromkeys(one.parts, ""))
        for kind, one in found.items()
        for prompt in one.prompts
    ]


# ---- composition


def test_the_gap_is_observed_minus_product_counted_one_by_one(setup):
    from vit_lens.studies.composition.study import GAP, HALF, LAST, composition_study

    parts = ("scene", "layout", "object 1", "object 2", "colour 1", "shape 1")
    found = {"pair": answers("pair", parts), "single": answers("single", ("object 1", "colour 1", "shape 1"), seed=1)}
    result = composition_study(with_answers(setup, found), asked_of(found), n_shuffles=300)
    for kind, compound, of in (
        ("pair", "scene", ("layout", "object 1", "object 2")), ("pair", "object 1", ("colour 1", "shape 1")),
        ("single", "object 1", ("colour 1", "shape 1")),
    ):  # fmt: skip
        one = found[kind]
        gaps = []
        for site in range(1, 4):  # without embeddings and the last layer
            share = {p: np.mean([one.of(p)[i, j, site] for i in range(11) for j in range(2)]) for p in (compound, *of)}
            gaps.append(share[compound] - np.prod([share[p] for p in of]))
        score = result.score(GAP, f"{kind}: {compound}", "decoded")
        assert score.estimate.value == pytest.approx(np.mean(gaps)) and score.n == 11
        assert abs(score.nulls["parts of other prompts"].mean) < 0.03  # parts of other prompts are together by chance
        joint = [
            np.mean(np.prod([one.of(p)[..., s] for p in of], axis=0)) - np.prod([one.of(p)[..., s].mean() for p in of])
            for s in range(1, 4)
        ]
        assert score.controls["all parts at once minus product"] == pytest.approx(np.mean(joint))
    curve = [np.mean(found["pair"].of("layout")[..., s] - found["pair"].chance("layout")[..., s]) for s in range(5)]
    assert result.score(HALF, "pair: layout", "decoded").estimate.value == pytest.approx(half_rise(np.array(curve)))
    assert result.score(LAST, "pair: layout", "decoded").estimate.value == pytest.approx(curve[-1])


def test_a_compound_that_is_late_is_told_from_one_that_is_a_conjunction(setup):
    """Parts that are right independently have no gap; a whole that is never right where the parts are has one."""
    from vit_lens.studies.composition.study import GAP, composition_study

    generator = np.random.default_rng(3)
    of = (generator.random((400, 2, 5, 2)) < 0.7).astype(float)
    for whole, expected in ((of.prod(-1), 0.0), (np.zeros((400, 2, 5)), -0.49)):
        right = np.concatenate([whole[..., None], of], -1)
        found = {"pair": LayerAnswers(
            kind="pair", prompts=tuple(map(str, range(400))), sites=tuple("abcde"),
            parts=("object 1", "colour 1", "shape 1"), right=right, mismatched=right * 0,
            residual=np.zeros(right.shape[:3]),
        )}  # fmt: skip
        estimate = composition_study(with_answers(setup, found), asked_of(found), n_shuffles=2).score(
            GAP, "pair: object 1", "decoded"
        ).estimate  # fmt: skip
        assert estimate.value == pytest.approx(expected, abs=0.02)
        assert estimate.low - 0.02 <= expected <= estimate.high + 0.02


def test_prompts_without_a_compound_are_refused(setup):
    from vit_lens.studies.composition.study import composition_study

    with pytest.raises(StudyError, match="nothing to compose"):
        composition_study(with_answers(setup, {"x": answers("x", ("a", "b"))}), [])


# ---- order


def leads(found):
    """The two leads, from the half-rises of the four curves."""
    half = {
        (kind, part): half_rise((found[kind].of(part) - found[kind].chance(part)).mean((0, 1)))
        for kind, part in itertools.product(PAIRS, ("head there", "other there"))
    }
    head = np.mean([half[kind, "other there"] - half[kind, "head there"] for kind in PAIRS])
    first = np.mean([
        half[PAIRS[0], "other there"] - half[PAIRS[0], "head there"],
        half[PAIRS[1], "head there"] - half[PAIRS[1], "other there"],
    ])  # fmt: skip
    return head, first, half[PAIRS[1], "other there"] - half[PAIRS[1], "head there"]


def of_both(seed):
    return {kind: answers(kind, ("head there", "other there"), n=30, seed=seed + k) for k, kind in enumerate(PAIRS)}


def both_orders(n=30):
    return [Asked(prompt=f"{kind} {i}", kind=kind, questions={"head there": "", "other there": ""})
            for kind in PAIRS for i in range(n)]  # fmt: skip


def test_leads_are_differences_of_half_rises(setup):
    from vit_lens.studies.order.study import HEADLINES, LINEAR, SYNTACTIC, order_study

    found = of_both(4)
    result = order_study(with_answers(setup, found), both_orders(), n_shuffles=40)
    head, first, where = leads(found)
    told = [result.score(name, "Diffusion Lens", "decoded") for name in (SYNTACTIC, LINEAR, HEADLINES[2])]
    assert [one.estimate.value for one in told] == pytest.approx([head, first, where])
    assert all(abs(one.nulls["exchanged"].mean) < 0.4 for one in told)


@pytest.mark.parametrize("truth", ["linear", "syntactic"])
def test_a_planted_order_is_found_and_the_other_one_is_not(setup, truth):
    """One object is right from layer 1 on, the other from layer 3 on: what is named first, or the head."""
    from vit_lens.studies.order.study import LINEAR, SYNTACTIC, order_study

    found = {}
    for kind in PAIRS:
        is_head_first = kind == PAIRS[0] if truth == "linear" else True
        right = np.zeros((30, 2, 5, 2))
        right[..., 1:, 0 if is_head_first else 1] = 1
        right[..., 3:, 1 if is_head_first else 0] = 1
        found[kind] = LayerAnswers(
            kind=kind, prompts=tuple(f"{kind} {i}" for i in range(30)), sites=tuple("abcde"),
            parts=("head there", "other there"), right=right, mismatched=right * 0, residual=np.zeros((30, 2, 5)),
        )  # fmt: skip
    result = order_study(with_answers(setup, found), both_orders(), n_shuffles=40)
    value = {name: result.score(name, "Diffusion Lens", "decoded").estimate.value for name in (LINEAR, SYNTACTIC)}
    assert value == ({LINEAR: 2.0, SYNTACTIC: 0.0} if truth == "linear" else {LINEAR: 0.0, SYNTACTIC: 2.0})


def test_prompts_that_are_not_of_both_orders_are_refused(setup):
    from vit_lens.studies.order.study import order_study

    with pytest.raises(StudyError, match="takes as many prompts"):
        order_study(setup, both_orders()[:-1])
    with pytest.raises(StudyError, match="is not asked 'head there'"):
        order_study(setup, [Asked(prompt=one.prompt, kind=one.kind, questions={"other there": ""})
                            for one in both_orders()])  # fmt: skip
    mixed = [
        *ask_of_world({PAIRS[0]: 2}, Lexicon(0), seed=0), *ask_of_world({PAIRS[1]: 2}, Lexicon(0), seed=1),
    ]  # fmt: skip
    with pytest.raises(StudyError, match="are of different scenes"):
        order_study(setup, mixed)


# ---- end to end


def test_composition_on_the_embedded_model_goes_on_and_looks_at_the_layers_own_pictures(setup):
    from vit_lens.studies import load_result
    from vit_lens.studies.composition.study import HEADLINES, composition_study

    asked = ask_of_world({"single": 3, PAIRS[0]: 3}, setup.lexicon, seed=1)
    result = composition_study(setup, asked, n_shuffles=5, command="it")
    result.save(setup.out)
    assert load_result(setup.out).scores == result.scores and result.setup["noise_seeds"] == [0, 3]
    record = setup.out / "layers" / "record.json"
    before = record.stat().st_mtime_ns
    again = composition_study(setup, asked, n_shuffles=5, command="it")
    assert again.scores == result.scores and record.stat().st_mtime_ns == before
    curves = result.frame("curves")
    assert list(curves["site"].unique()) == ["L0.resid_pre", *(f"L{i}.resid_post" for i in range(8))]
    assert set(HEADLINES) <= {score.measure for score in result.scores}
    with pytest.raises(RecordError, match="another sweep"):
        composition_study(setup, asked[::-1], n_shuffles=5)


def test_norm_on_the_embedded_model(setup):
    """The format's own last layer is what the final norm makes of it, and matching leaves it as it is."""
    from vit_lens.studies.norm.study import MEAN, norm_study

    asked = ask_of_world({"single": 2}, setup.lexicon, seed=1)
    result = norm_study(setup, asked)
    curves = result.frame("curves")
    last = curves[curves["site"] == "L7.resid_post"].pivot(index="part", columns="norm", values="accuracy")
    assert (last["format"] == last["final"]).all() and (last["format"] == last["match"]).all()
    lengths = result.frame("lengths")
    assert len(lengths) == 9 and lengths["share of the last"].iloc[-1] == 1
    assert result.score(MEAN, "none; single: shape 1", "decoded").n == 2
    from vit_lens import TextRun

    run = TextRun.of(setup.reader, [one.prompt for one in asked])
    state = run.residual("text_encoder", 3).detach().double()
    assert lengths["length"][3] == pytest.approx(float(state.norm(dim=-1).square().mean().sqrt()), rel=1e-5)


@pytest.mark.parametrize("study", ["composition", "order", "norm"])
def test_a_command_runs_resumes_and_draws(vit_lens, tmp_path, study):
    out = tmp_path / study
    command = ("study", study, "--n", 2, "--steps", 2, "--decoder-seed", 0, "--out", out)
    status, output, error = vit_lens(*command)
    assert status == 0 and f"study {study}: " in output, error
    assert (out / "result.json").is_file()
    drawn = {"composition": ("layers-0", "layers-1", "layers-2"), "order": ("layers",),
             "norm": ("layers-0", "layers-1", "lengths")}[study]  # fmt: skip
    assert sorted(path.stem for path in out.glob("*.html")) == list(drawn)
    assert study == "norm" or "n = 2 " in (out / f"{drawn[0]}.html").read_text()
    assert vit_lens(*command)[0] == 0


def test_the_second_judge_looks_at_the_same_pictures(vit_lens, tmp_path):
    drawn = {}
    for judge in ("exact", "second"):
        command = ("study", "composition", "--n", 4, "--steps", 2, "--decoder-seed", 0, "--judge", judge)
        assert vit_lens(*command, "--out", tmp_path / judge)[0] == 0
        drawn[judge] = load_result(tmp_path / judge).frame("curves")
    assert list(drawn["exact"]["second judge"]) == list(drawn["second"]["accuracy"])
    assert list(drawn["exact"]["second judge"]) != list(drawn["exact"]["accuracy"])
    assert drawn["second"]["second judge"].isna().all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--model", "elsewhere"], "is no folder here, and has no prompts of its own: give mini-sd"),
        (["--judge", "second opinion"], "expected exact, second, clip:NAME or vqa:DIR"),
        (["--prompt-table", "no.csv"], "cannot be read"),
        (["--decoder-seed", "1", "--decoder-seed", "1"], "different seeds"),
        (["--steps", "0"], "steps"),
    ],
)
def test_wrong_words_are_told_in_one_line_before_anything_is_drawn(vit_lens, tmp_path, given, said):
    status, output, error = vit_lens("study", "composition", "--n", 2, *given, "--out", tmp_path / "out")
    assert status != 0 and said in error and not output, (output, error)
    assert not (tmp_path / "out").exists()


def test_curves_of_compounds_have_the_product_of_parts_and_a_title_that_says_what_was_found(setup):
    from vit_lens.studies.composition.figures import composition_figure
    from vit_lens.studies.composition.study import GAP, composition_study

    found = answers("pair", ("scene", "layout", "object 1"))
    result = composition_study(with_answers(setup, {"pair": found}), asked_of({"pair": found}), n_shuffles=5)
    figure = composition_figure(result, "pair")
    lines = {line.name: np.array(line.y, dtype=float) for line in figure.data}
    curves = result.frame("curves").pivot(index="site", columns="part", values="accuracy").loc[list(found.sites)]
    assert lines["product of its parts"] == pytest.approx((curves["layout"] * curves["object 1"]).to_numpy(), abs=1e-5)
    assert lines["the whole"] == pytest.approx(curves["scene"].to_numpy())
    assert str(result.score(GAP, "pair: scene", "decoded").estimate) in figure.layout.title.text
    assert {line.name: line.line.dash for line in figure.data}["product of its parts"] == "dot"


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(-2.0, -1.0, "later"), (-1.0, 1.0, "same"), (1.0, 2.0, "earlier"), (None, None, "too few to say")],
)
def test_a_finding_is_said_by_where_its_interval_lies(low, high, word):
    from vit_lens.studies.findings import Score
    from vit_lens.studies.layer_figures import finding
    from vit_lens.studies.statistics import Estimate

    score = Score(measure="m", reading="r", level="decoded", estimate=Estimate(0.5, low, high), n=9, unit="scenes")
    assert finding(score, below="later", open_="same", above="earlier") == f"{word}: {score.estimate}, n = 9 scenes"


def test_curves_are_averaged_over_encoders_and_drawn_as_of_one(setup):
    from dataclasses import replace

    from vit_lens.studies import pool
    from vit_lens.studies.composition.study import composition_study
    from vit_lens.studies.headlines import figures_of

    def one(seed):
        found = answers("pair", ("scene", "layout", "object 1"), seed=seed)
        result = composition_study(with_answers(setup, {"pair": found}), asked_of({"pair": found}), n_shuffles=5)
        return replace(result, setup={**result.setup, "encoder": f"e{seed}", "fingerprint": f"e{seed}"})

    parts = [one(seed) for seed in (1, 2, 3)]
    found = pool(parts)
    tables = [part.frame("curves") for part in parts]
    mean = sum(table["accuracy"] for table in tables) / 3
    assert found.frame("curves")["accuracy"].to_numpy() == pytest.approx(mean.to_numpy())
    assert not np.allclose(mean, tables[0]["accuracy"])
    assert found.frame("curves")["site"].tolist() == tables[0]["site"].tolist()
    assert found.frame("curves")["residual"].isna().all()
    (figure,) = figures_of(found).values()
    assert "n = 3 encoders" in figure.layout.title.text
    short = replace(parts[1], tables={"curves": parts[1].tables["curves"][1:]})
    with pytest.raises(StudyError, match="other rows"):
        pool([parts[0], short])
    other = [{**row, "site": "elsewhere"} for row in parts[1].tables["curves"]]
    with pytest.raises(StudyError, match="other rows"):
        pool([parts[0], replace(parts[1], tables={"curves": other})])
