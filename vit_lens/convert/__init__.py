"""Map the weights of a vision tower to the layout of HookedTransformer."""

__all__ = [
    "Recipe",
    "build",
    "canonical_dinov2",
    "dinov2_recipe",
    "from_dinov2",
    "from_hf_clip",
    "from_open_clip",
    "from_siglip",
    "from_timm",
    "hf_clip_recipe",
    "open_clip_recipe",
    "siglip_recipe",
    "timm_recipe",
]

from vit_lens.convert.hugging_face import (
    canonical_dinov2,
    dinov2_recipe,
    from_dinov2,
    from_hf_clip,
    from_siglip,
    hf_clip_recipe,
    siglip_recipe,
)
from vit_lens.convert.open_clip import from_open_clip, open_clip_recipe
from vit_lens.convert.recipe import Recipe, build
from vit_lens.convert.timm import from_timm, timm_recipe
