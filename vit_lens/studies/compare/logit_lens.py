"""The logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens") on a tower that has no unembedding."""

__all__ = ["LogitLens"]

from dataclasses import dataclass

import torch

from vit_lens.studies.compare.erased import CLASSES, Erased, Scores


@dataclass(frozen=True)
class LogitLens:
    """The state at the end of the text after the final norm, on the token embeddings of the word's class.

    A CLIP text tower is trained to no next token and has no unembedding: the matrix of token embeddings stands in its
    place, as in models that tie the two. Logits become log-probabilities within the class.
    """

    name = "logit lens"
    level = "embedding"
    words = (
        "the state at the end of the text after the final norm, times the token embeddings (the tower has no "
        "unembedding), as log-probability within the class"
    )

    @torch.no_grad()
    def score(self, erased: Erased) -> Scores:
        """Return log-probabilities."""
        normed = erased.setup.reader.readouts[erased.encoder].norm(erased.end_states)
        logits = [(normed @ erased.tower.W_E[ids].T).double() for ids in erased.ids]
        return erased.choose([one.log_softmax(-1) for one in logits])

    def cost(self, erased: Erased) -> str:
        """Say how many runs there are."""
        return f"{(1 + len(CLASSES)) * len(erased.asked)} runs of a prompt"
