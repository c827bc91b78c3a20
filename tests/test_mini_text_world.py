"""Laws of the world of 32 pixels: what its sentences say is what its pictures show, and what is held out stays out."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from vit_lens.mini import shapes, still_life
from vit_lens.mini.inspection import inspect
from vit_lens.mini.still_life import Lexicon, Scene


def _sentences(n, seed=0, *, lexicon=0, **settings):
    return still_life.sample(n, np.random.default_rng(seed), Lexicon(lexicon), **settings)


def test_sentences_and_pictures_stay_as_they_are():
    """What was trained on them would be out of date."""
    generator = np.random.default_rng(5)
    lexicon = Lexicon(2)
    sentences = still_life.sample(400, generator, lexicon)
    pictures = still_life.draw([sentence.scene for sentence in sentences], generator)
    said = "\n".join(sentence.text for sentence in sentences)
    assert hashlib.sha256(said.encode()).hexdigest()[:16] == "f2ee52ae42484846"
    assert hashlib.sha256(pictures.tobytes()).hexdigest()[:16] == "7ec26662c13083f1"


@pytest.mark.parametrize("settings", [{}, {"equal": True, "named": 0.9}, {"whole": True}, {"pairs": 1.0}])
def test_training_never_shows_what_is_held_out(settings):
    assert not [s.text for s in _sentences(4000, **settings) if still_life.is_held_out(s.scene)]
    assert all(still_life.is_held_out(s.scene) for s in _sentences(300, held_out=True, **settings))


def test_held_out_objects_occur_nowhere_and_their_parts_everywhere():
    alone = [n for n in range(still_life.N_OBJECTS) if still_life.is_held_out(Scene("alone", (n,)))]
    shown = {number for s in _sentences(6000) for number in s.scene.objects}
    assert len(alone) == 24 and shown == set(range(still_life.N_OBJECTS)) - set(alone)
    parts = [{part for n in shown for part in [still_life.object_of(n)[i]]} for i in range(3)]
    assert parts == [set(still_life.COLOURS), set(still_life.TEXTURES), set(still_life.SHAPES)]
    pairs = {(i, j): {(a[i], a[j]) for a in map(still_life.object_of, shown)} for i, j in ((0, 1), (0, 2), (1, 2))}
    assert {key: len(found) for key, found in pairs.items()} == {(0, 1): 24, (0, 2): 36, (1, 2): 24}
    assert not {n for seed in range(5) for n in Lexicon(seed).objects} & set(alone)


def test_a_sixteenth_of_the_other_pairs_is_held_out():
    known = [n for n in range(still_life.N_OBJECTS) if not still_life.is_held_out(Scene("alone", (n,)))]
    pairs = [Scene(layout, (a, b)) for layout in ("beside", "stacked") for a in known for b in known]
    assert np.mean([still_life.is_held_out(pair) for pair in pairs]) == pytest.approx(1 / 16, abs=0.01)


def test_common_names_are_said_thirty_times_as_often_as_rare_ones():
    lexicon = Lexicon(0)
    counts = Counter(m.name for s in _sentences(30_000, named=0.9) for m in s.mentions if m.name is not None)
    counted = np.array([counts[name] for name in range(64)])
    common, rare = counted[~lexicon.is_rare], counted[lexicon.is_rare]
    assert len(common) == len(rare) == 32 and rare.min() > 0
    assert common.sum() / rare.sum() == pytest.approx(30, rel=0.1)
    equal = Counter(m.name for s in _sentences(10_000, named=0.9, equal=True) for m in s.mentions)
    assert min(equal[name] for name in range(64)) > 0.7 * max(equal[name] for name in range(64))


@pytest.mark.parametrize("seed", range(6))
def test_no_syllable_says_anything_alone(seed):
    """Every syllable is part of many names, so that a name has to be put together."""
    lexicon = Lexicon(seed)
    assert len(set(lexicon.names)) == 64
    named = list(zip(lexicon.names, lexicon.objects, strict=True))
    spread = [{o for name, o in named if syllable in name.split()} for syllable in still_life.SYLLABLES]
    assert min(map(len, spread)) >= 10
    same = {frozenset(name.split()) for name in lexicon.names}
    assert len(same) < 64  # the order counts: some names have the same syllables


def test_synonyms_are_equally_frequent_and_names_of_two_groups_share_no_object():
    lexicon = Lexicon(1)
    common, rare = set(lexicon.objects[:32]), set(lexicon.objects[32:])
    assert len(common) == len(rare) == 28 and not common & rare


def test_which_names_are_rare_differs_between_seeds():
    rare = [set(np.array(Lexicon(seed).names)[Lexicon(seed).is_rare]) for seed in range(6)]
    assert max(len(a & b) for i, a in enumerate(rare) for b in rare[:i]) < 16


def test_sentences_say_what_the_scene_is():
    """Read by rules that know nothing of how they were made."""
    lexicon = Lexicon(4)
    named = dict(zip(lexicon.names, lexicon.objects, strict=True))
    for sentence in _sentences(600, lexicon=4, whole=True):
        assert _read(sentence.text, named) == sentence.scene, sentence.text


def _read(text, named):
    for relation, layout in still_life.RELATIONS.items():
        if relation in text:
            first, second = (p.strip(" ,") for p in text.split(relation))
            about, landmark = (first, second) if first else reversed(second.split(" , "))
            pair = (_object(about, named), _object(landmark, named))
            return Scene(layout, pair if relation in ("left of", "above") else pair[::-1])
    return Scene("alone", (_object(text, named),))


def _object(words, named):
    said = words.split()[1:]
    if " ".join(said) in named:
        return named[" ".join(said)]
    return next(
        n for n in range(still_life.N_OBJECTS) if set(still_life.object_of(n)) == set(said) - set(still_life.EPITHETS)
    )


def test_codes_and_scenes_are_two_spellings():
    scenes = [sentence.scene for sentence in _sentences(300)]
    assert still_life.scenes_of(still_life.codes(scenes)) == scenes


@pytest.mark.parametrize("shape", still_life.SHAPES)
def test_moved_objects_stay_in_their_windows(shape):
    """So the windows can be drawn and judged one by one: half a picture from edge to edge is 32 units of the canvas."""
    x, y = shapes.pixel_centres(still_life.SIDE)
    for move in (-1, 0, 1):
        covered = shapes.shape_distance(shape, x - 16 - move, y - 16 - move, radius=12.5) < 1.0
        assert covered[:16, :16].any() and not covered[16:].any() and not covered[:, 16:].any()
        assert not (shapes.shape_distance(shape, x - 48 - move, y - 48 - move, radius=12.5) < 1.0)[:16].any()


def test_the_judge_is_right_on_every_object_at_every_place_and_move():
    every = range(still_life.N_OBJECTS)
    scenes = [Scene("alone", (n,)) for n in every]
    scenes += [
        Scene(layout, (n, (5 * n + 1) % still_life.N_OBJECTS)) for layout in ("beside", "stacked") for n in every
    ]
    generator = np.random.default_rng(0)
    pictures = still_life.draw(scenes, generator)
    found = inspect(pictures)
    assert found.shows(scenes).all() and found.residuals.max() == 0.0
    noisy = np.clip(pictures + generator.normal(0, 0.15 * 255, pictures.shape), 0, 255).round().astype(np.uint8)
    assert inspect(noisy).shows(scenes).all()


def test_the_residual_tells_a_scene_from_none():
    generator = np.random.default_rng(0)
    nothing = generator.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    assert inspect(nothing).residuals.min() > 0.05
    pictures = still_life.draw([s.scene for s in _sentences(200, pairs=0.8)], generator)
    blends = ((pictures.astype(float) + pictures[::-1]) / 2).round().astype(np.uint8)[:100]
    assert np.mean(inspect(blends).residuals > 0.005) > 0.95


def test_the_judge_is_least_squares_over_whole_pictures():
    """Against every picture of one layout, drawn whole and compared value by value."""
    generator = np.random.default_rng(3)
    picture = generator.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    picture[:, :, :16] = still_life.draw([Scene("beside", (9, 40))])[:, :, :16]
    found = inspect(picture)
    squares = {}
    for number in range(still_life.N_OBJECTS):
        for move in still_life.MOVES:
            drawn = still_life.draw([Scene("beside", (9, number))])
            drawn[0][:, 16:] = still_life.draw_object(number, "beside", 1, move)
            squares[number, move] = np.square((drawn - picture.astype(float)) / 255).mean()
    best = min(squares, key=squares.get)
    assert found.scenes == [Scene("beside", (9, best[0]))]
    assert found.residuals[0] == pytest.approx(squares[best], rel=1e-12)
