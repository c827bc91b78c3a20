"""The control that knows nothing: the same architecture with random weights."""

__all__ = ["random_weights", "with_random_weights"]

import torch

from vit_lens.models import HookedViT
from vit_lens.studies.study_setup import StudySetup, make_setup


def with_random_weights(setup: StudySetup, *, seed: int) -> StudySetup:
    """Return the setup before decoding, of a model that has learnt nothing; see :func:`random_weights`."""
    return make_setup(
        random_weights(setup.model, seed=seed), setup.images, lenses=list(setup.lenses), out=setup.out,
        seed=setup.seed, progress=setup.progress,
    )  # fmt: skip


@torch.no_grad()
def random_weights(model: HookedViT, *, seed: int) -> HookedViT:
    """Return a model of the same architecture that has learnt nothing.

    Every weight is drawn from a normal distribution with the mean and the spread of its tensor, so that signals
    keep their sizes on any architecture.

    Args:
        model: The model whose architecture and spreads are taken.
        seed: The seed of the weights.

    >>> vl.studies.random_weights(model, seed=0).encoder_id
    'random weights for vit_lens/mini'
    """
    generator = torch.Generator().manual_seed(seed)
    fresh = HookedViT(
        model.cfg, preprocess_spec=model.preprocess_spec, encoder_id=f"random weights for {model.encoder_id}"
    ).to(device=model.device, dtype=model.dtype)
    known = model.state_dict()
    for name, own in fresh.state_dict().items():
        trained = known[name].double()
        noise = torch.randn(trained.shape, generator=generator, dtype=torch.float64).to(trained.device)
        own.copy_(trained.mean() + trained.std(correction=0) * noise)
    return fresh.requires_grad_(False)
