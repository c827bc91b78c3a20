"""Whose work the picture is: closed forms against brute force, planted truths, refused denoisers, and end to end."""

import doctest
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny_pipelines
import torch

from vit_lens.errors import LensError, ReferenceMismatchError, StudyError
from vit_lens.mini import STILL_LIFE, still_life
from vit_lens.mini.still_life import Lexicon, Scene
from vit_lens.studies.asked import Asked, ask_of_world
from vit_lens.studies.layer_answers import LayerAnswers
from vit_lens.studies.layer_statistics import half_rise

KINDS = {"single": 3, "pair, head first": 3, "pair, fronted": 3, "common name": 2, "rare name": 2}
PROMPTS = [*tiny_pipelines.PROMPTS, "a small star left of a big ring", "two red"]


@pytest.fixture(scope="module")
def wide():
    """A tiny Stable Diffusion's text half with random weights and biases, in float64."""
    from vit_lens.decoders import PromptEncoder

    pipe = tiny_pipelines.make("sd1")
    pipe.text_encoder.double()
    return PromptEncoder(pipe)


def run_of(encoder, prompts=PROMPTS):
    from vit_lens import TextRun

    return TextRun.of(encoder, prompts)


def residuals(encoder, prompts=PROMPTS):
    """The stream by the stock encoder's own account: [layer prompt position width], and its final norm."""
    module = encoder.encoders["text_encoder"]
    ids = run_of(encoder, prompts).ids["text_encoder"]
    with torch.no_grad():
        found = module(ids, output_hidden_states=True).hidden_states
    return torch.stack(list(found)), getattr(module, "text_model", module).final_layer_norm


def centred(x):
    return x - x.mean(-1, keepdim=True)


def cosines(a, b):
    return torch.nn.functional.cosine_similarity(centred(a), centred(b), dim=-1)


# ---- interpolation


def test_points_between_have_the_layers_cosine_and_lie_on_the_segment(wide):
    """Found by the stock encoder's states, and by halving the interval, the slow way."""
    from vit_lens.studies.whose import InterpolationLens

    run, lens = run_of(wide), InterpolationLens()
    stream, _ = residuals(wide)
    first, last = stream[0], stream[-1]
    n_inside = 0
    for layer, own in enumerate(stream):
        with torch.no_grad():
            share, is_farther, cosine = lens.shares(run, own)
        assert torch.allclose(cosine, cosines(own, last), atol=1e-12)
        assert torch.equal(is_farther, cosines(own, last) < cosines(first, last)) or layer in (0, len(stream) - 1)
        point = first + share[..., None] * (last - first)
        inside = ~is_farther
        assert torch.allclose(cosines(point, last)[inside], cosines(own, last)[inside], rtol=0, atol=1e-9)
        assert (share[is_farther] == 0).all() and (share >= 0).all() and (share <= 1).all()
        if layer in (0, len(stream) - 1):  # where the cosine hardly moves, it says little of the share
            continue
        for row, place in inside.nonzero().tolist()[::7]:
            low, high = 0.0, 1.0
            for _ in range(60):
                middle = (low + high) / 2
                there = first[row, place] + middle * (last[row, place] - first[row, place])
                low, high = (middle, high) if cosines(there, last[row, place]) < cosine[row, place] else (low, middle)
            assert share[row, place].item() == pytest.approx(low, abs=1e-8)
            n_inside += 1
    assert n_inside > 10


def test_the_ends_of_the_interpolation_are_the_first_and_the_last_picture(wide):
    from vit_lens import TextDiffusionLens
    from vit_lens.studies.whose import InterpolationLens

    run, n = run_of(wide), wide.towers["text_encoder"].cfg.n_layers
    stream, norm = residuals(wide)
    found = InterpolationLens().read(run, ["L0.resid_pre", "resid_post"]).tokens
    plain = TextDiffusionLens().read(run, ["L0.resid_pre", "resid_post"]).tokens
    assert torch.equal(found[:, 0], plain[:, 0]) and torch.equal(found[:, n], run.condition.tokens)
    for layer in range(1, n):
        assert not torch.allclose(found[:, layer], plain[:, layer], atol=1e-3)
        share = InterpolationLens().shares(run, stream[layer])[0][..., None]
        with torch.no_grad():
            expected = norm((1 - share) * stream[0] + share * stream[-1])
        assert torch.allclose(found[:, layer], expected, rtol=0, atol=1e-9)


