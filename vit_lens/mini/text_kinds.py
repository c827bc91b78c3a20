"""Four kinds of text encoders of the small world, a chain: each differs from the one before it in one factor."""

__all__ = ["FACTORS", "Factors", "TextKind"]

from dataclasses import dataclass
from typing import Literal

TextKind = Literal["clip", "relative", "bidirectional", "denoising"]


@dataclass(frozen=True, kw_only=True)
class Factors:
    """What a kind of text encoder is made of, and what it was trained for.

    Attributes:
        positions: How the encoder knows where a word stands.
        attention: Whether a position sees later ones.
        objective: To say at the end of a text what a picture of it would show, as the end of CLIP's texts is held
            against pictures; or to restore words that are hidden from it.
    """

    positions: Literal["absolute", "relative"]
    attention: Literal["causal", "bidirectional"]
    objective: Literal["contrastive", "denoising"]


FACTORS: dict[TextKind, Factors] = {
    "clip": Factors(positions="absolute", attention="causal", objective="contrastive"),
    "relative": Factors(positions="relative", attention="causal", objective="contrastive"),
    "bidirectional": Factors(positions="relative", attention="bidirectional", objective="contrastive"),
    "denoising": Factors(positions="relative", attention="bidirectional", objective="denoising"),
}
"""The kinds in the order of the chain."""
