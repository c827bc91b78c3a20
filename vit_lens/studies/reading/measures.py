"""What might separate units that were learnt from those that were not: numbers of each unit, value or row."""

__all__ = ["causal", "low_activation", "matched", "stability", "tells"]

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from vit_lens.explaining import AttributeOracle, Explained, Halves, Units
from vit_lens.models import HookedViT
from vit_lens.texts import TextBank

_LOWEST, _TELLS, _PARTNER = 0.75, 0.9, 0.7
_UNITS_AT_ONCE = 12


def low_activation(
    rows: Sequence[Explained], strengths: Float[np.ndarray, "image unit"], oracle: AttributeOracle, halves: Halves
) -> Float[np.ndarray, " explained"]:
    """Return how often an explanation holds of the lowest quarter of the images on which a unit fires, less base rate.

    Args:
        rows: The explained units.
        strengths: How much each unit fires on each image.
        oracle: Who knows the images, in their order.
        halves: The halves; that which tests counts.
    """
    found, test = [], np.asarray(halves.test)
    for row in rows:
        own, holds = strengths[test, row.unit], oracle.holds[test, oracle.values.index(row.text)]
        order = np.argsort(-own, kind="stable")[: int((own > 0).sum())]
        found.append(holds[order[math.ceil(_LOWEST * len(order)) :]].mean() - holds.mean())
    return np.array(found, dtype=np.float64)


def tells(
    strengths: Float[np.ndarray, "image unit"], holds: Bool[np.ndarray, "image value"], halves: Halves
) -> tuple[Float[np.ndarray, " value"], Float[np.ndarray, " value"]]:
    """Return of each value whether any unit tells it with AUC of .9, and the AUC of that which did best in explaining.

    Args:
        strengths: How much each unit fires on each image.
        holds: Of which images each value holds.
        halves: The halves; both numbers are of that which tests. nan where a value holds of none or all.
    """
    known, tested = (_aucs(strengths[half], holds[half]) for half in halves)
    best = np.nan_to_num(known, nan=-1).argmax(0)
    chosen = np.where(np.isnan(known).any(0), np.nan, tested[best, np.arange(holds.shape[1])])
    return np.where(np.isnan(tested).any(0), np.nan, (tested.max(0) >= _TELLS).astype(np.float64)), chosen


def _aucs(
    strengths: Float[np.ndarray, "image unit"], holds: Bool[np.ndarray, "image value"]
) -> Float[np.ndarray, "unit value"]:
    """Return how well each unit tells each value, ties counting half."""
    ranks = stats.rankdata(strengths, axis=0)
    n = holds.sum(0).astype(np.float64)
    pairs = n * (len(holds) - n)
    above = ranks.T @ holds.astype(np.float64) - n * (n + 1) / 2
    return np.where(pairs > 0, above / np.where(pairs > 0, pairs, 1), np.nan)


@torch.no_grad()
def causal(
    rows: Sequence[Explained], units: Units, model: HookedViT, texts: TextBank, resid: Float[Tensor, "image pos d"],
    layer: int, values: Sequence[str], *, seed: int,
) -> Float[np.ndarray, " unit"]:  # fmt: skip
    """Return how much more an explanation's logit falls than those of other values, less that of a random direction.

    On the positives that tested a unit, what it writes is taken from the patches on which it fires; and in its place
    as much of a random direction.

    Args:
        rows: The explained units.
        units: The units, which write into the residual stream.
        model: The model.
        texts: The values as captions, in their order.
        resid: The residual stream of every image behind the block, every token.
        layer: The next block.
        values: What explanations may be.
        seed: The seed of the random directions.
    """
    generator = torch.Generator().manual_seed(seed)
    n_prefix, found = model.cfg.n_prefix, []
    for start in range(0, len(rows), _UNITS_AT_ONCE):
        some = rows[start : start + _UNITS_AT_ONCE]
        plain, without, instead = [], [], []
        for row in some:
            own = units.directions[row.unit]
            other = torch.nn.functional.normalize(torch.randn(len(own), generator=generator), dim=0) * own.norm()
            for image in row.positives:
                codes = torch.zeros(resid.shape[1])
                codes[n_prefix:] = units.map(row.unit, image)
                plain.append(resid[image])
                without.append(resid[image] - codes[:, None] * own)
                instead.append(resid[image] - codes[:, None] * other)
        logits = [texts.logits(model(torch.stack(part).to(model.dtype), start_at_layer=layer)).double() for part in
                  (plain, without, instead)]  # fmt: skip
        said = torch.tensor([values.index(row.text) for row in some for _ in row.positives])
        falls = [_more(logits[0] - part, said) for part in logits[1:]]
        found += (falls[0] - falls[1]).view(len(some), -1).mean(1).tolist()
    return np.array(found, dtype=np.float64)


def _more(falls: Float[Tensor, "image value"], said: Tensor) -> Float[Tensor, " image"]:
    """Return how much more one value's logit falls than those of the others do on average."""
    own = falls.gather(1, said[:, None])[:, 0]
    return own - (falls.sum(1) - own) / (falls.shape[1] - 1)


def matched(rows: Float[Tensor, "unit d"], planted: Float[Tensor, "planted d"]) -> Float[np.ndarray, " planted"]:
    """Return of each planted direction whether a row has a cosine above .7 with it."""
    return (_cosines(planted, rows).amax(1) > _PARTNER).double().numpy()


def stability(rows: Float[Tensor, "unit d"], others: Sequence[Tensor]) -> Float[np.ndarray, " unit"]:
    """Return of each row in how many of the dictionaries of other seeds it has a partner above .7, as a share."""
    if not others:
        return np.full(len(rows), np.nan)
    return torch.stack([(_cosines(rows, other).amax(1) > _PARTNER).double() for other in others]).mean(0).numpy()


def _cosines(a: Float[Tensor, "a d"], b: Float[Tensor, "b d"]) -> Float[Tensor, "a b"]:
    return torch.nn.functional.normalize(a.double(), dim=1) @ torch.nn.functional.normalize(b.double(), dim=1).T
