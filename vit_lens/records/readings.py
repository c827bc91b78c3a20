"""What rows were read with: the readings of a record, and choosing rows by them."""

__all__ = ["Reading", "select", "told_apart"]

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import pandas as pd

from vit_lens.errors import RecordError

CONTROL_WORDS = {"random": "Control: a random direction of the same length stands in for what the site writes."}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One lens with its settings, or the control of one; everything that shows or compares rows goes by it.

    Attributes:
        id: Names it in the column ``reading``; equal ids are equal readings, in every record.
        lens: Name of the lens.
        settings: What changes what it reads, the content of reference means included.
        control: Empty, or what stands in for a site's output: ``random``.
        of: Of a control, the id of the reading that it belongs to; empty for others.
        label: For legends and menus.
        words: What it shows, in a sentence or two.
    """

    id: str
    lens: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    control: str = ""
    of: str = ""
    label: str
    words: str = ""

    def controlled(self, control: str) -> "Reading":
        """Return the reading of a control."""
        words = " ".join(filter(None, [self.words, CONTROL_WORDS.get(control, f"Control: {control}.")]))
        return Reading(
            id=f"{self.id}.{control}", lens=self.lens, settings=self.settings, control=control, of=self.id,
            label=self.label, words=words,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a manifest."""
        return asdict(self) | {"settings": dict(self.settings)}

    @classmethod
    def from_dict(cls, found: object, where: str) -> "Reading":
        """Read what :meth:`to_dict` gave.

        Raises:
            RecordError: It is something else.
        """
        texts = ("id", "lens", "control", "of", "label", "words")
        if isinstance(found, dict) and found.keys() == {*texts, "settings"} and isinstance(found["settings"], dict):
            if all(isinstance(found[name], str) for name in texts):
                return cls(**found)
        raise RecordError(f"{where}: a reading of the manifest is damaged; sweep again")


def told_apart(readings: Sequence[Reading]) -> list[Reading]:
    """Return the readings with labels that differ: equal ones end with the digits of their id."""
    ids: dict[str, set[str]] = {}
    for one in readings:
        ids.setdefault(one.label, set()).add(one.of or one.id)
    return [
        replace(one, label=f"{one.label} ({(one.of or one.id).rpartition('-')[2]})") if len(ids[one.label]) > 1 else one
        for one in readings
    ]


@runtime_checkable
class HasReadings(Protocol):
    """Whatever has a table and its readings, such as a record."""

    @property
    def table(self) -> pd.DataFrame:
        """The rows."""
        ...

    @property
    def readings(self) -> Mapping[str, Reading]:
        """By id."""
        ...


def select(
    record: HasReadings,
    *,
    input: int = 0,
    lens: str | None = None,
    control: str = "",
    types: tuple[str, ...] = (),
) -> pd.DataFrame:
    """Return the rows of one input and one reading.

    Args:
        record: Whose.
        input: Index of the input.
        lens: Id or label of a reading, the beginning of a label if only one fits, or the name of its lens; None takes
            the first lens that is not ``diffusion``, or the first when there is no other.
        control: Of the reading: empty for sites, or ``random``.
        types: Site types to keep; empty keeps all.

    Raises:
        RecordError: There is no such input or reading, or ``lens`` fits several.
    """
    table = record.table
    if input not in set(table["input"]):
        raise RecordError(f"no input {input} in this record; it has {sorted(set(table['input']))}")
    rows = table.loc[table["input"] == input]
    if types:
        rows = rows.loc[rows["site_type"].isin(types)]
    known = [record.readings[name] for name in dict.fromkeys(rows["reading"])]
    known = [reading for reading in known if reading.control == control]
    if not known:
        what = f"{control} controls" if control else "sites"
        raise RecordError(f"input {input} has no {what} of type {' or '.join(types) or 'any'} in this record")
    if lens is None:
        wanted = next((reading for reading in known if reading.lens != "diffusion"), known[0])
    else:
        wanted = _one(known, lens)
    return rows.loc[rows["reading"] == wanted.id]


def _one(known: list[Reading], lens: str) -> Reading:
    tests = (
        lambda r: lens in (r.id, r.label, r.of), lambda r: r.label.startswith(lens), lambda r: r.lens == lens
    )  # fmt: skip
    found = next(filter(None, ([reading for reading in known if fits(reading)] for fits in tests)), [])
    if len(found) == 1:
        return found[0]
    said = [f"{reading.label} ({reading.id})" for reading in known]
    raise RecordError(f"lens {lens!r} names {len(found)} of the readings in this record; choose one of {said}")
