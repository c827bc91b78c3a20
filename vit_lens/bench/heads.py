"""Heads: does a lens find the head that writes what is planted, and is it silent about those that only carry it?"""

__all__ = ["HEADS", "read_heads"]

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.bench.candidates import Candidate, as_lens
from vit_lens.bench.measuring import CHANCE, Measured, auc_at, measured, rank_correlation
from vit_lens.bench.plants import ImagePlant, Plants
from vit_lens.bench.tasks import N_DRAWS, Task
from vit_lens.errors import LensError
from vit_lens.lenses import Lens, TextDiffusionLens, checked_read, run_for
from vit_lens.models import HookedViT
from vit_lens.studies import lenses_of_reference

_N_ANCHORS = 3
_Gaps = tuple[Float[np.ndarray, " head"], Float[np.ndarray, "draw head"]]


def _asks(candidate: Candidate) -> bool:
    thing = candidate.thing
    of_text = isinstance(thing, TextDiffusionLens) or (isinstance(thing, type) and issubclass(thing, TextDiffusionLens))
    return candidate.kind == "lens" and not of_text


def _run(candidate: Candidate, plants: Plants) -> list[Measured]:
    planted, decoys, carried, named, fidelity = ([] for _ in range(5))
    for plant in plants.images:
        there, decoy, could = plant.at(plant.plant.site), plant.at(*plant.decoys), plant.at(plant.named)
        every = np.ones_like(there)
        gaps = read_heads(candidate, plant, plant.model, 1)
        before = read_heads(candidate, plant, plant.plant.model, 1)[0]
        blank, host = (read_heads(candidate, plant, model, 2)[0:2] for model in (plant.blank, plant.host))
        planted.append([auc_at(scores, there, every) for scores in gaps])
        decoys.append(auc_at(np.abs(gaps[0]), decoy, ~there))
        carried.append(auc_at(np.abs(before), decoy, ~there))
        named.append(auc_at(blank[0], could, every))
        fidelity.append([rank_correlation(scores, plant.effects) for scores in host])
    return [
        measured(HEADS.name, "planted", *zip(*planted, strict=True), chance=CHANCE),
        measured(HEADS.name, "fidelity", *zip(*fidelity, strict=True), chance=0.0),
        measured(HEADS.name, "decoys", decoys, carried),
        measured(HEADS.name, "random weights", named, chance=CHANCE),
    ]


@torch.no_grad()
def read_heads(candidate: Candidate, plant: ImagePlant, model: HookedViT, stream: int) -> _Gaps:
    """Return how far apart a lens puts the two classes at every head; and its placebo, draw by draw.

    The unit is how far apart they lie in the encoder without a plant.

    The placebo is the lens's own control, a random direction of equal norm. A lens that has none is held against
    classes that are dealt to the images at random.

    Args:
        candidate: A lens.
        plant: The plant.
        model: One of the plant's encoders.
        stream: Of random numbers.

    Raises:
        LensError: It is no lens, does not read heads or pooled embeddings, or returned something else.
    """
    lens = as_lens(candidate, lambda text: _spelt(text, plant, model), model, plant.reference)
    if "pooled" not in lens.parts:
        raise LensError(f"it reads {' and '.join(lens.parts)}; heads are read as pooled embeddings")
    if unread := [str(site) for site in plant.heads if not lens.reads(site)]:
        raise LensError(f"it is not defined on {', '.join(unread[:3])}; this task reads every head")
    cache, generator = run_for(model, plant.pixels, [lens])[1], plant.generator(stream)
    contrasts = plant.contrast(_embeds(lens, lens.read(cache, plant.heads), plant))
    real = plant.gap(contrasts)
    if lens.has_control:
        draws = [
            plant.gap(plant.contrast(_embeds(lens, lens.read_control(cache, plant.heads, generator=generator), plant)))
            for _ in range(N_DRAWS)
        ]
    else:
        dealt = [plant.label[torch.randperm(len(plant.label), generator=generator).numpy()] for _ in range(N_DRAWS)]
        draws = [plant.gap(contrasts, label) for label in dealt]
    return real / plant.apart, np.stack(draws) / plant.apart


def _embeds(lens: Lens, found: object, plant: ImagePlant) -> Tensor:
    n, width = len(plant.pixels), plant.host.cfg.d_embed
    pooled = checked_read(lens, found, n, len(plant.heads)).pooled
    expected = (n, len(plant.heads), width)
    if pooled is None or tuple(pooled.shape) != expected or not bool(torch.isfinite(pooled).all()):
        came = "nothing pooled" if pooled is None else f"{tuple(pooled.shape)}"
        if pooled is not None and tuple(pooled.shape) == expected:
            came = "numbers that are not finite"
        raise LensError(f"it read {came}; expected finite embeddings [image site d_embed] {expected}")
    return pooled


def _spelt(text: str, plant: ImagePlant, model: HookedViT) -> Lens:
    """Return one of our lenses, made of the reference images of a plant."""
    reference = plant.reference
    jacobians = plant.jacobians(model) if text.startswith("jacobian") else None
    names = [f"image {number}" for number in range(len(reference))]
    return lenses_of_reference(
        [text], model, reference, plant.means(model), first=reference[:_N_ANCHORS], names=names, jacobians=jacobians
    )[0]  # fmt: skip


HEADS = Task(
    name="heads", asks=_asks, run=_run,
    words="a head of an image encoder alone tells an attribute, at the size that it had; two more are loud decoys that "
    "the output does not depend on",
)  # fmt: skip
