"""Norm: how much of what a layer's picture shows is the final norm's doing?"""

from vit_lens.lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__, {"HEADLINES": ".study", "norm_study": ".study"})
