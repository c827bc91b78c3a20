"""The study of steering: prompts, choice and counts against loops by hand, and the same result after a kill."""

import dataclasses

import numpy as np
import pytest
import torch

from vit_lens.errors import StudyError
from vit_lens.mini import still_life

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers, under numpy 2

SITE = "double.1.hook_resid_post"


@pytest.fixture(scope="module")
def flux():
    import vit_lens as vl

    model = vl.HookedFlux.from_pretrained("mini-flux")
    model.pipeline.set_progress_bar_config(disable=True)
    model.defaults = {**model.defaults, "num_inference_steps": 2}
    return model


@pytest.fixture(scope="module")
def dictionary():
    from vit_lens.dictionaries import random_dictionary

    return random_dictionary(128, 40, k=7, site=SITE, seed=3)


def setup_of(flux, dictionary, out, **options):
    from vit_lens.studies.steering import Denoisers, SteeringSetup
    from vit_lens.studies.steering.targets import TARGETS

    kind = Denoisers(pipeline=flux, limit=0.02, window=1, objects=tuple(range(3, 144, 9)))
    given = dict(
        kind=kind, targets=(TARGETS[1], TARGETS[7]), n=3, n_chosen=2, n_candidates=2, doses=(0.4, 0.8)
    )  # fmt: skip
    return SteeringSetup(dictionaries={"one": dictionary}, out=out, **(given | options))


# ---- prompts -----------------------------------------------------------------------------------------------------


def test_prompts_say_what_they_should():
    from vit_lens.studies.steering.targets import TARGETS, prompts_for

    values = [list(still_life.COLOURS), list(still_life.TEXTURES), list(still_life.SHAPES)]
    assert len(TARGETS) == 16
    for target in TARGETS:
        made = prompts_for(target, 9, np.random.default_rng(0))
        own = set(values[target.attribute])
        for silent, agrees, conflicts, unrelated, pair in zip(*made.values(), strict=True):
            assert not own & set(silent.split()) and not own & set(pair.split())
            assert own & set(agrees.split()) == {target.value} and set(agrees.split()) - {target.value} == set(
                silent.split()
            )
            (other,) = own & set(conflicts.split())
            assert other != target.value and set(conflicts.split()) - {other} == set(silent.split())
            assert set(unrelated.split()) & set(agrees.split()) == {"a"} and len(unrelated.split()) == 4
            assert pair.count(" a ") == 1 and ("left of" in pair) != ("above" in pair)


# ---- what is seen ------------------------------------------------------------------------------------------------


def seen(seed, n=5):
    """Answers at random."""
    from vit_lens.studies.steering.still_lifes import SeenPictures

    generator = np.random.default_rng(seed)
    layouts = generator.integers(3, size=n)
    scenes = [
        still_life.Scene(still_life.LAYOUTS[k], tuple(map(int, generator.integers(144, size=1 + (k > 0)))))
        for k in layouts
    ]
    first = np.full((32, 32, 3), seed % 255, dtype=np.uint8)
    return SeenPictures(still_life.codes(scenes), generator.random(n) < 0.8, first)


def words(one):
    """The values at both places, in words, of each picture."""
    return [[still_life.object_of(number) for number in scene.objects] for scene in still_life.scenes_of(one.codes)]


def test_showing_and_keeping_are_those_of_a_loop():
    from vit_lens.studies.steering.targets import TARGETS

    one, other = seen(1, 60), seen(2, 60)
    for target in TARGETS:
        at = target.attribute
        expected = [
            ok and any(o[at] == target.value for o in row) for ok, row in zip(one.is_scene, words(one), strict=True)
        ]
        assert one.shows(target).tolist() == expected
        second = [
            ok and len(row) > 1 and row[1][at] == target.value for ok, row in zip(one.is_scene, words(one), strict=True)
        ]
        assert one.shows(target, 1).tolist() == second
        kept = [
            sum(a[0][k] == b[0][k] for k in range(3) if k != at) / 2
            for a, b in zip(words(one), words(other), strict=True)
        ]
        assert one.keeps(other, target).tolist() == kept


class Looks(dict):
    """Answers at random for every case that is asked for."""

    def __init__(self, seed):
        super().__init__()
        self.seed = seed

    def __missing__(self, case):
        self[case] = seen(self.seed * 1000 + len(self))
        return self[case]


