"""Answers as people and judges give them: a table, checked line by line against the key."""

__all__ = ["ANSWERS", "COLUMNS", "Answer", "Answers", "read_answers", "write_answers"]

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from vit_lens.errors import StudyError, nearest
from vit_lens.files import as_path, make_directory, write_atomic
from vit_lens.records import csv_bytes
from vit_lens.studies.annotate.sheet import Sheet
from vit_lens.studies.annotate.tables import Line, read_table

ANSWERS = ("yes", "no", "unsure")
"""What can be answered; ``unsure`` is "cannot tell"."""
COLUMNS = ("annotator", "item", "question", "answer", "page")
"""Columns of a table of answers; judges add ``score``."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer.

    Attributes:
        annotator: Who gave it: a person, or a judge by its name.
        item: The name of the picture.
        question: The name of the question.
        answer: One of ``ANSWERS``.
        page: The digest of the page.
        score: What a judge's answer rests on, see its class; empty for people.
    """

    annotator: str
    item: str
    question: str
    answer: str
    page: str
    score: str = ""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Answers to one page.

    Attributes:
        answers: One for each annotator, picture and question.
        repeated: How many lines said again what an earlier one says.
        changed: How many lines gave another answer than an earlier one of the same annotator, which it replaces.
    """

    answers: tuple[Answer, ...]
    repeated: int
    changed: int


def read_answers(paths: Sequence[str | os.PathLike[str]], sheet: Sheet) -> Answers:
    """Read tables of answers to one page.

    Where an annotator answers a question about a picture twice, the last answer counts, in the order of the files and
    of their lines; how often that changed an answer is counted.

    Raises:
        StudyError: A table cannot be read, holds nothing, or a line has no annotator, an item, question or page that
            the key does not know, or an answer other than yes, no and unsure.
    """
    found: dict[tuple[str, str, str], Answer] = {}
    repeated = changed = 0
    for path in paths:
        _, lines = read_table(path, needed=COLUMNS, optional=["score"])
        if not lines:
            raise StudyError(f"{as_path(path, StudyError)} holds no answer")
        for line in lines:
            one = _checked(line, sheet)
            place = (one.annotator, one.item, one.question)
            if place in found:
                same = found[place].answer == one.answer
                repeated, changed = repeated + same, changed + (not same)
            found[place] = one
    return Answers(answers=tuple(found.values()), repeated=repeated, changed=changed)


def write_answers(answers: Sequence[Answer], path: str | os.PathLike[str]) -> Path:
    """Write answers as a table, whole or not at all; return its path.

    Raises:
        OutputError: It cannot be written.
    """
    target = Path(path)
    columns = [*COLUMNS, "score"]
    make_directory(target.parent)
    write_atomic(target, csv_bytes(pd.DataFrame([asdict(one) for one in answers], columns=columns)))
    return target


def _checked(line: Line, sheet: Sheet) -> Answer:
    where, cells = line
    one = Answer(**{name: cells.get(name, "").strip() for name in (*COLUMNS, "score")})
    if one.page != sheet.page:
        raise StudyError(
            f"{where} answers page {one.page!r:.40}, and the key is of page {sheet.page!r}; give its own key"
        )
    if not one.annotator:
        raise StudyError(f"{where} names no annotator")
    if one.item not in sheet.by_item:
        raise StudyError(f"{where}: no item {one.item!r:.40} on the page; answers must not be edited by hand")
    asked = sheet.by_prompt[sheet.by_item[one.item].prompt]
    if one.question not in asked:
        raise StudyError(
            f"{where}: no question {one.question!r:.40} about item {one.item}; nearest: {nearest(one.question, asked)}"
        )
    if one.answer not in ANSWERS:
        raise StudyError(f"{where}: the answer is {one.answer!r:.40}; expected one of {', '.join(ANSWERS)}")
    return one
