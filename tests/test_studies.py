"""What every study stands on: statistics that say when they are undefined, disjoint images, kept pictures, results."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from vit_lens.errors import StudyError
from vit_lens.metrics import leak_index
from vit_lens.studies import Null, Score, StudyImages, StudyResult, load_result, pool
from vit_lens.studies.similarities import centred_similarity, left_out_centred
from vit_lens.studies.statistics import (
    Estimate,
    across_encoders,
    auc,
    bootstrap,
    mean_interval,
    partial_spearman,
    spearman,
    within_rows,
)

rng = np.random.default_rng(3)


# ---- statistics ---------------------------------------------------------------------------------------------


def test_spearman_is_scipys_with_ties():
    a, b = rng.integers(0, 5, 31).astype(float), rng.normal(size=31)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b)[0], abs=1e-12)


@pytest.mark.parametrize(
    "a", [np.full(9, 0.1) + 1e-17 * np.arange(9), np.full(9, np.nan), np.array([1.0, np.inf, *range(7)])]
)
def test_spearman_of_constant_or_broken_scores_is_undefined(a):
    assert spearman(a, rng.normal(size=9)) is None
    assert spearman(rng.normal(size=9), a) is None


def test_spearman_of_two_values_is_undefined():
    assert spearman(np.array([1.0, 2.0]), np.array([2.0, 1.0])) is None


def test_partial_spearman_is_the_formula_for_one_variable():
    a, b, c = rng.normal(size=(3, 40))
    b = b + a + 2 * c
    ab, ac, bc = spearman(a, b), spearman(a, c), spearman(b, c)
    expected = (ab - ac * bc) / math.sqrt((1 - ac**2) * (1 - bc**2))
    assert partial_spearman(a, b, [c]) == pytest.approx(expected, abs=1e-12)


def test_partial_spearman_takes_a_common_cause_away():
    cause = rng.normal(size=2000)
    a, b = cause + rng.normal(size=2000), cause + rng.normal(size=2000)
    assert spearman(a, b) > 0.4
    assert abs(partial_spearman(a, b, [cause])) < 0.08


def test_partial_spearman_of_what_is_given_is_undefined():
    a, b = rng.normal(size=(2, 12))
    assert partial_spearman(a, b, [a]) is None
    assert partial_spearman(a, np.ones(12), [b]) is None


def test_auc_is_mann_whitney_with_ties():
    scores, positive = rng.integers(0, 6, 50).astype(float), rng.random(50) < 0.3
    u = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert auc(scores, positive) == pytest.approx(u / (positive.sum() * (~positive).sum()), abs=1e-12)
    assert auc(scores, np.zeros(50, dtype=bool)) is None


def test_within_rows_marks_undefined_rows():
    a = np.stack([rng.normal(size=7), np.ones(7)])
    found = within_rows(a, rng.normal(size=(2, 7)))
    assert np.isfinite(found[0]) and np.isnan(found[1])


def test_bootstrap_covers_the_mean_about_as_often_as_it_says():
    inside = 0
    for trial in range(60):
        sample = np.random.default_rng(trial).normal(size=40)
        found = bootstrap(lambda rows, s=sample: float(s[rows].mean()), 40, seed=trial, n_draws=300)
        inside += found.low <= 0 <= found.high
    assert 50 <= inside <= 60


def test_few_images_give_a_value_without_interval_and_say_so():
    found = mean_interval(np.array([1.0, 2.0, math.nan, 3.0]), seed=0)
    assert (found.value, found.low) == (2.0, None) and "n = 3 gives no interval" in found.why


def test_undefined_statistics_are_undefined_with_a_reason():
    assert bootstrap(lambda rows: None, 9, seed=0).why
    assert str(Estimate(None, why="constant")) == "undefined (constant)"
    assert mean_interval(np.array([math.nan]), seed=0).value is None


def test_across_encoders_is_students_interval():
    values = [0.2, 0.5, 0.4, 0.3]
    found = across_encoders(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert across_encoders([0.2]).low is None and across_encoders([]).value is None


def test_leak_index_is_undefined_where_the_site_does_not_resemble_the_input():
    assert leak_index(0.3, 0.6) == 0.5
    assert leak_index(0.3, 0.0) is None and leak_index(0.3, -0.2) is None


def test_a_leak_index_over_images_is_a_ratio_of_means_with_an_interval():
    """Held to a loop over resamples; it goes with the images, which numerator and denominator share."""
    from vit_lens.estimates import leak_estimate

    generator = np.random.default_rng(3)
    site = generator.normal(0.4, 0.1, size=11)
    control = 0.5 * site + generator.normal(0, 0.02, size=11)
    found = leak_estimate(control, site, seed=4)
    drawn = np.random.default_rng(4)
    slow = [control[rows].mean() / site[rows].mean() for rows in (drawn.integers(11, size=11) for _ in range(1000))]
    assert found.value == pytest.approx(control.mean() / site.mean(), abs=1e-12)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=1e-12)
    gaps = leak_estimate(np.append(control, np.nan), np.append(site, 0.4), seed=4)
    assert gaps == found  # an image without a number counts for neither


def test_a_leak_index_is_not_applicable_where_its_denominator_is_not_significant():
    """Never a huge number: the plain ratio of these is 40 and more."""
    from vit_lens.estimates import leak_estimate, leak_of_draws

    site, control = np.array([0.3, -0.2, 0.25, -0.31, 0.01, -0.02]), np.full(6, 0.2)
    assert control.mean() / abs(site.mean()) > 30
    found = leak_estimate(control, site, seed=0)
    assert found.value is None and found.low is None
    assert found.why.startswith("not applicable: S(site) is") and found.why.endswith("which includes 0")
    assert leak_estimate(control, site - 1, seed=0).why.endswith("which lies below 0")
    assert "not applicable: n = 4 gives no interval" in leak_estimate(control[:4], control[:4], seed=0).why
    one = leak_of_draws([0.2] * 6, 0.004, least=0.1)
    assert one.value is None and one.why == "not applicable: S(site) is +0.00, and chance gives +0.10"
    assert leak_of_draws([0.2] * 6, float("nan"), least=0.1).why == "S is not known"
    assert leak_of_draws([0.1, 0.2, 0.3, 0.2, 0.2], 0.5, least=0.1).value == pytest.approx(0.4)
    few = leak_of_draws([0.1, 0.2], 0.5, least=0.1)
    assert few.low is None and few.value == pytest.approx(0.3)


# ---- similarity ---------------------------------------------------------------------------------------------


def test_centred_similarity_ignores_what_all_images_share():
    torch.manual_seed(0)
    clean, embeds = torch.randn(6, 11).double(), torch.randn(6, 4, 11).double()
    shift, other = 100 * torch.randn(11).double(), 100 * torch.randn(4, 11).double()
    plain = centred_similarity(embeds, clean, torch.zeros(1, 4, 11).double(), torch.zeros(11).double())
    moved = centred_similarity(embeds + other, clean + shift, other[None], shift)
    assert torch.allclose(plain, moved, atol=1e-10)
    unit, unit_clean = (torch.nn.functional.normalize(x, dim=-1) for x in (embeds, clean))
    assert torch.allclose(plain, (unit * unit_clean[:, None]).sum(-1), atol=1e-12)


def test_left_out_centring_uses_the_other_images_alone():
    torch.manual_seed(1)
    clean, embeds = torch.randn(5, 7).double(), torch.randn(5, 3, 7).double()
    found = left_out_centred(embeds, clean)
    for image in range(5):
        others = [i for i in range(5) if i != image]
        one = centred_similarity(
            embeds[image : image + 1], clean[image : image + 1], embeds[others].mean(0)[None], clean[others].mean(0)
        )
        assert torch.allclose(found[image], one[0], atol=1e-12)


# ---- images -------------------------------------------------------------------------------------------------


def pictures(n, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8))


def test_sets_that_share_an_image_are_refused():
    some = pictures(9)
    with pytest.raises(StudyError, match=r"ablation image 0 .* is the same picture as test image 2"):
        StudyImages(some[:3], some[3:6], [some[2], some[7]])
    with pytest.raises(StudyError, match="needs anchor images"):
        StudyImages(some[:3], [], some[3:])


def test_the_same_picture_in_a_file_is_found(tmp_path):
    from PIL import Image

    some = pictures(4)
    Image.fromarray(some[0]).save(tmp_path / "copy.png")
    with pytest.raises(StudyError, match=r"copy\.png"):
        StudyImages(some[:1], some[1:2], [tmp_path / "copy.png"])


def test_split_is_disjoint_and_counts_copies_once():
    some = pictures(30)
    found = StudyImages.split(some + some, 6, seed=1)
    assert (len(found.test), len(found.anchor), len(found.ablation)) == (6, 12, 12)
    assert not np.array_equal(found.test[0], StudyImages.split(some, 6, seed=2).test[0])


def test_too_few_images_to_split_are_refused():
    with pytest.raises(StudyError, match="20 different images cannot give 6 to test"):
        StudyImages.split(pictures(20), 6)


# ---- results ------------------------------------------------------------------------------------------------


def result(value, fingerprint, study="content", **options):
    estimate = Estimate(value, None if value is None else value - 0.1, None if value is None else value + 0.1)
    null = Null.of([0.0, 0.1, None])
    scores = tuple(
        Score(
            measure="agreement", reading=reading, level="decoded", n=4, unit="bases", nulls={"placebo": null},
            controls={"other image": 0.05},
            estimate=estimate if reading == "diffusion" else Estimate(0.5, 0.4, 0.6),
        )
        for reading in ("diffusion", "dsl:alpha=10")
    )  # fmt: skip
    setup = {"encoder": f"module@{fingerprint}", "fingerprint": fingerprint, "seed": 0, "lenses": ["diffusion"]}
    return StudyResult(
        study=study, setup=setup, options={"n": 4, **options}, scores=scores, tables={"sites": [{"site": "L0H0"}]}
    )


def test_a_result_survives_its_file(tmp_path):
    before = result(0.3, "a")
    path = before.save(tmp_path / "out")
    after = load_result(tmp_path / "out")
    assert after.scores == before.scores and after.setup == before.setup
    assert json.loads(path.read_text())["versions"]["torch"] == torch.__version__.split("+")[0]
    assert (tmp_path / "out" / "sites.csv").read_text().split() == ["site", "L0H0"]
    assert "null, placebo: +0.05" in str(after) and "n = 4 bases" in str(after)


def test_nan_is_not_written(tmp_path):
    with pytest.raises(StudyError, match="not finite"):
        result(math.nan, "a").save(tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_a_damaged_result_is_refused(tmp_path):
    path = result(0.3, "a").save(tmp_path)
    path.write_text(path.read_text()[:200])
    with pytest.raises(StudyError, match="run the study again"):
        load_result(tmp_path)
    with pytest.raises(StudyError, match="no result of a study"):
        load_result(tmp_path / "nowhere")


@pytest.mark.parametrize("damage", [{"setup": []}, {"scores": {}}, {"tables": []}])
def test_a_result_of_other_kinds_is_refused(tmp_path, damage):
    path = result(0.3, "a").save(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(StudyError, match="not a result of a study"):
        load_result(tmp_path)


def test_a_number_that_is_none_is_refused(tmp_path):
    path = result(0.3, "a").save(tmp_path)
    found = json.loads(path.read_text())
    found["scores"][0]["estimate"]["value"] = "abc"
    path.write_text(json.dumps(found))
    with pytest.raises(StudyError, match="'abc' where a number belongs"):
        load_result(tmp_path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"n": -3}, "has n = -3"),
        ({"n": 2.5}, "has n = 2.5"),
        ({"estimate": {"value": 0.3, "low": 0.4, "high": 0.2, "why": None}}, "the interval 0.4 to 0.2 of 0.3"),
        ({"estimate": {"value": 0.3, "low": 0.2, "high": None, "why": None}}, "the interval 0.2 to None of 0.3"),
        ({"estimate": {"value": None, "low": 0.2, "high": 0.4, "why": None}}, "the interval 0.2 to 0.4 of None"),
    ],
)
def test_numbers_that_no_study_writes_are_refused(tmp_path, damage, said):
    path = result(0.3, "a").save(tmp_path)
    found = json.loads(path.read_text())
    found["scores"][0] |= damage
    path.write_text(json.dumps(found))
    with pytest.raises(StudyError, match=said):
        load_result(tmp_path)


def test_results_with_other_scores_are_not_pooled():
    from dataclasses import replace

    fewer = result(0.3, "b")
    with pytest.raises(StudyError, match="hold different scores: 1 are in one alone, such as agreement, dsl:alpha=10"):
        pool([result(0.3, "a"), replace(fewer, scores=fewer.scores[:1])])


def test_pooling_takes_the_encoder_as_unit():
    found = pool([result(0.2, "a"), result(0.3, "b"), result(0.7, "c")])
    score = found.score("agreement", "diffusion", "decoded")
    low, high = stats.t.interval(0.95, 2, loc=0.4, scale=stats.sem([0.2, 0.3, 0.7]))
    assert score.n == 3 and score.unit == "encoders"
    assert (score.estimate.low, score.estimate.high) == (pytest.approx(low), pytest.approx(high))
    (row,) = found.tables["differences"]
    assert (row["reading"], row["minus"]) == ("diffusion", "dsl:alpha=10")
    low, high = stats.t.interval(0.95, 2, loc=-0.1, scale=stats.sem([-0.3, -0.2, 0.2]))
    assert (row["value"], row["low"]) == (pytest.approx(-0.1), pytest.approx(low))
    excess = next(r for r in found.tables["excess"] if r["reading"] == "diffusion")
    assert (excess["null"], excess["value"]) == ("placebo", pytest.approx(0.35))
    assert excess["low"] == pytest.approx(low + 0.35 + 0.1)


def test_of_several_candidates_differences_have_a_wider_interval_too():
    values = [0.2, 0.3, 0.7]
    found = pool([result(value, str(value)) for value in values], comparisons=4)
    (row,) = found.tables["differences"]
    low, high = stats.t.interval(0.9875, 2, loc=-0.1, scale=stats.sem(values))
    assert (row["low corrected"], row["high corrected"]) == (pytest.approx(low), pytest.approx(high))
    assert row["low corrected"] < row["low"] < row["high"] < row["high corrected"]
    assert found.notes[0].endswith("Corrected ones are at 98.75%, for 4 comparisons (Bonferroni).")
    assert "low corrected" in found.tables["excess"][0]
    assert "low corrected" not in pool([result(0.2, "a"), result(0.3, "b")]).tables["differences"][0]


def test_encoders_may_have_images_of_their_own_seeds():
    from dataclasses import replace

    parts = [
        replace(one, setup=one.setup | {"seed": 7 + n}) for n, one in enumerate([result(0.2, "a"), result(0.3, "b")])
    ]
    found = pool(parts)
    assert "seed" not in found.setup and [one["seed"] for one in found.setup["encoders"]] == [7, 8]


def test_an_image_drawn_twice_by_one_seed_is_no_other_setting():
    from dataclasses import replace

    parts = [(result(0.2, "a"), 512), (result(0.3, "b"), 511)]
    parts = [replace(one, setup=one.setup | {"n_anchor": 512, "n_ablation": n}) for one, n in parts]
    setup = pool(parts).setup
    assert setup["n_anchor"] == 512 and "n_ablation" not in setup
    other = replace(parts[1], setup=parts[1].setup | {"n_ablation": 400})
    with pytest.raises(StudyError, match="these results differ in n_ablation"):
        pool([parts[0], other])


def with_nulls(value, fingerprint, size, noise):
    estimate = Estimate(value, value, value)
    nulls = {"equal-norm placebo": Null.of([size]), "no content": Null.of([noise]), "shuffled": Null.of([0.9])}
    about = {"measure": "correlation", "n": 4, "unit": "images"}
    scores = (
        Score(reading="diffusion", level="decoded", estimate=estimate, nulls=nulls, **about),
        Score(reading="norm of h", level="embedding", estimate=Estimate(0.5), **about),
    )
    setup = {"encoder": fingerprint, "fingerprint": fingerprint, "seed": 0}
    notes = ("shared", *([f"{fingerprint} lacks a plant"] if fingerprint == "b" else []))
    return StudyResult(study="importance", setup=setup, options={}, scores=scores, notes=notes)


def test_the_larger_null_is_taken_encoder_by_encoder():
    found = pool([with_nulls(0.4, "a", 0.3, 0.0), with_nulls(0.4, "b", 0.0, 0.3)])
    rows = {row["null"]: row["value"] for row in found.tables["excess"]}
    assert rows["the larger of equal-norm placebo and no content"] == pytest.approx(0.1)
    assert rows["equal-norm placebo"] == pytest.approx(0.25)


def test_decoded_lenses_are_held_against_baselines_before_decoding():
    found = pool([with_nulls(0.4, "a", 0.3, 0.0), with_nulls(0.6, "b", 0.0, 0.3)])
    (row,) = found.tables["differences"]
    assert (row["reading"], row["level"], row["minus"], row["minus level"]) == (
        "diffusion", "decoded", "norm of h", "embedding"
    )  # fmt: skip
    assert row["value"] == pytest.approx(0.0, abs=1e-12)


def test_notes_of_single_encoders_are_kept():
    notes = pool([with_nulls(0.4, "a", 0.3, 0.0), with_nulls(0.4, "b", 0.0, 0.3)]).notes
    assert notes[1:] == ("shared", "b: b lacks a plant")


def test_an_undefined_score_is_left_out_and_counted():
    found = pool([result(0.2, "a"), result(None, "b"), result(0.4, "c")])
    score = found.score("agreement", "diffusion", "decoded")
    assert score.n == 2 and score.estimate.value == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([], "give those of two encoders"),
        ([result(0.2, "a")], "an encoder comes twice"),
        ([result(0.2, "b", study="planted")], "content, planted cannot be pooled"),
        ([result(0.2, "b", n=5)], "differ in n"),
    ],
)
def test_what_cannot_be_pooled_is_refused(others, said):
    with pytest.raises(StudyError, match=said):
        pool([result(0.2, "a"), *others])


# ---- setup and pictures -------------------------------------------------------------------------------------


def tower(seed, encoder_id):
    from conftest import randomize
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from vit_lens import HookedViT, PreprocessSpec

    config = CLIPVisionConfig(
        hidden_size=33, intermediate_size=44, num_hidden_layers=2, num_attention_heads=3, image_size=20, patch_size=10,
        projection_dim=32, hidden_act="gelu",
    )  # fmt: skip
    spec = PreprocessSpec(
        size=(20, 20), mean=(0.5, 0.4, 0.45), std=(0.3, 0.2, 0.25), interpolation="bicubic", resize_mode="shortest"
    )
    module = randomize(CLIPVisionModelWithProjection(config).eval(), seed=seed)
    with torch.no_grad():
        module.visual_projection.weight.mul_(8)
    return HookedViT.from_module(module, preprocess_spec=spec, encoder_id=encoder_id).requires_grad_(False)


@pytest.fixture(scope="module")
def model():
    return tower(0, "test/tower")


@pytest.fixture(scope="module")
def judge():
    from vit_lens.studies import Judge

    return Judge(tower(1, "test/judge"))


@pytest.fixture(scope="module")
def decoder():
    import tiny_kandinsky

    from vit_lens import DecodeSettings, KandinskyDecoder

    unet, movq, scheduler = tiny_kandinsky.parts()
    return KandinskyDecoder(
        unet, movq, scheduler, encoder="test/tower",
        defaults=DecodeSettings(steps=1, guidance=1.0, scheduler="ddim", height=32, width=32),
    )  # fmt: skip


LENSES = ["diffusion", "dsl-mean:alpha=5"]


def test_a_setup_starts_from_three_disjoint_sets(model, tmp_path):
    from vit_lens import ReferenceMeans, Site
    from vit_lens.studies import make_setup

    images = StudyImages.split(pictures(30), 6)
    setup = make_setup(model, images, lenses=LENSES, out=tmp_path)
    anchor = ReferenceMeans.from_images(model, images.anchor)
    ablation = ReferenceMeans.from_images(model, images.ablation, positions="all")
    assert setup.anchor.content == anchor.content and setup.ablation.content == ablation.content
    assert setup.lenses["dsl-mean:alpha=5"].reference.content == anchor.content
    clean = model(model.preprocess(list(images.anchor)))
    assert torch.allclose(setup.centre, clean.mean(0), atol=1e-5)
    assert setup.describe()["n_heads"] == len(Site.heads(model)) == 6
    with pytest.raises(StudyError, match=r"study content reads decoded pictures and needs a decoder"):
        setup.drawing("content")


def test_pictures_are_kept_and_drawn_once(model, judge, decoder, tmp_path, monkeypatch):
    from vit_lens.studies import Pictures
    from vit_lens.studies import seen_pictures as module

    monkeypatch.setattr(module, "_CHUNK", 4)
    made = Pictures(model=model, decoder=decoder, judge=judge, settings=decoder.defaults, folder=tmp_path, batch_size=2)
    embeds = model(model.preprocess(pictures(7)))
    seen = made.see(embeds, noise_seed=3)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    drawn, _ = made.draw(embeds, noise_seed=3)
    assert torch.allclose(seen.own.pooled, model(model.preprocess(list(drawn.numpy()))), atol=1e-4)
    assert torch.allclose(seen.judge, judge.model(judge.model.preprocess(list(drawn.numpy()))), atol=1e-4)

    def refuse(*args, **kwargs):
        raise RuntimeError("drawn")

    monkeypatch.setattr(type(decoder), "decode", refuse)
    again = made.see(embeds, noise_seed=3)
    assert torch.equal(again.own.pooled, seen.own.pooled) and torch.equal(again.judge, seen.judge)
    with pytest.raises(RuntimeError, match="drawn"):  # another noise is another picture
        made.see(embeds, noise_seed=4)


def test_a_judge_that_conditioned_the_decoder_is_refused(model, decoder, tmp_path):
    from vit_lens.studies import Judge, Pictures

    with pytest.raises(StudyError, match="would reward its round trip"):
        Pictures(
            model=model, decoder=decoder, judge=Judge(tower(0, "test/alias")), settings=decoder.defaults,
            folder=tmp_path,
        )  # fmt: skip


def test_a_judge_reads_contrasts_of_captions(judge):
    from vit_lens import TextBank
    from vit_lens.studies import Judge

    bank = TextBank(
        captions=("a", "b", "c"), embeds=torch.randn(3, 32, generator=torch.Generator().manual_seed(0)),
        logit_scale=7.0, logit_bias=None, encoder_id="test/judge",
    )  # fmt: skip
    seen = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    found = Judge(judge.model, bank).contrast(seen, ["b", "c"], ["a", "a"])
    logits = bank.logits(seen)
    assert torch.allclose(found, torch.stack([logits[0, 1] - logits[0, 0], logits[1, 2] - logits[1, 0]]))
    with pytest.raises(StudyError, match="needs the judge's captions"):
        judge.contrast(seen, ["b", "c"], ["a", "a"])


def test_settings_without_effect_are_refused(model, judge, tmp_path):
    from vit_lens.studies import make_setup

    images = StudyImages.split(pictures(30), 6)
    with pytest.raises(StudyError, match="without a decoder there are no pictures"):
        make_setup(model, images, lenses=LENSES, out=tmp_path, judge=judge)
    with pytest.raises(StudyError, match="give different seeds"):
        make_setup(model, images, lenses=LENSES, out=tmp_path, noise_seeds=(1, 1))


def test_a_summary_shows_the_measures_that_count():
    from vit_lens.studies.headlines import headlines

    found = result(0.3, "a", study="planted")
    assert headlines(found) == ["agreement"] and "agreement" in found.summary(headlines(found))
    other = result(0.3, "a", study="importance")
    assert headlines(other) == [] and "1 other measures" in other.summary(headlines(other))
    assert "agreement" in str(other)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lens": ["dlens"]}, "no lens 'dlens'"),
        ({"lens": ["dsl-mean:alpha=abc"]}, "'abc' is not a number"),
        ({"decoder": "none", "judge": "other"}, "so --judge would have no effect"),
        ({"decoder": "none", "steps": 4}, "have no effect"),
    ],
)
def test_what_cannot_be_run_is_told_before_anything_is_loaded(options, said, tmp_path):
    from vit_lens import VitLensError
    from vit_lens.studies.command_parts import Study, open_setup

    study = Study(model="no/such-model", **options)
    with pytest.raises(VitLensError, match=said):
        open_setup(study, StudyImages.split(pictures(30), 6), tmp_path, lenses=study.lens or ["diffusion"])


def test_a_pooled_result_is_not_pooled_again_with_what_it_is_made_of():
    parts = [result(0.2, "a"), result(0.3, "b")]
    with pytest.raises(StudyError, match="a result of 2 encoders is pooled already; give the results of single"):
        pool([pool(parts), parts[0]])


def test_few_text_encoders_are_called_descriptive():
    from dataclasses import replace

    def said(n):
        of_text = [replace(result(0.2, str(k)), setup=result(0.2, str(k)).setup | {"format": "sd"}) for k in range(n)]
        return str(pool(of_text) if n > 1 else of_text[0])

    assert "descriptive: n = 1 of at least 6 encoders" in said(1) and "descriptive: n = 5 of" in said(5)
    assert "descriptive" not in said(6) and "descriptive" not in str(result(0.2, "a"))
    assert "widest of any encoder's" in said(6)
