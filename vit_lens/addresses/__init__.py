"""Addresses: what a part of a model is called, in one grammar for every room, in records and on the command line.

::

    address  = [ tower ":" ] part [ "@" position ] [ "~" step ]  (* L5H2 vision:L3H4@cls t5:L3 S5H2~12 *)
    part     = source | layer | double | single | unet | pool
    source   = "start" | "embed" | "pos_embed" | "final" | "ln_final.b" | "b_U" | "logit_bias"
    layer    = "L" n [ "H" n [ fork ] | "N" n | ".attn" fork | ".b_O" | ".b_out" | inside ]
                                                                 (* L3 L3H4 L2H1.q L3N17 L2.attn.v L0.b_O L3.mlp *)
    double   = "D" n [ "H" n [ stream ] | "N" n stream | stream [ in_two ] [ feature ] | stream gates | feature ]
                                                                 (* D5H2 D5H2.txt D5N17.img D5.img D5.img.attn *)
    single   = "S" n [ "H" n [ stream ] | "N" n [ stream ] | [ stream ] [ in_one ] [ feature ] | ".gate" ]
                                                                 (* S5H2 S5.mlp S5.img.resid_post S5.txt.update.f7 *)
    unet     = ( "down." n | "mid" | "up." n ) [ ends ] [ feature ]                    (* down.2.resid_post mid *)
             | ( "down." n | "mid" | "up." n ) "." n [ ends | ".update" ] [ feature ]  (* down.2.1.update mid.0.f17 *)
             | ( "down." n | "mid" | "up." n ) "." n ".L" n [ "H" n [ crossed ] | "N" n | [ inner ] [ feature ] ]
                                                   (* down.2.1.L0.mlp mid.0.L1H2 mid.0.L1H2.cross_attn up.0.1.L9N17 *)
    pool     = "pool" [ "H" n | ".b_V" | ".b_O" | ".ln_post.b" | inside ]       (* poolH3 pool.attn pool.b_V *)
    inside   = hook [ feature ] | feature                        (* L5.resid_post L5.resid_post.f3796 L5.f3796 *)
    hook     = ".attn" | ".mlp" | ".resid_pre" | ".resid_mid" | ".resid_post"
    in_two   = hook | ".attn2"
    in_one   = ".attn" | ".mlp" | ".update" | ends
    inner    = hook | crossed | ".resid_mid_cross"
    crossed  = ".cross_attn"
    ends     = ".resid_pre" | ".resid_post"
    gates    = ".attn_gate" | ".mlp_gate"
    fork     = ".q" | ".k" | ".v"
    stream   = ".img" | ".txt"
    feature  = ".f" n
    position = n | "cls" | "eos" | "pad" | "patches" | "registers" | "patch" n | "register" n
             | "(" n "," n ")" | word                            (* L5H2@4 L5@(3,7) L5.mlp@patch17 t5:L3@"star" *)
    step     = n | "s" number                                    (* D5.img.mlp~3 D5.img.mlp~s0.5 *)
    tower    = letter { letter | digit | "_" }
    word     = a JSON string, with quotes and escapes

``L`` is a transformer block, ``D`` and ``S`` a double and a single block of a diffusion transformer, ``H`` a head,
``N`` a neuron; a UNet has blocks ``down.2``, transformers in them ``down.2.1``, and ``L`` in those. What one adds as a
whole is its ``update``. Single blocks have no ``resid_mid``, attention pooling has ``attn`` and ``mlp`` alone. A
position is a place on the token axis, in an image a patch as (row, column), in a prompt a word; a step is one of a
denoising loop, by its index or its sigma. Capitals and small letters are the same, but in a word.
"""

__all__ = [
    "POOL_KINDS", "RESIDUAL_KINDS", "Address", "Indices", "Position", "PositionKind", "Site", "SiteKind", "Sites",
    "address_of", "as_index", "as_indices", "find_address", "listed", "spelled", "split_addresses",
]  # fmt: skip

from vit_lens.addresses.address import (
    POOL_KINDS,
    Address,
    Site,
    SiteKind,
    Sites,
    address_of,
    find_address,
    listed,
    spelled,
)
from vit_lens.addresses.denoisers import RESIDUAL_KINDS
from vit_lens.addresses.grammar import split_addresses
from vit_lens.addresses.indices import Indices, as_index, as_indices
from vit_lens.addresses.positions import Position, PositionKind
