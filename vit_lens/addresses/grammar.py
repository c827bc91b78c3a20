"""The grammar of addresses, as tables and one expression; the room's docstring has it in words."""

__all__ = ["ACTIVATIONS", "BLOCK", "HOOKS", "SHAPE", "read_address", "spellings", "split_addresses"]

import math
import re
from typing import Any

from vit_lens.addresses.denoisers import ACTIVATIONS, DENOISERS, FEATURED, WITHIN, within_key
from vit_lens.addresses.positions import FLAGS, NUMBER, WORD, Position, given_text, read_position

HOOKS: dict[str, tuple[str, ...]] = {  # by block and unit; "" is all of it
    "": ("start", "embed", "pos_embed", "final", "ln_final.b", "b_U", "logit_bias"),
    "L": ("", *ACTIVATIONS, "attn.q", "attn.k", "attn.v", "b_O", "b_out"),
    "LH": ("", "q", "k", "v"),
    "LN": ("",),
    "pool": ("", "attn", "mlp", "b_V", "b_O", "ln_post.b"),
    "poolH": ("",),
    **DENOISERS,
}
_SPELT = {
    key: {(f".{hook}" if key and hook else hook).lower(): hook or None for hook in hooks}
    for key, hooks in HOOKS.items()
}
BLOCK = re.compile(
    rf"(?:(?P<tower>[a-z]\w*):)?(?:(?P<within>{WITHIN})(?:\.(?=L\d)|(?![LDS]\d|pool)))?"
    rf"(?:(?P<block>[LDS])(?P<layer>{NUMBER})|(?P<pool>pool))?",
    FLAGS,
)
SHAPE = re.compile(
    BLOCK.pattern + rf"(?:H(?P<head>{NUMBER})|N(?P<neuron>{NUMBER}))?(?P<hook>[a-z_.]*?2?)(?:\.f(?P<feature>{NUMBER}))?"
    rf'(?:@(?P<position>{WORD}|[^"~]*))?(?:~(?:(?P<step>{NUMBER})|s(?P<sigma>\d+(?:\.\d+)?(?:e-?\d+)?)))?',
    FLAGS,
)
_PIECE = re.compile(rf"{WORD}|\([^()]*\)|.", FLAGS)


def split_addresses(text: str, at: str = ",") -> list[str]:
    """Split a list at commas, but not within a word of a prompt or a patch's (row, column).

    Args:
        text: The addresses, one after another.
        at: The one character that separates them, such as ``+``.

    >>> split_addresses('L5@(3,7),t5:L3@"a, b"')
    ['L5@(3,7)', 't5:L3@"a, b"']
    """
    parts = [""]
    for piece in _PIECE.findall(given_text(text)):
        if piece == at:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


def read_address(text: str) -> dict[str, Any] | None:
    """Return the attributes of the address that a text is; None if it is none."""
    if (m := SHAPE.fullmatch(given_text(text).strip())) is None:
        return None
    block = (m["block"] or m["pool"] or "").upper().replace("POOL", "pool")
    unit = "H" if m["head"] else "N" if m["neuron"] else ""
    within = m["within"] and re.sub(r"\d+", lambda number: str(int(number[0])), m["within"].lower())
    hooks, spelling = _SPELT.get(within_key(within) + block + unit, {}), m["hook"].lower()
    hook, position = hooks.get(spelling), None if m["position"] is None else read_position(m["position"])
    takes_feature = (block or within) and not unit and (hook or "attn").rpartition(".")[2] in FEATURED
    sigma = None if m["sigma"] is None else float(m["sigma"])
    if spelling not in hooks or (m["feature"] and not takes_feature) or sigma == math.inf:
        return None
    if position is None and m["position"] is not None:
        return None
    return {name: m[name] and int(m[name]) for name in ("layer", "head", "neuron", "feature", "step")} | {
        "block": block or None, "within": within, "hook": hook, "sigma": sigma,
        "tower": m["tower"] and m["tower"].lower(), "position": position and Position(**position),
    }  # fmt: skip


def spellings(part: str) -> list[str]:
    """Return what a text may have meant: all that the block has with which it begins, or else of one block of each."""
    start = BLOCK.match(part)
    said = {} if start is None else start.groupdict("")
    within, block = said.get("within", "").lower(), (said.get("block") or said.get("pool", "")).upper()
    own, layer, found = (within_key(within) + block).upper(), said.get("layer") or 3, []
    if not any(key.upper().startswith(own) for key in HOOKS):
        own = within_key(within)  # a block that there is not within
    for key, hooks in HOOKS.items():
        if own and key and not key.upper().startswith(own):
            continue
        unit = f"{key[-1]}0" if key[-1:] in ("H", "N") else ""
        kind = key.removesuffix(unit[:1])
        where = [within or {"U": "mid", "T": "mid.0"}[kind[0]]] if kind[:1] in ("U", "T") else []
        block = kind if kind in ("", "pool") else f"{kind[-1]}{layer}" if kind not in ("U", "T") else ""
        found += [".".join(piece for piece in (*where, block + unit, hook) if piece) for hook in hooks]
    tower = said.get("tower", "")
    return [f"{tower}:{spelling}" if tower else spelling for spelling in found]
