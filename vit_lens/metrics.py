"""Pure scores of embeddings, and the meaning and range of every number that a record holds."""

__all__ = ["DRAWN_THRESHOLD", "NUMBERS", "ControlColumns", "Number", "control_columns", "cosine", "leak_index"]

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from vit_lens.controls import CONTROLS, Control

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


class ControlColumns(NamedTuple):
    """The columns of a record that a control has; those of ``random`` are older than the others.

    Attributes:
        cosine: Mean cosine of the control with the input, before anything is decoded.
        centred: The same after means over other images are taken away (S).
        leak: S of the control over S of the site.
        low: Where the interval of the leak index begins.
        high: Where it ends.
    """

    cosine: str
    centred: str
    leak: str
    low: str
    high: str


def control_columns(name: str) -> ControlColumns:
    """Return the names of a control's columns.

    >>> control_columns("other")[:3], control_columns("random").cosine
    (('cos_lens_other', 'S_lens_other', 'leak_other'), 'cos_lens_control')
    """
    kind, leak = ("control", "leak") if name == "random" else (name, f"leak_{name}")
    return ControlColumns(f"cos_lens_{kind}", f"S_lens_{kind}", leak, f"{leak}_low", f"{leak}_high")


_cosine = partial(Number, unit="cosine", low=-1.0, high=1.0, signed=True)


def _of_control(name: str, *, title: str, leak: str) -> dict[str, Number]:
    """Return what a control's cosine with the input and its leak index mean."""
    kind: Control = CONTROLS[name]
    columns = control_columns(name)
    return {
        columns.cosine: _cosine(
            title=title,
            meaning=f"the same with {kind.words} of this site's norm in its place, mean over draws: {kind.meaning}",
        ),
        columns.leak: Number(
            title=leak, unit="ratio", low=None, high=None, signed=False, cap=1.0,
            meaning=f"likeness to the input with {kind.words} in the site's place over that of the site, means over "
            "other images taken away; near 0 the likeness is the site's, near 1 the control has as much; not "
            "applicable where the site's is no more than chance gives, undefined without a gallery and means",
        ),
    }  # fmt: skip


NUMBERS: dict[str, Number] = {
    "cos_input": _cosine(
        title="Picture vs. input",
        meaning="cosine of the re-encoded picture with the input image's embedding: how much the picture resembles it",
    ),
    "cos_lens_clean": _cosine(
        title="Embedding vs. input",
        meaning="cosine of the lens embedding with the input image's embedding, before anything is decoded",
    ),
    **_of_control("random", title="Control vs. input", leak="Leak index"),
    "faithfulness": _cosine(
        title="Faithfulness",
        meaning="how well the decoder drew the embedding it was asked to draw (cosine after re-encoding the picture)",
    ),
    "norm_h": Number(
        title="Size", unit="length", low=0.0, high=None, signed=False,
        meaning="length of the vector that this site holds or writes into the residual stream",
    ),
    **{
        number: said for name in CONTROLS if name != "random"
        for number, said in _of_control(name, title=f"Control {name!r} vs. input", leak=f"Leak index, {name}").items()
    },
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

    Near 0: what resembles the input came from the site. Near 1: a control of equal norm resembles it as much. Over
    several images take :func:`vit_lens.estimates.leak_estimate`, which says when it is not applicable.

    Args:
        control: S of a control, in [-1, 1].
        site: S of the site, in [-1, 1].

    >>> leak_index(0.25, 0.5), leak_index(0.25, -0.1)
    (0.5, None)
    """
    return None if site <= 0 else control / site
