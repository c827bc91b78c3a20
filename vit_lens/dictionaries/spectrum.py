"""How the variance of a stream is shared among principal components."""

__all__ = ["Spectrum", "spectrum"]

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from vit_lens.dictionaries.normalisation import Normalisation
from vit_lens.dictionaries.source import ActivationSource

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum:
    """Shares of the variance; :func:`spectrum` makes it.

    Attributes:
        shares: Of each principal component, the largest first.
        dimensions: Of each dimension of the stream as it is, the largest first: where one of these is as large as the
            first component, that is a single wide dimension.
        n_tokens: Of how many tokens.

    >>> x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1.0, 1.0])
    >>> found = spectrum(vl.ActivationSource.of_array(x))
    >>> found, round(float(found.shares[0]), 1)
    (Spectrum(3 components of 500 tokens), 0.8)
    """

    shares: Float[Tensor, " component"]
    dimensions: Float[Tensor, " d"]
    n_tokens: int

    def __repr__(self) -> str:
        return f"Spectrum({len(self.shares)} components of {self.n_tokens} tokens)"

    def to_frame(self) -> "pd.DataFrame":
        """Return a row for each component, counted from 1: component, share, cumulative, dimension."""
        import pandas as pd

        return pd.DataFrame(
            {
                "component": range(1, len(self.shares) + 1), "share": self.shares.tolist(),
                "cumulative": self.shares.cumsum(0).tolist(), "dimension": self.dimensions.tolist(),
            }
        )  # fmt: skip


def spectrum(source: ActivationSource, *, n_tokens: int = 50_000) -> Spectrum:
    """Return how the variance of tokens, around their mean, is shared among principal components.

    Args:
        source: The tokens.
        n_tokens: How many of them are read at most.

    Raises:
        DictionaryError: There are fewer than two tokens, or they are all the same.

    >>> source = vl.ActivationSource.of_model(model, images, "L5.resid_post", tokens="patches")
    >>> spectrum(source).to_frame()["cumulative"].iloc[-1].round(6)
    np.float64(1.0)
    """
    found = Normalisation.fit((batch.tokens for batch in source.epoch()), "pca", n_tokens=n_tokens)
    rows = found.write  # each principal direction, as long as the spread along it; the last first
    shares, dimensions = rows.square().sum(1).flip(0), rows.square().sum(0).sort(descending=True).values
    total = shares.sum()
    return Spectrum(shares=shares / total, dimensions=dimensions / total, n_tokens=found.n_tokens)
