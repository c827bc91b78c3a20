"""Laws of the procedural world that the embedded pair is trained on."""

from dataclasses import fields

import numpy as np
import pytest

from vit_lens.mini import world
from vit_lens.mini.training.tokenizer import MAX_TOKENS, build_tokenizer


def _scenes(n_scenes, seed=0, **settings):
    return world.sample_scenes(n_scenes, np.random.default_rng(seed), **settings)


def test_scene_fields_are_the_attributes():
    assert [field.name for field in fields(world.Scene)] == list(world.ATTRIBUTES)


def test_same_seed_gives_the_same_bits():
    first, second = _scenes(40, seed=3), _scenes(40, seed=3)
    assert first == second
    assert np.array_equal(world.render(first), world.render(second))
    assert first != _scenes(40, seed=4)


def test_a_picture_does_not_depend_on_its_batch():
    scenes = _scenes(12)
    alone = np.concatenate([world.render([scene]) for scene in scenes])
    assert np.array_equal(world.render(scenes), alone)


def test_codes_and_scenes_are_two_spellings():
    scenes = _scenes(200)
    assert world.decode(world.encode(scenes)) == scenes


def test_every_value_of_every_attribute_is_drawn():
    codes = world.sample_codes(2000, np.random.default_rng(0))
    for column, values in zip(codes.T, world.ATTRIBUTES.values(), strict=True):
        assert set(column) - {-1} == set(range(len(values)))


@pytest.mark.parametrize(("probability", "low", "high"), [(0.0, 0.0, 0.0), (0.5, 0.45, 0.55), (1.0, 1.0, 1.0)])
def test_overlay_probability_is_kept(probability, low, high):
    codes = world.sample_codes(2000, np.random.default_rng(0), overlay=probability)
    assert low <= np.mean(codes[:, -1] >= 0) <= high


def test_held_out_scenes_are_a_sixteenth_and_disjoint():
    codes = world.sample_codes(20_000, np.random.default_rng(0))
    share = np.mean([world.is_held_out(scene) for scene in world.decode(codes)])
    assert abs(share - 1 / 16) < 0.01
    assert all(world.is_held_out(scene) for scene in _scenes(50, held_out=True))
    assert not any(world.is_held_out(scene) for scene in _scenes(50, held_out=False))


@pytest.mark.parametrize("attribute", world.ATTRIBUTES)
def test_every_pair_of_values_differs_by_many_pixels(attribute):
    base = {name: values[1] for name, values in world.ATTRIBUTES.items()}
    variants = [world.Scene(**{**base, attribute: value}) for value in world.ATTRIBUTES[attribute]]
    images = world.render(variants).astype(int)
    for one in range(len(images)):
        for other in range(one):
            assert (np.abs(images[one] - images[other]).max(axis=-1) > 25).sum() >= 30


@pytest.mark.parametrize("attribute", world.ATTRIBUTES)
def test_swap_changes_exactly_one_attribute(attribute):
    generator = np.random.default_rng(1)
    for scene in _scenes(30, overlay=1.0):
        partner = world.swap(scene, attribute, generator)
        changed = [name for name in world.ATTRIBUTES if getattr(scene, name) != getattr(partner, name)]
        assert changed == [attribute]


def test_swap_of_a_missing_overlay_is_refused():
    with pytest.raises(ValueError, match="no overlay"):
        world.swap(_scenes(1, overlay=0.0)[0], "corner", np.random.default_rng(0))


def test_without_overlay_changes_only_a_corner():
    scene = next(s for s in _scenes(50, overlay=1.0) if s.corner == "top left")
    marked, clean = world.render([scene, world.without_overlay(scene)])
    rows, columns = np.nonzero((marked != clean).any(axis=-1))
    assert 0 < len(rows) and rows.max() < 20 and columns.max() < 20


def test_larger_pictures_show_the_same_scene():
    scenes = _scenes(20)
    large = world.render(scenes, size=128).reshape(20, 64, 2, 64, 2, 3).mean(axis=(2, 4))
    assert np.abs(large - world.render(scenes)).mean() < 2.0


def test_captions_tell_scenes_apart():
    scenes = list(dict.fromkeys(_scenes(500)))
    assert len({world.caption(scene) for scene in scenes}) == len(scenes)


def test_caption_mentions_only_what_is_kept():
    scene = _scenes(1, overlay=1.0)[0]
    assert world.caption(scene, ()) == "an object"
    assert world.caption(scene, ("shape",)).split()[1:] == [scene.shape]


@pytest.mark.parametrize("attribute", world.ATTRIBUTES)
def test_prompts_are_the_captions_of_one_attribute(attribute):
    base = {name: values[0] for name, values in world.ATTRIBUTES.items()}
    scenes = [world.Scene(**{**base, attribute: value}) for value in world.ATTRIBUTES[attribute]]
    assert world.prompts(attribute) == [world.caption(scene, (attribute,)) for scene in scenes]
    assert list(world.labels(world.encode(scenes), attribute)) == list(range(len(scenes)))


def test_overlay_prompts_are_absent_then_present():
    clean, marked = _scenes(1, overlay=0.0)[0], _scenes(1, overlay=1.0)[0]
    assert world.prompts("overlay") == [world.caption(scene, ("overlay",)) for scene in (clean, marked)]
    assert list(world.labels(world.encode([clean, marked]), "overlay")) == [0, 1]


def test_tokenizer_knows_every_word_and_fits_every_caption():
    tokenizer = build_tokenizer()
    texts = [world.caption(scene) for scene in _scenes(200)]
    texts += [prompt for name in world.PROBES for prompt in world.prompts(name)]
    rows = tokenizer(texts)["input_ids"]
    assert not any(tokenizer.unk_token_id in row for row in rows)
    assert max(map(len, rows)) <= MAX_TOKENS
    assert tokenizer.decode(rows[0], skip_special_tokens=True) == texts[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": "blob"}, "expected one of circle"),
        ({"symbol": "dot", "corner": None}, "give both or neither"),
    ],
)
def test_impossible_scenes_are_refused(change, message):
    base = {name: values[0] for name, values in world.ATTRIBUTES.items()}
    with pytest.raises(ValueError, match=message):
        world.Scene(**{**base, **change})
