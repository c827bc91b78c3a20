"""Reach: sizes of effects by brute force, correlations against scipy, and the study end to end."""

import numpy as np
import pytest
import torch
from scipy import stats
from test_study_content import small_study

SPECS = ["diffusion", "jacobian:alpha=5"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    from vit_lens.studies.reach.study import reach_study

    make, pairs, texts = small_study()
    out = tmp_path_factory.mktemp("reach")
    setup = make(out, lenses=SPECS, decoder=None, judge=None)
    result = reach_study(setup, pairs, texts, sites=["heads", "mlp"], n_placebo=2, n_shuffles=20, command="it")
    result.save(out)
    return setup, pairs, texts, result, out


def squares_by_hand(setup, pairs, texts, changes):
    """Root mean squares over the pairs of an attribute, as shares of what the whole image changes."""
    rows = {name: [i for i, own in enumerate(pairs.attribute) if own == name] for name in pairs.attributes}
    full = contrast(texts, setup.clean[list(pairs.partner)], pairs) - contrast(
        texts, setup.clean[list(pairs.base)], pairs
    )
    return {name: np.sqrt((changes[own] ** 2).mean(0)) / full[own].mean() for name, own in rows.items()}


def contrast(texts, embeds, pairs):
    unit = embeds / embeds.norm(dim=-1, keepdim=True)
    bank = texts.embeds / texts.embeds.norm(dim=-1, keepdim=True)
    logits = (texts.logit_scale * unit @ bank.T.to(unit)).double().numpy()
    rows = np.arange(len(pairs))
    toward, away = ([texts.index(text) for text in side] for side in (pairs.partner_caption, pairs.caption))
    return logits[rows, toward] - logits[rows, away]


@torch.no_grad()
def test_sizes_are_those_of_patched_runs_one_by_one(found):
    from vit_lens import Site
    from vit_lens.interventions import patch

    setup, pairs, texts, result, _ = found
    table = result.frame("sizes").set_index(["site", "attribute"])
    model = setup.model
    base, partner = (setup.pixels[list(side)] for side in (pairs.base, pairs.partner))
    _, cache = model.run_with_cache(partner)
    _, own = model.run_with_cache(base)
    for name in ("L0.mlp", "L1H2"):
        site = Site.parse(name)
        patched = model.run_with_hooks(base, fwd_hooks=patch(model, site, cache))
        changes = contrast(texts, patched, pairs) - contrast(texts, setup.clean[list(pairs.base)], pairs)
        told = [contrast(texts, setup.lenses["jacobian:alpha=5"].embed(one, name)[:, 0], pairs) for one in (cache, own)]
        moved = [written(model, one, site) for one in (cache, own)]
        norm = (moved[0] - moved[1]).sub((moved[0] - moved[1]).mean(-1, keepdim=True)).flatten(1).norm(dim=1)
        for column, values in (
            ("total effect", changes), ("jacobian:alpha=5", told[0] - told[1]),
            ("norm of what changes, all rows (no lens)", norm.double().numpy()),
        ):  # fmt: skip
            expected = squares_by_hand(setup, pairs, texts, values)
            for attribute, size in expected.items():
                assert table.loc[(name, attribute), column] == pytest.approx(abs(size), rel=2e-3), (name, column)


def written(model, cache, site):
    act = cache[site.hook_name]
    return act if site.head is None else act[:, :, site.head] @ model.blocks[site.layer].attn.W_O[site.head]


def test_scores_are_rank_correlations_of_the_table(found):
    from vit_lens.studies import load_result
    from vit_lens.studies.reach import HEADLINES

    *_, result, out = found
    table = result.frame("sizes")
    for name in (*SPECS, "direct effect (no lens)", "norm of what changes, all rows (no lens)"):
        score = result.score("sizes of effects over sites and attributes, all sites", name, "embedding")
        expected = stats.spearmanr(table["total effect"], table[name]).statistic
        assert score.estimate.value == pytest.approx(expected, abs=1e-9) and score.n == 5
        each = [stats.spearmanr(own["total effect"], own[name]).statistic for _, own in table.groupby("attribute")]
        within = result.score("sizes of effects over sites, mean over attributes, all sites", name, "embedding")
        assert within.estimate.value == pytest.approx(np.mean(each), abs=1e-9)
        early = table[table["site"].str.startswith("L0")]
        part = result.score("sizes of effects over sites and attributes, early sites", name, "embedding")
        expected = stats.spearmanr(early["total effect"], early[name]).statistic
        assert part.estimate.value == pytest.approx(expected, abs=1e-9)
        beside = {"equal-norm placebo", "another image's output", "covariance-matched placebo"}
        assert set(score.nulls) == {"shuffled sites", *(beside if name in SPECS else ())}
    assert load_result(out).scores == result.scores
    assert set(HEADLINES) == {score.measure for score in result.scores}


def test_true_effects_as_a_reading_score_one_and_shuffled_sites_do_not(found):
    from vit_lens.studies.content import Changes
    from vit_lens.studies.reach.study import _Found, _scores

    generator = np.random.default_rng(0)
    sums = generator.random((5, 7, 4))
    true = Changes(sums=sums, counts=np.ones((5, 4), dtype=np.int64), full=np.ones(4))
    own = _Found(name="truth", squares=true, controls={})
    for score in _scores(own, true, "all sites", list(range(7)), seed=0, n_shuffles=50):
        assert score.estimate.value == pytest.approx(1)
        assert abs(score.nulls["shuffled sites"].mean) < 0.3


def test_the_command_runs_on_the_embedded_encoder_and_refuses_what_has_no_effect(vit_lens, tmp_path):
    from vit_lens.studies import load_result

    status, output, error = vit_lens(
        "study", "reach", "--n", 3, "--lens", "diffusion,jacobian:share=0.5", "--out", tmp_path / "out"
    )
    assert status == 0, error
    assert {score.reading for score in load_result(tmp_path / "out").scores} > {"diffusion", "jacobian:share=0.5"}
    assert "study reach: vit_lens/mini" in output
    for given, said in (
        (["--decoder", "elsewhere"], "study reach is about embeddings and draws nothing"),
        (["--sites", "L0.mlp,L1.mlp"], "2 sites: a correlation needs three or more"),
    ):
        status, _, error = vit_lens("study", "reach", "--n", 3, *given, "--out", tmp_path / "no")
        assert status and said in " ".join(error.split()), error
