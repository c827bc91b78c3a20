"""What a dictionary's explanations are held against: kinds of units that were not learnt, and neurons."""

__all__ = ["BESIDE", "neurons_site", "units_beside"]

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit_lens.dictionaries import (
    ActivationSource,
    Dictionary,
    data_points_control,
    pca_control,
    untrained_control,
)
from vit_lens.errors import ExplanationError, nearest
from vit_lens.explaining.units import Units

BESIDE = ("untrained", "random directions", "PCA", "data points", "neurons")
"""What stands beside a dictionary, by name."""
_RANDOM = 1_000_003  # apart from the seed of the untrained dictionary's rows
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def neurons_site(model: Any, site: str) -> str | None:
    """Return the hook point of the neurons of a hook point's block and stream; None where there is no MLP.

    Args:
        model: A hooked model.
        site: The name of the hook point.

    >>> neurons_site(model, "blocks.5.hook_resid_post"), neurons_site(model, "hook_embed")
    ('blocks.5.mlp.hook_post', None)
    """
    name = f"{site.rpartition('.')[0]}.mlp.hook_post"
    return name if name in model.hook_dict else None


def units_beside(
    dictionary: Dictionary, source: ActivationSource, train: ActivationSource, *, inputs: Sequence[int],
    names: Sequence[str] = BESIDE, neurons: ActivationSource | None = None, model: Any = None, seed: int = 0,
) -> list[Units]:  # fmt: skip
    """Return the units that a dictionary is held against, on the same images.

    *Untrained* are random rows under the same encoder, *data points* random tokens under pursuit with as many codes.
    What is dense is cut where it fires as often as the median of those features that fire: *random directions*, in
    the space of the mean and spread of the tokens, *PCA*, components of both signs, and *neurons* of the same block's
    MLP behind their activation function.

    Args:
        dictionary: The dictionary.
        source: The patches of the images, or the image tokens of pictures that are drawn.
        train: What controls are made of.
        inputs: The images on whose tokens cuts are found: those that explain.
        names: Which of them.
        neurons: The MLP's activations of the same patches (see :func:`neurons_site`); None leaves neurons out.
        model: The model, for what neurons write; None leaves them out.
        seed: The seed of random rows.

    Raises:
        ExplanationError: There is no such kind, or the dictionary fires nowhere.

    >>> source = vl.ActivationSource.of_model(model, images * 20, "L5.resid_post", tokens="patches")
    >>> topk = vl.Dictionary.from_pretrained("mini-topk")
    >>> units_beside(topk, source, source, inputs=range(20), names=["untrained", "PCA"])
    [Units(512 of untrained on 40 images), Units(256 of PCA on 40 images)]
    """
    if unknown := [name for name in names if name not in BESIDE]:
        raise ExplanationError(
            f"nothing called {unknown[0]!r} stands beside it; nearest: {nearest(unknown[0], BESIDE)}"
        )
    rates = Units.of_dictionary(dictionary, source).rates(inputs)
    if not (rates > 0).any():
        raise ExplanationError(f"no feature of {dictionary!r} fires on these images; is it of this model and site?")
    rate = float(np.median(rates[rates > 0]))
    found = []
    for name in names:
        if name == "untrained":
            found.append(Units.of_dictionary(untrained_control(dictionary, train, seed=seed), source, name=name))
        elif name == "data points":
            found.append(Units.of_dictionary(data_points_control(dictionary, train, seed=seed), source, name=name))
        elif name == "random directions":
            rows = untrained_control(dictionary, train, seed=seed + _RANDOM)
            found.append(Units.cut(name, rows.pre_codes, rows.W_dec, source, rate, inputs))
        elif name == "PCA":
            components = pca_control(dictionary, train)
            both = torch.cat([components.W_dec, -components.W_dec])
            project = _Centred(components.b_dec, both)
            found.append(Units.cut(name, project, both, source, rate, inputs))
        elif neurons is not None and (rows := _neuron_rows(model, dictionary.origin.site, neurons)) is not None:
            found.append(Units.cut(name, _same, rows, neurons, rate, inputs))
    return found


class _Centred:
    """Projections on directions, less those of the mean."""

    def __init__(self, mean: Tensor, rows: Tensor):
        self.mean, self.rows = mean, rows

    def __call__(self, tokens: Tensor) -> Tensor:
        return (tokens.to(self.rows) - self.mean) @ self.rows.T


def _same(tokens: Tensor) -> Tensor:
    return tokens.float()


def _neuron_rows(model: Any, site: str | None, neurons: ActivationSource) -> Tensor | None:
    """Return what the neurons of a site's block write; None where there is no such MLP."""
    if (rows_of := getattr(model, "neuron_rows", None)) is not None:  # of a diffusion model
        return rows_of(neurons.provenance.site)
    block = _BLOCK.match(site or "")
    rows = None if block is None else getattr(model, "W_out", None)
    return None if rows is None or block is None else rows[int(block[1])].detach().float().cpu()
