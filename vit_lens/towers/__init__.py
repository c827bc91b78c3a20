"""What every transformer is made of here: its parts, its read-out, the algebra of its cached activations."""

__all__ = [
    "MLP", "AllTokens", "Attention", "AttentionPool", "AttentionPooling", "ClassToken", "Embed", "EndOfText",
    "FrozenAttentionPooling", "FrozenTokens", "HookedTower", "LayerNorm", "MeanOfPatches", "PatchTokens", "PooledMean",
    "PosEmbed", "PreNorm", "Readout", "Rows", "Stream", "TokenEmbed", "Tower", "TransformerBlock", "ViTActivationCache",
    "at_patches", "by_stream", "cast", "check_input", "check_model", "check_tokens", "other_preprocessing",
    "other_weights", "patch_tokens", "patches_of", "preprocessing_of", "process", "read_wide", "whole_mask",
    "working_copy", "write_of",
]  # fmt: skip

from vit_lens.towers.cache import Rows, ViTActivationCache
from vit_lens.towers.contract import Tower, check_model, other_preprocessing, other_weights, preprocessing_of
from vit_lens.towers.copying import cast, working_copy
from vit_lens.towers.inputs import check_input, check_tokens, whole_mask
from vit_lens.towers.layers import (
    MLP,
    Attention,
    AttentionPool,
    Embed,
    LayerNorm,
    PosEmbed,
    PreNorm,
    TokenEmbed,
    TransformerBlock,
)
from vit_lens.towers.patch_tokens import PatchTokens, at_patches, patch_tokens, patches_of
from vit_lens.towers.processing import process
from vit_lens.towers.readout import (
    AllTokens,
    AttentionPooling,
    ClassToken,
    EndOfText,
    FrozenAttentionPooling,
    FrozenTokens,
    MeanOfPatches,
    PooledMean,
    Readout,
)  # fmt: skip
from vit_lens.towers.streams import Stream, by_stream, read_wide, write_of
from vit_lens.towers.tower import HookedTower
