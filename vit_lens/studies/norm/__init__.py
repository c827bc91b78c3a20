"""Norm: how much of what a layer's picture shows is the final norm's doing?"""

from vit_lens.lazy import lazy

_HOME = {"AVERAGED": ".study", "HEADLINES": ".study", "figures_of": ".figures", "norm_study": ".study"}
__all__, __getattr__, __dir__ = lazy(__name__, _HOME)
