"""Directions of the embedding space that contributions are measured along: captions, or any embeddings."""

__all__ = ["Directions", "Units"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

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
        if units not in get_args(Units):
            raise LensError(f"units={units!r}; expected one of {', '.join(map(repr, get_args(Units)))}")
        if isinstance(captions, str):
            raise LensError(f"captions={captions!r} is one text; give a list of texts")
        scale, bias = 1.0, 0.0
        if isinstance(directions, TextBank):
            bank = directions.check(model)
            names = bank.captions if captions is None else tuple(captions)
            vectors = bank.embeds[[bank.index(name) for name in names]]
            if isinstance(minus, str):
                names = tuple(f"{name} - {minus}" for name in names)
                minus = bank.embeds[bank.index(minus)]
            if units == "logit":
                scale, bias = bank.logit_scale, bank.logit_bias or 0.0 if minus is None else 0.0
        elif isinstance(directions, Tensor):
            vectors = directions[None] if directions.ndim == 1 else directions
            names = tuple(f"direction {i}" for i in range(len(vectors))) if captions is None else tuple(captions)
            _check_tensor(vectors, names, units)
            if isinstance(minus, str):
                raise LensError(f"minus={minus!r} names a caption, and the directions are a tensor; pass an embedding")
        else:
            raise LensError(
                f"directions are a TextBank or a tensor [direction d_embed], not {type(directions).__name__}"
            )
        if vectors.shape[1] != model.cfg.d_embed:
            raise LensError(
                f"directions of width {vectors.shape[1]}; the embeddings of {model.encoder_id} have {model.cfg.d_embed}"
            )
        dtype = torch.promote_types(model.dtype, torch.float32)
        return cls(names, _scaled(vectors, minus, units, dtype) * scale, bias, units)

    def divisor(self, embedding: Float[Tensor, "batch d_embed"]) -> Float[Tensor, " batch"]:
        """Return what each image's dot products are divided by: its norm, or 1 for ``dot``."""
        norm = embedding.norm(dim=-1)
        return torch.ones_like(norm) if self.units == "dot" else norm


def _check_tensor(vectors: Tensor, names: Sequence[str], units: Units) -> None:
    if units == "logit":
        raise LensError("units='logit' need a TextBank, whose logit_scale they are in; use units='cosine'")
    if vectors.ndim != 2 or not vectors.is_floating_point() or not len(vectors):
        raise LensError(f"directions of shape {tuple(vectors.shape)}, {vectors.dtype}; expected [direction d_embed]")
    if len(names) != len(vectors):
        raise LensError(f"{len(names)} captions for {len(vectors)} directions")


def _scaled(
    vectors: Float[Tensor, "direction d_embed"], minus: Tensor | None, units: Units, dtype: torch.dtype
) -> Float[Tensor, "direction d_embed"]:
    if minus is not None and minus.shape != vectors.shape[1:]:
        raise LensError(f"minus of shape {tuple(minus.shape)}; expected one embedding [{vectors.shape[1]}]")
    both = [x.detach().to(torch.promote_types(x.dtype, dtype)) for x in (vectors, minus) if x is not None]
    if not all(x.isfinite().all() for x in both):
        raise LensError("a direction is not finite: it holds nan or infinity")
    if units != "dot":
        if any((x.norm(dim=-1) == 0).any() for x in both):
            raise LensError("a direction of norm zero has no cosine; use units='dot'")
        both = [x / x.norm(dim=-1, keepdim=True) for x in both]
    return both[0] if minus is None else both[0] - both[1].to(both[0])
