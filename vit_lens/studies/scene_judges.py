"""Who looks at pictures of prompts and says whether a part of a prompt is there."""

__all__ = ["ExactSceneJudge", "SceneJudge", "SecondSceneJudge"]

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from vit_lens.errors import StudyError
from vit_lens.mini import SecondJudge, inspection, still_life
from vit_lens.studies.asked import PARTS, Asked

Pictures = UInt8[np.ndarray, "picture height width 3"]


@runtime_checkable
class SceneJudge(Protocol):
    """What a study of prompts asks of a judge.

    Attributes:
        name: Identifies it, in results and in the names of files.
    """

    name: str

    def look(self, pictures: Pictures) -> Any:
        """Look at pictures once; what is returned goes back into :meth:`right`."""
        ...

    def right(self, seen: Any, asked: Sequence[Asked], part: str) -> Float[np.ndarray, " picture"]:
        """Return for each picture how sure it is, 0 to 1, that a part of a prompt is there, one prompt a picture."""
        ...

    def residual(self, seen: Any) -> Float[np.ndarray, " picture"] | None:
        """Return how far each picture is from any scene; None where the judge cannot tell."""
        ...


class _World:
    """What judges of the embedded world have in common: they name the scene, and the sentence says what is right."""

    name: str

    def scenes(self, seen: Any) -> list[still_life.Scene]:
        raise NotImplementedError

    def check(self, asked: Sequence[Asked]) -> None:
        """Refuse prompts that it cannot judge, before anything is drawn.

        Raises:
            StudyError: A prompt is none of the embedded world's.
        """
        if strange := [one.prompt for one in asked if one.sentence is None]:
            raise StudyError(
                f"judge {self.name} sees scenes of the embedded world, and {strange[0]!r} was not drawn from it; take "
                "--judge clip:NAME or vqa:DIR"
            )

    def right(self, seen: Any, asked: Sequence[Asked], part: str) -> Float[np.ndarray, " picture"]:
        """Return 1 where the scene has what the sentence says of the part, else 0.

        Raises:
            StudyError: A prompt is none of the embedded world's.
        """
        self.check(asked)
        said = [one.sentence for one in asked if one.sentence is not None]
        scenes = self.scenes(seen)
        return np.array([PARTS[part](one, two) for one, two in zip(scenes, said, strict=True)], dtype=float)


class ExactSceneJudge(_World):
    """The exact judge of the embedded world: least squares over every picture that it can show.

    It knows the sentence that each prompt was made from. :class:`vit_lens.studies.annotate.ExactJudge` looks in the
    same way and answers questions about a prompt, which it reads as text, as people do.
    """

    name = "exact"

    def look(self, pictures: Pictures) -> inspection.Inspection:
        """Find the nearest scene to each picture."""
        return inspection.inspect(pictures)

    def scenes(self, seen: inspection.Inspection) -> list[still_life.Scene]:
        """Return the scenes."""
        return seen.scenes

    def residual(self, seen: inspection.Inspection) -> Float[np.ndarray, " picture"]:
        """Return the mean squared difference to the nearest scene, of values in [0, 1]."""
        return seen.residuals


class SecondSceneJudge(_World):
    """The judge of the embedded world that has learnt to see, from true scenes alone.

    Args:
        path: Its weights, beside the pipeline.
    """

    name = "second"

    def __init__(self, path: Path):
        self._judge = SecondJudge.load(path)

    def look(self, pictures: Pictures) -> list[still_life.Scene]:
        """Name the scene in each picture."""
        return self._judge.scenes(pictures)

    def scenes(self, seen: list[still_life.Scene]) -> list[still_life.Scene]:
        """Return the scenes."""
        return seen

    def residual(self, seen: list[still_life.Scene]) -> None:
        """Return None: it always answers."""
        return None
