"""What every transformer is made of here: its parts, its read-out, the algebra of its cached activations."""

__all__ = [
    "Attention",
    "ClassToken",
    "Embed",
    "FrozenAttentionPooling",
    "FrozenTokens",
    "HookedTower",
    "LayerNorm",
    "PosEmbed",
    "PreNorm",
    "Readout",
    "Rows",
    "Stream",
    "Tower",
    "ViTActivationCache",
    "by_stream",
    "check_input",
    "process",
    "read_wide",
    "whole_mask",
    "write_of",
]

from vit_lens.towers.cache import Rows, ViTActivationCache
from vit_lens.towers.contract import Tower
from vit_lens.towers.inputs import check_input, whole_mask
from vit_lens.towers.layers import Attention, Embed, LayerNorm, PosEmbed, PreNorm
from vit_lens.towers.processing import process
from vit_lens.towers.readout import ClassToken, FrozenAttentionPooling, FrozenTokens, Readout
from vit_lens.towers.streams import Stream, by_stream, read_wide, write_of
from vit_lens.towers.tower import HookedTower
