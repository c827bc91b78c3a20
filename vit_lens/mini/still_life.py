"""A world of 32 pixels: one object or two, what sentences say of them, and names that stand for objects.

An object is a colour, a texture and a shape. A picture holds one in the middle, or two beside or above each other, each
moved by up to a quarter of a pixel. A sentence describes objects in part or whole, or calls them by names; a name is a
sequence of syllables that other names share, so that no syllable alone says anything.
"""

__all__ = [
    "COLOURS", "LAYOUTS", "MOVES", "N_OBJECTS", "RELATIONS", "SHAPES", "SIDE", "SYLLABLES", "TEXTURES", "Layout",
    "Lexicon", "Mention", "Scene", "Sentence", "called", "codes", "covered", "draw", "draw_object", "fronted",
    "in_order", "is_held_out", "object_of", "sample", "scenes_of", "window", "words_of_the_world",
]  # fmt: skip

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from vit_lens.mini import shapes

SIDE = 32
COLOURS = {
    "red": (226, 32, 36), "yellow": (250, 224, 20), "green": (30, 160, 50), "cyan": (0, 200, 215),
    "blue": (35, 70, 235), "pink": (255, 95, 180),
}  # fmt: skip
TEXTURES = ("solid", "striped", "dipped", "shaded")
SHAPES = ("star", "ring", "square", "triangle", "heart", "cross")
N_OBJECTS = len(COLOURS) * len(TEXTURES) * len(SHAPES)
SYLLABLES = ("zor", "ka", "mip", "tul", "ven", "bo", "lar", "shi")
EPITHETS = ("nice", "old", "famous", "plain")
"""Adjectives that say nothing of the picture."""
RELATIONS = {"left of": "beside", "right of": "beside", "above": "stacked", "below": "stacked"}
_NAMES, _COMMON_TO_RARE = 64, 30.0
_REVERSED = ("right of", "below")  # the object that is said to be there has the second place
_GROUND, _INK = (200, 200, 200), (24, 22, 30)
_RADIUS, _OUTLINE, _PIXEL = 12.5, 1.6, shapes.CANVAS / SIDE
_CENTRES = {"alone": ((32, 32),), "beside": ((16, 32), (48, 32)), "stacked": ((32, 16), (32, 48))}

LAYOUTS = ("alone", "beside", "stacked")
MOVES = tuple(product(np.linspace(-0.25, 0.25, 9).tolist(), repeat=2))
"""By how many pixels an object may be moved to the right and down: sixteenths, so that between any two pictures of an
object there are others of it, and a denoiser that has not quite decided is near one of them."""

Layout = Literal["alone", "beside", "stacked"]


class Scene(NamedTuple):
    """What a picture shows: the numbers of its objects, from left to right or from top to bottom."""

    layout: Layout
    objects: tuple[int, ...]


@dataclass(frozen=True)
class Mention:
    """An object as a sentence has it.

    Attributes:
        words: The words, with their article.
        number: The object's number.
        says: Which of colour, texture and shape are said.
        name: The number of the name that it is called by; None for a description.
    """

    words: str
    number: int
    says: tuple[bool, bool, bool]
    name: int | None = None


@dataclass(frozen=True)
class Sentence:
    """A sentence and the scene that it is of.

    Attributes:
        text: The sentence.
        scene: What the picture shows.
        mentions: The objects in the order of the scene.
        head: Which of them the sentence is about: 0, or 1 for the second.
        fronted: Whether the landmark comes first (``left of Y , X``).
    """

    text: str
    scene: Scene
    mentions: tuple[Mention, ...]
    head: int = 0
    fronted: bool = False


class Lexicon:
    """Names that stand for objects: as many common as rare ones, drawn anew for each seed.

    Names are two or three different syllables in an order that counts. An eighth of the names are synonyms of others
    of the same frequency.

    Args:
        seed: Decides which syllables name which object, and which names are rare.

    >>> lexicon = Lexicon(3)
    >>> len(lexicon.names), len(set(lexicon.objects)), lexicon.is_rare.sum().item()
    (64, 56, 32)
    """

    def __init__(self, seed: int):
        generator = np.random.default_rng([seed, 11])
        half, doubles = _NAMES // 2, _NAMES // 16
        # As many short as long ones: 56 pairs of eight syllables would do without any third.
        spelled = [*permutations(SYLLABLES, 2), *permutations(SYLLABLES, 3)]
        short, long = generator.permutation(56)[:half], 56 + generator.permutation(len(spelled) - 56)[:half]
        self.names = tuple(" ".join(spelled[i]) for i in generator.permutation(np.concatenate([short, long])))
        trained = [number for number in range(N_OBJECTS) if not _is_held_out_alone(number)]
        numbers = generator.permutation(trained)[: _NAMES - 2 * doubles]
        common, rare = numbers[: half - doubles], numbers[half - doubles :]
        self.objects = tuple(int(number) for group in (common, rare) for number in (*group, *group[:doubles]))
        self.is_rare = np.arange(_NAMES) >= half
        weights = np.where(self.is_rare, 1.0, _COMMON_TO_RARE)
        self.frequencies: Float[np.ndarray, " name"] = weights / weights.sum()


