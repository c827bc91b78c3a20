"""What a sentence of the embedded world claims of its picture, read from its words."""

__all__ = ["Claims", "read_claims"]

from dataclasses import dataclass

from vit_lens.errors import StudyError
from vit_lens.mini import still_life

Claim = tuple[str | None, str | None, str | None]  # colour, texture and shape; None where nothing is said
_WORLD = "a red solid star left of a cyan ring, or another sentence of docs/mini_sd.md"


@dataclass(frozen=True)
class Claims:
    """What a sentence says.

    Attributes:
        layout: How the objects stand.
        objects: What is said of each, from left to right or from top to bottom.
        spoken: The places of the objects in the order in which the sentence names them.
    """

    layout: still_life.Layout
    objects: tuple[Claim, ...]
    spoken: tuple[int, ...]


def read_claims(text: str, lexicon: still_life.Lexicon) -> Claims:
    """Read a sentence.

    Args:
        text: The sentence: one object, ``X left of Y``, or ``left of Y , X``.
        lexicon: What names stand for.

    Raises:
        StudyError: It is no sentence of the world.

    >>> from vit_lens.mini.still_life import Lexicon
    >>> from vit_lens.studies.annotate.still_life_claims import read_claims
    >>> read_claims("a red star right of a ring", Lexicon(0))
    Claims(layout='beside', objects=((None, None, 'ring'), ('red', None, 'star')), spoken=(1, 0))
    """
    words = text.replace(",", " , ").split()
    plain = " ".join(words)
    for relation, layout in still_life.RELATIONS.items():
        if plain.startswith(f"{relation} ") and plain.count(",") == 1:
            landmark, about = plain.removeprefix(f"{relation} ").split(" , ")
            fronted = True
        elif f" {relation} " in plain and "," not in plain:
            about, _, landmark = plain.partition(f" {relation} ")
            fronted = False
        else:
            continue
        own, other = _claim(about, lexicon, text), _claim(landmark, lexicon, text)
        is_second = relation in ("right of", "below")
        objects = (other, own) if is_second else (own, other)
        head = int(is_second)
        return Claims(
            "beside" if layout == "beside" else "stacked", objects, (1 - head, head) if fronted else (head, 1 - head)
        )
    return Claims("alone", (_claim(plain, lexicon, text),), (0,))


def _claim(words: str, lexicon: still_life.Lexicon, text: str) -> Claim:
    article, *said = words.split() or [""]
    said = [word for word in said if word not in still_life.EPITHETS]
    if article in ("a", "an") and said:
        if set(said) <= set(still_life.SYLLABLES) and " ".join(said) in lexicon.names:
            return still_life.object_of(lexicon.objects[lexicon.names.index(" ".join(said))])
        colour = said.pop(0) if said[0] in still_life.COLOURS else None
        texture = said.pop(0) if said and said[0] in still_life.TEXTURES else None
        if len(said) == 1 and said[0] in still_life.SHAPES:
            return colour, texture, said[0]
    raise StudyError(f"{text!r:.80} is no sentence of the embedded world ({words!r:.40}); expected {_WORLD}")
