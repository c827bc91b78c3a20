"""Pure scores of embeddings, and the meaning and range of every number that a record holds."""

__all__ = ["DRAWN_THRESHOLD", "NUMBERS", "Number", "cosine", "leak_index"]

from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from torch import Tensor

DRAWN_THRESHOLD = 0.6
"""Below this faithfulness a page says that the decoder could not draw the embedding it was given."""


@dataclass(frozen=True, kw_only=True)
class Number:
    """What a number of a record's table means, and how it is shown.

    Attributes:
        title: The heading of its column.
        meaning: What it says, as a phrase without a capital.
        unit: What it is measured in: ``cosine``, ``ratio`` or ``length``.
        low: The lowest value that it can have; None where there is none.
        high: The highest value that it can have; None where there is none.
        signed: Whether it is coloured around zero.
        cap: The value from which on colours do not change; None where they always do.

    >>> NUMBERS["faithfulness"].title, NUMBERS["faithfulness"].low
    ('Faithfulness', -1.0)
    """

    title: str
    meaning: str
    unit: str
    low: float | None
    high: float | None
    signed: bool
    cap: float | None = None


_cosine = partial(Number, unit="cosine", low=-1.0, high=1.0, signed=True)
NUMBERS: dict[str, Number] = {
    "cos_input": _cosine(
        title="Picture vs. input",
        meaning="cosine of the re-encoded picture with the input image's embedding: how much the picture resembles it",
    ),
    "cos_lens_clean": _cosine(
        title="Embedding vs. input",
        meaning="cosine of the lens embedding with the input image's embedding, before anything is decoded",
    ),
    "cos_lens_control": _cosine(
        title="Control vs. input",
        meaning="the same for random directions of this site's norm, mean of 20: how much of it is there whatever the "
        "site writes",
    ),
    "leak": Number(
        title="Leak index", unit="ratio", low=None, high=None, signed=False, cap=1.0,
        meaning="likeness to the input of those random directions over that of the site, means over other images taken "
        "away; near 0 the likeness is the site's, near 1 any direction has as much; undefined where the site has none, "
        "or without a gallery and means",
    ),
    "faithfulness": _cosine(
        title="Faithfulness",
        meaning="how well the decoder drew the embedding it was asked to draw (cosine after re-encoding the picture)",
    ),
    "norm_h": Number(
        title="Size", unit="length", low=0.0, high=None, signed=False,
        meaning="length of the vector that this site holds or writes into the residual stream",
    ),
}  # fmt: skip


def cosine(a: Float[Tensor, "*#batch d"], b: Float[Tensor, "*#batch d"]) -> Float[Tensor, "*batch"]:
    """Return the cosine along the last axis, in [-1, 1], computed in float64; nan where a vector is zero.

    >>> cosine(torch.tensor([3.0, 4.0]), torch.tensor([[3.0, 4.0], [-4.0, 3.0]])).tolist()
    [1.0, 0.0]
    """
    a, b = a.double(), b.double()
    product = (a * b).sum(-1)
    return (product / (a.norm(dim=-1) * b.norm(dim=-1))).clamp(-1.0, 1.0)


def leak_index(control: float, site: float) -> float | None:
    """Return S(control) / S(site), S the centred similarity to the input; None ("undefined") where S(site) <= 0.

    Near 0: what resembles the input came from the site. Near 1: a random direction of equal norm resembles it as much.

    Args:
        control: S of random directions of the site's norm, in [-1, 1].
        site: S of the site, in [-1, 1].

    >>> leak_index(0.25, 0.5), leak_index(0.25, -0.1)
    (0.5, None)
    """
    return None if site <= 0 else control / site
