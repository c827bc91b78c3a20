"""Activation maximisation: which token embedding in the word's place would make the state that is there."""

__all__ = ["ActivationMaximisation"]

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.studies.compare.erased import CLASSES, Erased, Scores
from vit_lens.studies.kept_tensors import kept

_FORM = "vit_lens.maximised.1"
_THERE = 1e-6  # nearer than this in cosine, Adam would blow rounding up to whole steps


@dataclass(frozen=True)
class ActivationMaximisation:
    """Gradient ascent on a free token embedding in the word's place, until the state at the end is like the given one.

    It starts from the mean of the class, all other tokens are the prompt's; Adam climbs the cosine of the two states
    at the end of the text, and stays where that is 1. The score is the cosine of what was found to the word's
    embedding, as log-probability within the class.

    Args:
        steps: How many.
        rate: The step of a coordinate, as a share of the spread of the class in it (root mean square).
    """

    steps: int = 20
    rate: float = 0.2

    name = "activation maximisation"
    level = "embedding"
    words = (
        "a free token embedding in the word's place, climbing by Adam from the mean of the class to the cosine of the "
        "end of the text with the given state; its cosine to the word's embedding, as log-probability within the class"
    )

    def score(self, erased: Erased) -> Scores:
        """Return log-probabilities; what was found is kept in the setup's folder."""
        said = [repr(self), repr(_THERE), erased.setup.reader.encoder_id, *(one.prompt for one in erased.asked)]
        digits = hashlib.sha256("\n".join(said).encode()).hexdigest()[:8]
        path = erased.setup.out / f"maximised-{digits}.safetensors"
        found = kept(path, _FORM, "embeddings that maximise activations", lambda: {"found": self.found(erased)})[
            "found"
        ]
        scores = []
        for number, ids in enumerate(erased.ids):
            words = erased.tower.W_E.detach()[ids]
            like = torch.nn.functional.cosine_similarity(found[:, :, :, number, None].to(words), words, dim=-1)
            scores.append(like.double().log_softmax(-1))
        return erased.choose(scores)

    def found(self, erased: Erased) -> Float[Tensor, "run prompt layer word d_model"]:
        """Return the embeddings that were found for the state of every run, prompt and layer, in every word's place."""
        targets, layers = erased.end_states, range(erased.last + 1)
        return torch.stack(
            [
                torch.stack([self._climb(erased, targets[:, :, layer], layer, word) for layer in layers], 2)
                for word in range(len(CLASSES))
            ],
            3,
        )  # fmt: skip

    def _climb(
        self, erased: Erased, targets: Float[Tensor, "run prompt d"], layer: int, word: int
    ) -> Float[Tensor, "run prompt d"]:
        tower, n_runs = erased.tower, len(targets)
        place = erased.places[:, word].repeat(n_runs)
        rows = torch.arange(len(place), device=place.device)
        ends, mask = erased.ends.repeat(n_runs), erased.run.masks[erased.encoder]
        # In a causal tower nothing behind the end of a text reaches it.
        n_pos = int(erased.ends.max()) + 1 if tower.cfg.is_causal else erased.states.shape[3]
        start = erased.states[1 + word, :, 0, :n_pos].repeat(n_runs, 1, 1)
        told = {"tokens": erased.run.ids[erased.encoder][:, :n_pos].repeat(n_runs, 1)}
        told |= {} if mask is None else {"attention_mask": mask[:, :n_pos].repeat(n_runs, 1)}
        embeddings = tower.W_E.detach()[erased.ids[word]]
        mean = embeddings.mean(0)
        step = torch.zeros_like(start[:, 0]).requires_grad_(True)
        if layer:  # the embedding of the end is the same whatever stands elsewhere
            spread = float((embeddings - mean).square().mean().sqrt())
            adam = torch.optim.Adam([step], lr=self.rate * spread)
            for _ in range(self.steps):
                with torch.enable_grad():
                    stream = start.index_put((rows, place), start[rows, place] + step)
                    state = tower(stream, start_at_layer=0, stop_at_layer=layer, **told)[rows, ends]
                    like = torch.nn.functional.cosine_similarity(state, targets.flatten(0, 1), dim=-1)
                    (gradient,) = torch.autograd.grad(-like.sum(), step)
                step.grad = torch.where(like[:, None] > 1 - _THERE, 0.0, gradient)
                adam.step()
        return (mean + step.detach()).unflatten(0, (n_runs, -1)).cpu()

    def cost(self, erased: Erased) -> str:
        """Say how many steps there are, and through how many blocks in the mean."""
        n = (1 + len(CLASSES)) * len(CLASSES) * len(erased.asked) * erased.last * self.steps
        return f"{n} gradient steps of a prompt, each through {(erased.last + 1) / 2:g} blocks in the mean"
