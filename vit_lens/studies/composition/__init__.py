"""Composition: does a scene come later than its parts?"""

from vit_lens.lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__, {"HEADLINES": ".study", "composition_study": ".study"})
