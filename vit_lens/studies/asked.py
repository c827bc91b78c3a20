"""Prompts and what is asked of their pictures, part by part."""

__all__ = ["PARTS", "Asked", "ask_of_world", "read_asked"]

import csv
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from vit_lens.errors import StudyError, nearest
from vit_lens.mini import still_life

_COLUMNS = ("prompt", "kind", "part", "question")
_OPTIONAL = ("caption", "alternatives")
_TRIES = 50
_MOST = 10_000
"""How many prompts of a kind are drawn at most; the world has fewer single objects and names."""
_ATTRIBUTES = ("colour", "texture", "shape")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A prompt, and what is asked of its pictures.

    Attributes:
        prompt: The text.
        kind: The kind of the prompt: prompts of one kind have the same parts, and stand beside each other.
        questions: For each part, the question whose answer is yes where the picture shows it.
        captions: For judges that compare captions, what the picture shows if the answer is yes, by part; where there is
            none, the prompt.
        alternatives: Captions of what it might show instead, by part.
        sentence: What the embedded world knows of it, so that pictures are judged exactly; None for other prompts.

    >>> from vit_lens.studies.asked import Asked
    >>> Asked(prompt="a can", kind="simple", questions={"object": "Is there a can?"}).kind
    'simple'
    """

    prompt: str
    kind: str
    questions: Mapping[str, str] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)
    alternatives: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sentence: still_life.Sentence | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of what is asked."""
        return tuple(self.questions)


def _at(place: int, attribute: int | None = None) -> Callable[[still_life.Scene, still_life.Sentence], bool]:
    def check(seen: still_life.Scene, said: still_life.Sentence) -> bool:
        if place >= len(seen.objects):
            return False
        one, two = seen.objects[place], said.scene.objects[place]
        if attribute is None:
            return one == two
        return still_life.object_of(one)[attribute] == still_life.object_of(two)[attribute]

    return check


def _there(which: Callable[[still_life.Sentence], int]) -> Callable[[still_life.Scene, still_life.Sentence], bool]:
    return lambda seen, said: said.scene.objects[which(said)] in seen.objects


PARTS: dict[str, Callable[[still_life.Scene, still_life.Sentence], bool]] = {
    "scene": lambda seen, said: seen == said.scene,
    "layout": lambda seen, said: seen.layout == said.scene.layout,
    **{f"object {k + 1}": _at(k) for k in range(2)},
    **{f"{name} {k + 1}": _at(k, at) for k in range(2) for at, name in enumerate(_ATTRIBUTES)},
    "head there": _there(lambda said: said.head),
    "other there": _there(lambda said: 1 - said.head),
    "both there": lambda seen, said: sorted(seen.objects) == sorted(said.scene.objects),
}
"""What the embedded world's judges can be asked, by name: whether the scene that is seen has what the sentence says.

"object 1" is colour, texture and shape at the first place (left or above; the only one of a single object).
"""
_SINGLE = ("object 1", *(f"{name} 1" for name in _ATTRIBUTES))
_PAIR = (
    "scene",
    "layout",
    *_SINGLE,
    "object 2",
    *(f"{name} 2" for name in _ATTRIBUTES),
    "head there",
    "other there",
    "both there",
)


def ask_of_world(kinds: Mapping[str, int], lexicon: still_life.Lexicon, *, seed: int) -> list[Asked]:
    """Draw prompts of the embedded world, each described in whole; pairs are of scenes that no training showed.

    Args:
        kinds: How many prompts of each kind: "single", "pair, head first" (``X left of Y``), "pair, fronted" (the same
            scenes as ``left of Y , X``), "common name" and "rare name" (a single name).
        lexicon: The names.
        seed: Of the prompts.

    Raises:
        StudyError: A kind is none of these, there are fewer names, or too many prompts are asked for.

    >>> from vit_lens.mini.still_life import Lexicon
    >>> from vit_lens.studies.asked import ask_of_world
    >>> [(one.prompt, len(one.parts)) for one in ask_of_world({"single": 1, "rare name": 1}, Lexicon(0), seed=0)]
    [('a nice yellow shaded square', 4), ('a tul mip lar', 4)]
    """
    if many := [kind for kind, n in kinds.items() if n > _MOST]:
        raise StudyError(f"{kinds[many[0]]:,} prompts of kind {many[0]!r}: a study takes {_MOST:,} at most")
    makers = {"single": _singles, "pair, head first": _pairs, "pair, fronted": _pairs, "common name": _names,
              "rare name": _names}  # fmt: skip
    found = []
    for kind, n in kinds.items():
        if kind not in makers:
            raise StudyError(f"no kind of prompt {kind!r}; nearest: {nearest(kind, makers)}")
        generator = np.random.default_rng([seed, kind.startswith("pair"), kind.endswith("name")])
        parts = _PAIR if kind.startswith("pair") else _SINGLE
        for sentence in makers[kind](n, kind, lexicon, generator):
            found.append(Asked(prompt=sentence.text, kind=kind, questions=dict.fromkeys(parts, ""), sentence=sentence))
    return found


