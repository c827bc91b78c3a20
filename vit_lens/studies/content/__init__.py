"""Content: does a site's picture change in what the site changes?"""

from vit_lens.lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__, {
    "AttributePairs": ".pairs", "HEADLINES": ".study", "content_matrices": ".figures", "content_study": ".study",
    "pair_images": ".mini_set", "study_pairs": ".mini_set",
})  # fmt: skip