def test_a_state_that_is_farther_than_the_first_is_clamped_and_counted():
    from vit_lens.studies.whose.interpolation import share_at_cosine

    generator = torch.Generator().manual_seed(1)
    first, last = torch.randn(2, 50, 7, generator=generator, dtype=torch.float64)
    away = first - 0.5 * last
    share, is_farther, _ = share_at_cosine(first, last, away)
    assert is_farther.all() and (share == 0).all()
    share, is_farther, _ = share_at_cosine(first, last, 3 * last)
    assert not is_farther.any() and torch.allclose(share, torch.ones(50, dtype=torch.float64), atol=1e-12)
    share, is_farther, _ = share_at_cosine(last * 2, last, last)  # first and last in one direction
    assert share.isfinite().all() and not is_farther[share == 1].any()
    with pytest.raises(LensError, match="no cosine"):
        share_at_cosine(first, last, torch.zeros_like(first))


def test_states_of_the_study_are_of_the_stream_alone_and_have_no_hooks(wide):
    from vit_lens.studies.whose import EndLens, InterpolationLens

    run = run_of(wide)
    for lens in (EndLens(), InterpolationLens()):
        with pytest.raises(LensError, match="not defined on"):
            lens.read(run, "L0.mlp")
        with pytest.raises(LensError, match="no hook functions"):
            lens.hooks(run, "L0.resid_post")
        assert lens.describe().settings["definition"] == lens.definition != ""


def test_examples_run():
    from vit_lens.studies.whose import interpolation, states

    for module in (interpolation, states):
        found = doctest.testmod(module)
        assert found.attempted and not found.failed


# ---- tuned lens


def test_maps_are_those_of_least_squares_over_all_positions(wide):
    """Ridge towards the identity is least squares with rows of their own for the penalty."""
    from vit_lens.studies.whose import Translators

    words = tiny_pipelines.WORDS
    generator = np.random.default_rng(0)
    prompts = list(dict.fromkeys(" ".join(generator.choice(words, 4)) for _ in range(45)))
    ridge = 0.03
    maps = Translators.fit(wide, prompts, ridge=ridge)
    stream, _ = residuals(wide, prompts)
    stream = stream.flatten(1, 2).numpy()
    n, d = stream.shape[1:]
    for layer, x in enumerate(stream):
        gap, mean = stream[-1] - x, x.mean(0)
        z = x - mean
        penalty = np.sqrt(ridge * (z**2).sum() / d) * np.eye(d)
        weight = np.linalg.lstsq(
            np.concatenate([z, penalty]), np.concatenate([gap - gap.mean(0), np.zeros((d, d))]), rcond=None
        )[0]  # fmt: skip
        assert np.allclose(maps.weight[layer].numpy(), weight, rtol=0, atol=1e-9)
        assert np.allclose(maps.bias[layer].numpy(), gap.mean(0) - mean @ weight, rtol=0, atol=1e-9)
        made = maps(layer, torch.from_numpy(x)).numpy()
        assert np.square(made - stream[-1]).sum() <= np.square(x - stream[-1]).sum() + 1e-12
    assert n == len(prompts) * 16 and maps.n == len(prompts)


