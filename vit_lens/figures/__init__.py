"""Plotly figures: each function returns a figure, and none shows it."""

__all__ = [
    "DIVERGING", "SEQUENTIAL", "attribution_bars", "attribution_map", "caption_atlas", "contact_sheet", "dress",
    "head_map", "patch_overlay", "picture_uri", "residual_strip", "save", "top_sites", "zero_shot_layers",
    "zero_shot_patches",
]  # fmt: skip

from typing import NoReturn

from vit_lens.errors import nearest
from vit_lens.figures.attribution import attribution_bars, attribution_map, patch_overlay
from vit_lens.figures.captions import caption_atlas, contact_sheet, zero_shot_layers, zero_shot_patches
from vit_lens.figures.dressing import DIVERGING, SEQUENTIAL, dress, picture_uri, save
from vit_lens.figures.records import head_map, residual_strip, top_sites

_MOVED = {
    "content_matrices": "content", "faithfulness_layers": "faithfulness", "importance_heads": "importance",
    "importance_scores": "importance", "plate_figure": "paper", "planted_figure": "planted",
    "trajectory_figure": "overlay",
}  # fmt: skip


def __getattr__(name: str) -> NoReturn:  # figures of studies were here
    if name == "score_figure":
        said = "it is vit_lens.studies.score_figure now"
    elif name in _MOVED:
        said = f"it is vit_lens.studies.{_MOVED[name]}.{name} now"
    else:
        said = f"nearest: {nearest(name, __all__)}"
    raise AttributeError(f"module 'vit_lens.figures' has no attribute {name!r}; {said}")
