"""What pictures of every layer show of their prompts, beside what they show of other prompts."""

__all__ = ["LayerAnswers", "answers_of"]

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vit_lens.errors import StudyError
from vit_lens.interventions import derangement
from vit_lens.records import Record
from vit_lens.studies.asked import Asked
from vit_lens.studies.scene_judges import SceneJudge

_BATCH = 512


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerAnswers:
    """Answers for prompts of one kind, at every site, with every noise.

    Attributes:
        kind: The kind of the prompts.
        prompts: The prompts.
        sites: The sites, from the first layer to the last.
        parts: What was asked.
        right: How sure the judge was that the part is there.
        mismatched: The same where the picture is asked for another prompt of the kind: what chance is at this layer.
        residual: How far a picture is from any scene; nan where the judge cannot tell.
        second: What ``right`` is to a second judge of the same pictures; None where none looked.
    """

    kind: str
    prompts: tuple[str, ...]
    sites: tuple[str, ...]
    parts: tuple[str, ...]
    right: Float[np.ndarray, "prompt noise site part"]
    mismatched: Float[np.ndarray, "prompt noise site part"]
    residual: Float[np.ndarray, "prompt noise site"]
    second: Float[np.ndarray, "prompt noise site part"] | None = None

    def of(self, part: str) -> Float[np.ndarray, "prompt noise site"]:
        """Return how sure the judge was of one part.

        Raises:
            StudyError: It was not asked.
        """
        return self.right[..., self._number(part)]

    def chance(self, part: str) -> Float[np.ndarray, "prompt noise site"]:
        """Return how sure it was that the part of another prompt is there.

        Raises:
            StudyError: It was not asked.
        """
        return self.mismatched[..., self._number(part)]

    def told(self, part: str, site: int) -> dict[str, float | None]:
        """Return what a table says of a part at a site: the accuracy, and that by the second judge.

        Raises:
            StudyError: It was not asked.
        """
        second = None if self.second is None else round(float(self.second[..., site, self._number(part)].mean()), 5)
        return {"accuracy": round(float(self.of(part)[..., site].mean()), 5), "second judge": second}

    def _number(self, part: str) -> int:
        if part not in self.parts:
            raise StudyError(f"prompts of kind {self.kind!r} have no part {part!r}; they have {', '.join(self.parts)}")
        return self.parts.index(part)


def answers_of(
    record: Record, asked: Sequence[Asked], judge: SceneJudge, *, second: SceneJudge | None = None,
    reading: str | None = None, seed: int = 0,
) -> dict[str, LayerAnswers]:  # fmt: skip
    """Let a judge look at the pictures of a record of prompts, layer by layer.

    Args:
        record: A complete sweep over the prompts, in this order.
        asked: The prompts, and what is asked.
        judge: Who looks.
        second: Who looks at the same pictures beside it; None for nobody.
        reading: The id of a reading or control of the record; None takes the first lens.
        seed: Decides which prompt of the kind is each one's mismatch.

    Returns:
        By kind.

    Raises:
        StudyError: The record is of other prompts, is not complete, or a kind has a single prompt.
    """
    if not record.complete:
        raise StudyError(f"{record.path} is not complete; run the same study again")
    texts = [record.entry(i)["text"] for i in range(len(record.manifest["inputs"]))]
    if texts != [one.prompt for one in asked]:
        raise StudyError(f"{record.path} holds other prompts than the study's; remove it, and run the study again")
    first = next(iter(record.readings)) if reading is None else reading
    table = record.table[record.table["reading"] == first]
    sites = tuple(dict.fromkeys(table["site"]))
    noises = tuple(dict.fromkeys(table["seed"]))
    shape = (len(asked), len(noises), len(sites))
    rows = np.full(shape, -1)
    for row, prompt, noise, site in zip(table["row"], table["input"], table["seed"], table["site"], strict=True):
        rows[prompt, noises.index(noise), sites.index(site)] = row
    found = {}
    for kind in dict.fromkeys(one.kind for one in asked):
        own = [i for i, one in enumerate(asked) if one.kind == kind]
        if len(own) < 2:
            raise StudyError(f"kind {kind!r} has a single prompt, and no other to be mistaken for; give two or more")
        found[kind] = _answers(record, rows[own], [asked[i] for i in own], (judge, second), sites, seed)
    return found


def _answers(
    record: Record, rows: np.ndarray, asked: list[Asked], judges: tuple[SceneJudge, SceneJudge | None],
    sites: tuple[str, ...], seed: int,
) -> LayerAnswers:  # fmt: skip
    judge, second = judges
    parts, shape = asked[0].parts, rows.shape
    of_prompt = np.repeat(np.arange(len(asked)), shape[1] * shape[2])
    other = derangement(len(asked), seed=seed).numpy()
    right, mismatched, residual, beside = [], [], [], []
    for some in np.array_split(np.arange(rows.size), -(-rows.size // _BATCH)):
        pictures = np.stack([np.asarray(record.picture(int(row))) for row in rows.reshape(-1)[some]])
        seen = judge.look(pictures)
        own = [asked[i] for i in of_prompt[some]]
        strange = [asked[other[i]] for i in of_prompt[some]]
        right.append(np.stack([judge.right(seen, own, part) for part in parts], -1))
        mismatched.append(np.stack([judge.right(seen, strange, part) for part in parts], -1))
        if second is not None:
            again = second.look(pictures)
            beside.append(np.stack([second.right(again, own, part) for part in parts], -1))
        told = judge.residual(seen)
        residual.append(np.full(len(some), np.nan) if told is None else told)
    return LayerAnswers(
        kind=asked[0].kind, prompts=tuple(one.prompt for one in asked), sites=sites, parts=parts,
        right=np.concatenate(right).reshape(*shape, -1), mismatched=np.concatenate(mismatched).reshape(*shape, -1),
        residual=np.concatenate(residual).reshape(shape),
        second=np.concatenate(beside).reshape(*shape, -1) if beside else None,
    )  # fmt: skip