def test_the_tuned_lens_draws_what_its_maps_make_and_leaves_the_last_layer(wide, tmp_path):
    from vit_lens.decoders import PromptEncoder
    from vit_lens.studies.whose import Translators, TunedLens

    others = ["a red ring", "two small", "a green star", "a big ring above a blue cross"]
    maps = Translators.of_folder(tmp_path, wide, others, ridge=0.1)
    (file,) = tmp_path.iterdir()
    again = Translators.of_folder(tmp_path, wide, others, ridge=0.1)
    assert again.content == maps.content and len(list(tmp_path.iterdir())) == 1
    assert Translators.of_folder(tmp_path, wide, others, ridge=0.2).content != maps.content
    lens, run = TunedLens(translators=maps), run_of(wide)
    stream, norm = residuals(wide)
    found = lens.read(run, ["L0.resid_pre", "resid_post"]).tokens
    assert torch.equal(found[:, -1], run.condition.tokens)
    for layer in range(len(stream)):
        with torch.no_grad():
            expected = norm(stream[layer] + stream[layer] @ maps.weight[layer] + maps.bias[layer])
        assert torch.allclose(found[:, layer], expected, rtol=0, atol=1e-9)
    said = lens.describe().settings
    assert (said["n_fit"], said["ridge"], said["maps"]) == (4, 0.1, maps.content)
    pipe = tiny_pipelines.make("sd1")
    with torch.no_grad():
        next(pipe.text_encoder.double().parameters()).mul_(2)
    with pytest.raises(ReferenceMismatchError, match="fit their own"):
        lens.read(run_of(PromptEncoder(pipe)), "L0.resid_post")
    file.write_bytes(b"damaged")
    with pytest.raises(StudyError, match="remove it"):
        Translators.of_folder(tmp_path, wide, others, ridge=0.1)
    for ridge in (0.0, -1.0, float("nan")):
        with pytest.raises(LensError, match="ridge"):
            Translators.fit(wide, others, ridge=ridge)
    with pytest.raises(StudyError, match="no prompts"):
        Translators.fit(wide, [])


# ---- probes


def test_a_probe_is_the_ridge_regression_written_by_hand():
    from vit_lens.studies.whose.probing import ridge_classes

    generator = np.random.default_rng(3)
    x = generator.normal(size=(53, 11)) * generator.uniform(0.1, 9, 11) + generator.normal(size=11)
    x[:, 4] = 2.5  # says nothing
    target = generator.integers(0, 3, 53)
    weight, bias = ridge_classes(torch.from_numpy(x), torch.from_numpy(target), 0.07)
    own = np.delete(x, 4, axis=1)
    z = (own - own.mean(0)) / own.std(0)
    design = np.concatenate([np.ones((53, 1)), z], 1)
    rows = np.sqrt(0.07 * 53) * np.eye(11)
    rows[0, 0] = 0  # the constant is free
    made = np.linalg.lstsq(np.concatenate([design, rows]), np.concatenate([np.eye(3)[target], np.zeros((11, 3))]),
                           rcond=None)[0]  # fmt: skip
    new = generator.normal(size=(20, 11))
    new[:, 4] = generator.normal(size=20)
    expected = np.concatenate([np.ones((20, 1)), (np.delete(new, 4, axis=1) - own.mean(0)) / own.std(0)], 1) @ made
    assert np.allclose(new @ weight.numpy() + bias.numpy(), expected, rtol=0, atol=1e-9)
    assert (weight[4] == 0).all()


class Planted:
    """Features of sentences by hand: the first place's shape is there from layer k on, and nothing else is."""

    def __init__(self, from_layer, n_layers=5, width=24):
        self.from_layer, self.n_layers, self.width = from_layer, n_layers, width
        self.scenes = {}

    def features(self, prompts):
        from vit_lens.studies.whose.probing import POSITIONS

        found = []
        for layer in range(self.n_layers):
            rows = []
            for text in prompts:
                generator = np.random.default_rng([layer, *text.encode()])
                row = generator.normal(size=self.width)
                if layer >= self.from_layer:
                    row[3 + still_life.codes([self.scenes[text]])[0, 3]] += 25
                rows.append(row)
            found.append(np.stack(rows))
        both = torch.from_numpy(np.stack(found))
        return dict.fromkeys(POSITIONS, both)


