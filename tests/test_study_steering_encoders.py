"""The study of steering on image and text encoders: what is known to work works, what is known not to does not."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from vit_lens.errors import DictionaryError, StudyError
from vit_lens.mini import world

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers, under numpy 2

SITE = "blocks.5.hook_resid_post"
SMALL = dict(n=6, n_chosen=4, n_candidates=2, doses=(0.4, 1.6), dose=1.6)


@pytest.fixture(scope="module")
def images():
    import vit_lens as vl
    from vit_lens.studies.steering import ImageEncoders
    from vit_lens.studies.steering.image_encoders import captions

    encoder = vl.HookedViT.from_pretrained("mini").requires_grad_(False)
    return ImageEncoders(encoder=encoder, texts=vl.TextBank.mini(captions()), n_pool=300)


@pytest.fixture(scope="module")
def texts():
    from vit_lens import HookedDiffusion
    from vit_lens.decoders import PromptEncoder
    from vit_lens.studies.steering import TextEncoders

    pipeline = HookedDiffusion.from_pretrained("mini-sd")
    pipeline.pipeline.set_progress_bar_config(disable=True)
    pipeline.defaults = {**pipeline.defaults, "num_inference_steps": 6}
    reader = PromptEncoder.from_pretrained("mini-sd")
    return TextEncoders(reader=reader, pipeline=pipeline, limit=0.02, objects=tuple(range(3, 144, 7)))


def setup_of(kind, name, out, words, **options):
    import vit_lens as vl
    from vit_lens.studies.steering import SteeringSetup
    from vit_lens.studies.steering.targets import target_named

    targets = tuple(target_named(word, kind.targets) for word in words)
    dictionaries = {name: vl.Dictionary.from_pretrained(name)}
    return SteeringSetup(kind=kind, dictionaries=dictionaries, out=out, targets=targets, **(SMALL | options))


def scores_of(result, measure):
    return {score.reading: score.estimate.value for score in result.scores if score.measure == measure}


# ---- image encoders ----------------------------------------------------------------------------------------------


def test_what_is_known_to_work_works_on_images_and_a_random_direction_does_not(images, tmp_path):
    """Mint at 1.6 norms is planted by the difference of means; what a scene that has it shows is the ceiling."""
    from vit_lens.studies.steering import scores as s
    from vit_lens.studies.steering import steering_study

    setup = setup_of(images, "mini-topk", tmp_path, ["mint", "grey"])
    result = steering_study(setup)
    effect, logit = scores_of(result, s.EFFECT), scores_of(result, s.LOGIT)
    seen = {score.reading: score.controls for score in result.scores if score.measure == s.EFFECT}
    assert seen["scene that has it"]["seen"] == 1.0 and seen["feature"]["without steering"] == 0.0
    assert effect["difference of means"] > 0.8 and seen["feature"]["with a random direction"] < 0.2
    assert logit["difference of means"] > 5 and logit["scene that has it"] > 5
    measures = {score.measure for score in result.scores}
    assert not measures & {s.TIME, s.WINDOWS, s.NO_SCENE, s.RELATED, s.PLACE} and s.PATCHES in measures
    assert {score.level for score in result.scores} == {"embedding"}
    assert scores_of(result, s.ZERO.replace("pictures", "embeddings")) == {"feature": 1.0}
    told = " ".join(result.notes)
    assert "none is silent" in told and "no steps" in told and "nothing draws" in told
    mint = next(row for row in result.tables["targets"] if row["target"] == "mint")
    assert (mint["kind"], mint["seen, without steering"]) == ("background", 0.0)


def test_chosen_and_studied_scenes_are_disjoint(images, tmp_path):
    from vit_lens.studies.steering.targets import target_named

    setup = setup_of(images, "mini-topk", tmp_path, ["red"])
    known = set(map(tuple, images.known.tolist()))
    for word in ("red", "small", "wedge", "bottom left"):
        target = target_named(word, images.targets)
        studied, chosen = setup.inputs(target), {tuple(row) for row in setup.chosen_inputs(target)}
        assert chosen <= known and len(chosen) == setup.n_chosen
        for name, rows in studied.items():
            assert len(rows) == setup.n and not known & {tuple(row) for row in rows}
            values = [getattr(scene, target.kind) for scene in world.decode(np.array(rows))]
            assert {one == word for one in values} == {name == "agrees"} and None not in values
        assert all(world.is_held_out(scene) for scene in world.decode(np.array(studied["conflicts"])))
        for one, other in zip(studied["conflicts"], studied["agrees"], strict=True):
            assert [k for k in range(10) if one[k] != other[k]] == [target.attribute]
    with pytest.raises(StudyError, match="2 scenes to choose on, and n_pool=1 has"):
        dataclasses.replace(images, n_pool=1).inputs(
            target_named("red", images.targets), 2, np.random.default_rng(0), studied=False
        )


def test_embeddings_are_those_of_a_hook_by_hand(images, tmp_path):
    """Patches alone are steered, in mean norms of each image's own; some patches where they are named."""
    import vit_lens as vl
    from vit_lens.studies.steering.watching import Push

    dictionary, model = vl.Dictionary.from_pretrained("mini-topk"), images.encoder
    rows, direction = images.known[:3].tolist(), torch.randn(128, generator=torch.Generator().manual_seed(1))
    where = ((0, 5), (3,), (7, 8, 15))

    def by_hand(tokens):
        def hook(x, hook):
            for i, own in enumerate(tokens):
                x[i, own] += 0.7 * x[i, own].norm(dim=-1).mean() * direction / direction.norm()
            return x

        pixels = model.preprocess(list(world.render_codes(np.array(rows))))
        return model.run_with_hooks(pixels, fwd_hooks=[(SITE, hook)]).numpy()

    every = images.run(dictionary, rows, [0, 1, 2], Push(direction, 0.7))
    assert np.allclose(every, by_hand([list(range(1, 17))] * 3), atol=1e-4)
    some = images.run(dictionary, rows, [0, 1, 2], Push(direction, 0.7, where=where))
    assert np.allclose(some, by_hand([[1 + patch for patch in own] for own in where]), atol=1e-4)
    assert not np.allclose(some, every, atol=1e-2)
    found = images.seen(images.look(every))
    for k, (name, values) in enumerate(world.ATTRIBUTES.items()):
        bank = images.texts.embeds[[images.texts.index(text) for text in world.prompts(name)]]
        cosines = (
            torch.nn.functional.normalize(torch.from_numpy(every), dim=1) @ torch.nn.functional.normalize(bank, dim=1).T
        )
        assert found.named(k).tolist() == cosines.argmax(1).tolist() and len(values) == cosines.shape[1]


