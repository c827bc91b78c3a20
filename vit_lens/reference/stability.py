"""How far means over fewer images lie from the final ones: whether a reference set was large enough."""

__all__ = ["Stability"]

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vit_lens.errors import VitLensError
from vit_lens.files import parse_json

if TYPE_CHECKING:
    import pandas as pd

PerLayer = tuple[float, ...]
_ADVICE = "make the means again: ReferenceMeans.from_images(model, images)"


@dataclass(frozen=True, kw_only=True)
class Stability:
    """Distances between means over parts of a reference set, for each kind of activation and each layer.

    A distance is ``|mean of m images - mean of all n|``, the norm over all held positions and features. The
    ``spread`` is how far one image lies from the mean (root mean square, unbiased), so ``distance / spread``
    compares the error with what a lens or an ablation measures: deviations from the mean. By chance alone, images
    drawn independently give ``sqrt(1/m - 1/n)``, and two halves of the set differ by ``sqrt(4/n)``. Much more than that
    for the first ``m`` means that the images were sorted.

    Attributes:
        n: The number of images.
        spread: How far one image lies from the mean: for each kind of activation (``resid_pre``, ``z``, ``mlp_out``,
            ...) one number a layer.
        distance: How far the mean of the first ``m`` images lies from that of all: by ``m``, for each kind one number a
            layer.
        halves: How far the means of the even and of the odd images lie apart, likewise; empty for a single image.

    >>> stability = vl.ReferenceMeans.from_images(model, images).stability
    >>> round(stability.error("z"), 2), round(stability.by_chance("halves"), 2)
    (1.41, 1.41)
    >>> stability.frame().columns.tolist()
    ['kind', 'layer', 'part', 'm', 'distance', 'spread', 'error', 'by_chance']
    """

    n: int
    spread: dict[str, PerLayer]
    distance: dict[int, dict[str, PerLayer]]
    halves: dict[str, PerLayer]

    def __post_init__(self) -> None:
        sizes = {kind: len(values) for kind, values in self.spread.items()}
        tables = [self.spread, *self.distance.values(), *[self.halves] * bool(self.halves)]
        numbers = [value for table in tables for values in table.values() for value in values]
        fits = all({kind: len(values) for kind, values in table.items()} == sizes for table in tables)
        is_whole = isinstance(self.n, int) and all(1 <= m < self.n for m in self.distance)
        if not (fits and is_whole and all(map(math.isfinite, numbers)) and (self.n > 1 or not self.halves)):
            raise VitLensError("distances are finite numbers, as many of each kind as spreads, of fewer images")

    def frame(self) -> "pd.DataFrame":
        """Return a table: kind, layer, part (``first 256``, ``halves``), m, distance, spread, error, by_chance.

        ``error`` is ``distance / spread``; 0 where the activation is the same for every image.
        """
        import pandas as pd

        columns = ["kind", "layer", "part", "m", "distance", "spread", "error", "by_chance"]
        rows = [
            (kind, layer, part, m, by_kind[kind][layer], spread, _ratio(by_kind[kind][layer], spread), by_chance)
            for kind, spreads in self.spread.items()
            for layer, spread in enumerate(spreads)
            for part, (m, by_kind, by_chance) in self._parts().items()
        ]
        return pd.DataFrame(rows, columns=columns)

    def _parts(self) -> dict[str, tuple[int, dict[str, PerLayer], float]]:
        """Return the number of images of each part, its distances, and the error by chance alone."""
        parts = {f"first {m}": (m, each, math.sqrt(1 / m - 1 / self.n)) for m, each in self.distance.items()}
        half = self.n // 2
        if self.halves:
            parts["halves"] = half, self.halves, math.sqrt(1 / half + 1 / (self.n - half))
        return parts

    def by_chance(self, part: str) -> float:
        """Return the error that independent images would show in a part, by chance alone.

        Args:
            part: The part of the reference set: ``halves``, or ``first 256`` for one of :attr:`distance`.

        Raises:
            VitLensError: There is no such part.
        """
        if str(part) not in (parts := self._parts()):
            raise VitLensError(f"no part {part!r}; there are {[f'first {m}' for m in self.distance]} and 'halves'")
        return parts[part][2]

    def error(self, kind: str, part: str = "halves") -> float:
        """Return the error of a kind of activation, ``distance / spread``, root mean square over layers.

        Args:
            kind: The kind of activation, one of :attr:`spread`.
            part: The part of the reference set: ``halves``, or ``first 256`` for one of :attr:`distance`.

        Raises:
            VitLensError: There is no such kind or part.
        """
        if str(kind) not in self.spread:
            raise VitLensError(f"no kind {kind!r}; there are {list(self.spread)}")
        self.by_chance(part)
        ratios = list(map(_ratio, self._parts()[part][1][kind], self.spread[kind]))
        return math.sqrt(sum(ratio**2 for ratio in ratios) / len(ratios))

    def __str__(self) -> str:
        if not self.halves:
            return "one image: nothing to compare"
        lines = [f"distance from the mean of all {self.n} images, in units of one image's distance (by chance):"]
        for kind in self.spread:
            numbers = [f"{part} {self.error(kind, part):.3f} ({self.by_chance(part):.3f})" for part in self._parts()]
            lines.append(f"  {kind}: {', '.join(numbers)}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return the numbers as text, for a file's header."""
        return json.dumps({"n": self.n, "spread": self.spread, "distance": self.distance, "halves": self.halves})

    @classmethod
    def from_json(cls, text: str) -> "Stability":
        """Read what :meth:`to_json` wrote.

        Raises:
            VitLensError: The text is not what :meth:`to_json` writes.
        """
        try:
            held = parse_json(text, "it", VitLensError, _ADVICE)
            distance = {int(m): _tuples(by_kind) for m, by_kind in held["distance"].items()}
            spread, halves = _tuples(held["spread"]), _tuples(held["halves"])
            return cls(n=held["n"], spread=spread, distance=distance, halves=halves)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise VitLensError(f"the stability of these means cannot be read: {error!r}") from error


def _ratio(distance: float, spread: float) -> float:
    return distance / spread if spread else 0.0


def _tuples(by_kind: dict[str, list[float]]) -> dict[str, PerLayer]:
    return {kind: tuple(map(float, values)) for kind, values in by_kind.items()}
