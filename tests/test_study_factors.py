"""Factors: means of kinds and differences along the chain against scipy's, what is refused, and end to end."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from vit_lens.errors import StudyError
from vit_lens.mini.text_kinds import FACTORS
from vit_lens.studies.factors import factors_study
from vit_lens.studies.factors.figures import factors_figure
from vit_lens.studies.factors.study import STEP
from vit_lens.studies.findings import Score, StudyResult, load_result
from vit_lens.studies.order.study import HEADLINES, LINEAR, SYNTACTIC
from vit_lens.studies.pooling import kind_of, pool
from vit_lens.studies.statistics import Estimate, across_encoders, between_encoders

KINDS = tuple(FACTORS)
_ids = itertools.count()


def result(kind, own, values=(0.5, 0.1), *, measures=(SYNTACTIC, LINEAR), **setup):
    """A result of the study order, of an encoder of a kind; None leaves a value undefined."""
    told = {
        "encoder": f"text@{next(_ids)}", "format": "sd", "judge": "exact", "settings": {"steps": 8},
        "noise_seeds": [0, 1], "seed": 0, "encoder_seed": own, "kind": kind, "factors": {"kept": "out"},
    }  # fmt: skip
    told |= {"fingerprint": told["encoder"]} | setup
    scores = tuple(
        Score(
            measure=measure, reading="Diffusion Lens", level="decoded", n=120, unit="scenes",
            estimate=Estimate(value, why="" if value is not None else "never"),
        )
        for measure, value in zip(measures, values, strict=True)
    )  # fmt: skip
    return StudyResult(study="order", setup=told, options={"n_scenes": 120}, scores=scores)


def drawn(kind, n, seed, first=1):
    generator = np.random.default_rng(seed)
    return [result(kind, first + i, tuple(generator.normal(KINDS.index(kind), 1, 2))) for i in range(n)]


def values(results, measure):
    return [one.score(measure, "Diffusion Lens", "decoded").estimate.value for one in results]


def step(found, measure, name):
    return found.score(f"{STEP}{measure}", f"{name}: Diffusion Lens", "decoded")


NAMES = ("positions (relative - clip)", "attention (bidirectional - relative)", "objective (denoising - bidirectional)")


def test_the_whole_chain_with_the_same_seeds_is_compared_pair_by_pair():
    """Whatever order the results come in."""
    own = {kind: drawn(kind, 7, i) for i, kind in enumerate(KINDS)}
    every = [one for some in own.values() for one in some]
    found = factors_study([every[i] for i in np.random.default_rng(0).permutation(len(every))])
    for measure in (SYNTACTIC, LINEAR):
        for kind, some in own.items():
            mean = found.score(measure, f"{kind}: Diffusion Lens", "decoded")
            assert (mean.n, mean.unit) == (7, "encoders")
            low, high = stats.t.interval(0.95, 6, np.mean(values(some, measure)), stats.sem(values(some, measure)))
            assert [mean.estimate.low, mean.estimate.high] == pytest.approx([low, high])
        for (before, after), name in zip(itertools.pairwise(KINDS), NAMES, strict=True):
            paired = stats.ttest_rel(values(own[after], measure), values(own[before], measure)).confidence_interval()
            change = step(found, measure, name)
            assert [change.estimate.low, change.estimate.high] == pytest.approx([paired.low, paired.high])
            assert change.n == 7
    assert len(found.scores) == 2 * (4 + 3) and len(found.tables["each"]) == 2 * 28
    assert found.options["kinds"] == dict.fromkeys(KINDS, 7) and found.options["of"] == "order"
    assert not any("Descriptive" in note for note in found.notes)
    assert "kind" not in found.setup and "encoder_seed" not in found.setup


@pytest.mark.parametrize("first", [2, None])
def test_other_seeds_are_two_samples(first):
    """Some seeds shared, or none known."""
    a, b = drawn("clip", 6, 0), drawn("relative", 7, 1, first=first or 1)
    if first is None:
        b = [replace(one, setup={**one.setup, "encoder_seed": None}) for one in b]
    change = step(factors_study([*b, *a]), LINEAR, NAMES[0])
    welch = stats.ttest_ind(values(b, LINEAR), values(a, LINEAR), equal_var=False).confidence_interval()
    assert [change.estimate.low, change.estimate.high] == pytest.approx([welch.low, welch.high])
    assert change.n == 13


def test_welchs_interval():
    generator = np.random.default_rng(3)
    a, b = generator.normal(0, 1, 5).tolist(), generator.normal(2, 4, 9).tolist()
    found, own = between_encoders(a, b, level=0.9), stats.ttest_ind(b, a, equal_var=False)
    assert found.value == pytest.approx(np.mean(b) - np.mean(a))
    assert [found.low, found.high] == pytest.approx(list(own.confidence_interval(0.9)))
    assert between_encoders([1.0, 1.0], [3.0, 3.0]) == Estimate(2.0, 2.0, 2.0)
    assert between_encoders([1.0], [3.0, 4.0]).low is None and "one encoder" in between_encoders([1.0], [3.0, 4.0]).why
    assert between_encoders([], [3.0, 4.0]).value is None


def test_what_is_undefined_is_left_out_with_its_pair():
    a, b = drawn("bidirectional", 6, 0), drawn("denoising", 6, 1)
    b[2] = result("denoising", 3, (None, 0.4))
    found = factors_study([*a, *b])
    change = step(found, SYNTACTIC, NAMES[2])
    kept = [y - x for i, (x, y) in enumerate(zip(values(a, SYNTACTIC), values(b, SYNTACTIC), strict=True)) if i != 2]
    assert change.n == 5 and change.estimate == across_encoders(kept)
    assert found.score(SYNTACTIC, "denoising: Diffusion Lens", "decoded").n == 5
    assert step(found, LINEAR, NAMES[2]).n == 6


def test_few_encoders_are_described_and_a_single_one_has_no_interval():
    found = factors_study([*drawn("clip", 5, 0), *drawn("relative", 1, 1)])
    assert "Descriptive: " in found.notes[0] and "5 of clip, 1 of relative" in found.notes[0]
    alone = found.score(LINEAR, "relative: Diffusion Lens", "decoded")
    assert alone.estimate.value is not None and alone.estimate.low is None and alone.n == 1
    assert step(found, LINEAR, NAMES[0]).estimate.low is None
    assert factors_figure(found, LINEAR).layout.title.text.startswith("descriptive: positions is not seen to change it")


def test_headline_measures_alone_are_compared():
    """As the protocol decides by them; others are the study's own business."""
    measures = (*HEADLINES, "another")
    made = [
        result(kind, seed, [k / 10 for k in range(len(measures))], measures=measures)
        for kind in KINDS[:2]
        for seed in (1, 2)
    ]
    assert {score.measure.removeprefix(STEP) for score in factors_study(made).scores} == set(HEADLINES)


