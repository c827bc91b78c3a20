"""What rows were read with: the readings of a record."""

__all__ = ["Reading", "told_apart"]

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vit_lens.errors import RecordError
from vit_lens.files import check_fields

CONTROL_WORDS = {
    "random": "Control: a random direction of the same length stands in for what the site writes.",
    "other": "Control: what the site writes for another prompt, at the same length, stands in for it.",
    "shuffled": "Control: what the site writes for the same words in another order, at the same length, stands in.",
    "empty": "Control: what the site writes where nothing is said, at the same length, stands in for it.",
}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One lens with its settings, or the control of one; everything that shows or compares rows goes by it.

    Attributes:
        id: The name of the reading in the column ``reading``; equal ids are equal readings, in every record.
        lens: The name of the lens.
        settings: What changes what it reads, the content of reference means included.
        control: Empty, or what stands in for a site's output: ``random``.
        of: The id of the reading that a control belongs to; empty for others.
        label: A short name for legends and menus.
        words: What it shows, in a sentence or two.

    >>> reading = vl.records.Reading(id="diffusion-0", lens="diffusion", label="Diffusion Lens")
    >>> control = reading.controlled("random")
    >>> control.id, control.of
    ('diffusion-0.random', 'diffusion-0')
    """

    id: str
    lens: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    control: str = ""
    of: str = ""
    label: str
    words: str = ""

    def controlled(self, control: str) -> "Reading":
        """Return the reading of a control of this one, such as ``random``."""
        words = " ".join(filter(None, [self.words, CONTROL_WORDS.get(control, f"Control: {control}.")]))
        return replace(self, id=f"{self.id}.{control}", control=control, of=self.id, words=words)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a manifest."""
        return asdict(self) | {"settings": dict(self.settings)}

    @classmethod
    def from_dict(cls, found: object, where: str) -> "Reading":
        """Read what :meth:`to_dict` gave.

        Raises:
            RecordError: The value is no reading.
        """
        return cls(**check_fields(cls, found, f"{where}: a reading", RecordError))


def told_apart(readings: Sequence[Reading]) -> list[Reading]:
    """Return the readings with labels that differ: equal ones end with the digits of their id.

    >>> two = [vl.records.Reading(id=f"dsl-{digits}", lens="dsl", label="DSL") for digits in ("a1", "b2")]
    >>> [reading.label for reading in vl.records.told_apart(two)]
    ['DSL (a1)', 'DSL (b2)']
    """
    ids: dict[str, set[str]] = {}
    for one in readings:
        ids.setdefault(one.label, set()).add(one.of or one.id)
    return [
        replace(one, label=f"{one.label} ({(one.of or one.id).rpartition('-')[2]})") if len(ids[one.label]) > 1 else one
        for one in readings
    ]
