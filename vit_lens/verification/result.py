"""What a verification found: a table for people, plain values for a file."""

__all__ = ["BARS", "FOLDING_BAR", "Verification"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vit_lens.verification.lockstep import Difference

if TYPE_CHECKING:
    import pandas as pd

BARS: Mapping[torch.dtype, float] = {
    torch.float64: 1e-9,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 8e-2,
}
"""Largest max|diff| / max|source| that rounding explains: both sides add the same numbers in another order.

One rounding is 6e-8 in float32, 5e-4 in float16, 4e-3 in bfloat16. The bars are about 170 of them in float32, whose
sums run over thousands of terms, and 20 in half precision, whose sums are kept in float32. In float64 the bar is the
exactness that the package promises; rounding stays far below it, so it sees what float32 cannot: another eps, or a
small error beside the large activations that CLIP has in a few dimensions.
"""

FOLDING_BAR = 8
"""Least bar, in units in the last place of the model's dtype, where its weights are computed from the source's.

Such a weight is rounded to the model's dtype, and the difference does not vanish in a wider one.
"""


@dataclass(frozen=True, kw_only=True, repr=False)
class Verification:
    """How far a model is from its source, layer by layer; printing it shows the table and the verdict.

    Attributes:
        differences: The differences in each dtype, from the first layer to the embedding.
        bars: The largest relative difference that passes in each dtype.
        faults: The settings that differ from the source, as sentences; empty where none does.
        model: The model's encoder id.
        fingerprint: The fingerprint of the model's weights.
        source: Library and class of the source, and the name that it was loaded by.
        inputs: What both saw, in words.
        notes: What was compared otherwise than as it is, as sentences.

    >>> found = model.verify("mini", dtypes=[torch.float64])
    >>> found.passed, found.failure, found.source
    (True, None, 'transformers CLIPModel of vit_lens/mini')
    >>> found.to_frame().place.tolist()[:3], found.to_text().splitlines()[-1]
    (['into L0', 'L0', 'L1'], 'PASS')
    """

    differences: Mapping[torch.dtype, Sequence[Difference]]
    bars: Mapping[torch.dtype, float]
    faults: Sequence[str]
    model: str
    fingerprint: str
    source: str
    inputs: str
    notes: Sequence[str]

    @property
    def passed(self) -> bool:
        """Whether every difference lies below the bar of its dtype, and no setting differs."""
        return self.failure is None

    @property
    def failure(self) -> str | None:
        """What is wrong, with the first place where it shows; None if nothing is."""
        told = list(self.faults)
        for dtype in sorted(self.differences, key=self.bars.__getitem__):  # the sharpest names the place best
            rows = self.differences[dtype]
            if wrong := next((row for row in rows if not self._is_below(row, dtype)), None):
                told.append(
                    f"{_PLACES.get(wrong.place, f'block {wrong.place}')} is off by {wrong.relative:.1e} in "
                    f"{_plain(dtype)}, where the bar is {self.bars[dtype]:.0e}"
                )
        return "; ".join(told) or None

    def to_frame(self) -> "pd.DataFrame":
        """Return one row for each dtype and place."""
        import pandas as pd

        return pd.DataFrame(self._rows())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file; a number that is not finite is null."""
        odd = (float("inf"), float("-inf"))
        rows = [{name: None if v != v or v in odd else v for name, v in row.items()} for row in self._rows()]
        return {
            "passed": self.passed, "failure": self.failure, "model": self.model, "fingerprint": self.fingerprint,
            "source": self.source, "inputs": self.inputs, "notes": list(self.notes), "differences": rows,
        }  # fmt: skip

    def to_text(self) -> str:
        """Return a table that ends in PASS or FAIL."""
        lines = [f"model   {self.model} ({self.fingerprint})", f"source  {self.source}", f"input   {self.inputs}", ""]
        head = f"{'':10}" + "".join(f"  {_plain(dtype):>21}     " for dtype in self.differences)
        lines += [head.rstrip(), f"{'place':10}" + "  max|diff|   relative     " * len(self.differences)]
        for rows in zip(*self.differences.values(), strict=True):
            cells = [
                f"  {row.max_diff:9.1e}  {row.relative:9.1e} {'ok  ' if self._is_below(row, dtype) else 'FAIL'}"
                for dtype, row in zip(self.differences, rows, strict=True)
            ]
            lines.append(f"{rows[0].place:10}{''.join(cells)}".rstrip())
        bars = ", ".join(f"{self.bars[dtype]:.0e} in {_plain(dtype)}" for dtype in self.differences)
        lines += ["", f"relative: max|diff| / max|source|; bar: {bars}", *self.notes]
        return "\n".join([*(line.rstrip() for line in lines), f"FAIL: {self.failure}" if self.failure else "PASS"])

    def __repr__(self) -> str:
        return self.to_text()

    def _is_below(self, row: Difference, dtype: torch.dtype) -> bool:
        return row.relative < self.bars[dtype]  # false for what is not a number

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {
                "dtype": _plain(dtype), "place": row.place, "max_diff": row.max_diff, "max_source": row.max_source,
                "relative": row.relative, "bar": self.bars[dtype], "passed": self._is_below(row, dtype),
            }
            for dtype, rows in self.differences.items()
            for row in rows
        ]  # fmt: skip


_PLACES = {"into L0": "what enters block L0", "final norm": "the final norm", "embedding": "the embedding"}


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
