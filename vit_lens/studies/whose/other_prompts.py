"""Other sentences of the world, which maps and probes are fitted on: none of them is studied."""

__all__ = ["other_sentences"]

from collections.abc import Iterable

import numpy as np

from vit_lens.errors import StudyError
from vit_lens.mini import still_life

PAIRS = 0.7
"""The share of sentences of two objects, as denoisers of the world are trained."""
_AT_ONCE, _TRIES = 256, 200


def other_sentences(
    n: int, lexicon: still_life.Lexicon, generator: np.random.Generator, *, apart_from: Iterable[str]
) -> list[still_life.Sentence]:
    """Draw different sentences that describe every object in whole and call none by a name.

    Scenes are those that trainings knew, so that none is that of a studied pair. Names are left out: what is read of
    a studied name was then told to neither map nor probe.

    Args:
        n: How many.
        lexicon: The names.
        generator: Draws them.
        apart_from: Texts that are left out.

    Raises:
        StudyError: The world has not so many.
    """
    taken, found = set(apart_from), {}
    for _ in range(_TRIES):
        drawn = still_life.sample(_AT_ONCE, generator, lexicon, pairs=PAIRS, named=0.0, held_out=False, whole=True)
        found |= {one.text: one for one in drawn if one.text not in taken and one.text not in found}
        if len(found) >= n:
            return list(found.values())[:n]
    raise StudyError(f"{n} other prompts were asked for, and the world has about {len(found)}; fit on fewer")
