"""Decoders: do two decoders draw the same, and is that a sign of truth?"""

from vit_lens.lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__, {"HEADLINES": ".study", "decoders_study": ".study"})