@pytest.mark.parametrize("from_layer", [0, 2, 4])
def test_a_planted_attribute_is_found_from_its_layer_on_and_no_other_is(wide, from_layer, monkeypatch):
    from vit_lens.studies.whose.other_prompts import other_sentences
    from vit_lens.studies.whose.probing import POSITIONS, Probing

    asked = ask_of_world({"single": 40, "pair, head first": 60}, Lexicon(0), seed=2)
    others = other_sentences(300, Lexicon(0), np.random.default_rng(1), apart_from=[one.prompt for one in asked])
    planted = Planted(from_layer)
    planted.scenes = {one.text: one.scene for one in others} | {one.prompt: one.sentence.scene for one in asked}
    monkeypatch.setattr(Probing, "_features", lambda self, prompts: planted.features(prompts))
    probing = Probing(reader=wide, sentences=others, n_shuffles=8)
    found = probing.answers(asked, np.random.default_rng(0))
    assert list(found) == list(POSITIONS)
    for kinds in found.values():
        assert kinds["single"].parts == ("colour 1", "texture 1", "shape 1")
        assert kinds["pair, head first"].parts[0] == "layout" and len(kinds["pair, head first"].parts) == 7
        for one in kinds.values():
            assert one.right.shape[1:3] == (1, 5) and one.sites[0] == "L0.resid_pre" and one.sites[4] == "L3.resid_post"
            shape = one.of("shape 1").mean((0, 1))
            assert (shape[from_layer:] == 1).all() and (shape[:from_layer] < 0.5).all()
            for part in one.parts:
                selectivity = (one.of(part) - one.chance(part)).mean((0, 1))
                if part != "shape 1":
                    assert abs(selectivity.mean()) < 0.12, (part, selectivity)
        pair = kinds["pair, head first"]
        curve = (pair.of("shape 1") - pair.chance("shape 1")).mean((0, 1))
        assert half_rise(curve) == pytest.approx(max(0, from_layer - 0.5), abs=0.25)
        assert pair.chance("shape 1").mean() == pytest.approx(1 / 6, abs=0.06)


def test_probes_read_the_end_and_the_mean_of_the_stream(wide):
    from vit_lens.studies.whose.probing import POSITIONS, Probing

    found = Probing(reader=wide, sentences=(), n_shuffles=1)._features(PROMPTS)
    stream, _ = residuals(wide)
    ends = run_of(wide).ends("text_encoder")
    assert torch.equal(found[POSITIONS[0]], stream[:, torch.arange(len(PROMPTS)), ends])
    assert torch.allclose(found[POSITIONS[1]], stream.mean(2), rtol=0, atol=1e-12)


def test_other_sentences_are_other_whole_and_without_names(wide, monkeypatch):
    from vit_lens.studies.whose import other_prompts
    from vit_lens.studies.whose.probing import Probing

    other_sentences = other_prompts.other_sentences
    first = other_sentences(120, Lexicon(2), np.random.default_rng(4), apart_from=[])
    left_out = [one.text for one in first[::2]]
    others = other_sentences(120, Lexicon(2), np.random.default_rng(4), apart_from=left_out)
    texts = [one.text for one in others]
    assert len(set(texts)) == 120 and not set(texts) & set(left_out) and set(texts) & {one.text for one in first}
    assert all(mention.name is None and all(mention.says) for one in others for mention in one.mentions)
    assert not any(still_life.is_held_out(one.scene) for one in others)
    monkeypatch.setattr(other_prompts, "_TRIES", 2)
    with pytest.raises(StudyError, match="the world has about"):
        other_sentences(10**4, Lexicon(2), np.random.default_rng(4), apart_from=[])
    told = Asked(prompt=others[0].text, kind="single", questions={"object 1": ""}, sentence=others[0])
    with pytest.raises(StudyError, match="were not told"):
        Probing(reader=wide, sentences=others, n_shuffles=1).answers([told], np.random.default_rng(0))


