"""A sweep within a budget: what may be spent, and when to stop."""

__all__ = ["Budget", "Pace"]

import re
import time
from dataclasses import dataclass, field
from typing import Union

from vit_lens.errors import VitLensError

_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one run of a sweep may spend: a first pass draws every row coarsely, then the most informative are refined.

    Attributes:
        seconds: Wall time of the whole call, the last page included; None for no bound.
        pictures: How many pictures may be drawn at full settings after the coarse pass, rounded up to whole batches;
            None for no bound.
        same_above: Embeddings that are all but equal are decoded once: those of one noise seed whose cosine is at
            least this, and whose norms differ by at most as much (relative) as this lacks to 1. On the embedded pair,
            pictures of rows that .9999 merges are the same when they are drawn apart (re-embedded they have a cosine of
            1.0000): 1 of the demo's 658 rows, 2 of 160 that are steered from the input. .9995 merges pictures with
            cosines down to .994 (mean-anchored, alpha 1), .995 down to .73 (the demo). Larger models were not measured.

    Raises:
        VitLensError: There is no bound, or one is out of range.

    >>> str(vl.Budget(seconds=120, pictures=200))
    '120s and 200 pictures'
    >>> vl.Budget.parse("2m").seconds
    120.0
    >>> vl.Budget()
    Traceback (most recent call last):
    vit_lens.errors.VitLensError: a budget without seconds and pictures bounds nothing; give one of them, or no budget
    """

    seconds: float | int | None = None
    pictures: int | None = None
    same_above: float | int = 0.9999

    def __post_init__(self) -> None:
        if self.seconds is None and self.pictures is None:
            raise VitLensError("a budget without seconds and pictures bounds nothing; give one of them, or no budget")
        for name, kinds in {"seconds": (int, float), "pictures": (int,)}.items():
            value = getattr(self, name)
            if value is not None and not (_is(value, kinds) and 0 < value < float("inf")):
                number = "a number" if float in kinds else "a whole number"
                raise VitLensError(f"a budget of {value!r} {name}; expected {number}, more than 0")
        if not (_is(self.same_above, (int, float)) and 0 < self.same_above <= 1):
            raise VitLensError(f"same_above={self.same_above}; expected a cosine above 0 and at most 1")

    @classmethod
    def parse(cls, given: Union["Budget", str, int, float]) -> "Budget":
        """Return a budget as it is, or read ``"60s"``, ``"2m"``, ``"1h"`` of time, ``"200"`` or 200 for pictures.

        Raises:
            VitLensError: The text is none of these.

        >>> vl.Budget.parse(200)
        Budget(seconds=None, pictures=200, same_above=0.9999)
        >>> vl.Budget.parse("1.5")
        Traceback (most recent call last):
        vit_lens.errors.VitLensError: budget '1.5': write seconds, minutes or hours as 60s, 2m, 1h, or pictures as 200
        """
        if isinstance(given, Budget):
            return given
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", str(given).strip())
        if match is None or (not match[2] and "." in match[1]):
            raise VitLensError(f"budget {given!r}: write seconds, minutes or hours as 60s, 2m, 1h, or pictures as 200")
        number = float(match[1])
        return cls(seconds=number * _UNITS[match[2]]) if match[2] else cls(pictures=int(number))

    def __str__(self) -> str:
        parts = [] if self.seconds is None else [f"{self.seconds:g}s"]
        return " and ".join(parts + ([] if self.pictures is None else [f"{self.pictures} pictures"]))


def _is(value: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


@dataclass
class Pace:
    """Whether the next round of batches fits into a budget; without one everything fits.

    Args:
        budget: What may be spent.
        started: When the run began, by ``time.monotonic``.
    """

    budget: Budget | None
    started: float
    ending: dict[str, float] = field(default_factory=dict)
    """Seconds that storing everything, and showing it, took the last time: they must be left at the end."""
    _rates: dict[str, list[float]] = field(default_factory=dict)
    _refined: int = 0

    def fits(self, drawn: str, work: float | int) -> bool:
        """Return whether a round of so much work fits, at the slowest rate of its pass so far.

        The first round of a run warms up, and counts only until there is another. Before a pass has a rate, that of the
        other serves; where nothing is known a round fits, so that every run gets on.

        Args:
            drawn: Of the pass: "coarse" or "full".
            work: Of the decoder; see :meth:`vit_lens.Decoder.work`.
        """
        if self.budget is None:
            return True
        if drawn == "full" and self.budget.pictures is not None and self._refined >= self.budget.pictures:
            return False
        rates = self._rates.get(drawn) or self._rates.get("coarse")
        if self.budget.seconds is None or not rates:
            return True
        needed = max(rates[1:] or rates) * work + sum(self.ending.values())
        return time.monotonic() - self.started + needed <= self.budget.seconds

    def spent(self, drawn: str, work: float | int, pictures: int, seconds: float | int) -> None:
        """Take note of a round that was drawn."""
        self._rates.setdefault(drawn, []).append(seconds / work)
        if drawn == "full":
            self._refined += pictures