def test_scores_are_counted_one_by_one():
    from vit_lens.studies.steering import Denoisers
    from vit_lens.studies.steering import scores as s
    from vit_lens.studies.steering.targets import TARGETS

    generator = np.random.default_rng(0)
    looked = [
        [
            s.Looked(
                dictionary=name, target=target, directions={}, features={}, plain=s.Case("silent"),
                seen=Looks(17 * k + i),
                sides={each: {at: generator.random(5) for at in ("inside", "outside")} for each in s.DIRECTIONS[:2]},
            )
            for i, target in enumerate(TARGETS)
        ]
        for k, name in enumerate(("one", "two"))
    ]  # fmt: skip
    found = {
        (one.measure, one.reading): one for one in s.scores_of(looked, Denoisers.plan, 0.4, [True, True, False], 0)
    }
    every = [one for row in looked for one in row]

    def share(of):
        return np.mean([of(one, i) for one in every for i in range(5)])

    def is_there(one, case, i):
        said = one.seen[case]
        return bool(said.is_scene[i]) and any(o[one.target.attribute] == one.target.value for o in words(said)[i])

    def effect(one, i, prompt="silent", dose=0.4, window="early", direction="feature"):
        return is_there(one, s.Case(prompt, direction, dose, window), i) - is_there(
            one, s.Case(prompt, "random direction", dose, window), i
        )

    for direction in ("feature", "difference of means", "untrained dictionary"):
        score = found[s.EFFECT, direction]
        assert score.estimate.value == pytest.approx(share(lambda one, i, d=direction: effect(one, i, direction=d)))
        assert (score.n, score.unit) == (16, "targets") and score.estimate.low < score.estimate.value
        assert score.nulls["swapped at random"].low < 0 < score.nulls["swapped at random"].high
    related = share(lambda one, i: (effect(one, i) + effect(one, i, "agrees")) / 2 - effect(one, i, "conflicts"))
    assert found[s.RELATED, "silent and agrees, mean"].estimate.value == pytest.approx(related)
    late = share(lambda one, i: effect(one, i) - effect(one, i, window="late"))
    assert found[s.TIME, "less late steps"].estimate.value == pytest.approx(late)
    place = share(lambda one, i: sum(
        sign * one.sides[each][at][i]
        for each, at, sign in (("feature", "inside", 1), ("feature", "outside", -1), ("random direction", "inside", -1),
                               ("random direction", "outside", 1))
    ))  # fmt: skip
    assert found[s.PLACE, "feature"].estimate.value == pytest.approx(place)

    def gone(one, i, each):
        case = s.Case("agrees", each, -0.4)
        return bool(one.seen[case].is_scene[i]) and not is_there(one, case, i)

    negative = share(lambda one, i: gone(one, i, "feature") - gone(one, i, "random direction"))
    assert found[s.NEGATIVE, "feature"].estimate.value == pytest.approx(negative)
    no_scene = share(lambda one, i: not one.seen[s.Case("silent", "feature", 0.4)].is_scene[i])
    assert found[s.NO_SCENE, "feature"].estimate.value == pytest.approx(no_scene)
    assert found[s.ZERO, "feature"].estimate.value == pytest.approx(2 / 3)


# ---- what is chosen, and drawn -----------------------------------------------------------------------------------


def test_lift_is_that_of_a_loop(dictionary):
    from vit_lens.studies.steering.choosing import Pool, candidates, difference, mean_codes
    from vit_lens.studies.steering.targets import TARGETS

    scenes = [still_life.Scene("alone", (number,)) for number in range(0, 144, 5)]
    tokens = torch.randn(len(scenes), 6, 128, generator=torch.Generator().manual_seed(0))
    pool, target = Pool(list(tokens), still_life.codes(scenes)[:, 1:4], 3), TARGETS[2]
    means = np.array([dictionary.encode(one).double().mean(0).numpy() for one in tokens])
    of = np.array([still_life.object_of(scene.objects[0])[0] == target.value for scene in scenes])
    assert 2 < of.sum() < 12
    lift = (means[of].mean(0) - means[~of].mean(0)) / means.std(0)
    lift[~np.isfinite(lift)] = -np.inf
    found = candidates(mean_codes(dictionary, pool), pool, target, 5)
    assert [index for index, _ in found] == np.argsort(-lift)[:5].tolist()
    assert [value for _, value in found] == pytest.approx(np.sort(lift)[::-1][:5].tolist())
    flat = tokens.double().mean(1).numpy()
    assert np.allclose(difference(pool, target), flat[of].mean(0) - flat[~of].mean(0), atol=1e-5)