# ---- statistics


def answers(kind, parts, rises, n=30, sites=5, noises=2):
    """Parts that are right from a layer on."""
    right = np.zeros((n, noises, sites, len(parts)))
    for number, rise in enumerate(rises):
        right[:, :, rise:, number] = 1
    return LayerAnswers(
        kind=kind, prompts=tuple(f"{kind} {i}" for i in range(n)), sites=tuple(f"L{i}" for i in range(sites)),
        parts=tuple(parts), right=right, mismatched=right * 0, residual=np.zeros((n, noises, sites)),
    )  # fmt: skip


def test_an_order_is_what_is_beyond_the_interpolation_and_a_shift_of_all_is_none():
    from vit_lens.studies.whose.curves import ORDER, RANKS, later, order_of_parts, order_rows

    parts = ("shape 1", "colour 1", "texture 1")
    lens = {"x": answers("x", parts, (1, 2, 3))}
    for rises, ranks, beyond in (
        ((1, 2, 3), 1.0, (0, 0, 0)), ((2, 3, 4), 1.0, (0, 0, 0)), ((3, 2, 1), -1.0, (-2, 0, 2)),
    ):  # fmt: skip
        null = {"x": answers("x", parts, rises)}
        scores = {(score.measure, score.reading): score for score in order_of_parts(lens, null)}
        assert scores[RANKS, "x"].estimate.value == pytest.approx(ranks)
        assert [scores[ORDER, f"x: {part}"].estimate.value for part in parts] == pytest.approx(beyond)
        leads = [score.estimate.value for score in later(lens, null, "null", "decoded")]
        assert leads == pytest.approx([own - other for own, other in zip((1, 2, 3), rises, strict=True)])
        rows = order_rows(lens, null)
        assert [row["rank, lens"] for row in rows] == [1, 2, 3] and rows[0]["half-rise, lens"] == 0.5
    never = {"x": answers("x", parts, (1, 2, 5))}
    scores = {(score.measure, score.reading): score.estimate.value for score in order_of_parts(lens, never)}
    assert set(scores.values()) == {None}
    assert order_rows(lens, never)[2]["rank, interpolation"] is None


def pairs(seed=0, n=30, right=1.0, sites=3):
    generator = np.random.default_rng(seed)
    found = {}
    for kind in ("pair, head first", "pair, fronted"):
        shape = (n, 2, sites, 2)
        found[kind] = LayerAnswers(
            kind=kind, prompts=tuple(f"{kind} {i}" for i in range(n)), sites=tuple("abc")[:sites],
            parts=("scene", "layout"), right=(generator.random(shape) < right).astype(float),
            mismatched=(generator.random(shape) < 0.1).astype(float), residual=np.zeros(shape[:3]),
        )  # fmt: skip
    return found


def both(n=30, other=False):
    scenes = [Scene("beside", (i, i + 1 + other)) for i in range(n)]
    said = [still_life.sample(1, np.random.default_rng(0), Lexicon(0), pairs=1.0)[0]] * n

    def of(kind, shift):
        return [
            Asked(prompt=f"{kind} {i}", kind=kind, questions={"scene": "", "layout": ""},
                  sentence=replace(said[i], scene=scenes[(i + shift) % n]))
            for i in range(n)
        ]  # fmt: skip

    return [*of("pair, head first", 0), *of("pair, fronted", int(other))]


