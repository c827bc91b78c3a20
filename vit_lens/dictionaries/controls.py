"""Controls of equal number of codes and features: what a dictionary has to be better than."""

__all__ = ["data_points_control", "pca_control", "random_dictionary", "untrained_control", "untrained_direction"]

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.itda import ITDA
from vit_lens.dictionaries.normalisation import Normalisation
from vit_lens.dictionaries.semantics import Origin, Semantics
from vit_lens.dictionaries.source import ActivationSource
from vit_lens.errors import DictionaryError


def random_dictionary(
    d: int, n_features: int, *, k: int, site: str | None = None, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Dictionary:
    """Return a TopK dictionary of random directions, its encoder their transpose: nothing was learnt.

    Args:
        d: The width of the activations.
        n_features: The number of features.
        k: The number of codes of a token.
        site: The hook point that it is for; None for any.
        seed: The seed of the directions.
        dtype: The dtype of the numbers.

    >>> random_dictionary(8, 20, k=3)
    Dictionary(20 features of width 8, topk k=3, of no site)
    """
    rows = torch.randn(n_features, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = (rows / rows.norm(dim=1, keepdim=True)).to(dtype)
    return Dictionary(
        W_dec=rows, b_dec=rows.new_zeros(d), W_enc=rows.T.clone(), b_enc=rows.new_zeros(n_features),
        semantics=Semantics.plain("topk", k), origin=Origin(site=site, learnt=f"random directions, seed {seed}"),
    )  # fmt: skip


def untrained_control(dictionary: Dictionary, source: ActivationSource, *, seed: int = 0) -> Dictionary:
    """Return random directions with as many features and codes: a dictionary as it is before it learns.

    Directions are random in the space of the source's mean and spread, and encode by their transpose there.

    Args:
        dictionary: The dictionary that is compared.
        source: Tokens, for mean and spread.
        seed: The seed of the directions.

    Raises:
        DictionaryError: The number of its codes is not known: it counts none and was not measured.

    >>> source = vl.ActivationSource.of_array(torch.randn(300, 8, generator=torch.Generator().manual_seed(0)))
    >>> found = vl.dictionaries.fit(source, vl.dictionaries.ITDA(k=4))
    >>> vl.dictionaries.untrained_control(found, source).n_features == found.n_features
    True
    """
    plain = random_dictionary(dictionary.d, dictionary.n_features, k=_codes_of(dictionary), seed=seed)
    return replace(_statistics(source).fold(plain), origin=_origin(dictionary, f"random directions, seed {seed}"))


def untrained_direction(dictionary: Dictionary, *, seed: int = 0) -> Float[Tensor, " d"]:
    """Return what a feature writes before anything is learnt, at length 1: random in the space that it was learnt in.

    Where the dictionary was learnt without normalisation, or does not say it, that is a random direction.

    Args:
        dictionary: The dictionary that is compared.
        seed: The seed of the direction.

    >>> vl.dictionaries.untrained_direction(vl.Dictionary.from_pretrained("mini-topk")).shape
    torch.Size([128])
    """
    row = torch.randn(dictionary.d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if (metric := dictionary.metric) is not None:
        read = metric.double().cpu()
        row = row / read if read.ndim == 1 else row @ torch.linalg.pinv(read)
    return (row / row.norm()).to(dictionary.W_dec)


def pca_control(dictionary: Dictionary, source: ActivationSource, *, n_tokens: int = 50_000) -> Dictionary:
    """Return principal components with as many codes, of either sign: the best dense directions, each token its own.

    There are no more of them than the width.

    Args:
        dictionary: The dictionary that is compared.
        source: Tokens, for the components.
        n_tokens: How many of them are read.

    Raises:
        DictionaryError: The number of its codes is not known: it counts none and was not measured.

    >>> source = vl.ActivationSource.of_array(torch.randn(300, 8, generator=torch.Generator().manual_seed(0)))
    >>> found = vl.dictionaries.fit(source, vl.dictionaries.ITDA(k=4))
    >>> vl.dictionaries.pca_control(found, source)
    Dictionary(8 features of width 8, signed k=4, of no site)
    """
    found = Normalisation.fit((batch.tokens for batch in source.epoch()), "pca", n_tokens=n_tokens)
    rows = torch.nn.functional.normalize(found.write, dim=1).flip(0)[: dictionary.n_features].float()
    semantics = Semantics.plain("signed", min(_codes_of(dictionary), len(rows)))
    return Dictionary(
        W_dec=rows, b_dec=found.mean.float(), semantics=semantics, origin=_origin(dictionary, "principal components")
    )


def data_points_control(dictionary: Dictionary, source: ActivationSource, *, seed: int = 0) -> Dictionary:
    """Return as many random tokens as atoms, encoded by gradient pursuit with as many codes.

    Args:
        dictionary: The dictionary that is compared.
        source: Tokens to draw from.
        seed: The seed of the draw.

    Raises:
        DictionaryError: The source has too few tokens, or the number of codes is not known.

    >>> source = vl.ActivationSource.of_array(torch.randn(300, 8, generator=torch.Generator().manual_seed(0)))
    >>> found = vl.dictionaries.fit(source, vl.dictionaries.ITDA(k=4))
    >>> vl.dictionaries.data_points_control(found, source).semantics.encoder
    'pursuit'
    """
    form = "signed" if dictionary.semantics.encoder == "signed" else "pursuit"
    return ITDA(k=_codes_of(dictionary), form=form, seed=seed).from_random(source, dictionary.n_features)


def _codes_of(dictionary: Dictionary) -> int:
    if dictionary.semantics.k is not None:
        return dictionary.semantics.k
    measured = dictionary.statistics.get("held_out", {}).get("l0")
    if not isinstance(measured, float):
        raise DictionaryError(
            "a control has as many codes as the dictionary, which counts none and was not measured: give it "
            "statistics={'held_out': evaluate(dictionary, source).numbers()}"
        )
    return max(1, round(measured))


def _statistics(source: ActivationSource) -> Normalisation:
    return Normalisation.fit((batch.tokens for batch in source.epoch()), "std")


def _origin(dictionary: Dictionary, learnt: str) -> Origin:
    return replace(dictionary.origin, learnt=learnt)
