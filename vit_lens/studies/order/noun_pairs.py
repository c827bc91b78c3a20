"""Captions with two nouns of which one governs the other, balanced for how far both are from the end of the text."""

__all__ = ["DEPENDENT_FIRST", "HEAD_FIRST", "NounPair", "ask_of_captions", "balanced", "noun_pair"]

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vit_lens.errors import StudyError
from vit_lens.studies.asked import Asked
from vit_lens.studies.order.parses import Parse
from vit_lens.studies.order.study import HEAD, OTHER

HEAD_FIRST, DEPENDENT_FIRST = "caption, head first", "caption, dependent first"
_NOUNS = ("NOUN", "PROPN")
# What stands side by side, or was put together for want of a relation, governs nothing.
_BESIDE = ("appos", "conj", "dep", "fixed", "flat", "goeswith", "list", "orphan", "parataxis", "reparandum")
_ALTERNATIVES = 3


@dataclass(frozen=True, kw_only=True)
class NounPair:
    """A caption with two nouns.

    Attributes:
        text: The caption.
        head: The lemma of the noun that governs the other, directly or through words that are no nouns.
        dependent: The lemma of the other.
        kind: Which is named first: ``HEAD_FIRST`` or ``DEPENDENT_FIRST``.
        relation: The relations from the head down to the dependent, such as ``nmod`` or ``acl>obl``.
        first: How many words lie between the noun that is named first and the end of the text.
        second: The same of the other.
    """

    text: str
    head: str
    dependent: str
    kind: str
    relation: str
    first: int
    second: int

    def distance(self, part: str) -> int:
        """Return how many words lie between a noun, ``HEAD`` or ``OTHER``, and the end of the text."""
        return self.first if (part == HEAD) == (self.kind == HEAD_FIRST) else self.second


def noun_pair(parse: Parse) -> NounPair | None:
    """Return the two nouns of a caption that has exactly two, different ones, of which one governs the other.

    Raises:
        StudyError: Words of the caption govern each other in a circle.
    """
    nouns = [place for place, word in enumerate(parse.words) if word.pos in _NOUNS]
    if len(nouns) != 2 or len({parse.words[place].lemma.lower() for place in nouns}) < 2:
        return None
    for head, dependent in (nouns, nouns[::-1]):
        path = _path(parse, dependent, head)
        if path is not None:
            if any(relation.split(":")[0] in _BESIDE for relation in path):
                return None
            end = len(parse.words) - 1
            return NounPair(
                text=parse.text, head=parse.words[head].lemma.lower(), dependent=parse.words[dependent].lemma.lower(),
                kind=HEAD_FIRST if head < dependent else DEPENDENT_FIRST, relation=">".join(reversed(path)),
                first=end - nouns[0], second=end - nouns[1],
            )  # fmt: skip
    return None


def _path(parse: Parse, below: int, above: int) -> list[str] | None:
    """Return the relations from a word up to one that governs it; None where that does not."""
    found, place = [], below
    while place != above:
        if len(found) > len(parse.words):
            raise StudyError(f"words of {parse.text!r:.80} govern each other in a circle; parse it again")
        word = parse.words[place]
        if word.head < 0:
            return None
        found.append(word.relation)
        place = word.head
    return found


def balanced(pairs: Sequence[NounPair], n: int, generator: np.random.Generator) -> list[tuple[NounPair, NounPair]]:
    """Match captions that name the head first with captions that name the dependent first.

    In both captions of a match the noun that is named first is equally far from the end of the text, and so is the
    other: exact matching, by strata of both distances, as many of each kind as the rarer has in the stratum.

    Args:
        pairs: Captions.
        n: How many matches are taken at most, at random.
        generator: Decides which.

    Raises:
        StudyError: There are fewer than two matches; the message says how many captions of each kind there are.
    """
    kinds = (HEAD_FIRST, DEPENDENT_FIRST)
    strata: dict[tuple[int, int], dict[str, list[NounPair]]] = defaultdict(lambda: {kind: [] for kind in kinds})
    for one in pairs:
        strata[one.first, one.second][one.kind].append(one)
    found = []
    for place in sorted(strata):
        mixed = [[some[k] for k in generator.permutation(len(some))] for some in strata[place].values()]
        found += list(zip(*mixed, strict=False))  # as many as the rarer kind has
    if len(found) < 2:
        counts = {kind: sum(one.kind == kind for one in pairs) for kind in kinds}
        said = ", ".join(f"{kind}: {count}" for kind, count in counts.items())
        raise StudyError(
            f"{len(found)} captions of one kind have a partner of the other with both nouns as far from the end of the "
            f"text, and two are needed ({said}); give more captions"
        )
    return [found[k] for k in sorted(generator.permutation(len(found))[:n])]


def ask_of_captions(matches: Sequence[tuple[NounPair, NounPair]], generator: np.random.Generator) -> list[Asked]:
    """Return what is asked: whether each of the two nouns is there; those of head-first captions first.

    For judges that compare captions the alternatives are nouns of other captions.
    """
    every = [*(a for a, _ in matches), *(b for _, b in matches)]
    nouns = sorted({noun for one in every for noun in (one.head, one.dependent)})
    asked = []
    for one in every:
        strange = [noun for noun in nouns if noun not in (one.head, one.dependent)]
        chosen = [strange[k] for k in generator.permutation(len(strange))[:_ALTERNATIVES]]
        said = {HEAD: _a(one.head), OTHER: _a(one.dependent)}
        asked.append(
            Asked(
                prompt=one.text, kind=one.kind, questions={part: f"Is there {noun}?" for part, noun in said.items()},
                captions=said, alternatives=dict.fromkeys(said, tuple(_a(noun) for noun in chosen)),
            )
        )  # fmt: skip
    return asked


def _a(noun: str) -> str:
    is_vowel = noun[:1] in ("a", "e", "i", "o") or (noun[:1] == "u" and not noun.startswith("uni"))
    return f"{'an' if is_vowel else 'a'} {noun}"