def test_a_ratio_is_that_of_rates_above_chance_counted_one_by_one():
    from vit_lens.studies.whose.rates import BOTH, RATE, RATIO, SCENES, rate_rows, rates, with_both_orders

    own, shown = with_both_orders(pairs(1, right=0.9), both()), with_both_orders(pairs(2, right=0.6, sites=1), both())
    scores = {(score.measure, score.reading): score for score in rates("h0", shown, own)}
    for kind in (*pairs(), BOTH):
        orders = list(pairs()) if kind == BOTH else [kind]
        for part in ("scene", "layout"):
            number = ("scene", "layout").index(part)
            rate = []
            for which, last in ((shown, 0), (own, 2)):
                cells = [(one, i, j) for one in orders for i in range(30) for j in range(2)]
                right = np.mean([which[k].right[i, j, last, number] for k, i, j in cells])
                rate.append(right - np.mean([which[k].mismatched[i, j, last, number] for k, i, j in cells]))
            score = scores[RATIO, f"h0; {kind}: {part}"]
            assert score.estimate.value == pytest.approx(rate[0] / rate[1]) and score.n == 30
            assert score.estimate.low < score.estimate.value < score.estimate.high
            assert score.unit == ("scenes" if kind == BOTH else "prompts")
            told = scores[RATE, f"h0; {kind}: {part}"]
            assert told.estimate.value == pytest.approx(rate[0])
            assert told.controls["own denoiser, last layer"] == pytest.approx(rate[1])
    assert scores[SCENES, "h0"].estimate == scores[RATIO, f"h0; {BOTH}: scene"].estimate
    assert {row["kind"] for row in rate_rows("h0", shown, own)} == {*pairs(), BOTH}
    blind = {kind: value for kind, value in with_both_orders(pairs(3, right=0.1), both()).items()}
    assert all(s.estimate.value is None for s in rates("h0", shown, blind) if s.measure in (RATIO, SCENES))
    with pytest.raises(StudyError, match="other scenes"):
        with_both_orders(pairs(), both(other=True))


