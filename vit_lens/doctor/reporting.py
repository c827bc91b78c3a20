"""What an examination found: a table for people, plain values for a file."""

__all__ = ["Check", "Report", "dtype_name"]

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vit_lens.errors import nearest

_WIDTH = 110
_COLUMN = 44
_WORDS = {True: "ok", False: "FAIL", None: "-"}


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        passed: Whether it is as it should be; None where there is nothing to judge, or a check could not run because an
            earlier one failed.
        given: What was found, in words.
        expected: What was asked for, in words; empty where nothing was.
        detail: More, in a sentence.
        values: The numbers behind it, by name.

    >>> vl.doctor.Check("parity", True, "0", "at most 1e-5").passed
    True
    """

    name: str
    passed: bool | None
    given: str
    expected: str = ""
    detail: str = ""
    values: Mapping[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Report:
    """All findings, with what they were found on; ``report["parity"]`` is the first of that name.

    Attributes:
        checks: The findings, in the order in which they ran.
        subject: Encoder and decoder: ids, fingerprint, dtype, settings; as far as they could be loaded.
        machine: The machine that it ran on.
        versions: Versions of the packages that matter.
        command: The command that repeats it; empty where something was made in memory.
        seconds: Wall time.

    >>> checks = [vl.doctor.Check("parity", True, "0", "at most 1e-5"), vl.doctor.Check("images", None, "2 images")]
    >>> report = vl.doctor.Report(checks=checks, subject={}, machine={}, versions={}, command="", seconds=1.0)
    >>> report.passed, report["images"].given
    (True, '2 images')
    >>> report.to_text().splitlines()[-1]
    '1 passed, 0 failed, 1 without a verdict, 1 s: PASS'
    """

    checks: Sequence[Check]
    subject: Mapping[str, Any]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    command: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether something was judged, and nothing failed."""
        verdicts = [check.passed for check in self.checks]
        return False not in verdicts and True in verdicts

    def __getitem__(self, name: str) -> Check:
        found = {check.name: check for check in self.checks}
        if name not in found:
            raise KeyError(f"no check {name!r}; nearest: {nearest(name, found)}")
        return found[name]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return {"passed": self.passed, **dataclasses.asdict(self)}

    def to_text(self) -> str:
        """Return a table that ends in PASS or FAIL."""
        head = [
            f"$ {self.command}" if self.command else "called from Python",
            *(f"{name}: {_plain(value)}" for name, value in self.subject.items()),
        ]
        head += [f"machine: {_plain(self.machine)}", f"versions: {_plain(self.versions)}"]
        wrapped = [textwrap.fill(line, _WIDTH, subsequent_indent="  ", break_on_hyphens=False) for line in head]
        return "\n".join([*wrapped, "", *_table(self.checks), "", self._verdict()])

    def _verdict(self) -> str:
        counts = [sum(check.passed is kind for check in self.checks) for kind in (True, False, None)]
        told = f"{counts[0]} passed, {counts[1]} failed, {counts[2]} without a verdict, {self.seconds:.0f} s"
        return f"{told}: {'PASS' if self.passed else 'FAIL'}"


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def _table(checks: Sequence[Check]) -> list[str]:
    rows = [("", "check", "given", "expected")]
    rows += [(_WORDS[check.passed], check.name, check.given, check.expected) for check in checks]
    widths = [min(max(len(row[i]) for row in rows), _COLUMN) for i in range(3)]
    aligned = "  ".join(f"{{:{width}}}" for width in widths) + "  {}"
    lines: list[str] = []
    for row, check in zip(rows, [None, *checks], strict=True):
        cells = [textwrap.wrap(cell, _COLUMN) or [""] for cell in row]
        for i in range(max(map(len, cells))):
            parts = [cell[i] if i < len(cell) else "" for cell in cells]
            lines.append(aligned.format(*parts).rstrip())
        if check is not None and check.detail:
            indent = " " * (widths[0] + 4)
            lines += textwrap.wrap(check.detail, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    return lines


def _plain(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
