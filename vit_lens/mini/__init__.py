"""The embedded models: a CLIP with a decoder, and a text-to-image model; the worlds of small models, their judges."""

from vit_lens.lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__, {
    "FACTORS": ".text_kinds", "TextKind": ".text_kinds",
    "JUDGE": ".shipped", "PAIR": ".shipped", "SENTENCES": ".shipped", "STILL_LIFE": ".shipped",
    "SecondJudge": ".second_judge",
    "mini_beside": ".shipped", "mini_gallery": ".shipped", "mini_groups": ".shipped", "mini_labels": ".shipped",
    "mini_judge": ".shipped", "mini_notes": ".shipped", "sample_images": ".shipped",
    "inspection": "vit_lens.mini", "painting": "vit_lens.mini", "shapes": "vit_lens.mini",
    "still_life": "vit_lens.mini", "world": "vit_lens.mini",
})  # fmt: skip