def test_what_is_drawn_is_what_a_hook_by_hand_draws(flux, dictionary, tmp_path):
    from vit_lens.studies.steering.watching import Push

    watcher = setup_of(flux, dictionary, tmp_path).watcher
    prompts, seeds, row = ["a red star", "a ring"], [4, 9], dictionary.W_dec[3]

    def hook(x, hook):
        if hook.step.index != 1:
            return None
        for i in range(len(x)):
            norm = x[i, [0, 1, 4, 5]].norm(dim=-1).mean()
            x[i, [0, 1, 4, 5]] += 0.8 * norm * row / row.norm()
        return x

    drawn = flux.run_with_hooks(prompts, seed=seeds, fwd_hooks=[(SITE, hook)], output_type="np")
    by_hand = (np.rint(drawn * 255).reshape(2, 32, 2, 32, 2, 3)).mean((2, 4))
    found = watcher.run(prompts, seeds, Push(row, 0.8, (1,), (0, 0, 2, 2)))
    assert np.abs(found - by_hand).max() <= 1.5
    assert not np.array_equal(found, watcher.run(prompts, seeds))


def test_a_study_that_was_killed_goes_on_to_the_same(flux, dictionary, tmp_path, monkeypatch):
    from vit_lens.studies.steering import steering_study
    from vit_lens.studies.steering.watching import Watcher

    whole = setup_of(flux, dictionary, tmp_path / "whole")
    looks, real = [], Watcher.run

    def count(self, prompts, seeds, push=None):
        looks.append(tuple(seeds))
        return real(self, prompts, seeds, push)

    monkeypatch.setattr(Watcher, "run", count)
    expected = steering_study(whole)
    n = len(looks)
    assert not {seed for some in looks for seed in some if seed >= 1000} & set(range(whole.n_chosen))
    assert {len(some) for some in looks} == {1, 2, 3}  # the four parts of the picture, those to choose on, all

    def killed(self, prompts, seeds, push=None):
        if len(looks) == n + 20:
            raise KeyboardInterrupt
        return count(self, prompts, seeds, push)

    monkeypatch.setattr(Watcher, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        steering_study(setup_of(flux, dictionary, tmp_path / "cut"))
    monkeypatch.setattr(Watcher, "run", count)
    again = steering_study(setup_of(flux, dictionary, tmp_path / "cut"))
    assert len(looks) == 2 * n  # nothing was drawn twice, but for the comparison at strength 0, last of all
    assert again.to_dict() == expected.to_dict()
    assert again.score("share of pictures at strength 0 that are the same to the last bit", "feature", "decoded"
                       ).estimate.value == 1.0  # fmt: skip
    damaged = next((tmp_path / "cut" / "answers").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(StudyError, match=r"is not a whole safetensors file.*remove it"):
        steering_study(setup_of(flux, dictionary, tmp_path / "cut"))


def test_setups_that_cannot_be_are_refused(flux, dictionary, tmp_path):
    from vit_lens.studies.steering import Denoisers
    from vit_lens.studies.steering.targets import target_named

    other = dataclasses.replace(
        dictionary, origin=dataclasses.replace(dictionary.origin, site="double.0.hook_resid_post")
    )
    text = dataclasses.replace(
        dictionary, origin=dataclasses.replace(dictionary.origin, site="double.1.text.hook_resid_post")
    )
    for given, told in (
        (dict(targets=()), "no dictionary or no target"),
        (dict(dose=0.3), "dose 0.3 with doses"),
        (dict(doses=(0.4, -1.0)), "positive numbers"),
        (dict(dictionaries={"a": dictionary, "b": other}), "expected one hook point"),
        (dict(dictionaries={"a": text}), "is of the text"),
    ):
        with pytest.raises(StudyError, match=told):
            dataclasses.replace(setup_of(flux, dictionary, tmp_path), **given)
    with pytest.raises(StudyError, match="early and late ones would overlap"):
        Denoisers(pipeline=flux, limit=0.02, window=2)
    with pytest.raises(StudyError, match="no target 'strped'; nearest: 'striped'"):
        target_named("strped")


# ---- commands ----------------------------------------------------------------------------------------------------


def test_the_command_writes_all_of_it(dictionary, tmp_path, vit_lens):
    from vit_lens.studies import load_result

    path, out = dictionary.save(tmp_path / "one.safetensors"), tmp_path / "study"
    small = [
        "--n-noises",
        "4",
        "--n-chosen",
        "1",
        "--candidates",
        "1",
        "--dose",
        "0.4",
        "--window",
        "1",
        "--steps",
        "2",
    ]
    asked = ["study", "steering", "--dictionary", path, "--target", "red", "--target", "ring", *small, "--out", out]
    status, output, errors = vit_lens(*asked)
    assert status == 0, errors
    names = {file.name for file in out.iterdir()}
    assert {"result.json", "scores.csv", "doses.csv", "targets.csv", "strip-colour.html", "strip-shape.html"} <= names
    assert {f"{name}.html" for name in ("doses", "prompts", "steps", "place", "negative")} <= names
    result = load_result(out)
    assert result.options["targets"] == ["red", "ring"] and len(result.tables["targets"]) == 2
    assert "less with a random direction" in output and "At dose 0.4" in (out / "doses.html").read_text()
    for given, told in (
        (["--model", "FOLDER"], "no dictionary ships for --model FOLDER"),
        (["--decoder", "none", "--judge", "none"], "--decoder, --judge would have no effect"),
        (["--target", "strped"], "nearest: 'striped'"),
    ):
        status, _, errors = vit_lens("study", "steering", *given, "--out", tmp_path / "x")
        assert status == 2 and told in errors, errors


def test_a_strip_is_drawn_kept_and_never_mixed(tmp_path, vit_lens, monkeypatch, unchecked):
    from PIL import Image

    from vit_lens.cli import steering
    from vit_lens.files import read_json
    from vit_lens.mini import sample_images

    out = tmp_path / "strip"
    asked = ["dict", "steer", "mini-topk", "5", "--images", sample_images()[0], "--steps", "1", "--out", out]
    doses = ["--strength", "0", "--strength", "3"]
    status, output, errors = vit_lens(*asked, *doses)
    assert status == 0, errors
    assert "rows: feature 5, random direction, untrained dictionary; columns: 0, 3" in output
    pictures = [Image.open(out / "pictures" / f"{row}_{column}.png").tobytes() for row in range(3) for column in (0, 1)]
    assert pictures[0] == pictures[2] == pictures[4] != pictures[1] and len(set(pictures)) == 4
    said = read_json(out / "steer.json", StudyError, "")
    assert (said["feature"], said["strengths"], said["mode"]) == (5, [0.0, 3.0], "add")
    assert (out / "strip.png").exists() and "Feature 5 of mini-topk" in (out / "strip.html").read_text()
    (out / "pictures" / "1_1.png").unlink()
    drawn, real = [], steering._picture
    monkeypatch.setattr(steering, "_picture", lambda given: drawn.append(1) or real(given))
    assert vit_lens(*asked, *doses)[0] == 0 and len(drawn) == 1
    for other, told in (
        (["--strength", "2"], "holds a strip of other settings"),
        (["--mode", "scale"], "--mode scale needs --strength"),
        (["--mode", "ablate", *doses], "would have no effect on --mode ablate"),
        (["--prompt", "a star"], "give one of them"),
        (["--mode", "clmp", *doses], "nearest: 'clamp'"),
        (["--region", "0", "0", "9", "2", *doses], "of a grid of 4 rows and 4 columns"),
    ):
        status, _, errors = vit_lens(*asked, *other)
        assert status == 2 and told in errors, errors


def test_strips_of_denoisers_and_text_encoders(tmp_path, vit_lens):
    from PIL import Image

    import vit_lens as vl
    from vit_lens.dictionaries import random_dictionary

    tower = vl.HookedTextEncoder.from_pretrained("mini-sd")
    words = random_dictionary(tower.cfg.d_model, 40, k=4, site="blocks.2.hook_resid_post").save(
        tmp_path / "words.safetensors"
    )
    cells = random_dictionary(112, 40, k=4, site="mid.0.hook_update").save(tmp_path / "cells.safetensors")
    for path, more in ((words, []), (cells, ["--region", "0", "0", "4", "2", "--at-steps", "1", "--branch", "both"])):
        out = tmp_path / path.stem
        asked = ["dict", "steer", path, "7", "--model", "mini-sd", "--prompt", "a red star", "--steps", "2", *more]
        status, _, errors = vit_lens(*asked, "--strength", "0", "--strength", "4", "--out", out)
        assert status == 0, errors
        rows = [[Image.open(out / "pictures" / f"{row}_{k}.png").tobytes() for k in (0, 1)] for row in range(3)]
        assert all(row[0] == rows[0][0] for row in rows) and len({row[1] for row in rows} | {rows[0][0]}) == 4
