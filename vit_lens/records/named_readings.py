"""What rows were read with: the readings of a record."""

__all__ = ["Reading", "told_apart"]

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vit_lens.controls import CONTROLS
from vit_lens.errors import RecordError
from vit_lens.files import check_fields

_OF_PROMPTS = {
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
        control: Empty, or the name of what stands in for a site's output, such as ``random`` or ``other``.
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

    def controlled(self, control: str, *, normalise: str | None = None, of_prompts: bool = False) -> "Reading":
        """Return the reading of a control of this one.

        Args:
            control: Its name, such as ``random``.
            normalise: The coordinates in which it is as long as the site's output, if not those of the output.
            of_prompts: Whether it stands in for what is written for a prompt.
        """
        if of_prompts and control in _OF_PROMPTS:
            said = _OF_PROMPTS[control]
        elif control in CONTROLS:
            where = "" if normalise is None else f" in normalised coordinates ({normalise})"
            said = f"Control: {CONTROLS[control].words} of the same length{where} stands in for what the site writes."
        else:
            said = f"Control: {control}."
        settings = {**self.settings, **({} if normalise is None else {"control_normalise": normalise})}
        ending = control if normalise is None else f"{control}-{normalise}"
        return replace(
            self, id=f"{self.id}.{ending}", settings=settings, control=control, of=self.id,
            words=" ".join(filter(None, [self.words, said])),
        )  # fmt: skip

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
