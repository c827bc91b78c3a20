"""Linear probes of every layer, fitted anew at each: what is there to be read, whatever a denoiser makes of it."""

__all__ = ["POSITIONS", "Probing", "ridge_classes"]

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.decoders import PromptEncoder
from vit_lens.errors import StudyError
from vit_lens.lenses import TextDiffusionLens, TextRun
from vit_lens.mini import still_life
from vit_lens.studies.asked import Asked
from vit_lens.studies.layer_answers import LayerAnswers
from vit_lens.studies.whose.states import site_of

POSITIONS = ("end of the text", "mean of all positions")
"""What probes read of a layer; the mean is over the filling, too, which denoisers read."""
PENALTY = 0.01
"""The weight of the squares of a probe's weights, per prompt, on standardised features."""
_ATTRIBUTES = ("layout", *(f"{name} {place}" for place in (1, 2) for name in ("colour", "texture", "shape")))
_BATCH = 32


@dataclass(frozen=True, eq=False, kw_only=True)
class Probing:
    """Other sentences, and how often their labels are shuffled.

    Attributes:
        reader: The text half of a pipeline.
        sentences: What probes are fitted on.
        n_shuffles: How many probes of shuffled labels stand beside each.
    """

    reader: PromptEncoder
    sentences: Sequence[still_life.Sentence]
    n_shuffles: int

    def answers(
        self, asked: Sequence[Asked], generator: np.random.Generator
    ) -> dict[str, dict[str, LayerAnswers]]:  # fmt: skip
        """Return what probes answer for prompts, at every layer, by what they read and by kind of prompt.

        Answers are 1 where a probe is right and else 0. In the place of mismatched prompts stand the probes of shuffled
        labels, asked for the same prompts, their mean over draws: right less those is the selectivity.

        Args:
            asked: The prompts, sentences of the world, none of them fitted on.
            generator: Shuffles the labels.

        Raises:
            StudyError: A prompt is no sentence of the world, or was fitted on.
        """
        if strange := [one.prompt for one in asked if one.sentence is None]:
            raise StudyError(f"{strange[0]!r} is no sentence of the embedded world, and has no labels for probes")
        if both := {one.prompt for one in asked} & {one.text for one in self.sentences}:
            raise StudyError(f"{sorted(both)[0]!r} is fitted on, and asked: probes are asked what they were not told")
        truth = still_life.codes([one.scene for one in self.sentences])
        wanted = still_life.codes([one.sentence.scene for one in asked if one.sentence is not None])
        orders = [generator.permutation(len(truth)) for _ in range(self.n_shuffles)]
        fitted = self._features([one.text for one in self.sentences])
        tested = self._features([one.prompt for one in asked])
        found = {}
        for position in POSITIONS:
            x, y = fitted[position], tested[position]
            own = self._right(x, truth, y, wanted)
            shuffled = np.mean([self._right(x, _shuffled(truth, order), y, wanted) for order in orders], axis=0)
            found[position] = self._by_kind(asked, own, shuffled)
        return found

    @torch.no_grad()
    def _features(self, prompts: Sequence[str]) -> dict[str, Float[Tensor, "layer prompt d_model"]]:
        ends, means = [], []
        for start in range(0, len(prompts), _BATCH):
            run = TextRun.of(self.reader, prompts[start : start + _BATCH])
            name = TextDiffusionLens().moved_in(run).encoder
            states = [run.residual(name, layer) for layer in range(run.tower(name).cfg.n_layers + 1)]
            ends.append(torch.stack([run.at_end(name, state).cpu().double() for state in states]))
            means.append(torch.stack([state.cpu().double().mean(1) for state in states]))
        return dict(zip(POSITIONS, (torch.cat(ends, 1), torch.cat(means, 1)), strict=True))

    def _right(
        self, x: Float[Tensor, "layer fitted d"], truth: Int[np.ndarray, "fitted attribute"],
        y: Float[Tensor, "layer asked d"], wanted: Int[np.ndarray, "asked attribute"],
    ) -> Float[np.ndarray, "asked layer attribute"]:  # fmt: skip
        """Return 1 where a probe is right; a place that a scene does not have is neither fitted on nor counted."""
        found = np.zeros((len(wanted), len(x), wanted.shape[1]))
        for attribute in range(wanted.shape[1]):
            there = torch.from_numpy(truth[:, attribute] >= 0)
            target = torch.from_numpy(truth[:, attribute])[there]
            if not len(target):
                continue
            for layer in range(len(x)):
                weight, bias = ridge_classes(x[layer][there], target, PENALTY)
                said = (y[layer] @ weight + bias).argmax(-1).numpy()
                found[:, layer, attribute] = said == wanted[:, attribute]
        return found

    def _by_kind(
        self, asked: Sequence[Asked], own: np.ndarray, shuffled: np.ndarray
    ) -> dict[str, LayerAnswers]:  # fmt: skip
        found = {}
        for kind in dict.fromkeys(one.kind for one in asked):
            rows = [i for i, one in enumerate(asked) if one.kind == kind]
            parts = [part for part in asked[rows[0]].parts if part in _ATTRIBUTES]
            columns = [_ATTRIBUTES.index(part) for part in parts]
            right, mismatched = (x[rows][:, None][..., columns] for x in (own, shuffled))
            found[kind] = LayerAnswers(
                kind=kind, prompts=tuple(asked[i].prompt for i in rows), parts=tuple(parts), right=right,
                sites=tuple(site_of(layer) for layer in range(own.shape[1])), mismatched=mismatched,
                residual=np.full(right.shape[:3], np.nan),
            )  # fmt: skip
        return found


def ridge_classes(
    x: Float[Tensor, "prompt d"], target: Int[Tensor, " prompt"], penalty: float
) -> tuple[Float[Tensor, "d answer"], Float[Tensor, " answer"]]:
    """Return weight and bias of a ridge regression to one number for each class, 1 for the right one and else 0.

    Features are standardised first; one that is constant says nothing. The weight and bias are for them as they are.

    Args:
        x: Features, in float64.
        target: The number of each one's class.
        penalty: The weight of the squares of the weights, per prompt.
    """
    mean, spread = x.mean(0), x.std(0, correction=0)
    scale = torch.where(spread > 1e-9 * x.abs().amax().clamp(min=1e-30), 1 / spread.clamp(min=1e-300), 0.0)
    z = (x - mean) * scale
    hot = torch.nn.functional.one_hot(target).double()
    share = hot.mean(0)
    gram = z.mT @ z + penalty * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weight = scale[:, None] * torch.linalg.solve(gram, z.mT @ (hot - share))
    return weight, share - mean @ weight


def _shuffled(truth: Int[np.ndarray, "fitted attribute"], order: Int[np.ndarray, " fitted"]) -> np.ndarray:
    """Return labels of other sentences, those of a place among the sentences that have it."""
    found = truth.copy()
    for attribute in range(truth.shape[1]):
        rows = np.flatnonzero(truth[:, attribute] >= 0)
        found[rows, attribute] = truth[order[np.isin(order, rows)], attribute]
    return found