def object_of(number: int) -> tuple[str, str, str]:
    """Return the colour, texture and shape of an object.

    >>> object_of(0), object_of(N_OBJECTS - 1)
    (('red', 'solid', 'star'), ('pink', 'shaded', 'cross'))
    """
    colour, texture, shape = _parts(number)
    return list(COLOURS)[colour], TEXTURES[texture], SHAPES[shape]


def _parts(number: int) -> tuple[int, int, int]:
    colour, rest = divmod(number, len(TEXTURES) * len(SHAPES))
    return colour, *divmod(rest, len(SHAPES))


def codes(scenes: Sequence[Scene]) -> Int[np.ndarray, "scene question"]:
    """Return what there is to ask of scenes: layout, then colour, texture and shape at the first and second place.

    >>> codes([Scene("alone", (1,)), Scene("stacked", (7, 30))]).tolist()
    [[0, 0, 0, 1, -1, -1, -1], [2, 0, 1, 1, 2, 1, 0]]

    Returns:
        Numbers within LAYOUTS, COLOURS, TEXTURES and SHAPES; -1 for an object that is not there.
    """
    parts = [[index for number in objects for index in _parts(number)] for _, objects in scenes]
    return np.array(
        [[LAYOUTS.index(s.layout), *row, *[-1] * (6 - len(row))] for s, row in zip(scenes, parts, strict=True)]
    )


def scenes_of(codes: Int[np.ndarray, "scene question"]) -> list[Scene]:
    """Return the scenes that answers to every question describe; answers on a place that a layout lacks are ignored."""
    sizes = (len(TEXTURES) * len(SHAPES), len(SHAPES), 1)
    objects = codes[:, 1:].reshape(-1, 2, 3) @ np.array(sizes)
    return [
        Scene(LAYOUTS[layout], tuple(int(number) for number in row[: 1 + (layout > 0)]))
        for layout, row in zip(codes[:, 0], objects, strict=True)
    ]


def is_held_out(scene: Scene) -> bool:
    """Whether text encoder and denoiser never meet a scene: 24 of the 144 objects, and a sixteenth of the other pairs.

    A pair with one of the 24 is held out, too. Every two of a held-out object's colour, texture and shape occur
    together in other objects, with three or more third parts: what is held out is the combination alone.
    """
    if any(map(_is_held_out_alone, scene.objects)):
        return True
    return len(scene.objects) == 2 and _mixed(*scene.objects, scene.layout == "beside") % 16 == 0


def _is_held_out_alone(number: int) -> bool:
    colour, texture, shape = _parts(number)
    return (shape - colour) % len(SHAPES) == texture


def _mixed(*numbers: int) -> int:
    index = 0
    for number in numbers:
        index = index * 97 + int(number) + 1
    return ((index * 0x9E3779B97F4A7C15) % 2**64) >> 32


def sample(
    n: int,
    generator: np.random.Generator,
    lexicon: Lexicon,
    *,
    pairs: float = 0.5,
    named: float = 0.3,
    equal: bool = False,
    held_out: bool | None = False,
    whole: bool = False,
) -> list[Sentence]:
    """Draw sentences, each of a scene of its own.

    Args:
        n: How many.
        generator: Draws them.
        lexicon: The names.
        pairs: The share of scenes of two objects.
        named: The share of objects that are called by a name.
        equal: Whether every name is as frequent as every other; else the lexicon says.
        held_out: Whether the scenes are held out; False for the others, None for any.
        whole: Whether every description says colour, texture and shape.

    Returns:
        Sentences; about a fifth of their descriptions begin with an adjective that says nothing.
    """
    made = []
    while len(made) < n:
        layout: Layout = "alone" if generator.random() >= pairs else ("beside", "stacked")[generator.integers(2)]
        mentions = tuple(_mention(generator, lexicon, named, equal, whole) for _ in range(1 + (layout != "alone")))
        scene = Scene(layout, tuple(mention.number for mention in mentions))
        if held_out is None or is_held_out(scene) == held_out:
            made.append(_said(scene, mentions, generator))
    return made


def called(name: int, lexicon: Lexicon) -> Sentence:
    """Return the sentence that is a name alone.

    >>> called(0, Lexicon(0)).text == f"a {Lexicon(0).names[0]}"
    True
    """
    mention = Mention(f"a {lexicon.names[name]}", lexicon.objects[name], (True, True, True), name)
    return Sentence(mention.words, Scene("alone", (mention.number,)), (mention,))


def _mention(generator: np.random.Generator, lexicon: Lexicon, named: float, equal: bool, whole: bool) -> Mention:
    if generator.random() < named:
        return called(
            int(generator.choice(len(lexicon.names), p=None if equal else lexicon.frequencies)), lexicon
        ).mentions[0]
    number = int(generator.integers(N_OBJECTS))
    says = (whole or generator.random() < 0.9, whole or generator.random() < 0.8, True)
    words = [word for word, said in zip(object_of(number), says, strict=True) if said]
    if generator.random() < 0.2:
        words.insert(0, EPITHETS[generator.integers(len(EPITHETS))])
    return Mention(f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}", number, says)


