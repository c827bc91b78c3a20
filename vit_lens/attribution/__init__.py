"""Attribution: which parts of the model, and which tokens of the image, an embedding was written by."""

__all__ = [
    "Attribution", "Component", "EmbeddingParts", "FrozenReadout", "PatchMap", "Placement", "TokenAttribution",
    "attention_map", "check_cache", "direct_attribution", "hook_names", "neuron_parts", "pool_attention_map",
    "pool_token_parts", "read_rows", "split_embedding", "split_pooling", "token_attribution", "token_parts",
]  # fmt: skip

from vit_lens.attribution.direct import Attribution, direct_attribution
from vit_lens.attribution.frozen import FrozenReadout, check_cache, read_rows
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