def _singles(
    n: int, kind: str, lexicon: still_life.Lexicon, generator: np.random.Generator
) -> list[still_life.Sentence]:
    draw = functools.partial(still_life.sample, lexicon=lexicon, pairs=0.0, named=0.0, held_out=None, whole=True)
    return _distinct(n, lambda: draw(n, generator))


def _pairs(n: int, kind: str, lexicon: still_life.Lexicon, generator: np.random.Generator) -> list[still_life.Sentence]:
    draw = functools.partial(still_life.sample, lexicon=lexicon, pairs=1.0, named=0.0, held_out=True, whole=True)
    order = still_life.in_order if kind == "pair, head first" else still_life.fronted
    return _distinct(n, lambda: [order(one) for one in draw(n, generator)])


def _distinct(n: int, draw: Callable[[], list[still_life.Sentence]]) -> list[still_life.Sentence]:
    """Draw until there are ``n`` different sentences."""
    found: dict[str, still_life.Sentence] = {}
    for _ in range(_TRIES):
        found |= {one.text: found.get(one.text, one) for one in draw()}
        if len(found) >= n:
            return list(found.values())[:n]
    raise StudyError(f"{n} different prompts of a kind were asked for, and the world has about {len(found)}")


def _names(n: int, kind: str, lexicon: still_life.Lexicon, generator: np.random.Generator) -> list[still_life.Sentence]:
    wanted = [i for i, rare in enumerate(lexicon.is_rare) if rare == (kind == "rare name")]
    if n > len(wanted):
        raise StudyError(f"{n} prompts of kind {kind!r}, and there are {len(wanted)} such names")
    chosen = generator.permutation(wanted)[:n]
    return [still_life.called(int(name), lexicon) for name in chosen]


def read_asked(path: Path) -> list[Asked]:
    """Read a table with the columns prompt, kind, part, question: a row for each question, prompts in its order.

    The columns ``caption`` and ``alternatives``, with ``|`` between them, may be there too, for judges that compare
    captions; where a caption is empty the prompt is one.

    Raises:
        StudyError: The file cannot be read, a column or a value is missing, a prompt has two kinds or a part twice, a
            caption is an alternative to itself, or prompts of one kind have different parts.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names, rows = list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StudyError(f"{path} cannot be read as a table of prompts ({error})") from error
    if missing := [name for name in _COLUMNS if name not in names]:
        raise StudyError(f"{path} lacks the column(s) {', '.join(missing)}; expected {','.join(_COLUMNS)}")
    if unknown := [name for name in names if name not in (*_COLUMNS, *_OPTIONAL)]:
        known = (*_COLUMNS, *_OPTIONAL)
        raise StudyError(f"{path} has an unknown column {unknown[0]!r}; nearest: {nearest(unknown[0], known)}")
    found: dict[str, Asked] = {}
    for line, row in enumerate(rows, start=2):
        where = f"{path}, row {line}"
        if None in row or None in row.values() or not all(row[name].strip() for name in _COLUMNS):
            raise StudyError(f"{where}: expected {len(names)} values, {','.join(names)}")
        _add(found, {name: row[name].strip() for name in names}, where)
    asked = list(found.values())
    _check_parts(asked, path)
    return asked


def _add(found: dict[str, Asked], row: Mapping[str, str], where: str) -> None:
    prompt, kind, part, question = (row[name] for name in _COLUMNS)
    own = found.setdefault(prompt, Asked(prompt=prompt, kind=kind))
    if own.kind != kind:
        raise StudyError(f"{where}: {prompt!r} is of kind {own.kind!r} above and {kind!r} here")
    if part in own.questions:
        raise StudyError(f"{where}: {prompt!r} has the part {part!r} twice")
    caption = row.get("caption") or prompt
    others = tuple(dict.fromkeys(one.strip() for one in row.get("alternatives", "").split("|") if one.strip()))
    if caption in others:
        raise StudyError(f"{where}: {caption!r:.80} is among the alternatives to itself")
    found[prompt] = replace(
        own, questions={**own.questions, part: question}, captions={**own.captions, part: caption},
        alternatives={**own.alternatives, part: others},
    )  # fmt: skip


def _check_parts(asked: Sequence[Asked], path: Path) -> None:
    if not asked:
        raise StudyError(f"{path} holds no prompt")
    of_kind: dict[str, Asked] = {}
    for one in asked:
        first = of_kind.setdefault(one.kind, one)
        if set(first.parts) != set(one.parts):
            odd = sorted(set(first.parts) ^ set(one.parts))
            raise StudyError(
                f"{path}: {first.prompt!r} and {one.prompt!r} are of kind {one.kind!r}, and only one has the part "
                f"{odd[0]!r}; prompts of one kind are asked the same"
            )
