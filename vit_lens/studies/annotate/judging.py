"""What a judge is, and its answers in the form in which people give theirs."""

__all__ = ["PictureJudge", "Verdict", "judge_sheet"]

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import PIL.Image
from tqdm import tqdm

from vit_lens.errors import StudyError
from vit_lens.records import Record
from vit_lens.studies.annotate.answers import ANSWERS, Answer
from vit_lens.studies.annotate.collecting import pictures_of
from vit_lens.studies.annotate.sheet import Question, Sheet


class Verdict(NamedTuple):
    """A judge's answer, ``yes``, ``no`` or ``unsure``, and the number that it rests on; a judge's class says which."""

    answer: str
    score: float


@runtime_checkable
class PictureJudge(Protocol):
    """Whatever answers questions about pictures.

    Attributes:
        name: Its name as an annotator.
    """

    name: str

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse questions that it cannot answer, before any picture is looked at; raise a StudyError."""
        ...

    def answer(self, picture: PIL.Image.Image, questions: Sequence[Question]) -> Sequence[Verdict]:
        """Return a verdict on each question about a picture."""
        ...


def judge_sheet(
    judge: PictureJudge, sheet: Sheet, records: Sequence[Record], *, progress: bool = False
) -> list[Answer]:
    """Ask a judge everything that a page asks; return its answers.

    Args:
        judge: The judge; it sees pictures and questions, and nothing of where they come from.
        sheet: The sheet.
        records: Its records.
        progress: Whether a progress bar is shown.

    Raises:
        StudyError: The judge cannot answer a question, or the records are not those of the sheet.
        RecordError: A picture is damaged.
    """
    judge.check(sheet.questions)
    answers = []
    shown = zip(sheet.items, pictures_of(sheet, records), strict=True)
    for item, picture in tqdm(shown, total=len(sheet.items), desc=judge.name, disable=not progress):
        asked = list(sheet.by_prompt[item.prompt].values())
        for question, (answer, score) in zip(asked, judge.answer(picture, asked), strict=True):
            if answer not in ANSWERS:
                raise StudyError(f"judge {judge.name} answers {answer!r}; expected one of {', '.join(ANSWERS)}")
            answers.append(
                Answer(
                    annotator=judge.name, item=item.item, question=question.question, answer=answer, page=sheet.page,
                    score=repr(float(score)),
                )
            )  # fmt: skip
    return answers
