"""Content: does a site's picture change in what the site changes?"""

from vit_lens.lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__, {
    "AttributePairs": ".pairs", "Changes": ".effects", "Drawn": ".pair_readings", "HEADLINES": ".study",
    "Reading": ".agreement", "Study": ".pair_readings", "caption_changes": ".effects", "content_matrices": ".figures",
    "content_study": ".study", "cross_agreement": ".agreement", "direct_effects": ".effects",
    "draw_pictures": ".pair_readings", "find_pairs": ".command", "open_study": ".study", "pair_images": ".mini_set",
    "reading_of": ".pair_readings", "spellings_drawn": ".study", "study_pairs": ".mini_set",
    "total_effects": ".effects", "what_whole_images_change": ".study",
})  # fmt: skip