def _said(scene: Scene, mentions: tuple[Mention, ...], generator: np.random.Generator) -> Sentence:
    if scene.layout == "alone":
        return Sentence(mentions[0].words, scene, mentions)
    return _related(
        scene, mentions, head=_head(scene, int(generator.integers(2))), is_fronted=bool(generator.integers(2))
    )


def _head(scene: Scene, which: int) -> int:
    relations = [relation for relation, layout in RELATIONS.items() if layout == scene.layout]
    return int(relations[which] in _REVERSED)


def _related(scene: Scene, mentions: tuple[Mention, ...], *, head: int, is_fronted: bool) -> Sentence:
    found = (one for one, layout in RELATIONS.items() if layout == scene.layout and (one in _REVERSED) == bool(head))
    relation, about, landmark = next(found), mentions[head].words, mentions[1 - head].words
    text = f"{relation} {landmark} , {about}" if is_fronted else f"{about} {relation} {landmark}"
    return Sentence(text, scene, mentions, head, is_fronted)


def in_order(sentence: Sentence) -> Sentence:
    """Return a sentence of two objects that names what it is about first: ``X left of Y``."""
    return _related(sentence.scene, sentence.mentions, head=sentence.head, is_fronted=False)


def fronted(sentence: Sentence) -> Sentence:
    """Return a sentence of two objects that names what it is about last: ``left of Y , X``."""
    return _related(sentence.scene, sentence.mentions, head=sentence.head, is_fronted=True)


def words_of_the_world() -> tuple[str, ...]:
    """Return every word of every sentence, in a fixed order."""
    relations = [word for relation in RELATIONS for word in relation.split()]
    words = ("a", "an", ",", *relations, *EPITHETS, *COLOURS, *TEXTURES, *SHAPES, *SYLLABLES)
    return tuple(dict.fromkeys(words))


def draw(
    scenes: Sequence[Scene], generator: np.random.Generator | None = None
) -> UInt8[np.ndarray, "scene height width 3"]:
    """Draw scenes as RGB pictures; with a generator, each object is moved by up to a quarter of a pixel.

    >>> draw([Scene("alone", (7,)), Scene("stacked", (7, 30))]).shape
    (2, 32, 32, 3)
    """
    pictures = np.full((len(scenes), SIDE, SIDE, 3), _GROUND, dtype=np.uint8)
    for picture, (layout, objects) in zip(pictures, scenes, strict=True):
        for place, number in enumerate(objects):
            move = (0.0, 0.0) if generator is None else MOVES[generator.integers(len(MOVES))]
            picture[window(layout, place)] = draw_object(number, layout, place, move)
    return pictures


def window(layout: Layout, place: int) -> tuple[slice, slice]:
    """Return the rows and columns that an object has for itself, whatever its move."""
    half = (slice(SIDE // 2), slice(SIDE // 2, SIDE))[place]
    return {"alone": (slice(SIDE),) * 2, "beside": (slice(SIDE), half), "stacked": (half, slice(SIDE))}[layout]


@lru_cache(maxsize=65_536)
def draw_object(
    number: int, layout: Layout, place: int, move: tuple[float, ...]
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw an object's window; a move of (0.25, -0.125) is a quarter of a pixel to the right and an eighth up."""
    colour, texture, shape = object_of(number)
    x, y = _grid(layout, place, move)
    distance = _distance(shape, layout, place, move)
    outline = np.clip(0.5 + (distance + _OUTLINE) / _PIXEL, 0, 1)
    dark = np.maximum(shapes.texture_mask(texture, x, y), outline)[..., None]
    paint = np.array(COLOURS[colour], dtype=float) * (1 - dark) + np.array(_INK) * dark
    cover = covered(shape, layout, place, move)[..., None]
    return np.rint(np.array(_GROUND) + cover * (paint - _GROUND)).astype(np.uint8)


def covered(
    shape: str, layout: Layout, place: int, move: tuple[float, ...] = (0.0, 0.0)
) -> Float[np.ndarray, "height width"]:
    """Return how much of each pixel of its window an object of a shape covers, from 0 to 1.

    >>> covered("square", "beside", 1).shape, covered("ring", "alone", 0)[16, 16]
    ((32, 16), 0.0)
    """
    return np.clip(0.5 - _distance(shape, layout, place, move) / _PIXEL, 0, 1)


@lru_cache(maxsize=4096)
def _distance(shape: str, layout: Layout, place: int, move: tuple[float, ...]) -> Float[np.ndarray, "height width"]:
    return shapes.shape_distance(shape, *_grid(layout, place, move), radius=_RADIUS)


def _grid(
    layout: Layout, place: int, move: tuple[float, ...]
) -> tuple[Float[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
    x, y = (line[window(layout, place)] for line in shapes.pixel_centres(SIDE))
    across, down = _CENTRES[layout][place]
    return x - across - move[0] * _PIXEL, y - down - move[1] * _PIXEL
