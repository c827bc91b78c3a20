"""Composition: does a scene come later than its parts?"""

from vit_lens.lazy import lazy

_HOME = {"AVERAGED": ".study", "HEADLINES": ".study", "figures_of": ".figures", "composition_study": ".study"}
__all__, __getattr__, __dir__ = lazy(__name__, _HOME)
