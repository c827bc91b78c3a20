"""Weights that no training has touched, as far as they say so themselves."""

__all__ = ["never_trained"]

from collections.abc import Iterable

from torch import nn


def never_trained(modules: Iterable[nn.Module]) -> bool:
    """Return whether some module has norms whose gains are all exactly 1, as they begin and as no training leaves them.

    >>> from vit_lens.decoders.never_trained import never_trained
    >>> never_trained([torch.nn.LayerNorm(4)]), never_trained([torch.nn.Linear(4, 4)])
    (True, False)
    """
    for module in modules:
        norms = [one for one in module.modules() if type(one).__name__.endswith("Norm")]
        gains = [gain for one in norms if isinstance(gain := getattr(one, "weight", None), nn.Parameter)]
        if gains and all(not gain.is_meta and bool((gain == 1).all()) for gain in gains):
            return True
    return False
