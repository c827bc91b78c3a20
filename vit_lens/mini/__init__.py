"""The embedded pair: a small CLIP with a small Kandinsky-format decoder, trained on a procedural world."""

from vit_lens.lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__, {
    "JUDGE": ".shipped", "PAIR": ".shipped", "mini_beside": ".shipped", "mini_gallery": ".shipped",
    "mini_groups": ".shipped", "mini_labels": ".shipped", "mini_notes": ".shipped", "sample_images": ".shipped",
    "painting": "vit_lens.mini", "shapes": "vit_lens.mini", "world": "vit_lens.mini",
})  # fmt: skip
