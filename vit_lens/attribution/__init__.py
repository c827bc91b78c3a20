"""Attribution: which parts of the model, and which tokens of the image, an embedding was written by."""

__all__ = [
    "Attribution", "Brief", "Component", "Directions", "EmbeddingParts", "FrozenReadout", "PatchMap", "Placement",
    "TokenAttribution", "Units", "attention_map", "check_cache", "check_finite", "check_model", "check_tensor",
    "direct_attribution", "finite", "hook_names", "in_full", "neuron_parts", "pool_attention_map", "pool_token_parts",
    "read_rows", "split_embedding", "split_pooling", "token_attribution", "token_parts", "whole",
]  # fmt: skip

from vit_lens.attribution.brief import Brief
from vit_lens.attribution.checks import check_cache, check_finite, check_model, check_tensor, finite, in_full, whole
from vit_lens.attribution.direct import Attribution, direct_attribution
from vit_lens.attribution.directions import Directions, Units
from vit_lens.attribution.frozen import FrozenReadout, read_rows
from vit_lens.attribution.maps import PatchMap, attention_map, pool_attention_map
from vit_lens.attribution.parts import Component, EmbeddingParts, hook_names, neuron_parts, split_embedding
from vit_lens.attribution.placing import Placement
from vit_lens.attribution.tokens import (
    TokenAttribution,
    pool_token_parts,
    split_pooling,
    token_attribution,
    token_parts,
)
