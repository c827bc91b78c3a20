"""Reading: can the features of a dictionary be read, more than what was not learnt?"""

from vit_lens.lazy import lazy

_HOME = {
    "HEADLINES": ".study", "Sizes": ".material", "figures_of": ".figures", "reading_study": ".study",
}  # fmt: skip
__all__, __getattr__, __dir__ = lazy(__name__, _HOME)
