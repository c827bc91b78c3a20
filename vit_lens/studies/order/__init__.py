"""Order: does an object appear by its place in the sentence, or by its place in the syntax?"""

from vit_lens.lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__, {"HEADLINES": ".study", "order_study": ".study"})