def test_named_scenes_are_counted_like_a_loop(images):
    from vit_lens.studies.steering.image_encoders import ATTRIBUTES, NamedScenes

    generator = np.random.default_rng(0)
    one, other = (NamedScenes(generator.normal(size=(40, 47))) for _ in range(2))
    starts = np.cumsum([0, *(len(values) for _, values in ATTRIBUTES)])
    for target in images.targets:
        at, shown, kept = starts[target.attribute], [], []
        for a, b in zip(one.logits, other.logits, strict=True):
            rest = [a[at + k] for k in range(len(target.world[target.attribute][1])) if k != target.number]
            shown.append(a[at + target.number] - sum(rest) / len(rest))
            named = [[row[s:e].argmax() for s, e in itertools.pairwise(starts)] for row in (a, b)]
            counted = range(10) if target.kind in world.OVERLAY_ATTRIBUTES else range(8)
            same = [named[0][k] == named[1][k] for k in counted if k != target.attribute]
            kept.append(sum(same) / len(same))
        assert one.shown(target) == pytest.approx(shown) and one.keeps(other, target) == pytest.approx(kept)


def test_patches_are_those_of_what_is_replaced(images, tmp_path, monkeypatch):
    """As many inside as outside, the same for every direction; each run on its own image."""
    from vit_lens.studies.steering.watching import Push, Watcher

    setup, pushes, real = setup_of(images, "mini-topk", tmp_path, ["mint", "wedge"]), [], Watcher.see
    monkeypatch.setattr(
        Watcher, "see", lambda self, inputs, seeds, push: pushes.append(push) or real(self, inputs, seeds, push)
    )
    pool = images.pool(setup.watcher.dictionary, [])
    for target in setup.targets:
        pushes.clear()
        inputs = setup.inputs(target)
        for seed in (1, 2):
            push = Push(torch.randn(128, generator=torch.Generator().manual_seed(seed)), 1.0)
            found = images.sides(setup.watcher, target, push, inputs, setup.seeds, pool, setup.generator(6, 0))
            assert {len(one) for one in found.values()} == {setup.n}
        assert pushes[0].where == pushes[2].where and pushes[1].where == pushes[3].where
        for scene, inside, outside in zip(
            world.decode(np.array(inputs["conflicts"])), pushes[0].where, pushes[1].where, strict=True
        ):
            assert len(inside) == len(outside) > 0 and not set(inside) & set(outside)
            if target.value == "wedge":  # the overlay is in its corner
                rows = {patch // 4 for patch in inside}
                assert rows <= ({0, 1} if scene.corner.startswith("top") else {2, 3})


def test_pictures_of_embeddings_are_read_by_another_encoder(images, tmp_path):
    import vit_lens as vl
    from vit_lens.mini import JUDGE
    from vit_lens.studies import Judge
    from vit_lens.studies.steering import picture_rows, steering_study
    from vit_lens.studies.steering import scores as s
    from vit_lens.studies.steering.image_encoders import captions

    judge = Judge(
        vl.HookedViT.from_pretrained(JUDGE).requires_grad_(False), vl.TextBank.from_pretrained(JUDGE, captions())
    )
    decoder = vl.load_decoder("mini", encoder=images.encoder)
    drawn = dataclasses.replace(
        images, decoder=decoder, settings=decoder.settings(steps=2, guidance=1.0), judge=judge
    )  # fmt: skip
    setup = setup_of(drawn, "mini-topk", tmp_path, ["mint"], n=4, n_chosen=2, n_candidates=1, doses=(1.6,))
    result = steering_study(setup)
    found = {(one.measure, one.level, one.reading): one.estimate.value for one in result.scores}
    assert found[s.EFFECT, "decoded", "scene that has it"] > 0.8 < found[s.EFFECT, "decoded", "difference of means"]
    assert found[s.KEPT, "decoded", "scene that has it"] > 0.8
    (row, *_) = rows = list(picture_rows(setup, setup.targets[0]).values())
    assert len(rows) == 4 and {one.shape for each in rows for one in each} == {(64, 64, 3)}
    assert not np.array_equal(row[0], row[1]) and "no exact judge" in " ".join(result.notes)
    assert (
        picture_rows(setup_of(images, "mini-topk", tmp_path / "x", ["mint"], n=2, n_chosen=2), setup.targets[0]) == {}
    )
    for given, told in ((dict(judge=None), "a decoder and no judge"), (dict(encoder=judge.model, texts=judge.texts),
                                                                       "the judge is the encoder itself")):  # fmt: skip
        with pytest.raises(StudyError, match=told):
            dataclasses.replace(drawn, **given)


# ---- text encoders -----------------------------------------------------------------------------------------------


def test_what_is_known_to_work_works_on_texts(texts, tmp_path):
    from vit_lens.studies.steering import scores as s
    from vit_lens.studies.steering import steering_study

    setup = setup_of(texts, "mini-sd-topk", tmp_path, ["blue"], n=5, n_chosen=2, n_candidates=1, doses=(0.8,), dose=0.8)
    result = steering_study(setup)
    seen = {score.reading: score.controls for score in result.scores if score.measure == s.EFFECT}
    assert seen["prompt that says it"]["seen"] == 1.0 and seen["difference of means"]["seen"] > 0.7
    assert seen["feature"]["without steering"] < 0.5
    measures = {score.measure for score in result.scores}
    assert not measures & {s.TIME, s.WINDOWS, s.PLACE, s.PATCHES, s.LOGIT} and measures >= {s.RELATED, s.NO_SCENE}
    assert scores_of(result, s.ZERO) == {"feature": 1.0} and "no steps" in " ".join(result.notes)
    assert not set(setup.seeds) & set(setup.chosen_seeds)


def test_pictures_of_steered_prompts_are_those_of_a_hook_by_hand(texts):
    """Padding is no token: it is not steered, and its norm does not count. Not steered, the prompt is drawn."""
    import vit_lens as vl
    from vit_lens.studies.steering.watching import Push

    dictionary = vl.Dictionary.from_pretrained("mini-sd-topk")
    prompts, seeds, direction = ["a red star", "a solid blue ring"], [4, 9], dictionary.W_dec[7]
    plain = texts.run(dictionary, prompts, seeds, None)
    own = np.asarray(texts.pipeline(prompts, seed=seeds, output_type="np"))
    assert np.abs(plain - own * 255).max() <= 1.5

    def hook(x, hook):
        for i, prompt in enumerate(prompts):
            n = len(prompt.split()) + 2
            x[i, :n] += 0.5 * x[i, :n].norm(dim=-1).mean() * direction / direction.norm()
        return x

    steered = texts.run(dictionary, prompts, seeds, Push(direction, 0.5))
    run = vl.TextRun.of(texts.reader, prompts).edited("text_encoder", [(SITE, hook)])
    away = texts.reader.negative().tokens.expand(2, -1, -1)
    by_hand = texts.pipeline(
        None, prompt_embeds=run.condition.tokens, negative_prompt_embeds=away, seed=seeds, output_type="np"
    )
    assert np.abs(steered - np.asarray(by_hand) * 255).max() <= 1.5 and not np.array_equal(steered, plain)


# ---- both --------------------------------------------------------------------------------------------------------


def test_dictionaries_of_other_models_are_refused(images, texts, tmp_path):
    with pytest.raises(DictionaryError, match="mini"):
        setup_of(images, "mini-sd-topk", tmp_path, ["red"])
    with pytest.raises(DictionaryError, match="mini"):
        setup_of(texts, "mini-topk", tmp_path, ["red"])
    with pytest.raises(StudyError, match="'red' is no target of this kind of model, text encoder"):
        red = setup_of(images, "mini-topk", tmp_path, ["red"]).targets
        dataclasses.replace(setup_of(texts, "mini-sd-topk", tmp_path, ["blue"]), targets=red)


def test_the_command_finds_the_kind_and_results_pool(tmp_path, vit_lens):
    from vit_lens.studies import load_result

    small = ["--n-noises", "2", "--n-chosen", "1", "--candidates", "1", "--dose", "0.4"]
    out = tmp_path / "images"
    asked = ["study", "steering", "--dictionary", "mini-topk", "--target", "mint", *small, "--decoder", "none"]
    status, output, errors = vit_lens(*asked, "--out", out)
    assert status == 0, errors
    names = {file.name for file in out.iterdir()}
    assert {"result.json", "doses.html", "doses.csv", "patches.html", "prompts.html", "negative.html"} <= names
    assert not names & {"steps.html", "place.html", "strip-background.html"}
    assert load_result(out).setup["steered"] == "image encoder" and "logit of the target" in output
    other = tmp_path / "other"
    other.mkdir()
    said = json.loads((out / "result.json").read_text())
    said["setup"] |= {"fingerprint": "another", "encoder": "another", "dictionaries": {"mine": "topk"}}
    for row in (*said["tables"]["dictionaries"], *said["tables"]["targets"]):
        row["dictionary"] = "mine"
    (other / "result.json").write_text(json.dumps(said))
    status, output, errors = vit_lens("study", "pool", out, other, "--out", tmp_path / "pooled")
    assert status == 0, errors
    assert "2 encoders" in output and (tmp_path / "pooled" / "doses.html").is_file()
    for more, told in (
        (["--target", "mnt"], "no target 'mnt'; nearest: 'mint'"),
        (["--window", "2"], "--window would have no effect"),
        (["--model", "mini-sd"], "mini"),
    ):
        status, _, errors = vit_lens(*asked, *more, "--out", tmp_path / "refused")
        assert status == 2 and told in errors, errors
