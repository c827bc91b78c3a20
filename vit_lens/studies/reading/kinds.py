"""Units of every kind that the study explains, and the rows of those that were learnt or drawn."""

__all__ = ["KINDS", "rows_of", "units_of"]

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.dictionaries import Dictionary, data_points_control, pca_control, untrained_control
from vit_lens.explaining import AttributeOracle, Units, units_beside
from vit_lens.mini import world
from vit_lens.studies.reading.material import Material

KINDS = (
    "TopK", "ITDA", "neurons", "untrained", "random directions", "PCA", "data points", "untrained model",
    "supervised probe",
)  # fmt: skip
_OF_WORLD, _RIDGE = 2000, 1e-3  # scenes that a probe learns from at most, and its penalty as a share of the variance
_OTHER_ROWS = 1_000_003  # apart from the seed of the untrained dictionary's


def units_of(material: Material, kind: str, seed: int) -> Units:
    """Return the units of a kind, of the dictionaries of one seed.

    Args:
        material: What is read.
        kind: One of ``KINDS``.
        seed: The seed of the dictionaries.
    """
    topk = material.topk(seed)
    if kind == "TopK":
        return Units.of_dictionary(topk, material.source, name=kind)
    if kind == "ITDA":
        return Units.of_dictionary(material.itda(seed), material.source, name=kind)
    if kind == "untrained model":
        return Units.of_dictionary(material.topk_of_untrained(seed), material.untrained_source, name=kind)
    if kind == "supervised probe":
        rates = Units.of_dictionary(topk, material.source).rates(material.halves.explain)
        mean, rows = _probe(material)
        rate = float(np.median(rates[rates > 0]))
        return Units.cut(
            kind, lambda tokens: (tokens - mean) @ rows.T, rows, material.source, rate, material.halves.explain
        )
    train = material.train(material.learnt, seed)
    (found,) = units_beside(
        topk, material.source, train, inputs=material.halves.explain, names=[kind], neurons=material.neurons,
        model=material.model, seed=seed,
    )  # fmt: skip
    return found


def rows_of(material: Material, kind: str, seed: int, *, planted: bool) -> Float[Tensor, "unit d"] | None:
    """Return what the units of a kind write that were learnt from, or drawn for, the same tokens; None of others.

    Args:
        material: What is read.
        kind: One of ``KINDS``.
        seed: The seed of the dictionaries.
        planted: Whether the tokens are those with planted directions.
    """
    if kind == "TopK":
        return (material.topk_planted if planted else material.topk)(seed).W_dec
    if kind == "ITDA":
        return (material.itda_planted if planted else material.itda)(seed).W_dec
    tokens = material.planted if planted else material.learnt
    like: Dictionary = (material.topk_planted if planted else material.topk)(seed)
    train = material.train(tokens, seed)
    if kind == "untrained":
        return untrained_control(like, train, seed=seed).W_dec
    if kind == "random directions":
        return untrained_control(like, train, seed=seed + _OTHER_ROWS).W_dec
    if kind == "data points":
        return data_points_control(like, train, seed=seed).W_dec
    if kind == "PCA" and planted:
        rows = pca_control(like, train).W_dec
        return torch.cat([rows, -rows])
    return None


def _probe(material: Material) -> tuple[Float[Tensor, " d"], Float[Tensor, "value d"]]:
    """Return the mean of the tokens, and of each value the direction that tells the patches on which it is drawn."""
    codes = material.learn_codes[:_OF_WORLD]
    scenes = world.decode(codes)
    pictures = AttributeOracle.pictures_of(scenes)
    oracle = AttributeOracle(pictures, scenes, grid=material.oracle.grid)
    marks = torch.zeros(len(scenes), material.learnt.shape[1], len(oracle.values))
    for row, column in np.argwhere(oracle.holds).tolist():
        marks[row, :, column] = oracle.localise(pictures[row], oracle.values[column]).flatten()
    x, y = material.learnt[: len(scenes)].flatten(0, 1).double(), marks.flatten(0, 1).double()
    mean = x.mean(0)
    x, y = x - mean, y - y.mean(0)
    square = x.T @ x
    penalty = _RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    rows = torch.linalg.solve(square + penalty, x.T @ y).T
    return mean.float(), torch.nn.functional.normalize(rows, dim=1).float()
