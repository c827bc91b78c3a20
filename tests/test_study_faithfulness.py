"""Faithfulness: cosines and ranks against slow loops, decoders of known quality, and the study end to end."""

import importlib

import numpy as np
import pytest
import tiny_kandinsky
import torch
from conftest import randomize
from scipy import stats

SITES = ["heads", "mlp", "resid_post"]  # 6 + 2 + 2


def tower(name, seed, width):
    """A random CLIP tower of the tiny decoder's width or another."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from vit_lens import HookedViT, PreprocessSpec

    config = CLIPVisionConfig(
        hidden_size=33, intermediate_size=44, num_hidden_layers=2, num_attention_heads=3, image_size=20, patch_size=10,
        projection_dim=width, hidden_act="gelu",
    )  # fmt: skip
    spec = PreprocessSpec(
        size=(20, 20), mean=(0.5, 0.4, 0.45), std=(0.3, 0.2, 0.25), interpolation="bicubic", resize_mode="shortest"
    )
    made = randomize(CLIPVisionModelWithProjection(config).eval(), seed)
    with torch.no_grad():
        made.visual_projection.weight.mul_(8)  # a natural length of embedding
    return HookedViT.from_module(made, preprocess_spec=spec, encoder_id=name).requires_grad_(False)


@pytest.fixture(scope="module")
def model():
    return tower("test/tower", 0, tiny_kandinsky.D_EMBED)


@pytest.fixture(scope="module")
def judge():
    from vit_lens.studies import Judge

    return Judge(tower("test/judge", 1, 13))


@pytest.fixture(scope="module")
def decoder():
    from vit_lens import DecodeSettings, KandinskyDecoder

    unet, movq, scheduler = tiny_kandinsky.parts()
    return KandinskyDecoder(
        unet, movq, scheduler, encoder="test/tower",
        defaults=DecodeSettings(steps=1, guidance=1.0, scheduler="ddim", height=32, width=32),
    )  # fmt: skip


@pytest.fixture(scope="module")
def study_images():
    from vit_lens.studies import StudyImages

    generator = np.random.default_rng(0)
    drawn = list(generator.integers(0, 256, (24, 21, 20, 3), dtype=np.uint8))
    return StudyImages(drawn[:3], drawn[3:14], drawn[14:])


@pytest.fixture(scope="module")
def make(model, judge, decoder, study_images, tmp_path_factory):
    """Make a setup; what is given stands in for the defaults."""
    from vit_lens.studies import make_setup

    def made(**changes):
        options = dict(
            lenses=["diffusion", "dsl-mean:alpha=5"], out=tmp_path_factory.mktemp("study"), decoder=decoder,
            judge=judge, noise_seeds=(5, 2), seed=3, batch_size=16,
        )  # fmt: skip
        return make_setup(model, study_images, **(options | changes))

    return made


@pytest.fixture(scope="module")
def setup(make):
    return make()


@pytest.fixture(scope="module")
def result(setup):
    from vit_lens.studies.faithfulness.study import faithfulness_study

    return faithfulness_study(setup, sites=SITES, n_shuffles=20, command="vit-lens study faithfulness")


def with_decoder(setup, draw):
    """Return the setup with a decoder of known quality: ``draw(embeds, seed)`` is what its pictures re-embed to."""
    from dataclasses import fields, replace

    from vit_lens import Condition
    from vit_lens.studies import Pictures, Seen

    class Known(Pictures):
        def see(self, embeds, *, noise_seed, label=""):
            own = draw(embeds.flat, noise_seed)
            return Seen(Condition.of(own), own[:, :13].clone())

    given = {f.name: getattr(setup.pictures, f.name) for f in fields(Pictures) if f.init}
    return replace(setup, pictures=Known(**given))


def random_drawn(n_images=2, n_sites=5, n_seeds=3):
    from vit_lens.studies.faithfulness.drawn import Drawn

    generator = torch.Generator().manual_seed(4)
    own = torch.randn(n_images, n_sites, n_seeds, 7, generator=generator, dtype=torch.float64)
    judge = torch.randn(n_images, n_sites, n_seeds, 4, generator=generator, dtype=torch.float64)
    return Drawn(asked=own[:, :, 0] + own[:, :, 1] + 0.3 * own[:, ::1, 2].flip(1), own=own, judge=judge)


def cos(a, b):
    return float((a @ b) / (a.norm() * b.norm()))


def test_faithfulness_is_the_cosine_with_what_was_asked():
    drawn = random_drawn()
    for image in range(2):
        for site in range(5):
            for seed in range(3):
                expected = cos(drawn.own[image, site, seed], drawn.asked[image, site])
                assert drawn.faithfulness[image, site, seed] == pytest.approx(expected, abs=1e-12)


def test_recognition_counts_the_sites_that_are_further_away():
    drawn = random_drawn()
    found = drawn.recognised()
    for image in range(2):
        for site in range(5):
            wins = [
                cos(own, drawn.asked[image, site]) > cos(own, drawn.asked[image, other])
                for own in drawn.own[image, site]
                for other in range(5)
                if other != site
            ]
            assert found[image, site] == pytest.approx(np.mean(wins), abs=1e-12)
    assert 0 < found.mean() < 1


def test_the_judge_is_held_against_itself_and_against_what_was_asked():
    drawn = random_drawn()
    agreement, relations = drawn.judge_agreement(), drawn.judge_relations()
    for image in range(2):
        for site in range(5):
            seen = drawn.judge[image, site]
            pairs = [cos(seen[a], seen[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
            assert agreement[image, site] == pytest.approx(np.mean(pairs), abs=1e-12)
            others = [other for other in range(5) if other != site]
            asked = [cos(drawn.asked[image, site], drawn.asked[image, other]) for other in others]
            rhos = [
                stats.spearmanr(asked, [cos(seen[k], drawn.judge[image, other, k]) for other in others]).statistic
                for k in range(3)
            ]
            assert relations[image, site] == pytest.approx(np.mean(rhos), abs=1e-12)


@pytest.mark.parametrize(("axis", "n"), [(0, 2), (1, 5)])
def test_an_exchanged_picture_never_meets_its_own_embedding(axis, n):
    drawn = random_drawn()
    generator = np.random.default_rng(0)
    for _ in range(6):
        found = drawn.exchanged(axis, generator)
        for image in range(2):
            for site in range(5):
                place = (image, site)
                others = [o for o in range(n) if o != place[axis]]
                asked = [drawn.asked[(o, site) if axis == 0 else (image, o)] for o in others]
                expected = [cos(drawn.own[image, site, 1], one) for one in asked]
                assert min(abs(found[image, site, 1] - e) for e in expected) < 1e-12


def test_one_seed_or_no_judge_leaves_out_what_needs_them():
    from dataclasses import replace

    drawn = random_drawn()
    alone = replace(drawn, own=drawn.own[:, :, :1], judge=drawn.judge[:, :, :1])
    assert alone.judge_agreement() is None and alone.judge_relations() is not None
    blind = replace(drawn, judge=None)
    assert blind.judge_agreement() is None and blind.judge_relations() is None


@pytest.mark.parametrize("n_seeds", [2, 5])
def test_nested_pictures_take_the_seed_of_their_image(setup, n_seeds):
    from dataclasses import replace

    from vit_lens import Condition
    from vit_lens.studies.faithfulness.drawn import draw

    seeds = tuple(range(10, 10 + n_seeds))
    asked = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0))
    known = with_decoder(replace(setup, noise_seeds=seeds), lambda embeds, seed: embeds * seed)
    drawn = draw(known, Condition.of(asked), nested=True, label="x")
    assert drawn.own.shape == (3, 4, 1, 32) and drawn.judge.shape == (3, 4, 1, 13)
    for image in range(3):
        assert torch.allclose(drawn.own[image, :, 0], asked[image] * seeds[image % n_seeds])
    whole = draw(known, Condition.of(asked), label="x")
    for place, seed in enumerate(seeds):
        assert torch.allclose(whole.own[:, :, place], asked * seed)


def test_a_perfect_decoder_and_one_that_always_draws_the_same(setup):
    from vit_lens.studies.faithfulness.study import faithfulness_study

    perfect = faithfulness_study(with_decoder(setup, lambda embeds, seed: embeds * seed), sites=SITES, n_shuffles=20)
    fixed = torch.randn(32, generator=torch.Generator().manual_seed(1))
    blind = faithfulness_study(
        with_decoder(setup, lambda embeds, seed: fixed.expand(len(embeds), -1)), sites=SITES, n_shuffles=20
    )

    def value(result, measure):
        return result.score(measure, "diffusion", "decoded").estimate.value

    assert value(perfect, "faithfulness") == pytest.approx(1.0, abs=1e-6)
    assert value(perfect, "share of pictures below 0.6") == 0.0
    assert value(perfect, "closer to its own embedding than to another site's") == pytest.approx(1.0)
    assert value(perfect, "range over noise seeds") == pytest.approx(0.0, abs=1e-6)
    assert value(blind, "closer to its own embedding than to another site's") == pytest.approx(0.5, abs=1e-9)
    score = blind.score("faithfulness", "diffusion", "decoded")
    for null in score.nulls.values():  # which picture is held against which embedding makes no difference
        assert null.mean == pytest.approx(score.estimate.value, abs=1e-9)
    real = perfect.score("faithfulness", "diffusion", "decoded")
    assert all(null.high < 0.99 for null in real.nulls.values())


def test_noise_shows_in_the_range_and_in_the_share(setup):
    from vit_lens.studies.faithfulness.study import faithfulness_study

    def draw(embeds, seed):  # seed 5 draws what it is asked, seed 2 the opposite
        return embeds if seed == 5 else -embeds

    result = faithfulness_study(with_decoder(setup, draw), sites=SITES, n_shuffles=5)
    lens = "dsl-mean:alpha=5"
    assert result.score("range over noise seeds", lens, "decoded").estimate.value == pytest.approx(2.0, abs=1e-6)
    assert result.score("share of pictures below 0.6", lens, "decoded").estimate.value == 0.5
    assert result.score("faithfulness", lens, "decoded").estimate.value == pytest.approx(0.0, abs=1e-6)
    score = result.score("agreement of the judge over noise seeds", lens, "decoded")
    assert score.estimate.value == pytest.approx(-1.0, abs=1e-6)
    placebo = result.score("share of pictures below 0.6", lens, "decoded").controls["equal-norm placebo"]
    assert placebo == pytest.approx(1 / 3)  # images 0 and 2 with seed 5, image 1 with seed 2


def test_faithfulness_predicts_where_the_judge_is_right_by_construction(setup):
    """Noise that differs between rows: what is drawn worse is also seen with less agreement."""
    from vit_lens.studies.faithfulness.study import faithfulness_study

    def draw(embeds, seed):
        generator = torch.Generator().manual_seed(seed)
        amount = (torch.arange(len(embeds)) % 10)[:, None] / 3
        noise = torch.randn(embeds.shape, generator=generator)
        return embeds / embeds.norm(dim=1, keepdim=True) + amount * noise / noise.norm(dim=1, keepdim=True)

    result = faithfulness_study(with_decoder(setup, draw), sites=SITES, n_shuffles=40)
    name = "faithfulness predicts: agreement of the judge over noise seeds"
    score = result.score(name, "diffusion", "decoded")
    assert score.estimate.value > 0.6 > score.nulls["sites shuffled"].high


def test_the_table_is_what_the_scores_average(result):
    rows = result.frame("sites")
    assert len(rows) == 3 * (10 + 8)  # the mean-anchored lens does not read the stream
    for lens in ("diffusion", "dsl-mean:alpha=5"):
        some = rows[rows["reading"] == lens]
        score = result.score("faithfulness", lens, "decoded")
        assert some["faithfulness"].mean() == pytest.approx(score.estimate.value, abs=1e-9)
        assert some["placebo"].mean() == pytest.approx(score.controls["equal-norm placebo"], abs=1e-9)
        assert (some["lowest"] <= some["faithfulness"]).all() and (some["faithfulness"] <= some["highest"]).all()
        spread = (some["highest"] - some["lowest"]).mean()
        assert spread == pytest.approx(result.score("range over noise seeds", lens, "decoded").estimate.value, abs=1e-9)
    layers = result.frame("layers")
    heads = rows[(rows["reading"] == "diffusion") & (rows["kind"] == "head") & (rows["layer"] == 1)]
    line = layers[(layers["reading"] == "diffusion") & (layers["kind"] == "head") & (layers["layer"] == 1)].iloc[0]
    assert line["n"] == len(heads) == 9
    assert line["faithfulness"] == pytest.approx(heads["faithfulness"].mean())


def test_every_score_stands_beside_its_controls(result):
    for score in result.scores:
        assert score.level == "decoded" and score.unit == "images" and score.n == 3
        if score.reading != "clean embeddings" and not score.measure.startswith("faithfulness predicts"):
            assert score.controls, score.measure
    faith = result.score("faithfulness", "diffusion", "decoded")
    assert set(faith.nulls) == {"picture of another site", "picture of another image"}
    clean = result.score("faithfulness", "clean embeddings", "decoded")
    assert faith.controls["clean embeddings"] == pytest.approx(clean.estimate.value)
    assert "n = 3 gives no interval" in faith.estimate.why


def test_a_result_is_saved_read_back_and_made_again_from_kept_pictures(result, setup, tmp_path, monkeypatch):
    from vit_lens.studies import Pictures, load_result
    from vit_lens.studies.faithfulness.study import faithfulness_study

    kept = load_result(result.save(tmp_path))
    assert kept.to_dict()["scores"] == result.to_dict()["scores"]

    def draw(self, embeds, *, noise_seed):
        raise AssertionError("drawn again")

    monkeypatch.setattr(Pictures, "draw", draw)
    again = faithfulness_study(setup, sites=SITES, n_shuffles=20)
    assert again.to_dict()["scores"] == result.to_dict()["scores"]


def test_without_a_judge_or_with_one_seed_the_result_says_what_is_left_out(make):
    from vit_lens.studies.faithfulness.study import faithfulness_study

    setup = with_decoder(make(noise_seeds=(1,), lenses=["diffusion"]), lambda embeds, seed: embeds)
    result = faithfulness_study(setup, sites=["heads"], n_shuffles=2)
    assert str(result.score("range over noise seeds", "diffusion", "decoded").estimate) == (
        "undefined (one noise seed has no range)"
    )
    blind = faithfulness_study(make(judge=None, lenses=["diffusion"]), sites=["L0H0", "L0H1", "L1.mlp"], n_shuffles=2)
    assert not any("judge" in score.measure for score in blind.scores)
    assert "No judge" in blind.notes[-1]


@pytest.mark.parametrize(
    ("change", "sites", "says"),
    [
        (dict(decoder=None, judge=None), SITES, "needs a decoder"),
        (dict(), ["L0H0", "resid_post"], "dsl-mean:alpha=5 is defined on 1 of the sites"),
    ],
)
def test_what_cannot_be_studied_is_named(make, change, sites, says):
    from vit_lens.errors import StudyError
    from vit_lens.studies.faithfulness.study import faithfulness_study

    with pytest.raises(StudyError, match=says):
        faithfulness_study(make(**change), sites=sites)


def test_one_image_is_too_few(model, decoder, study_images, tmp_path):
    from vit_lens.errors import StudyError
    from vit_lens.studies import StudyImages, make_setup
    from vit_lens.studies.faithfulness.study import faithfulness_study

    few = StudyImages(study_images.test[:1], study_images.anchor, study_images.ablation)
    with pytest.raises(StudyError, match="at least two test images"):
        faithfulness_study(make_setup(model, few, lenses=["diffusion"], out=tmp_path, decoder=decoder), sites=["heads"])


def test_the_figure_is_the_table(result):
    from vit_lens.errors import RecordError
    from vit_lens.studies.faithfulness.figures import faithfulness_layers

    layers = result.frame("layers")
    figure = faithfulness_layers(layers)
    heads = layers[(layers["reading"] == "diffusion") & (layers["kind"] == "head")]
    assert list(figure.data[0].y) == list(heads["faithfulness"]) and list(figure.data[0].x) == ["0", "1"]
    assert list(figure.data[1].y) == list(heads["placebo"])
    assert "could not draw" in figure.layout.title.text
    with pytest.raises(RecordError, match="not the table 'layers'"):
        faithfulness_layers(result.frame("sites").drop(columns="placebo"))


def test_the_command_hands_its_options_on(result, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from vit_lens.cli import app

    given = {}
    module = importlib.import_module("vit_lens.studies.command_parts")
    monkeypatch.setattr(module, "open_setup", lambda study, sets, out, **options: given.update(options, sets=sets))
    study_module = importlib.import_module("vit_lens.studies.faithfulness.study")
    monkeypatch.setattr(study_module, "faithfulness_study", lambda setup, **options: given.update(options) or result)
    done = CliRunner().invoke(app, ["study", "faithfulness", "--n", "3", "--out", str(tmp_path), "--sites", "L0H0,mlp"])
    assert done.exit_code == 0, done.output
    assert len(given["sets"].test) == 3 and given["sites"] == ["L0H0", "mlp"] and given["decoder_seeds"] == (0, 1, 2, 3)
    assert {path.name for path in tmp_path.iterdir()} >= {
        "result.json",
        "layers.csv",
        "faithfulness.html",
        "layers.html",
    }
    assert "faithfulness" in done.output


def test_each_anchor_of_a_lens_is_drawn_and_scored_by_itself(make):
    from vit_lens.studies.faithfulness.study import faithfulness_study

    setup = make(lenses=["diffusion", "counterfactual:share=0.5"])
    found = faithfulness_study(setup, sites=["heads", "mlp"], n_shuffles=5)
    readings = {score.reading for score in found.scores}
    assert {"diffusion", *(f"counterfactual:share=0.5, anchor {place}" for place in (1, 2, 3))} <= readings
    table = found.frame("sites").set_index(["reading", "image", "site"])["faithfulness"]
    first = setup.lenses["counterfactual:share=0.5"].each()[0]
    alone = faithfulness_study(make(lenses=["diffusion", first]), sites=["heads", "mlp"], n_shuffles=5)
    again = alone.frame("sites").set_index(["reading", "image", "site"])["faithfulness"]
    ours, theirs = table["counterfactual:share=0.5, anchor 1"], again[first.describe().label]
    assert ours.to_numpy() == pytest.approx(theirs.to_numpy(), abs=1e-6)
