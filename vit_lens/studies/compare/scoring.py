"""From scores of items to areas under the curve: words that are there against erased ones, beside two placebos."""

__all__ = ["KINDS", "OTHER_PROMPT", "OTHER_WORD", "OWN", "areas", "mean_area", "shuffled_areas"]

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

from vit_lens.studies.statistics import auc

OWN, OTHER_PROMPT, OTHER_WORD = "own word", "another prompt's word", "own word, another word erased"
KINDS = (OWN, OTHER_PROMPT, OTHER_WORD)
"""What is asked of which items: the prompt's word of states with and without it; another prompt's word of the same
states; the prompt's word of states with and without another word of the prompt, where it is there in all."""

Scores = Float[np.ndarray, "prompt erased word question layer"]


def _items(scores: Scores, word: int, kind: str) -> Iterator[Float[np.ndarray, "prompt erased layer"]]:
    n_words = scores.shape[2]
    if kind == OTHER_WORD:
        yield from (scores[:, :, other, word] for other in range(n_words) if other != word)
    else:
        yield scores[:, :, word, word + n_words * (kind == OTHER_PROMPT)]


def areas(
    scores: Scores, present: Bool[np.ndarray, "#prompt erased layer"], kind: str = OWN
) -> Float[np.ndarray, "word layer"]:  # fmt: skip
    """Return the area under the curve within each class of words, at each layer; nan where it is undefined.

    Args:
        scores: Of all items.
        present: Whether the word that is erased is there.
        kind: One of :data:`KINDS`.
    """
    n, _, n_words, _, n_layers = scores.shape
    labels = np.broadcast_to(present, (n, *present.shape[1:]))
    found = np.full((n_words, n_layers), np.nan)
    for word in range(n_words):
        for layer in range(n_layers):
            each = [auc(one[..., layer].ravel(), labels[..., layer].ravel()) for one in _items(scores, word, kind)]
            found[word, layer] = np.mean(np.array(each, dtype=float))
    return found


def mean_area(
    scores: Scores, present: Bool[np.ndarray, "erased layer"], kind: str = OWN, word: int | None = None
) -> float | None:
    """Return the area, its mean over the layers behind the embeddings and over classes, or of one class."""
    found = areas(scores, present[None], kind)
    value = (found if word is None else found[word])[..., 1:].mean()
    return float(value) if np.isfinite(value) else None


def shuffled_areas(
    scores: Scores, present: Bool[np.ndarray, "erased layer"], generator: np.random.Generator, n_draws: int
) -> list[float | None]:
    """Return the mean area with the labels of each prompt's items shuffled, for each draw."""
    found = []
    for _ in range(n_draws):
        orders = np.argsort(generator.random((len(scores), len(present))), 1)
        value = areas(scores, present[orders])[:, 1:].mean()
        found.append(float(value) if np.isfinite(value) else None)
    return found
