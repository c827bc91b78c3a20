"""Importance: does the head that resembles the input matter, beyond its size?"""

from vit_lens.lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__, {
    "HEADLINES": ".study", "importance_heads": ".figures", "importance_scores": ".figures",
    "importance_study": ".study",
})  # fmt: skip
