"""Compare: which words are in the picture, told by several methods, against words that were erased."""

from vit_lens.lazy import lazy

_HOME = {
    "AVERAGED": ".study", "ErasedLens": ".erasing", "Erased": ".erased", "HEADLINES": ".study", "METHODS": ".methods",
    "Method": ".methods", "compare_study": ".study", "figures_of": ".figures",
}  # fmt: skip
__all__, __getattr__, __dir__ = lazy(__name__, _HOME)
