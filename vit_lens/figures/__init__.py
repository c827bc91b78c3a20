"""Plotly figures: each function returns a figure, and none shows it."""

__all__ = [
    "DIVERGING", "SEQUENTIAL", "attribution_bars", "attribution_map", "caption_atlas", "contact_sheet", "dress",
    "explained_scores", "head_map", "map_rows", "patch_overlay", "picture_strips", "picture_uri", "residual_strip",
    "save", "top_sites",
    "word_map_sheet", "word_overlay", "zero_shot_layers", "zero_shot_patches",
]  # fmt: skip

from vit_lens.figures.attribution import attribution_bars, attribution_map, patch_overlay
from vit_lens.figures.captions import caption_atlas, contact_sheet, zero_shot_layers, zero_shot_patches
from vit_lens.figures.dressing import DIVERGING, SEQUENTIAL, dress, picture_uri, save
from vit_lens.figures.explained import explained_scores
from vit_lens.figures.records import head_map, residual_strip, top_sites
from vit_lens.figures.strips import picture_strips
from vit_lens.figures.word_maps import map_rows, word_map_sheet, word_overlay
