"""What activations are scaled by while a dictionary is learnt, frozen, and folded into its weights afterwards."""

__all__ = ["Normalisation", "NormalisationKind"]

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.errors import DictionaryError, nearest

NormalisationKind = Literal["none", "scale", "std", "pca"]

_LEAST = 1e-6  # of the largest spread: what varies less is divided by this much, so that noise is not blown up


@dataclass(frozen=True, eq=False)
class Normalisation:
    """Statistics of a stream, in float64: ``z = (x - mean) @ read``, and back ``x = z @ write + mean``.

    Attributes:
        kind: ``none``; ``scale``, one number for all; ``std``, mean and spread of each dimension; ``pca``, the same in
            the basis of principal components.
        mean: What is taken away first.
        read: What is multiplied by: a factor for each dimension, or a matrix for ``pca``.
        write: Its inverse, in the same form.
        variance: The mean square of ``z`` around its own mean, summed over dimensions: what FVU is a share of.
        n_tokens: How many tokens the statistics are of.
        centre: The mean of ``z``: zero where the mean is taken away.

    >>> x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1
    >>> statistics = vl.dictionaries.Normalisation.fit(x, "std")
    >>> statistics.apply(x).std(0, correction=0).round(decimals=3)
    tensor([1., 1., 1., 1., 1., 1.])
    >>> torch.allclose(statistics.invert(statistics.apply(x)), x, atol=1e-5)
    True
    """

    kind: NormalisationKind
    mean: Float[Tensor, " d"]
    read: Float[Tensor, " d"] | Float[Tensor, "d d"]
    write: Float[Tensor, " d"] | Float[Tensor, "d d"]
    variance: float
    n_tokens: int
    centre: Float[Tensor, " d"]

    @classmethod
    def fit(
        cls, tokens: Tensor | Iterable[Tensor], kind: NormalisationKind = "std", *, n_tokens: int = 50_000
    ) -> "Normalisation":
        """Return the statistics of the first ``n_tokens`` tokens.

        Args:
            tokens: Activations [token d], or batches of them.
            kind: What is measured.
            n_tokens: How many tokens are read at most.

        Raises:
            DictionaryError: There is no such kind, there are fewer than two tokens, all tokens are the same, or one is
                not finite.
        """
        if kind not in get_args(NormalisationKind):
            raise DictionaryError(f"normalisation {kind!r}; nearest: {nearest(str(kind), get_args(NormalisationKind))}")
        n, mean, scatter = _moments([tokens] if isinstance(tokens, Tensor) else tokens, n_tokens)
        spread = (scatter.diagonal() / n).sqrt()
        ones, total = torch.ones_like(mean), float(spread.square().sum())
        if total == 0:
            raise DictionaryError(f"all {n} tokens are the same; a dictionary needs tokens that differ")
        none = torch.zeros_like(mean)
        if kind == "none":
            return cls(kind, none, ones, ones, total, n, mean)
        if kind == "scale":
            scale = ones * (total / len(ones) + float(mean.square().mean())) ** 0.5
            return cls(kind, none, 1 / scale, scale, total / float(scale[0]) ** 2, n, mean / scale)
        if kind == "std":
            held = spread.clamp(min=_LEAST * float(spread.max()))
            return cls(kind, mean, 1 / held, held, float((spread / held).square().sum()), n, none)
        values, basis = torch.linalg.eigh(scatter / n)
        spread = values.clamp(min=0).sqrt()
        held = spread.clamp(min=_LEAST * float(spread.max()))
        return cls(kind, mean, basis / held, (basis * held).T, float((spread / held).square().sum()), n, none)

    def apply(self, x: Float[Tensor, "*batch d"], clip: float | None = None) -> Float[Tensor, "*batch d"]:
        """Return normalised activations, computed in float64 and given in the dtype of ``x``, or float32 if wider.

        Args:
            x: Activations.
            clip: The largest size of a normalised value; None for no bound.

        Raises:
            DictionaryError: The activations are of another width.
        """
        if x.shape[-1] != len(self.mean):
            raise DictionaryError(
                f"activations of width {x.shape[-1]}, statistics of width {len(self.mean)}: they do not belong together"
            )
        z = _times(x.double() - self.mean.to(x.device), self.read.to(x.device))
        z = z if clip is None else z.clamp(-clip, clip)
        return z.to(torch.promote_types(x.dtype, torch.float32))

    def invert(self, z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Return activations again, in the dtype of ``z``.

        Args:
            z: Normalised activations.
        """
        return (_times(z.double(), self.write.to(z.device)) + self.mean.to(z.device)).to(z.dtype)

    def fold(self, dictionary: Dictionary, *, dtype: torch.dtype | None = None) -> Dictionary:
        """Return the same dictionary for activations as they are: the statistics go into its weights.

        Codes stay what they were, and what is decoded is what :meth:`invert` makes of it. Pursuit measures what is left
        in the space of the statistics still (:attr:`Dictionary.metric`).

        Args:
            dictionary: A dictionary of normalised activations.
            dtype: The dtype of the result; None for that of the dictionary. Folding is done in float64.

        Raises:
            DictionaryError: The dictionary is of another width, or scales its input itself.
        """
        if dictionary.d != len(self.mean):
            raise DictionaryError(
                f"a dictionary of width {dictionary.d}, statistics of width {len(self.mean)}: they do not belong "
                "together"
            )
        said = dictionary.semantics
        if said.layer_norm or said.input_scale != 1 or dictionary.metric is not None:
            raise DictionaryError(
                "a dictionary that scales its input itself (layer_norm, input_scale, metric) has nothing to be folded "
                "into; learn it with normalisation='none'"
            )
        dtype = dictionary.W_dec.dtype if dtype is None else dtype
        wide = dictionary.to(dtype=torch.float64)
        W_dec, W_enc, b_enc = wide.W_dec, wide.W_enc, wide.b_enc
        if said.rescales_by_decoder_norm:  # the norms are others afterwards
            norms = W_dec.norm(dim=1)
            W_dec, said = W_dec / norms[:, None], replace(said, rescales_by_decoder_norm=False)
            W_enc, b_enc = None if W_enc is None else W_enc * norms, None if b_enc is None else b_enc * norms
        if W_enc is not None and b_enc is not None:
            W_enc = self.read[:, None] * W_enc if self.read.ndim == 1 else self.read @ W_enc
            b_enc = b_enc if said.subtracts_bias else b_enc - self.mean @ W_enc
        folded = replace(
            wide, semantics=said, W_dec=_times(W_dec, self.write), b_dec=_times(wide.b_dec, self.write) + self.mean,
            W_enc=W_enc, b_enc=b_enc, metric=None if self.kind == "none" else self.read,
        )  # fmt: skip
        return folded.to(dtype=dtype)


def _times(x: Tensor, by: Tensor) -> Tensor:
    return x * by if by.ndim == 1 else x @ by


def _moments(batches: Iterable[Tensor], n_tokens: int) -> tuple[int, Tensor, Tensor]:
    """Return count, mean and scatter matrix, summed around the first batch's mean so that no digits are lost."""
    n, origin, total, square = 0, None, None, None
    for batch in batches:
        part = batch[: n_tokens - n].reshape(-1, batch.shape[-1]).detach().double().cpu()
        if not part.isfinite().all():
            raise DictionaryError("activations hold NaN or inf, of which there are no statistics")
        if origin is None or total is None or square is None:
            origin = part.mean(0)
            total, square = torch.zeros_like(origin), origin.new_zeros(len(origin), len(origin))
        part = part - origin
        n, total, square = n + len(part), total + part.sum(0), square + part.T @ part
        if n >= n_tokens:
            break
    if n < 2 or origin is None or total is None or square is None:
        raise DictionaryError(f"{n} tokens; statistics need at least two")
    return n, origin + total / n, square - total[:, None] * total / n
