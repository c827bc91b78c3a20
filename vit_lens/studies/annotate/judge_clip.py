"""A CLIP as a judge: a forced choice between what should be seen and what might be seen instead."""

__all__ = ["ClipJudge"]

from collections.abc import Callable, Sequence

import PIL.Image
import torch

from vit_lens.errors import StudyError
from vit_lens.models import HookedViT
from vit_lens.studies.annotate.judging import Verdict
from vit_lens.studies.annotate.sheet import Question
from vit_lens.texts import TextBank


class ClipJudge:
    """Answers yes where the caption of a question is more probable than each of its alternatives.

    The score of a verdict is the caption's probability among them, a softmax of the model's logits (of SigLIP, too:
    one of them is taken to be right). Raw cosines are not compared between pictures, and neither are layers: a choice
    has a chance level, 1 / (1 + alternatives).

    Args:
        model: The image tower.
        embed: Embeds captions with the text tower that belongs to it.
        name: The judge's name as an annotator.
    """

    def __init__(self, model: HookedViT, embed: Callable[[Sequence[str]], TextBank], name: str):
        self.name, self.model, self._embed = name, model, embed
        self._bank: TextBank | None = None

    def check(self, questions: Sequence[Question]) -> None:
        for one in questions:
            if not one.alternatives:
                raise StudyError(
                    f"the question {one.question!r} about {one.prompt!r:.60} has no alternatives, and a CLIP can only "
                    "choose; give them in the column alternatives of --questions, with | between them"
                )
        self._bank = self._embedded(questions)

    def _embedded(self, questions: Sequence[Question]) -> TextBank:
        captions = (caption for one in questions for caption in (one.caption, *one.alternatives))
        bank = self._embed(list(dict.fromkeys(captions)))
        bank.check(self.model)
        return bank

    @torch.no_grad()
    def answer(self, picture: PIL.Image.Image, questions: Sequence[Question]) -> list[Verdict]:
        bank = self._embedded(questions) if self._bank is None else self._bank
        logits = bank.logits(self.model(self.model.preprocess([picture])))[0].cpu().double()
        verdicts = []
        for one in questions:
            columns = [bank.index(caption) for caption in (one.caption, *one.alternatives)]
            chances = logits[columns].softmax(dim=0)
            wins = bool((chances[0] > chances[1:]).all())
            verdicts.append(Verdict("yes" if wins else "no", float(chances[0])))
        return verdicts
