"""The encoder that has learnt nothing: the same architecture with random weights."""

__all__ = ["with_random_weights"]

import copy

import torch

from vit_lens.decoders import PromptEncoder
from vit_lens.studies.whose.other_layers import Shown


@torch.no_grad()
def with_random_weights(encoder: PromptEncoder, *, seed: int) -> PromptEncoder:
    """Return the text half of a pipeline with random weights in its text encoders.

    Every weight is drawn from a normal distribution with the mean and the spread of its tensor, so that signals keep
    their sizes on any architecture. What guidance leads away from stays what the trained encoder makes of "", so that
    pictures differ by the state alone.

    Args:
        encoder: The trained one, which is left as it is.
        seed: Of the weights.
    """
    away, made = encoder.negative(), copy.deepcopy(encoder)
    generator = torch.Generator().manual_seed(seed)
    for part in made.encoders.values():
        for own in part.parameters():
            trained = own.double()
            noise = torch.randn(own.shape, generator=generator, dtype=torch.float64).to(own.device)
            own.copy_(trained.mean() + trained.std(correction=0) * noise)
    made.forget_fingerprint()
    return made if away is None else Shown(made, away)
