"""How good a dictionary is, on tokens that it was not learnt from."""

__all__ = ["Statistics", "evaluate", "refuse_other"]

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.source import ActivationSource
from vit_lens.errors import DictionaryError

_DENSE = 0.1  # the share of tokens above which a feature is dense


@dataclass(frozen=True, eq=False)
class Statistics:
    """What :func:`evaluate` measured.

    Read ``fvu_standardised`` and ``dead`` together: ``fvu`` alone looks best where a few wide dimensions are explained
    and nothing else.

    Attributes:
        fvu: The squared error as a share of the variance, over all dimensions together.
        fvu_standardised: The same with every dimension brought to variance 1 first: the mean over dimensions that vary.
        l0: How many codes of a token are not zero, on average.
        dead: The share of features that fired on no token.
        dense: The share of features that fired on more than a tenth of the tokens.
        frequency: Of each feature the share of tokens that it fired on.
        n_tokens: How many tokens were read.
        n_inputs: Of how many inputs.

    >>> x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    >>> semantics = vl.dictionaries.Semantics.plain("signed", 6)
    >>> basis = vl.Dictionary(W_dec=torch.eye(6), b_dec=torch.zeros(6), semantics=semantics)
    >>> found = vl.dictionaries.evaluate(basis, vl.ActivationSource.of_array(x))
    >>> round(found.fvu, 6), found.l0, found.dead, found.dense
    (0.0, 6.0, 0.0, 1.0)
    """

    fvu: float
    fvu_standardised: float
    l0: float
    dead: float
    dense: float
    frequency: Float[Tensor, " feature"]
    n_tokens: int
    n_inputs: int

    def numbers(self) -> dict[str, Any]:
        """Return all but the frequencies, by name."""
        return {name: value for name, value in vars(self).items() if name != "frequency"}


@torch.no_grad()
def evaluate(
    dictionary: Dictionary, source: ActivationSource, *, method: Literal["own", "pursuit", "signed"] | None = None,
    k: int | None = None,
) -> Statistics:  # fmt: skip
    """Measure a dictionary on every token of a source, each once.

    Args:
        dictionary: The dictionary.
        source: Tokens that it was not learnt from: the second of :meth:`ActivationSource.split`.
        method: The encoder, as :meth:`Dictionary.encode` takes it.
        k: The number of codes, for pursuit.

    Raises:
        DictionaryError: The source is of another model, hook point or width, or has fewer than two different tokens.

    >>> source = vl.ActivationSource.of_array(torch.randn(300, 8, generator=torch.Generator().manual_seed(0)))
    >>> train, held_out = source.split(0.2)
    >>> found = vl.dictionaries.evaluate(vl.dictionaries.random_dictionary(8, 20, k=3), held_out)
    >>> found.n_tokens, found.l0 <= 3
    (60, True)
    """
    refuse_other(dictionary, source)
    n, fired = 0, torch.zeros(dictionary.n_features, dtype=torch.float64)
    error = mean = square = torch.zeros(dictionary.d, dtype=torch.float64)
    for batch in source.in_order():
        x = batch.tokens.to(dictionary.W_dec.device)
        codes = dictionary.encode(x, method, k=k)
        wide, size = x.double().cpu(), len(x)
        error = error + (wide - dictionary.decode(codes, x).double().cpu()).square().sum(0)
        fired += (codes != 0).sum(0).cpu()
        own, gap = wide.mean(0), wide.mean(0) - mean  # Chan's update: no digits are lost to a large mean
        square = square + (wide - own).square().sum(0) + gap.square() * (n * size / (n + size))
        mean, n = mean + gap * (size / (n + size)), n + size
    varies = square > 0
    if not varies.any():
        raise DictionaryError(f"{n} tokens, all the same; statistics need tokens that differ")
    share = fired / n
    return Statistics(
        fvu=float(error.sum() / square.sum()),
        fvu_standardised=float((error[varies] / square[varies]).mean()),
        l0=float(share.sum()),
        dead=float((fired == 0).double().mean()),
        dense=float((share > _DENSE).double().mean()),
        frequency=share.float(), n_tokens=n, n_inputs=len(source.inputs),
    )  # fmt: skip


def refuse_other(dictionary: Dictionary, source: ActivationSource, but: Collection[str] = ()) -> None:
    """Raise where activations are known to be of another model, hook point or stream than a dictionary.

    Args:
        dictionary: The dictionary.
        source: The activations.
        but: What may be another, such as ``at_steps``.

    Raises:
        DictionaryError: They are.
    """
    own, other = dictionary.origin, source.provenance
    for what in ("fingerprint", "site", "stream", "at_steps", "sigmas", "branch"):
        mine, theirs = getattr(own, what), getattr(other, what)
        if what not in but and None not in (mine, theirs) and mine != theirs:
            raise DictionaryError(f"the dictionary is of {what} {mine!r}, the activations are of {theirs!r}")
