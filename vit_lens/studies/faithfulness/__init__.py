"""Faithfulness: does a picture show the embedding that it was asked to show?"""

from vit_lens.lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__, {
    "faithfulness_layers": ".figures", "faithfulness_study": ".study",
})  # fmt: skip
