"""Order: does an object appear by its place in the sentence, or by its place in the syntax?"""

from vit_lens.lazy import lazy

_HOME = {"AVERAGED": ".study", "HEADLINES": ".study", "figures_of": ".figures", "order_study": ".study"}
__all__, __getattr__, __dir__ = lazy(__name__, _HOME)
