"""Parts of denoisers, which have blocks of several kinds; and the hook point that holds a part, of any model."""

__all__ = ["ACTIVATIONS", "DENOISERS", "FEATURED", "RESIDUAL_KINDS", "STREAMS", "WITHIN", "hook_point", "within_key"]

from typing import Literal

RESIDUAL_KINDS = ("resid_pre", "resid_mid", "resid_post")
ACTIVATIONS = ("attn", "mlp", *RESIDUAL_KINDS)
STREAMS = ("img", "txt")
WITHIN = r"(?:(?:down|up)\.\d{1,18}|mid)(?:\.\d{1,18})?"  # a block of a UNet, or a transformer in one

_DOUBLE = (*ACTIVATIONS, "attn2", "attn_gate", "mlp_gate")
_SINGLE = ("attn", "mlp", "update", "resid_pre", "resid_post")
DENOISERS: dict[str, tuple[str, ...]] = {  # by block and unit, as the grammar's other parts; "" is all of it
    "D": ("", *(hook for s in STREAMS for hook in (s, *(f"{s}.{name}" for name in _DOUBLE)))),
    "DH": ("", *STREAMS),
    "DN": STREAMS,
    "S": ("", *_SINGLE, "gate", *(hook for s in STREAMS for hook in (s, *(f"{s}.{name}" for name in _SINGLE)))),
    "SH": ("", *STREAMS),
    "SN": ("", *STREAMS),
    "U": ("", "resid_pre", "resid_post"),
    "T": ("", "resid_pre", "update", "resid_post"),
    "TL": ("", *ACTIVATIONS, "cross_attn", "resid_mid_cross"),
    "TLH": ("", "cross_attn"),
    "TLN": ("",),
}
_WRITES = ("attn", "attn2", "cross_attn", "mlp")  # what hook points call hook_attn_out
_HOLDS = (*RESIDUAL_KINDS, "resid_mid_cross", "update", "gate", "attn_gate", "mlp_gate")
FEATURED = (*_WRITES, *RESIDUAL_KINDS, "resid_mid_cross", "update", *STREAMS)  # where a dictionary may be
_BLOCKS = {"L": "blocks", "D": "double", "S": "single", "pool": "attn_pool"}


def within_key(within: str | None) -> str:
    """Return ``U`` for a block of a UNet, ``T`` for a transformer in one, and nothing outside of UNets."""
    return "" if not within else "T" if within.count(".") == 2 or within.startswith("mid.") else "U"


def hook_point(
    block: str | None, layer: int | None, hook: str | None, *, unit: Literal["head", "neuron"] | None = None,
    within: str | None = None,
) -> str | None:  # fmt: skip
    """Return the name of the one hook point that holds a part, whatever the model; None where there is none, or two.

    Args:
        block: The kind of block: ``L``, ``D``, ``S``, ``pool``; None for parts of a UNet that are in no such block.
        layer: The index of the block.
        hook: What of it is meant.
        unit: Whether a head or neuron of it is.
        within: The block of a UNet, or the transformer in it.

    >>> hook_point("D", 5, "txt.mlp"), hook_point(None, None, "update", within="down.2.1")
    ('double.5.text.hook_mlp_out', 'down.2.1.hook_update')
    """
    first, _, rest = (hook or "").partition(".")
    stream, part = (first, rest) if first in STREAMS else (None, hook or "")
    if block in ("D", "S") and stream is None and part != "gate":
        return None
    if unit == "head":
        last = {"": "attn.hook_z", "cross_attn": "cross_attn.hook_z"}.get(part)
    elif unit == "neuron":
        last = "mlp.hook_post"
    else:
        last = f"hook_{part}_out" if part in _WRITES else f"hook_{part}" if part in _HOLDS else None
    where = (within, block and _BLOCKS[block], layer, "text" if stream == "txt" else None)
    return last and ".".join(str(piece) for piece in (*where, last) if piece is not None)