def test_results_of_before_kinds_are_of_clip_and_have_no_seed():
    old = [replace(one, setup={k: v for k, v in one.setup.items() if k not in ("kind", "factors", "encoder_seed")})
           for one in drawn("clip", 6, 0)]  # fmt: skip
    found = factors_study([*old, *drawn("relative", 6, 1)])
    assert found.options["kinds"] == {"clip": 6, "relative": 6}
    assert any("6 results are of before encoders had kinds, and count as clip" in note for note in found.notes)
    welch = between_encoders(*(values(some, LINEAR) for some in (old, drawn("relative", 6, 1))))
    assert step(found, LINEAR, NAMES[0]).estimate == welch
    strange = replace(old[0], setup={**old[0].setup, "judge": "somebody"})
    assert kind_of(old[0]) == "clip" and kind_of(strange) is None


def _of(kind, own, *values, **setup):
    return result(kind, own, *values, **setup)


TWO = [_of("clip", 1), _of("relative", 1)]


@pytest.mark.parametrize(
    ("results", "said"),
    [
        (TWO[:1], "1 result to pool"),
        ([_of("clip", 1), _of("clip", 2)], "all encoders are of kind clip; pool one kind with vit-lens study pool"),
        ([TWO[0], *TWO], "an encoder comes twice"),
        ([*TWO, _of("clip", 1)], "two encoders of kind clip have seed 1"),
        ([*TWO, replace(TWO[0], study="norm")], "results of norm, order cannot be pooled"),
        ([*TWO, _of("clip", 2, settings={"steps": 4})], "differ in settings"),
        ([*TWO, _of("clip", 2, noise_seeds=[0])], "differ in noise_seeds"),
        ([*TWO, _of("clip", 2, judge="second")], "differ in judge"),
        ([*TWO, _of("clip", 2, text_steps=1400)], "trained for 700 and 1400 steps"),
        ([*TWO, _of("clip", 2, seed=1)], "of different prompts (seeds 0, 1)"),
        ([*TWO, replace(_of("clip", 2), options={"n_scenes": 3})], "differ in n_scenes"),
        ([*TWO, _of("clip", 2, (0.1,), measures=(LINEAR,))], "hold different scores"),
        ([*TWO, _of(None, 2)], "is of kind None; expected one of clip, relative, bidirectional, denoising"),
        ([_of("clip", 1), _of("denoising", 1)], "no two of these kinds differ in one factor. The chain is clip, relat"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(results, said):
    import re

    with pytest.raises(StudyError, match=re.escape(said)):
        factors_study(results)


def test_kinds_are_not_pooled_into_one():
    with pytest.raises(StudyError, match="of different kinds: clip, relative; pool those of one, or compare kinds"):
        pool(TWO)
    pooled = pool(drawn("relative", 3, 0))
    assert pooled.setup["kind"] == "relative" and "encoder_seed" not in pooled.setup


def test_the_title_says_which_factor_changes_what():
    own = [result("clip", i, (0.1 * i, 0.1 * i)) for i in range(6)]
    own += [result("relative", i, (0.1 * i + 1 + 0.01 * i, 0.1 * i)) for i in range(6)]
    own += [result("bidirectional", i, (0.1 * i + 0.5 + 0.01 * i**2, 0.1 * i + (-1) ** i)) for i in range(6)]
    found = factors_study(own)
    for measure in (SYNTACTIC, f"{STEP}{SYNTACTIC}"):
        title = factors_figure(found, measure).layout.title.text
        assert title.startswith("positions raises it: +1.0") and "; attention lowers it: -0.4" in title
        assert title.endswith("(n = 6 clip, 6 relative, 6 bidirectional encoders)")
    assert "attention is not seen to change it" in factors_figure(found, LINEAR).layout.title.text


def test_the_command_reads_folders_and_writes_figures(tmp_path):
    from vit_lens.cli import app

    for i, one in enumerate([*drawn("clip", 2, 0), *drawn("relative", 2, 1)]):
        one.save(tmp_path / str(i))
    folders = [str(tmp_path / str(i)) for i in range(4)]
    run = CliRunner().invoke(app, ["study", "factors", *folders, "--out", str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    found = load_result(tmp_path / "out")
    assert found.study == "factors" and found.command
    assert len(list((tmp_path / "out").glob("scores_*.html"))) == 4 and (tmp_path / "out" / "each.csv").is_file()
