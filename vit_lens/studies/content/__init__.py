"""Content: does a site's picture change in what the site changes?"""

from vit_lens.lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__, {
    "AttributePairs": ".pairs", "Changes": ".effects", "HEADLINES": ".study", "caption_changes": ".effects",
    "content_matrices": ".figures", "content_study": ".study", "direct_effects": ".effects",
    "find_pairs": ".command", "pair_images": ".mini_set", "study_pairs": ".mini_set", "total_effects": ".effects",
    "what_whole_images_change": ".study",
})  # fmt: skip
