"""Pairs of images that differ in one attribute, with captions that name the difference."""

__all__ = ["MIN_ATTRIBUTES", "AttributePairs"]

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_lens.errors import StudyError, nearest

MIN_ATTRIBUTES = 3
"""Fewer have no rank correlation."""

_COLUMNS = ("image", "partner", "attribute", "caption", "partner_caption")


@dataclass(frozen=True, eq=False, kw_only=True)
class AttributePairs:
    """Base images with partners, each of which differs from its base in one attribute.

    A pair is one place of the tuples ``base`` to ``partner_caption``; pairs of one base are what an interval keeps
    together.

    Attributes:
        images: Bases and partners; these are the test images of a study.
        base: For each pair, the index of its base in ``images``, counted from 0.
        partner: For each pair, the index of its partner.
        attribute: For each pair, the name of what the two differ in.
        caption: For each pair, what is true of the base, such as "a red object".
        partner_caption: For each pair, what is true of the partner instead, such as "a blue object".

    Raises:
        StudyError: A caption is missing or the two are the same, there are fewer than three attributes, or an index
            is not one of the images'.

    >>> pairs = vl.studies.AttributePairs(
    ...     images=["cup.png", "blue.png", "large.png", "plate.png"], base=(0, 0, 0), partner=(1, 2, 3),
    ...     attribute=("colour", "size", "shape"), caption=("a red object", "a small object", "a cup"),
    ...     partner_caption=("a blue object", "a large object", "a plate"),
    ... )
    >>> len(pairs), pairs.attributes, pairs.bases
    (3, ('colour', 'size', 'shape'), (0,))
    """

    images: Sequence[Any]
    base: tuple[int, ...]
    partner: tuple[int, ...]
    attribute: tuple[str, ...]
    caption: tuple[str, ...]
    partner_caption: tuple[str, ...]

    def __post_init__(self) -> None:
        sizes = {name: len(getattr(self, name)) for name in ("base", "partner", *_COLUMNS[2:])}
        if len(set(sizes.values())) > 1:
            raise StudyError(f"every pair has a base, a partner, an attribute and two captions; there are {sizes}")
        for pair in range(len(self)):
            self._check(pair)
        if len(self.attributes) < MIN_ATTRIBUTES:
            raise StudyError(
                f"pairs in {len(self.attributes)} attribute(s) ({', '.join(self.attributes) or 'none'}); the study "
                f"compares attributes within a site and needs at least {MIN_ATTRIBUTES}"
            )

    def _check(self, pair: int) -> None:
        texts = {name: getattr(self, name)[pair] for name in _COLUMNS[2:]}
        if empty := [name for name, text in texts.items() if not text.strip()]:
            raise StudyError(
                f"pair {pair} ({texts['attribute'] or 'no attribute'}) has no {' and no '.join(empty)}; write what is "
                "true of the image and what is true of its partner"
            )
        if texts["caption"] == texts["partner_caption"]:
            raise StudyError(
                f"pair {pair} ({texts['attribute']}): both captions are {texts['caption']!r}; they must tell the image "
                "from its partner"
            )
        if bad := [i for i in (self.base[pair], self.partner[pair]) if not 0 <= i < len(self.images)]:
            raise StudyError(f"pair {pair} names image {bad[0]}; there are {len(self.images)}, counted from 0")
        if self.base[pair] == self.partner[pair]:
            raise StudyError(f"pair {pair} ({texts['attribute']}): image {self.base[pair]} is its own partner")

    @classmethod
    def from_csv(cls, path: Path) -> "AttributePairs":
        """Read a table with the columns image, partner, attribute, caption, partner_caption; one pair a row.

        Rows with the same image are pairs of one base. Image paths are relative to the file.

        Raises:
            StudyError: The file cannot be read, or a column or caption is missing, unknown or empty.
        """
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                names, rows = list(reader.fieldnames or ()), list(reader)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise StudyError(f"{path} cannot be read as a table of pairs ({error})") from error
        if missing := [name for name in _COLUMNS if name not in names]:
            raise StudyError(f"{path} lacks the column(s) {', '.join(missing)}; expected {','.join(_COLUMNS)}")
        if unknown := [name for name in names if name not in _COLUMNS]:
            raise StudyError(f"{path} has an unknown column {unknown[0]!r}; nearest: {nearest(unknown[0], _COLUMNS)}")
        for line, row in enumerate(rows, start=2):
            if None in row or None in row.values() or not (row["image"] or "").strip() or not row["partner"].strip():
                raise StudyError(f"{path}, row {line}: expected {len(_COLUMNS)} values, {','.join(_COLUMNS)}")
        bases = list(dict.fromkeys(row["image"] for row in rows))
        return cls(
            images=[path.parent / name for name in [*bases, *(row["partner"] for row in rows)]],
            base=tuple(bases.index(row["image"]) for row in rows),
            partner=tuple(range(len(bases), len(bases) + len(rows))),
            attribute=tuple(row["attribute"] for row in rows), caption=tuple(row["caption"] for row in rows),
            partner_caption=tuple(row["partner_caption"] for row in rows),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.base)

    @property
    def attributes(self) -> tuple[str, ...]:
        """The names of the attributes, in order of appearance."""
        return tuple(dict.fromkeys(self.attribute))

    @property
    def bases(self) -> tuple[int, ...]:
        """The indices of base images, in order of appearance."""
        return tuple(dict.fromkeys(self.base))

    @property
    def captions(self) -> tuple[str, ...]:
        """Every caption once: what an encoder and a judge must be able to read."""
        return tuple(dict.fromkeys([*self.caption, *self.partner_caption]))

    def first(self, n: int) -> "AttributePairs":
        """Return the pairs of the first ``n`` bases, with their images alone.

        Each partner gets a place of its own, so that it is drawn with the noise of its base.

        Raises:
            StudyError: There are fewer bases.
        """
        bases, pairs = self.bases[:n], self.pairs_of_first(n)
        return AttributePairs(
            images=[self.images[i] for i in self.images_of_first(n)],
            base=tuple(bases.index(self.base[pair]) for pair in pairs),
            partner=tuple(range(n, n + len(pairs))),
            attribute=tuple(self.attribute[pair] for pair in pairs),
            caption=tuple(self.caption[pair] for pair in pairs),
            partner_caption=tuple(self.partner_caption[pair] for pair in pairs),
        )  # fmt: skip

    def pairs_of_first(self, n: int) -> list[int]:
        """Return which pairs :meth:`first` takes.

        Raises:
            StudyError: There are fewer bases.
        """
        if not 1 <= n <= len(self.bases):
            raise StudyError(f"pairs of {n} base images were asked for, and there are {len(self.bases)}")
        return [pair for pair, base in enumerate(self.base) if base in self.bases[:n]]

    def images_of_first(self, n: int) -> list[int]:
        """Return which images :meth:`first` takes: the bases, then a partner for each pair.

        Raises:
            StudyError: There are fewer bases.
        """
        return [*self.bases[:n], *(self.partner[pair] for pair in self.pairs_of_first(n))]

    def donors(self) -> tuple[int, ...]:
        """Return for each pair another base's pair of the same attribute, with other captions where there is one.

        A pair that is alone in its attribute is its own donor.
        """
        return tuple(self._donor(pair) for pair in range(len(self)))

    def _donor(self, pair: int) -> int:
        after = [*range(pair + 1, len(self)), *range(pair)]
        same = [i for i in after if self.attribute[i] == self.attribute[pair] and self.base[i] != self.base[pair]]
        own = {self.caption[pair], self.partner_caption[pair]}
        other = [i for i in same if own != {self.caption[i], self.partner_caption[i]}]
        return next(iter([*other, *same]), pair)
