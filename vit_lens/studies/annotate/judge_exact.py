"""The judge of the embedded world, which knows every picture that there can be."""

__all__ = ["ExactJudge"]

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import PIL.Image

from vit_lens.errors import StudyError, nearest
from vit_lens.mini import inspection, still_life
from vit_lens.studies.annotate.judging import Verdict
from vit_lens.studies.annotate.sheet import Question
from vit_lens.studies.annotate.still_life_claims import Claim, Claims, read_claims

NO_SCENE = 0.0006
"""The residual above which a picture is no scene: about the 99th percentile of true scenes behind the autoencoder
(``residual_limit`` of ``docs/results/mini_sd.json``: 0.00052 to 0.00062 over encoders)."""
Seen = tuple[tuple[str, str, str], ...]


class ExactJudge:
    """Answers by the nearest of all pictures that the world can show; what is no scene shows nothing, so it is no.

    The score of a verdict is the residual, a mean squared difference of values in [0, 1]. The name of a question says
    what is asked, of what the prompt says: ``shown`` (all of it), of one object ``colour``, ``texture``, ``shape``, of
    two ``first object``, ``second object`` (in the order of the words, anywhere in the picture, colour and shape
    together), ``colours``, ``shapes`` (both present, bound or not), ``axis`` (beside or above each other), ``relation``
    (the shapes in the places that are said), ``swapped`` (the shapes in each other's).

    Args:
        encoder_seed: The seed of the encoder, which says what names stand for; 0 for the one that ships.
    """

    def __init__(self, encoder_seed: int = 0):
        self.name = "exact" if encoder_seed == 0 else f"exact:{encoder_seed}"
        self.lexicon = still_life.Lexicon(encoder_seed)

    def check(self, questions: Sequence[Question]) -> None:
        for one in questions:
            claims = read_claims(one.prompt, self.lexicon)
            fitting = _ALONE if claims.layout == "alone" else _PAIRS
            if one.question not in fitting:
                raise StudyError(
                    f"the exact judge has no question {one.question!r} about {one.prompt!r:.60}; nearest: "
                    f"{nearest(one.question, fitting)}, of {', '.join(fitting)}"
                )

    def answer(self, picture: PIL.Image.Image, questions: Sequence[Question]) -> list[Verdict]:
        if picture.size != (side := (still_life.SIDE, still_life.SIDE)):
            raise StudyError(f"a picture is {picture.size} pixels; those of the embedded world are {side}")
        found = inspection.inspect(np.asarray(picture.convert("RGB"))[None])
        (scene,), residual = found.scenes, float(found.residuals[0])
        return [
            Verdict("yes" if residual <= NO_SCENE and self._holds(one, scene) else "no", residual) for one in questions
        ]

    def _holds(self, question: Question, scene: still_life.Scene) -> bool:
        claims = read_claims(question.prompt, self.lexicon)
        seen = tuple(still_life.object_of(number) for number in scene.objects)
        return {**_ALONE, **_PAIRS}[question.question](claims, seen, scene)


def _fits(claim: Claim, seen: tuple[str, str, str], parts: Sequence[int] = (0, 1, 2)) -> bool:
    return all(claim[part] is None or claim[part] == seen[part] for part in parts)


def _shown(claims: Claims, seen: Seen, scene: still_life.Scene) -> bool:
    return scene.layout == claims.layout and all(map(_fits, claims.objects, seen))


def _part(part: int) -> "_Holds":
    return lambda claims, seen, _: any(_fits(claims.objects[0], one, (part,)) for one in seen)


def _named(order: int) -> "_Holds":
    return lambda claims, seen, _: any(_fits(claims.objects[claims.spoken[order]], one, (0, 2)) for one in seen)


def _both(part: int) -> "_Holds":
    """Whether two different objects, or one that is said twice, have what is said of both."""

    def holds(claims: Claims, seen: Seen, _: still_life.Scene) -> bool:
        left = [one[part] for one in seen]
        for claim in claims.objects:
            if (said := claim[part]) is not None and said not in left:
                return False
            if said is not None:
                left.remove(said)
        return True

    return holds


def _placed(swapped: bool) -> "_Holds":
    def holds(claims: Claims, seen: Seen, scene: still_life.Scene) -> bool:
        said = claims.objects[::-1] if swapped else claims.objects
        return scene.layout == claims.layout and all(_fits(a, b, (2,)) for a, b in zip(said, seen, strict=True))

    return holds


_Holds = Callable[[Claims, Seen, still_life.Scene], bool]
_ALONE: Mapping[str, _Holds] = {"shown": _shown, "colour": _part(0), "texture": _part(1), "shape": _part(2)}
_PAIRS: Mapping[str, _Holds] = {
    "shown": _shown, "first object": _named(0), "second object": _named(1), "colours": _both(0), "shapes": _both(2),
    "axis": lambda claims, _, scene: scene.layout == claims.layout, "relation": _placed(False),
    "swapped": _placed(True),
}  # fmt: skip
