"""A judge whose answers are kept in a file, so that what was judged once is not judged again."""

__all__ = ["KeptAnswers"]

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from vit_lens.errors import StudyError
from vit_lens.files import make_directory, read_json, write_atomic
from vit_lens.identity import exact_fingerprint
from vit_lens.studies.annotate.answers import ANSWERS
from vit_lens.studies.annotate.judging import PictureJudge, Verdict
from vit_lens.studies.annotate.sheet import Question

_FORMAT = "vit_lens.kept_answers.1"
_ADVICE = "remove it, and everything is judged anew"
_AT_ONCE = 200  # answers that an interruption may lose


class KeptAnswers:
    """Asks a judge only what the file does not say; an answer belongs to a picture's pixels and to a question's words.

    Args:
        judge: The judge. Where it has a ``model`` of weights, the file is bound to them, and else to its name.
        path: The file, which is written now and then, and by :meth:`save`.

    Raises:
        StudyError: The file is damaged, or of another judge.
    """

    def __init__(self, judge: PictureJudge, path: Path):
        self.name, self._judge, self._path, self._unsaved = judge.name, judge, path, 0
        model = getattr(judge, "model", None)
        weights = exact_fingerprint(model.state_dict()) if isinstance(model, torch.nn.Module) else ""
        self._whose = {"format": _FORMAT, "judge": judge.name, "weights": weights}
        self._known: dict[str, Verdict] = self._read() if path.exists() else {}

    def _read(self) -> dict[str, Verdict]:
        said = read_json(self._path, StudyError, _ADVICE)
        kept = said.pop("answers", None)
        if said != self._whose:
            raise StudyError(
                f"{self._path} holds answers of {said.get('judge')!r:.60}, or of other weights than {self.name} has "
                "here; give another folder, or remove the file"
            )
        if not isinstance(kept, dict) or not all(map(_is_verdict, kept.values())):
            raise StudyError(f"{self._path} is damaged; {_ADVICE}")
        return {key: Verdict(*one) for key, one in kept.items()}

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse what the judge refuses."""
        self._judge.check(questions)

    def answer(self, picture: PIL.Image.Image, questions: Sequence[Question]) -> list[Verdict]:
        """Return a verdict on each question, from the file or from the judge."""
        seen = hashlib.sha256(repr((picture.size, picture.mode)).encode() + picture.tobytes()).hexdigest()
        keys = [_key(seen, one) for one in questions]
        left = {key: one for key, one in zip(keys, questions, strict=True) if key not in self._known}
        if left:
            verdicts = self._judge.answer(picture, list(left.values()))
            self._known |= {key: Verdict(*one) for key, one in zip(left, verdicts, strict=True)}
            self._unsaved += len(left)
        if self._unsaved >= _AT_ONCE:
            self.save()
        return [self._known[key] for key in keys]

    def save(self) -> None:
        """Write the file, whole or not at all.

        Raises:
            OutputError: It cannot be written.
        """
        if self._unsaved:
            make_directory(self._path.parent)
            write_atomic(self._path, json.dumps({**self._whose, "answers": self._known}).encode())
            self._unsaved = 0


def _key(seen: str, one: Question) -> str:
    asked = json.dumps([seen, one.text, one.caption, list(one.alternatives)])
    return hashlib.sha256(asked.encode()).hexdigest()[:24]


def _is_verdict(one: Any) -> bool:
    return isinstance(one, list) and len(one) == 2 and one[0] in ANSWERS and isinstance(one[1], float)
