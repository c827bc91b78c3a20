"""Scores of every head read off its pictures, by the encoder itself and by a judge."""

__all__ = ["READERS", "PictureScores", "picture_scores"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.studies.importance.head_outputs import Origins, Written, measured, placebo
from vit_lens.studies.importance.head_scores import SIMILARITIES, Key
from vit_lens.studies.seen_pictures import Pictures, Seen
from vit_lens.studies.similarities import caches, left_out_centred, similarity
from vit_lens.studies.study_setup import StudySetup

READERS = {"own": "own encoder (circular)", "judge": "judge"}
"""Who embeds a picture again; the encoder that it came from rewards the decoder's round trip."""

_STREAM = 23


@dataclass(kw_only=True)
class PictureScores:
    """Scores by (kind, lens), the kind naming the reader.

    Attributes:
        real: Of the heads' pictures.
        placebo: Means over images of their equal-norm placebo's, for each draw.
    """

    real: dict[Key, Float[np.ndarray, "image head"]] = field(default_factory=dict)
    placebo: dict[Key, Float[np.ndarray, "draw head"]] = field(default_factory=dict)


@torch.no_grad()
def picture_scores(setup: StudySetup, heads: list[Site], specs: Sequence[str], *, n: int, draws: int) -> PictureScores:
    """Draw what every head says of the first ``n`` test images, and how much the pictures resemble the images.

    Image ``i`` is drawn with noise seed ``i`` modulo the number of noise seeds. Centred similarities leave the image
    at hand out of the means.

    Args:
        setup: With a decoder; without a judge only the encoder itself reads.
        heads: Sites.
        specs: Lenses of the setup.
        n: Images.
        draws: Of the equal-norm placebo, each as many pictures again.
    """
    pictures = setup.drawing("importance")
    cleans = _cleans(setup, pictures, n)
    written = _written(setup, heads, n)
    seeds = np.random.default_rng([setup.seed, _STREAM]).integers(2**62, size=draws)
    found = PictureScores()
    drawn: dict[Key, list[np.ndarray]] = {}
    for spec in specs:
        found.real |= _scores(_see(setup, written, spec, f"{spec}: pictures"), cleans, spec)
        for draw, seed in enumerate(seeds):
            made = [placebo(*part, torch.Generator().manual_seed(int(seed) + i)) for i, part in enumerate(written)]
            control = [(some, origins) for some, (_, origins) in zip(made, written, strict=True)]
            seen = _see(setup, control, spec, f"{spec}: placebo {draw + 1} of {draws}")
            for key, value in _scores(seen, cleans, spec).items():
                drawn.setdefault(key, []).append(value.mean(0))
    found.placebo = {key: np.stack(values) for key, values in drawn.items()}
    return found


def _written(setup: StudySetup, heads: list[Site], n: int) -> list[tuple[Written, Origins]]:
    found = []
    for start, cache in enumerate(caches(setup.model, setup.pixels[:n], 1)):
        origins = Origins.of(setup.anchor, cache, heads)
        found.append((measured(cache, heads, setup.clean[start : start + 1]), origins))
    return found


def _see(setup: StudySetup, written: list[tuple[Written, Origins]], spec: str, label: str) -> Seen:
    """Return what is seen in the picture of every image and head, image by image."""
    pictures, lens = setup.drawing("importance"), setup.lenses[spec]
    embeds = torch.cat([part.embed(lens) for part, _ in written]).float().cpu()
    return pictures.see_each(embeds.flatten(0, 1), setup.noise_of(range(len(embeds)), embeds.shape[1]), label=label)


def _cleans(setup: StudySetup, pictures: Pictures, n: int) -> dict[str, Float[Tensor, "image d_embed"]]:
    found = {"own": setup.clean[:n].float().cpu()}
    if pictures.judge is not None:
        model = pictures.judge.model
        found["judge"] = model(model.preprocess(list(setup.images.test[:n]))).float().cpu()
    return found


def _scores(seen: Seen, cleans: dict[str, Tensor], spec: str) -> dict[Key, np.ndarray]:
    kinds: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (similarity, left_out_centred)
    found = {}
    for reader, clean in cleans.items():
        embeds = seen.by(reader).unflatten(0, (len(clean), -1))
        for kind, score in zip(SIMILARITIES, kinds, strict=True):
            found[f"{kind}, {READERS[reader]}", spec] = score(embeds, clean).double().numpy()
    return found