# ---- denoisers of other layers


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """Copies of the embedded pipeline that say that they read something else, and one whose encoder is another."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("readers")
    for name, reads in {"h8": 8, "h0": 0, "eos": "eos", "other": 0, "h9": 9}.items():
        shutil.copytree(STILL_LIFE, folder / name, copy_function=shutil.copyfile)
        told = {"encoder_seed": 0, "painter_seed": 0, "reads": reads}
        (folder / name / "metrics.json").write_text(json.dumps(told))
    (weights,) = (folder / "other" / "text_encoder").glob("*.safetensors")
    held = load_file(weights)
    name = next(one for one in held if one.endswith("mlp.fc1.bias"))
    held[name] = held[name] + 1
    save_file(held, weights, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """A setup on the embedded model that draws in two steps."""
    from vit_lens.decoders import PromptEncoder, TextDecoder
    from vit_lens.studies.scene_judges import ExactSceneJudge
    from vit_lens.studies.text_setup import TextSetup

    decoder = TextDecoder.from_pretrained("mini-sd")
    return TextSetup(
        reader=PromptEncoder.from_pretrained("mini-sd"), decoder=decoder, judge=ExactSceneJudge(), lexicon=Lexicon(0),
        settings=decoder.settings(steps=2), noise=(0,), seed=5, out=tmp_path_factory.mktemp("study"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{}/h0", "expected NAME=FOLDER"),
        ("h0=", "expected NAME=FOLDER"),
        ("hx={}/h0", "expected NAME=FOLDER"),
        ("last={}/h0", "expected NAME=FOLDER"),
        ("h0={}/nowhere", "no metrics.json"),
        ("h4={}/h0", "reads 0, and its name says 4"),
        ("eos={}/h0", "reads 0, and its name says 'eos'"),
        ("h0={}/eos", "reads 'eos', and its name says 0"),
        ("h0={}/own", "does not say what it reads"),
        ("h9={}/h9", "the encoder has 8 blocks"),
        ("h0={}/other", "trained for the encoder text@"),
    ],
)
def test_a_denoiser_of_another_encoder_or_layer_is_refused(setup, readers, spec, said):
    from vit_lens.studies.whose import open_reader

    if not (readers / "own").exists():
        shutil.copytree(STILL_LIFE, readers / "own", copy_function=shutil.copyfile)
    with pytest.raises(StudyError, match=said):
        open_reader(spec.format(readers), setup.reader)


@pytest.mark.parametrize("name", ["h0", "h8", "eos"])
def test_a_denoiser_is_shown_what_it_was_trained_on_and_led_away_from_its_own_empty_text(setup, readers, name):
    """Held against what trainings show, for prompts and for the empty text that stands behind guidance."""
    from vit_lens import TextRun
    from vit_lens.mini.training.text_painter import read_states
    from vit_lens.studies.whose import open_reader

    reader = open_reader(f"{name}={readers / name}", setup.reader)
    prompts = ["a red solid star", "a blue striped ring left of a green dipped heart", ""]
    run = TextRun.of(setup.reader, prompts)
    module = setup.reader.encoders["text_encoder"]
    expected = read_states(module, run.ids["text_encoder"], reader.reads)
    found = reader.lens.read(run, reader.site(setup.reader)).tokens[:, 0]
    assert torch.equal(found, expected) and reader.name == name

    seen = {}

    class Looked(type(setup)):
        def answers(self, name, asked, **options):
            seen.update(options, negative=self.reader.negative(), decoder=self.decoder, id=self.reader.encoder_id)
            return {}

    looked = Looked(**{field: getattr(setup, field) for field in setup.__dataclass_fields__})
    reader.answers(looked, [])
    empty = read_states(module, TextRun.of(setup.reader, "").ids["text_encoder"], reader.reads)
    assert torch.equal(seen["negative"].tokens, empty) and seen["id"] == setup.reader.encoder_id
    assert seen["decoder"] is reader.decoder and seen["sites"] == (reader.site(setup.reader),)
    is_own = torch.equal(empty, setup.reader.negative().tokens)
    assert is_own == (name == "h8")


def test_random_weights_are_another_encoder_of_the_same_spread(setup):
    from vit_lens import TextRun
    from vit_lens.studies.whose.untrained_encoder import with_random_weights

    before = setup.reader.encoder_id
    made = with_random_weights(setup.reader, seed=3)
    assert setup.reader.encoder_id == before != made.encoder_id
    assert with_random_weights(setup.reader, seed=3).encoder_id == made.encoder_id
    assert with_random_weights(setup.reader, seed=4).encoder_id != made.encoder_id
    assert torch.equal(made.negative().tokens, setup.reader.negative().tokens)
    own = dict(setup.reader.encoders["text_encoder"].named_parameters())
    for name, value in made.encoders["text_encoder"].named_parameters():
        assert not torch.equal(value, own[name])
        if value.numel() > 5000:
            assert value.std().item() == pytest.approx(own[name].std().item(), rel=0.1)
    run = TextRun.of(made, ["a red solid star"])
    again = run.edited("text_encoder", [])  # the hooked tower has the new weights, too
    assert torch.allclose(again.condition.tokens, run.condition.tokens, atol=1e-4)
    assert not torch.allclose(run.condition.tokens, setup.reader.encode(["a red solid star"]).tokens, atol=0.1)


# ---- end to end


def test_the_study_on_the_embedded_model_goes_on_and_knows_its_own_denoiser(setup, readers):
    """A denoiser that reads the last layer is the own one, and a lens at an end of the segment the end's own."""
    from vit_lens.studies import load_result, pool
    from vit_lens.studies.headlines import headlines
    from vit_lens.studies.whose import HEADLINES, open_reader, whose_study
    from vit_lens.studies.whose.curves import LENS
    from vit_lens.studies.whose.rates import RATE, RATIO, SCENES

    asked = ask_of_world(KINDS, setup.lexicon, seed=1)
    own = [open_reader(f"{name}={readers / name}", setup.reader) for name in ("h8", "h0")]
    result = whose_study(setup, asked, readers=own, n_fit=80, n_shuffles=2, command="it")
    result.save(setup.out)
    assert load_result(setup.out).scores == result.scores
    assert set(HEADLINES) <= {score.measure for score in result.scores}
    rates = result.frame("rates")
    same = rates[rates["denoiser"] == "h8"]
    assert (same["accuracy"] == same["own accuracy"]).all() and (same["chance"] == same["own chance"]).all()
    ratios = [s.estimate.value for s in result.scores if s.measure == RATIO and s.reading.startswith("h8")]
    assert set(ratios) <= {1.0, None} and 1.0 in ratios
    assert any(score.measure == RATE and score.reading == "h0; pairs, both orders: scene" for score in result.scores)

    curves = result.frame("curves").set_index(["reading", "kind", "part", "layer"])["accuracy"]
    first = {name: curves[name].xs(layer, level="layer") for name in (LENS, "interpolation") for layer in (0,)}
    last = {name: curves[name].xs(8, level="layer") for name in (LENS, "interpolation", "tuned lens")}
    assert (first[LENS] == first["interpolation"]).all()
    assert (last[LENS] == last["interpolation"]).all() and (last[LENS] == last["tuned lens"]).all()
    readings = result.frame("curves")["reading"].unique()
    assert list(readings[3:5]) == ["shuffled words", "random weights"] and len(readings) == 7
    between = result.frame("interpolation")
    assert between["share of the way"].iloc[0] == 0 and between["share of the way"].iloc[8] == 1
    assert between["cosine to the last"].is_monotonic_increasing and between["n positions"].eq(13 * 20).all()

    records = sorted(setup.out.glob("*/record.json"))
    assert [one.parent.name for one in records] == [
        "denoiser-h0", "denoiser-h8", "interpolation", "layers", "random-weights", "tuned",
    ]  # fmt: skip
    before = [one.stat().st_mtime_ns for one in records]
    again = whose_study(setup, asked, readers=own, n_fit=80, n_shuffles=2, command="it")
    assert again.scores == result.scores and [one.stat().st_mtime_ns for one in records] == before
    other = replace(result, setup={**result.setup, "fingerprint": "another"})
    pooled = pool([result, other])
    assert pooled.score(SCENES, "h8", "decoded").estimate.value == 1.0 and headlines(pooled) == list(HEADLINES)
    without = whose_study(setup, asked, n_fit=80, n_shuffles=2)
    assert "No denoisers" in without.notes[0] and "rates" not in without.tables


