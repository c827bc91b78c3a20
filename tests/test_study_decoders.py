"""Two decoders: agreement by brute force, its correlation with content against scipy, and the study end to end."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from test_second_decoder import Blocks
from test_study_content import SMALL, small_study
from torch.nn.functional import cosine_similarity

SPECS = ["dsl-mean:alpha=5", "counterfactual:share=0.5"]
N = 4


def drawn_by(setup, own):
    """What draws with one of several decoders that share a part of how they do it."""
    decoder = Blocks(own, setup.model.cfg.d_embed)
    return replace(setup.pictures, decoder=decoder, settings=decoder.defaults)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    from vit_lens.studies import decoders_study

    make, pairs, texts = small_study()
    out = tmp_path_factory.mktemp("decoders")
    setup = make(out, lenses=SPECS)
    setup = replace(setup, pictures=drawn_by(setup, 1))
    second = drawn_by(setup, 2)
    result = decoders_study(
        setup, second, pairs, texts, decoded=SPECS, n_decoded=N, n_largest=3, n_random=2, n_shuffles=9, command="it"
    )
    result.save(out)
    return setup, second, pairs, texts, result, out


def test_agreement_is_that_of_pictures_drawn_one_by_one(found):
    setup, second, pairs, _, result, _ = found
    table = result.frame("sites").set_index("site")
    images = pairs.images_of_first(N)
    noise = [setup.noise_seeds[i % 2] if i < N else None for i in range(len(images))]
    for place, pair in enumerate(pairs.pairs_of_first(N)):
        noise[N + place] = setup.noise_seeds[pairs.base[pair] % 2]
    for spec in SPECS:
        each = []
        for lens in setup.lenses[spec].each():
            _, cache = setup.model.run_with_cache(setup.pixels[images])
            asked = lens.embed(cache, list(table.index))
            for image, seed in enumerate(noise):
                one, two = (
                    torch.stack([
                        part.see(asked[image, s : s + 1], noise_seed=seed).judge[0] for s in range(asked.shape[1])
                    ])
                    for part in (setup.pictures, second)
                )  # fmt: skip
                each.append(cosine_similarity(one[:, None].double(), two[None].double(), dim=-1).numpy())
        mean = np.mean(each, axis=0)
        own, n = np.diagonal(mean), len(mean)
        mismatched = (mean.sum(1) - own) / (n - 1)
        assert table[f"{spec}, agreement"].to_numpy() == pytest.approx(own, abs=1e-5)
        assert table[f"{spec}, mismatched"].to_numpy() == pytest.approx(mismatched, abs=1e-5)
        score = result.score("agreement of two decoders", spec, "decoded")
        assert score.estimate.value == pytest.approx(own.mean(), abs=1e-5) and score.n == N
        assert score.nulls["mismatched sites"].mean == pytest.approx(mismatched.mean(), abs=1e-5)
        above = result.score("agreement of two decoders above mismatched sites", spec, "decoded")
        assert above.estimate.value == pytest.approx((own - mismatched).mean(), abs=1e-5)
        assert abs(above.nulls["equal-norm placebo"].mean - above.estimate.value) > 1e-3 < above.estimate.value


def test_content_is_that_of_the_content_study_and_the_sign_is_scipys(found, tmp_path):
    from vit_lens.studies import content_study
    from vit_lens.studies.decoders.study import HEADLINES

    setup, second, pairs, texts, result, _ = found
    table = result.frame("sites").set_index("site")
    for which, pictures in (("first", setup.pictures), ("second", second)):
        own = replace(setup, pictures=pictures)
        slow = content_study(own, pairs, texts, decoded=SPECS, n_decoded=N, **SMALL).frame("sites").set_index("site")
        for spec in SPECS:
            content = table[f"{spec}, content by the {which}"].astype(float)
            assert content.to_numpy() == pytest.approx(
                slow.loc[table.index, f"{spec}, decoded"].to_numpy(float), abs=1e-9
            )
            excess = table[f"{spec}, agreement"] - table[f"{spec}, mismatched"]
            name = f"agreement above mismatched sites as a sign of content, total effect, by the {which} decoder"
            score = result.score(name, spec, "decoded")
            assert score.estimate.value == pytest.approx(stats.spearmanr(excess, content).statistic, abs=1e-9)
            assert score.nulls["shuffled sites"].n_draws == 9 and score.nulls["equal-norm placebo"].n_draws == 1
            assert name in HEADLINES


def test_the_command_draws_as_the_second_settings_say(vit_lens, tmp_path):
    from vit_lens.studies import load_result

    given = ["--n", 3, "--n-decoded", 1, "--lens", "dsl-mean:alpha=5", "--sites", "L4.mlp,L5.mlp,L6.mlp"]
    status, output, error = vit_lens(
        "study", "decoders", *given, "--second-settings", "steps=1,guidance=1", "--out", tmp_path
    )
    assert status == 0 and "study decoders: vit_lens/mini" in output, error
    result = load_result(tmp_path)
    assert result.setup["second_settings"]["steps"] == 1 != result.setup["settings"]["steps"]
    assert result.setup["second_decoder"] == "vit_lens/mini-ip" and len(result.tables["sites"]) == 3


def test_encoders_with_decoders_of_their_own_are_pooled(found):
    from vit_lens.studies import pool

    result = found[4]
    setup = {**result.setup, "fingerprint": "another", "decoder": "blocks-3", "second_decoder": "blocks-4"}
    pooled = pool([result, replace(result, setup=setup)])
    assert [one["second_decoder"] for one in pooled.setup["encoders"]] == ["blocks-2", "blocks-4"]


def test_an_interval_leaves_a_base_out_with_its_partners(found):
    """Agreement over some bases is the mean over these, their partners and no other image."""
    from vit_lens import Condition
    from vit_lens.studies.content import Changes, Drawn, Reading, Study
    from vit_lens.studies.content.pair_readings import Chosen, Whole
    from vit_lens.studies.decoders.study import _compared

    pairs, generator = found[2], torch.Generator().manual_seed(0)
    own = pairs.first(N)
    n = len(own.images)
    first, second = (torch.randn(n, 5, 9, generator=generator) for _ in range(2))
    asked = Condition(pooled=torch.randn(n, 5, 7, generator=generator))
    both = [Drawn(asked=[asked], seen=[seen]) for seen in (first, second)]
    nothing = Changes(sums=np.zeros((1, 1, 1)), counts=np.ones((1, 1), dtype=np.int64), full=np.ones(1))
    reading = Reading(spec="", level="decoded", changes=nothing, causal={}, top=[])
    study = Study(
        setup=found[0], pairs=pairs, sites=[], effects={}, chosen=Chosen(top=[], early=[], drawn=[], why={}),
        whole=Whole(attributes=[], encoder=np.ones(1), judge=None, table=[]),
    )  # fmt: skip
    pair = _compared(study, N, *both, reading, reading)
    partners = {base: [p for b, p in zip(own.base, own.partner, strict=True) if b == base] for base in range(N)}
    for bases in ([0], [1, 3], [2, 2, 0]):
        images = [image for base in bases for image in (base, *partners[base])]
        cosines = cosine_similarity(first[images].double(), second[images].double(), dim=-1)
        assert pair.per_site(np.array(bases))[0] == pytest.approx(cosines.mean(0).numpy(), abs=1e-6)


def test_what_is_drawn_is_never_drawn_again(found, monkeypatch):
    from vit_lens.studies import decoders_study, load_result

    setup, second, pairs, texts, result, out = found

    def refuse(*args, **kwargs):
        raise RuntimeError("drawn")

    monkeypatch.setattr(type(second.decoder), "decode", refuse)
    again = decoders_study(
        setup, second, pairs, texts, decoded=SPECS, n_decoded=N, n_largest=3, n_random=2, n_shuffles=9
    )
    assert again.scores == result.scores == load_result(out).scores


def test_one_decoder_twice_and_another_judge_are_refused(found):
    from vit_lens.errors import StudyError
    from vit_lens.studies import Judge, decoders_study

    setup, second, pairs, texts, _, _ = found
    with pytest.raises(StudyError, match="is both decoders, which agree in everything they make up"):
        decoders_study(setup, setup.pictures, pairs, texts)
    same = drawn_by(setup, 1)  # another name, the same weights
    same.decoder.decoder_id = "another name"
    with pytest.raises(StudyError, match="is both decoders"):
        decoders_study(setup, same, pairs, texts)
    from test_studies import tower

    stranger = Judge(tower(7, "test/other judge"))
    with pytest.raises(StudyError, match="another judge reads the second decoder's pictures"):
        decoders_study(setup, replace(second, judge=stranger), pairs, texts)
    with pytest.raises(StudyError, match="needs a decoder"):
        decoders_study(replace(setup, pictures=None), second, pairs, texts)


def test_the_command_says_what_it_lacks(vit_lens, tmp_path):
    for given, said in (
        (["--decoder", "none"], "give --decoder and --second-decoder"),
        (["--sites", "L5.mlp,L6.mlp", "--n", 3, "--lens", "diffusion"], "2 site(s) are drawn: a picture is held"),
        (["--decoder", "elsewhere"], "give --decoder and --second-decoder"),
        (["--second-decoder", "mini", "--n", 3, "--n-decoded", 1, "--lens", "diffusion"], "mini is both decoders"),
        (["--second-settings", "stepz=2", "--n", 3, "--lens", "diffusion"], "no decoder setting 'stepz'"),
    ):  # fmt: skip
        status, _, error = vit_lens("study", "decoders", *given, "--out", tmp_path / "no")
        assert status and said in " ".join(error.split()), error
