"""Pictures of embeddings, drawn with several noise seeds, held against what they were asked to show."""

__all__ = ["Drawn", "draw", "rows_alike"]

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.conditions import Condition
from vit_lens.metrics import cosine
from vit_lens.studies.statistics import within_rows
from vit_lens.studies.study_setup import StudySetup


@dataclass(frozen=True, eq=False, kw_only=True)
class Drawn:
    """What was asked of the decoder, and what two encoders see in its pictures.

    Attributes:
        asked: What was drawn, as vectors (tokens one after the other).
        own: What the encoder that asked reads of the pictures.
        judge: The pictures' embeddings by the judge; None without one.
    """

    asked: Float[Tensor, "image site d_own"]
    own: Float[Tensor, "image site seed d_own"]
    judge: Float[Tensor, "image site seed d_judge"] | None

    @property
    def n_seeds(self) -> int:
        """How many pictures there are of each embedding."""
        return self.own.shape[2]

    @cached_property
    def faithfulness(self) -> Float[np.ndarray, "image site seed"]:
        """The cosine of each picture's embedding with the embedding asked for."""
        return cosine(self.own, self.asked[:, :, None]).numpy()

    def exchanged(self, axis: int, generator: np.random.Generator) -> Float[np.ndarray, "image site seed"]:
        """Return faithfulness after every picture went to another image (axis 0) or another site (axis 1)."""
        order = torch.from_numpy(generator.permutation(self.asked.shape[axis]))
        asked = torch.empty_like(self.asked)
        asked.index_copy_(axis, order, self.asked.index_select(axis, order.roll(1)))
        return cosine(self.own, asked[:, :, None]).numpy()

    def recognised(self) -> Float[np.ndarray, "image site"] | None:
        """Return how often a picture is nearer to its own embedding than to another site's; None for one site."""
        n_sites = self.asked.shape[1]
        if n_sites < 2:
            return None
        found = []
        for own, asked in zip(self.own, self.asked, strict=True):
            to_all = _cosines(own, asked)  # [site seed other]
            to_own = to_all.diagonal(dim1=0, dim2=2).mT[..., None]
            wins = (to_own > to_all).double() + 0.5 * (to_own == to_all).double()
            found.append(((wins.sum(-1) - 0.5) / (n_sites - 1)).mean(-1))  # 0.5: each ties with itself
        return torch.stack(found).numpy()

    def judge_agreement(self) -> Float[np.ndarray, "image site"] | None:
        """Return the mean cosine of what the judge sees with different noise; None without a judge, or for one seed."""
        if self.judge is None or self.n_seeds < 2:
            return None
        pairs = [cosine(self.judge[:, :, a], self.judge[:, :, b]) for a, b in combinations(range(self.n_seeds), 2)]
        return torch.stack(pairs).mean(0).numpy()

    def judge_relations(self) -> Float[np.ndarray, "image site"] | None:
        """Return how far the judge's similarities between an image's pictures follow those between the embeddings.

        Of each site, over the other sites; None without a judge or for fewer than four sites.
        """
        if self.judge is None or self.asked.shape[1] < 4:
            return None
        found = [
            np.stack([rows_alike(asked, seen) for seen in judge.unbind(1)]).mean(0)
            for asked, judge in zip(self.asked, self.judge, strict=True)
        ]
        return np.stack(found)


def draw(setup: StudySetup, asked: Condition, *, label: str, nested: bool = False) -> Drawn:
    """Draw every row [image site] with every noise seed of the setup, or ``nested`` with one seed for each image.

    Raises:
        StudyError: The setup has no decoder.
    """
    shape, pictures = asked.rows, setup.drawing("faithfulness")
    nested_noise = setup.noise_of(range(shape[0]), shape[1])
    noises = [nested_noise] if nested else [[seed] * len(nested_noise) for seed in setup.noise_seeds]
    seen = [pictures.see_each(asked.flatten_rows(), noise, label=label) for noise in noises]
    judged = [one.judge.unflatten(0, shape) for one in seen if one.judge is not None]
    return Drawn(
        asked=asked.flat, own=torch.stack([one.own.flat.unflatten(0, shape) for one in seen], dim=2),
        judge=torch.stack(judged, dim=2) if judged else None,
    )  # fmt: skip


def rows_alike(a: Float[Tensor, "row d_a"], b: Float[Tensor, "row d_b"]) -> Float[np.ndarray, " row"]:
    """Return, for each row, the rank correlation of its cosines with the other rows in two spaces; nan if undefined."""
    n = len(a)
    off = ~np.eye(n, dtype=bool)
    sides = [_cosines(x, x).numpy()[off].reshape(n, n - 1) for x in (a, b)]
    return within_rows(*sides)


def _cosines(a: Float[Tensor, "*rows d"], b: Float[Tensor, "other d"]) -> Float[Tensor, "*rows other"]:
    a, b = a.double(), b.double()
    return (a / a.norm(dim=-1, keepdim=True)) @ (b / b.norm(dim=-1, keepdim=True)).T
