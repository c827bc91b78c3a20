"""Linear probes: refitted at every layer, a ceiling; and fitted at the last, which a tuned lens brings states to."""

__all__ = ["Fitted", "Probe", "TunedProbe"]

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.lenses import TextRun
from vit_lens.mini import still_life
from vit_lens.studies.compare.erased import CLASSES, Erased, Scores
from vit_lens.studies.whose import PENALTY, POSITIONS, Translators, other_sentences, ridge_classes

_STREAM, _BATCH = 16, 32


@dataclass(frozen=True, eq=False)
class Fitted:
    """Other sentences of the world, none of those studied, as probes read them.

    Args:
        erased: What is studied.
    """

    erased: Erased

    @cached_property
    def sentences(self) -> list[still_life.Sentence]:
        """The sentences."""
        setup = self.erased.setup
        lexicon = setup.lexicon or still_life.Lexicon(0)  # whichever: these sentences have no names
        texts = [one.prompt for one in self.erased.asked]
        return other_sentences(self.erased.n_fit, lexicon, setup.generator(_STREAM), apart_from=texts)

    @cached_property
    @torch.no_grad()
    def features(self) -> dict[str, Float[Tensor, "layer sentence d_model"]]:
        """The states of every layer at the end of the text, and their mean over positions, in float64."""
        name, layers, texts = self.erased.encoder, range(self.erased.last + 1), [one.text for one in self.sentences]
        ends, means = [], []
        for start in range(0, len(texts), _BATCH):
            run = TextRun.of(self.erased.setup.reader, texts[start : start + _BATCH])
            states = [run.residual(name, layer).double() for layer in layers]
            ends.append(torch.stack([run.at_end(name, state) for state in states]))
            means.append(torch.stack([state.mean(1) for state in states]))
        return dict(zip(POSITIONS, (torch.cat(ends, 1), torch.cat(means, 1)), strict=True))

    @property
    def labels(self) -> Int[Tensor, "sentence word"]:
        """The number of each sentence's word within its class, of the object at the first place."""
        return torch.from_numpy(still_life.codes([one.scene for one in self.sentences])[:, 1:4])


def _answers(
    x: Float[Tensor, "layer sentence d"], labels: Int[Tensor, "sentence word"], y: Float[Tensor, "run prompt layer d"]
) -> list[Float[Tensor, "run prompt layer _"]]:
    """Return what a probe of each layer says of every word of each class."""
    found = []
    for target in labels.T:
        fits = [ridge_classes(own.cpu(), target, PENALTY) for own in x]
        said = [y[:, :, layer].cpu() @ weight + bias for layer, (weight, bias) in enumerate(fits)]
        found.append(torch.stack(said, 2))
    return found


@dataclass(frozen=True)
class Probe:
    """A ridge regression to the words of a class at each layer anew: what is there to be read.

    Args:
        position: ``end of the text`` or ``mean of all positions``.
    """

    position: str

    level = "embedding"
    words = "a linear probe fitted at each layer anew on other sentences: a ceiling"

    @property
    def name(self) -> str:
        """The name, with the position."""
        return f"probe, {self.position}"

    @torch.no_grad()
    def score(self, erased: Erased) -> Scores:
        """Return what the probe says of the word, about 1 where it is there and 0 where it is not."""
        fitted = Fitted(erased)
        states = erased.end_states if self.position == POSITIONS[0] else erased.states.mean(3)
        return erased.choose(_answers(fitted.features[self.position], fitted.labels, states.double()))

    def cost(self, erased: Erased) -> str:
        """Say how many runs there are."""
        n = (1 + len(CLASSES)) * len(erased.asked) + erased.n_fit
        return f"{n} runs of a prompt, {len(CLASSES) * (erased.last + 1)} probes"


@dataclass(frozen=True)
class TunedProbe:
    """The tuned lens of Belrose et al. 2023 (arXiv 2303.08112): an affine map to the last layer, then its probe."""

    name = "tuned lens"
    level = "embedding"
    words = "the end of the text by an affine map to the last layer, then a probe of the last layer, on other sentences"

    @torch.no_grad()
    def score(self, erased: Erased) -> Scores:
        """Return what the probe of the last layer says of the word; maps are kept in the setup's folder."""
        fitted, setup = Fitted(erased), erased.setup
        maps = Translators.of_folder(setup.out, setup.reader, [one.text for one in fitted.sentences])
        states = erased.end_states
        moved = torch.stack([maps(layer, states[:, :, layer]) for layer in range(erased.last + 1)], 2)
        last = fitted.features[POSITIONS[0]][-1:].expand(erased.last + 1, -1, -1)
        return erased.choose(_answers(last, fitted.labels, moved))

    def cost(self, erased: Erased) -> str:
        """Say how many runs there are."""
        n = (1 + len(CLASSES)) * len(erased.asked) + 2 * erased.n_fit
        return f"{n} runs of a prompt, {erased.last + 1} affine maps, {len(CLASSES)} probes"
