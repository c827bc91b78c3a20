"""From tables of answers and their key to what was found: joined answers, means, agreement, a figure."""

__all__ = ["Found", "read_annotations"]

import os
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from vit_lens.errors import OutputError
from vit_lens.figures import save
from vit_lens.files import as_path, make_directory, write_atomic
from vit_lens.records import csv_bytes
from vit_lens.studies.annotate.agreeing import agreement
from vit_lens.studies.annotate.answers import Answers, read_answers
from vit_lens.studies.annotate.curves import means_figure
from vit_lens.studies.annotate.shares import joined, means
from vit_lens.studies.annotate.sheet import Sheet

_TITLE = "Share of yes by site, 95 % intervals over prompts; dotted: controls"


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What answers say.

    Attributes:
        answers: The answers, and how many lines repeated or changed one.
        joined: A row for each answer, see :func:`vit_lens.studies.annotate.joined`.
        means: See :func:`vit_lens.studies.annotate.means`.
        agreement: See :func:`vit_lens.studies.annotate.agreement`.
    """

    answers: Answers
    joined: pd.DataFrame
    means: pd.DataFrame
    agreement: pd.DataFrame


def read_annotations(
    paths: Sequence[str | os.PathLike[str]], key: str | os.PathLike[str], out: str | os.PathLike[str], *, seed: int = 0
) -> Found:
    """Join answers with the key of their page; write ``answers.csv``, ``means.csv``, ``agreement.csv``, ``means.html``.

    Args:
        paths: Tables of answers, of people and of judges.
        key: The key that was written beside the page.
        out: A folder.
        seed: Of the intervals' draws.

    Raises:
        StudyError: A table or the key cannot be read, or a line is not an answer to this page.
        OutputError: The folder cannot be written.
    """
    folder, sheet = as_path(out, OutputError, "out"), Sheet.load(key)
    answers = read_answers(paths, sheet)
    table = joined(answers.answers, sheet)
    found = Found(answers=answers, joined=table, means=means(table, seed=seed), agreement=agreement(table, seed=seed))
    make_directory(folder)
    for name, frame in {"answers": table, "means": found.means, "agreement": found.agreement}.items():
        write_atomic(folder / f"{name}.csv", csv_bytes(frame))
    save(means_figure(found.means, _TITLE), folder / "means.html")
    return found
