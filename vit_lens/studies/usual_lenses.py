"""The lenses that studies look at, unless they are given others."""

__all__ = ["DECODED", "LENSES"]

LENSES = ("diffusion", "dsl:alpha=10", "dsl:share=1", "dsl-mean:alpha=1", "dsl-mean:alpha=5", "dsl-mean:share=1")
"""Read at the embedding level."""

DECODED = ("diffusion", "dsl:alpha=10", "dsl:share=1", "dsl-mean:alpha=5")
"""Read off pictures, too."""
