"""What is steered to, and prompts that are silent about it, agree, conflict or are about another object."""

__all__ = ["RELATIONS", "SIDES", "TARGETS", "Side", "Target", "Values", "prompts_for", "target_named", "targets_of"]

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from vit_lens.errors import StudyError, nearest
from vit_lens.mini import still_life

RELATIONS = ("silent", "agrees", "conflicts", "unrelated")
Values = tuple[tuple[str, tuple[str, ...]], ...]
"""The attributes of a world, each with its values."""
_STILL_LIFE: Values = (
    ("colour", tuple(still_life.COLOURS)), ("texture", still_life.TEXTURES), ("shape", still_life.SHAPES),
)  # fmt: skip
_VALUES = tuple(values for _, values in _STILL_LIFE)


@dataclass(frozen=True)
class Target:
    """A value of an attribute that a picture may show.

    Attributes:
        attribute: The number of the attribute in its world; of still lifes 0 for colour, 1 for texture, 2 for shape.
        value: Its word.
        world: The attributes of its world, and their values.
    """

    attribute: int
    value: str
    world: Values = field(default=_STILL_LIFE, repr=False)

    @property
    def kind(self) -> str:
        """The attribute's name."""
        return self.world[self.attribute][0]

    @property
    def number(self) -> int:
        """The number of the value among those of its attribute."""
        return self.world[self.attribute][1].index(self.value)


def targets_of(world: Values) -> tuple[Target, ...]:
    """Return every value of a world as a target.

    >>> from vit_lens.studies.steering.targets import targets_of
    >>> targets_of((("size", ("small", "large")),))
    (Target(attribute=0, value='small'), Target(attribute=0, value='large'))
    """
    return tuple(Target(k, value, world) for k, (_, values) in enumerate(world) for value in values)


TARGETS = targets_of(_STILL_LIFE)


class Side(NamedTuple):
    """A part of the picture that is steered, of a scene of two objects.

    Attributes:
        relation: How the first object is said to lie to the second.
        place: Which of them is in the part: 0 for the first.
        half: The part of the picture, as shares: top, left, bottom, right.
    """

    relation: str
    place: int
    half: tuple[float, float, float, float]


SIDES = (
    Side("left of", 0, (0, 0, 1, 0.5)),
    Side("left of", 1, (0, 0.5, 1, 1)),
    Side("above", 0, (0, 0, 0.5, 1)),
    Side("above", 1, (0.5, 0, 1, 1)),
)


def target_named(word: str, targets: Sequence[Target] = TARGETS) -> Target:
    """Return the target of a word.

    Args:
        word: The value.
        targets: Those that there are; the colours, textures and shapes of still lifes if nothing is said.

    Raises:
        StudyError: It is none of them.

    >>> from vit_lens.studies.steering.targets import target_named
    >>> target_named("striped")
    Target(attribute=1, value='striped')
    """
    found = {target.value: target for target in targets}
    if word not in found:
        raise StudyError(f"no target {word!r}; nearest: {nearest(word, found)}")
    return found[word]


def prompts_for(target: Target, n: int, generator: np.random.Generator) -> dict[str, list[str]]:
    """Return prompts by what they say of a target, one for each noise: those of ``RELATIONS``, and ``pair``.

    The i-th of each are about one object, whose other two values are drawn: ``silent`` does not say the attribute,
    ``agrees`` says the target, ``conflicts`` another value, and ``unrelated`` is about an object all of whose values
    are others. ``pair`` has two objects, silent about the attribute of both, in turn as ``SIDES`` has them.

    Args:
        target: The target.
        n: How many noises.
        generator: Draws the other values.

    >>> from vit_lens.studies.steering.targets import Target, prompts_for
    >>> made = prompts_for(Target(0, "red"), 1, np.random.default_rng(1))
    >>> made["silent"], made["agrees"], made["pair"]
    (['a dipped square'], ['a red dipped square'], ['a shaded ring left of a dipped square'])
    """
    found: dict[str, list[str]] = {name: [] for name in (*RELATIONS, "pair")}
    at = target.attribute
    for noise in range(n):
        values = [str(generator.choice(some)) for some in _VALUES]
        values[at] = target.value
        others = [str(generator.choice([one for one in some if one != own]))
                  for some, own in zip(_VALUES, values, strict=True)]  # fmt: skip
        second = [str(generator.choice(some)) for some in _VALUES]
        found["silent"].append(_said(values, without=at))
        found["agrees"].append(_said(values))
        found["conflicts"].append(_said([others[k] if k == at else word for k, word in enumerate(values)]))
        found["unrelated"].append(_said(others))
        relation = SIDES[noise % len(SIDES)].relation
        found["pair"].append(f"{_said(second, without=at)} {relation} {_said(values, without=at)}")
    return found


def _said(values: list[str], without: int | None = None) -> str:
    return " ".join(["a", *(word for k, word in enumerate(values) if k != without)])
