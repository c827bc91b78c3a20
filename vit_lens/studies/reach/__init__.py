"""Reach: does a lens see what a site does through later layers?"""

from vit_lens.lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__, {"HEADLINES": ".study", "reach_study": ".study"})
