"""What annotators are asked, and the key that says what it was: a sheet of questions about pictures of records."""

__all__ = ["Item", "Question", "Sheet", "SheetRecord"]

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vit_lens.errors import StudyError
from vit_lens.files import as_path, check_fields, make_directory, read_json, write_atomic

FORMAT = "vit_lens.annotation.1"
_ADVICE = "give the .key.json that was written beside the page"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about the pictures of one prompt, to be answered by yes, no or cannot tell.

    Attributes:
        prompt: The prompt.
        question: The name of the question, by which answers to all prompts are put together, such as ``colour``.
        text: What annotators read.
        caption: What the picture shows if the answer is yes, for judges that compare captions.
        alternatives: Captions of what it might show instead.
    """

    prompt: str
    question: str
    text: str
    caption: str
    alternatives: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Item:
    """A picture that is shown: the row of a record, under a name that says nothing.

    Attributes:
        item: The name, a digest of the picture and of where it stands.
        record: The index of the record on the sheet.
        row: Its row there.
        prompt: What the row's input says.
        site: Where it was read.
        layer: The site's layer, -1 for one that has none.
        lens: What the row was read with.
        control: Empty, or what stands in for what the site writes.
        seed: The seed of the noise, -1 where there is none.
    """

    item: str
    record: int
    row: int
    prompt: str
    site: str
    layer: int
    lens: str
    control: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class SheetRecord:
    """A record on a sheet: where it lay, a digest of what made it, and whose pictures they are."""

    path: str
    digest: str
    encoder: str
    decoder: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Sheet:
    """Questions about pictures, in the order in which they are asked.

    Attributes:
        page: A digest of everything that is asked; answers name it.
        seed: The seed of the order.
        records: The records that pictures come from.
        questions: The questions, those of one prompt in the order in which they are asked.
        items: The pictures, in the order in which they are shown.
    """

    page: str
    seed: int
    records: tuple[SheetRecord, ...]
    questions: tuple[Question, ...]
    items: tuple[Item, ...]

    @cached_property
    def by_item(self) -> Mapping[str, Item]:
        """The pictures by name."""
        return {item.item: item for item in self.items}

    @cached_property
    def by_prompt(self) -> Mapping[str, Mapping[str, Question]]:
        """The questions by prompt and name."""
        found: dict[str, dict[str, Question]] = {}
        for question in self.questions:
            found.setdefault(question.prompt, {})[question.question] = question
        return found

    @property
    def tasks(self) -> list[tuple[Item, Question]]:
        """Every picture with every question about it, in order."""
        return [(item, question) for item in self.items for question in self.by_prompt[item.prompt].values()]

    def save(self, path: Path) -> Path:
        """Write the key, whole or not at all; return its path.

        Raises:
            OutputError: It cannot be written.
        """
        make_directory(path.parent)
        write_atomic(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode())
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Sheet":
        """Read a key.

        Raises:
            StudyError: There is none, or it is damaged.
        """
        path = as_path(path, StudyError)
        said = read_json(path, StudyError, _ADVICE)
        if said.pop("format", None) != FORMAT:
            raise StudyError(f"{path} is no key of a page of annotations; {_ADVICE}")
        fields = check_fields(_Plain, said, str(path), StudyError)
        parts: dict[str, Any] = {"records": SheetRecord, "questions": Question, "items": Item}
        made = {
            name: tuple(kind(**check_fields(kind, one, f"{path}: {name}", StudyError)) for one in fields[name])
            for name, kind in parts.items()
        }  # fmt: skip
        sheet = cls(**{**fields, **made})
        if len(sheet.by_item) < len(sheet.items):
            raise StudyError(f"{path}: two items have one name; the key is damaged, write the page again")
        for item in sheet.items:
            if item.prompt not in sheet.by_prompt or not 0 <= item.record < len(sheet.records):
                raise StudyError(f"{path}: item {item.item} has no question or record; the key is damaged")
        return sheet


@dataclass(frozen=True)
class _Plain:
    page: str
    seed: int
    records: tuple[Any, ...]
    questions: tuple[Any, ...]
    items: tuple[Any, ...]
