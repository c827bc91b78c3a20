"""Where towers come from: memory, a file, open_clip's registry or the Hugging Face Hub; a file for each family."""

__all__ = [
    "Blueprint", "Family", "OpenClipName", "Recipe", "SourceTower", "SupportedTower", "TowerSource",
    "embedded_encoder", "fetch_snapshot", "known_models", "load_module", "no_progress_bars", "open_clip_weights",
    "read_module", "read_pretrained", "refuse_float16", "register_family", "resolve_name", "source_tower",
    "stored_config", "supported_open_clip", "supported_towers",
]  # fmt: skip

from vit_lens.sources.catalogue import OpenClipName, known_models, open_clip_weights
from vit_lens.sources.families import register_family, supported_open_clip, supported_towers
from vit_lens.sources.families.family import Blueprint, Family, SupportedTower
from vit_lens.sources.families.hugging_face import no_progress_bars
from vit_lens.sources.hub import fetch_snapshot
from vit_lens.sources.modules import read_module, source_tower
from vit_lens.sources.naming import embedded_encoder, resolve_name
from vit_lens.sources.pretrained import load_module, read_pretrained, stored_config
from vit_lens.sources.recipe import Recipe
from vit_lens.sources.refusals import refuse_float16
from vit_lens.sources.source_tower import SourceTower
from vit_lens.sources.tower_source import TowerSource