def test_wrong_readers_prompts_and_numbers_are_refused(setup, readers):
    from vit_lens.studies.whose import open_reader, whose_study

    asked = ask_of_world({"single": 2}, setup.lexicon, seed=1)
    one = open_reader(f"h0={readers / 'h0'}", setup.reader)
    with pytest.raises(StudyError, match="one of each"):
        whose_study(setup, asked, readers=[one, one])
    with pytest.raises(StudyError, match="of the embedded world"):
        whose_study(setup, [Asked(prompt="a can", kind="x", questions={"object 1": ""})])
    with pytest.raises(StudyError, match="n_shuffles=0"):
        whose_study(setup, asked, n_shuffles=0)


def test_the_command_runs_resumes_and_draws(vit_lens, tmp_path, readers):
    out = tmp_path / "whose"
    few = ("--n", 2, "--n-names", 4, "--n-fit", 40, "--steps", 2, "--decoder-seed", 0, "--out", out)
    status, output, error = vit_lens("study", "whose", *few, "--reader", f"h0={readers / 'h0'}")
    assert status == 0 and "study whose: " in output and "scenes: rate" in output, error
    assert (out / "result.json").is_file() and len(list(out.glob("layers-*.html"))) == 5
    assert "n = 2 prompts" in (out / "layers-0.html").read_text()
    assert vit_lens("study", "whose", *few, "--reader", f"h0={readers / 'h0'}")[0] == 0
    status, output, error = vit_lens("study", "whose", *few, "--prompt-table", "own.csv")
    assert status != 0 and "--prompt-table own.csv: study whose fits maps" in error and not output
    status, output, error = vit_lens("study", "whose", *few, "--reader", f"h4={readers / 'h0'}")
    assert status != 0 and "reads 0, and its name says 4" in error and not output
