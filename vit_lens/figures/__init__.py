"""Plotly figures: each function returns a figure, and none shows it."""

__all__ = [
    "SUFFIXES",
    "attribution_bars",
    "attribution_map",
    "caption_atlas",
    "contact_sheet",
    "head_map",
    "patch_overlay",
    "plate_figure",
    "residual_strip",
    "save",
    "top_sites",
    "zero_shot_layers",
    "zero_shot_patches",
]

from vit_lens.figures.attribution import attribution_bars, attribution_map, patch_overlay
from vit_lens.figures.drawing import SUFFIXES, save
from vit_lens.figures.plates import plate_figure
from vit_lens.figures.readouts import caption_atlas, contact_sheet, zero_shot_layers, zero_shot_patches
from vit_lens.figures.records import head_map, residual_strip, top_sites
