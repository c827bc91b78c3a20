"""Directions of the embedding space that contributions are measured along: captions, or any embeddings."""

__all__ = ["Directions", "Units"]

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.attribution.checks import check_tensor
from vit_lens.errors import LensError
from vit_lens.texts import TextBank
from vit_lens.towers import Tower

Units = Literal["dot", "cosine", "logit"]


@dataclass(frozen=True, eq=False)
class Directions:
    """Vectors to multiply contributions with, and the units of what comes out.

    Attributes:
        names: One for each direction.
        vectors: The directions, scaled so that for ``cosine`` and ``logit`` only the image's own norm is left to
            divide by.
        bias: What the whole embedding gets on top (SigLIP's logit bias).
        units: ``dot``, ``cosine`` or ``logit``.
    """

    names: tuple[str, ...]
    vectors: Float[Tensor, "direction d_embed"]
    bias: float
    units: Units

    @classmethod
    def of(
        cls,
        model: Tower,
        directions: Tensor | TextBank,
        *,
        captions: Sequence[str] | None = None,
        minus: Tensor | str | None = None,
        units: Units = "cosine",
    ) -> "Directions":
        """Read captions of a text bank, or plain embeddings.

        Args:
            model: Whose embeddings are measured.
            directions: A text bank, or one embedding, or several [direction d_embed].
            captions: Of a bank, only these; of a tensor, the names of its rows.
            minus: A caption of the bank, or an embedding, that is subtracted from every direction: in ``cosine`` and
                ``logit`` units after both have been given unit norm, so that totals are differences of cosines or
                logits.
            units: ``dot`` for plain dot products; ``cosine`` for shares of the cosine; ``logit`` for shares of the
                zero-shot logit, which needs a bank.

        Raises:
            LensError: The arguments do not fit together, or the directions have another width or are not finite.
            TextError: A caption is unknown, or the bank was made for another encoder.
        """
        if str(units) not in get_args(Units):
            raise LensError(f"units={units!r}; expected one of {', '.join(map(repr, get_args(Units)))}")
        names = () if captions is None else _texts(captions)
        scale, bias, d_embed = 1.0, 0.0, model.cfg.d_embed
        if isinstance(directions, TextBank):
            bank = directions.check(model)
            names = names or bank.captions
            vectors = bank.embeds[[bank.index(name) for name in names]]
            if isinstance(minus, str):
                names = tuple(f"{name} - {minus}" for name in names)
                minus = bank.embeds[bank.index(minus)]
            if units == "logit":
                scale, bias = bank.logit_scale, bank.logit_bias or 0.0 if minus is None else 0.0
        elif units == "logit":
            raise LensError("units='logit' need a TextBank, whose logit_scale they are in; use units='cosine'")
        elif isinstance(minus, str):
            raise LensError(f"minus={minus!r} names a caption, and the directions are a tensor; pass an embedding")
        else:
            vectors = directions[None] if isinstance(directions, Tensor) and directions.ndim == 1 else directions
            check_tensor("directions= (no TextBank)", vectors, f"direction {d_embed}")
            names = names or tuple(f"direction {i}" for i in range(len(vectors)))
            if len(names) != len(vectors) or not names:
                raise LensError(
                    f"{len(names)} captions for {len(vectors)} directions; give at least one, a caption each"
                )
        if minus is not None:
            check_tensor("minus=", minus, f"{d_embed}")
        return cls(
            names, _scaled(vectors, minus, units, torch.promote_types(model.dtype, torch.float32)) * scale, bias, units
        )

    def divisor(self, embedding: Float[Tensor, "batch d_embed"]) -> Float[Tensor, " batch"]:
        """Return what each image's dot products are divided by: its norm, or 1 for ``dot``."""
        norm = embedding.norm(dim=-1)
        return torch.ones_like(norm) if self.units == "dot" else norm


def _texts(captions: object) -> tuple[str, ...]:
    if isinstance(captions, str):
        raise LensError(f"captions={captions!r} is one text; give a list of texts")
    texts = tuple(captions) if isinstance(captions, Iterable) else ()
    if not texts or not all(isinstance(text, str) for text in texts):
        raise LensError(f"captions={captions!r}; expected a list of texts, or None for all")
    return texts


def _scaled(
    vectors: Float[Tensor, "direction d_embed"], minus: Tensor | None, units: Units, dtype: torch.dtype
) -> Float[Tensor, "direction d_embed"]:
    both = [x.detach().to(torch.promote_types(x.dtype, dtype)) for x in (vectors, minus) if x is not None]
    if not all(x.isfinite().all() for x in both):
        raise LensError("a direction is not finite: it holds nan or infinity")
    if units != "dot":
        if any((x.norm(dim=-1) == 0).any() for x in both):
            raise LensError("a direction of norm zero has no cosine; use units='dot'")
        both = [x / x.norm(dim=-1, keepdim=True) for x in both]
    return both[0] if minus is None else both[0] - both[1].to(both[0])
