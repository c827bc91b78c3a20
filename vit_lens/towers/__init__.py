"""What every transformer is made of here: its parts, its read-out, the algebra of its cached activations."""

__all__ = [
    "AllTokens",
    "Attention",
    "AttentionPool",
    "AttentionPooling",
    "ClassToken",
    "EndOfText",
    "HookedTower",
    "LayerNorm",
    "MeanOfPatches",
    "PooledMean",
    "Readout",
    "Rows",
    "Stream",
    "Tower",
    "TransformerBlock",
    "ViTActivationCache",
    "by_stream",
    "read_wide",
    "write_of",
]

from vit_lens.towers.cache import Rows, ViTActivationCache
from vit_lens.towers.contract import Tower
from vit_lens.towers.layers import Attention, AttentionPool, LayerNorm, TransformerBlock
from vit_lens.towers.readout import (
    AllTokens,
    AttentionPooling,
    ClassToken,
    EndOfText,
    MeanOfPatches,
    PooledMean,
    Readout,
)
from vit_lens.towers.streams import Stream, by_stream, read_wide, write_of
from vit_lens.towers.tower import HookedTower
