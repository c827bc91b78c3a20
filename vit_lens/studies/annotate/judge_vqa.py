"""A model that answers questions about pictures, as a judge: the probability of yes as its first word."""

__all__ = ["VqaJudge"]

import os
from collections.abc import Sequence
from typing import Any

import PIL.Image
import torch

from vit_lens.errors import StudyError
from vit_lens.explaining import ImageTextModel
from vit_lens.studies.annotate.judging import Verdict
from vit_lens.studies.annotate.sheet import Question


class VqaJudge:
    """Answers yes where a model gives the first token of yes more probability than that of no.

    The score of a verdict is the probability of yes among the two, summed over spellings (``yes``, ``Yes``, with a
    space before); a token that both may begin with counts for neither. A model that would rather say something else is
    not noticed: hold its answers against people's.

    Args:
        model: An image-text-to-text model of transformers.
        processor: Its processor.
        name: The judge's name as an annotator.

    Raises:
        CheckpointError: The tokenizer knows no yes or no, as one without its files.
        StudyError: Both begin with the same tokens.
    """

    def __init__(self, model: Any, processor: Any, name: str):
        self._asked = ImageTextModel(model, processor, name, error=StudyError)
        self.model, self.name = self._asked.model, name

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> "VqaJudge":
        """Load a model and its processor from a folder; nothing is downloaded, and no code of the folder is run.

        Args:
            folder: What ``save_pretrained`` of model and processor wrote, weights as safetensors.
            device: Where it runs.

        Raises:
            StudyError: There is no such folder, or transformers has no such model.
            CheckpointError: A file of it is missing or damaged.
        """
        found = ImageTextModel.load(folder, device=device, kind="vqa", error=StudyError)
        return cls(found.model, found.processor, found.name)

    def check(self, questions: Sequence[Question]) -> None:
        """Take any question: the model reads its text."""

    def answer(self, picture: PIL.Image.Image, questions: Sequence[Question]) -> list[Verdict]:
        verdicts = []
        for one in questions:
            yes, no = self._asked.chances(picture, one.text)
            verdicts.append(Verdict("yes" if yes > no else "no", yes / (yes + no) if yes + no > 0 else 0.5))
        return verdicts
