"""A judge that answers questions about pictures, in the place of one that knows the embedded world."""

__all__ = ["QuestionJudge"]

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
from jaxtyping import Float

from vit_lens.studies.asked import Asked
from vit_lens.studies.scene_judges import Pictures

if TYPE_CHECKING:
    from vit_lens.studies.annotate import PictureJudge, Question

_SURE = {"yes": 1.0, "no": 0.0, "unsure": 0.5}


@dataclass(eq=False)
class Looked:
    """A picture, and what was answered about it so far, by prompt and part."""

    picture: PIL.Image.Image
    answers: dict[tuple[str, str], float] = field(default_factory=dict)


class QuestionJudge:
    """Lets a judge of annotation answer the question of each part of a prompt: 1 is yes, 0 no, 0.5 cannot tell.

    Asked for another prompt's part, it is asked that prompt's question about the same picture.

    Args:
        judge: The judge, such as a :class:`vit_lens.studies.annotate.VqaJudge`.
        path: A file in which its answers are kept, so that a study that is run again does not ask again; None keeps
            none.

    Raises:
        StudyError: The file is damaged, or of another judge.

    >>> from vit_lens.studies import annotate
    >>> from vit_lens.studies.asked import Asked
    >>> from vit_lens.studies.question_judge import QuestionJudge
    >>> judge = QuestionJudge(annotate.ExactJudge())
    >>> seen = judge.look(np.zeros((1, 32, 32, 3), dtype=np.uint8))
    >>> judge.right(seen, [Asked(prompt="a red star", kind="x", questions={"shape": "Is it a star?"})], "shape")
    array([0.])
    """

    def __init__(self, judge: "PictureJudge", path: Path | None = None):
        from vit_lens.studies.annotate import KeptAnswers

        self.name, self._kept = judge.name, None if path is None else KeptAnswers(judge, path)
        self._judge = self._kept or judge

    def check(self, asked: Sequence[Asked]) -> None:
        """Refuse prompts with questions that the judge cannot answer, before anything is drawn.

        Raises:
            StudyError: There is one, such as a question without alternatives for a CLIP.
        """
        self._judge.check([question for one in asked for question in _questions(one)])

    def look(self, pictures: Pictures) -> list[Looked]:
        """Take pictures; the judge looks when it is asked."""
        return [Looked(PIL.Image.fromarray(one)) for one in pictures]

    def right(self, seen: Sequence[Looked], asked: Sequence[Asked], part: str) -> Float[np.ndarray, " picture"]:
        """Return what it answers to the question of a part; all parts of a prompt are asked at once."""
        found = []
        for looked, one in zip(seen, asked, strict=True):
            if (one.prompt, part) not in looked.answers:
                questions = _questions(one)
                verdicts = self._judge.answer(looked.picture, questions)
                for question, verdict in zip(questions, verdicts, strict=True):
                    looked.answers[one.prompt, question.question] = _SURE[verdict.answer]
            found.append(looked.answers[one.prompt, part])
        if self._kept is not None:
            self._kept.save()
        return np.array(found, dtype=np.float64)

    def residual(self, seen: Sequence[Looked]) -> None:
        """Return None: it knows of no scenes."""
        return None


def _questions(one: Asked) -> "list[Question]":
    from vit_lens.studies.annotate import Question

    return [
        Question(
            prompt=one.prompt, question=part, text=text, caption=one.captions.get(part) or one.prompt,
            alternatives=tuple(one.alternatives.get(part, ())),
        )
        for part, text in one.questions.items()
    ]  # fmt: skip
