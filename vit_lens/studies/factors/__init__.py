"""Factors: what of a finding is of the attention, of the positions, of the objective of a text encoder?"""

from vit_lens.lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__, {"factors_study": ".study"})
