"""Direct attribution: how much of a cosine, a logit or a dot product each part of the model wrote by itself."""

__all__ = ["Attribution", "direct_attribution"]

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Address, Indices
from vit_lens.attribution.brief import Brief
from vit_lens.attribution.checks import check_cache
from vit_lens.attribution.directions import Directions, Units
from vit_lens.attribution.parts import Component, describe, split_embedding
from vit_lens.numerics import without_autocast
from vit_lens.texts import TextBank
from vit_lens.towers import ViTActivationCache


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Brief):
    """What each component contributes along each direction; :func:`direct_attribution` makes it.

    Attributes:
        components: The parts of the model that wrote the terms, in the order of the component axis.
        names: The name of each direction: a caption, ``caption - other caption``, or ``direction 0``.
        values: The contributions in :attr:`units`; they add up to :attr:`total`.
        units: What the values are shares of: ``dot``, ``cosine`` or ``logit``.

    >>> found = vl.attribution.direct_attribution(cache, bank)
    >>> found.values.shape, found.names[1]
    (torch.Size([83, 2, 6]), 'a blue star')
    >>> found.to_frame(sort=True).columns.tolist()
    ['component', 'layer', 'head', 'kind', 'image', 'direction', 'value']
    """

    components: tuple[Component, ...]
    names: tuple[str, ...]
    values: Float[Tensor, "component batch direction"]
    units: Units

    @property
    def total(self) -> Float[Tensor, "batch direction"]:
        """The sum over components: the dot product, cosine or logit of the embedding (or their difference)."""
        return self.values.sum(0)

    def to_frame(self, *, sort: bool = False) -> pd.DataFrame:
        """Return one row per component, image and direction.

        Columns: component, layer, head, kind, image, direction, value.

        Args:
            sort: Whether the largest absolute value comes first, within each image and direction.
        """
        rows = [
            {**describe(component), "image": image, "direction": name, "value": value}
            for component, of_image in zip(self.components, self.values.tolist(), strict=True)
            for image, of_direction in enumerate(of_image)
            for name, value in zip(self.names, of_direction, strict=True)
        ]
        if sort:
            order = {name: i for i, name in enumerate(self.names)}
            rows.sort(key=lambda row: (row["image"], order[row["direction"]], -abs(row["value"])))
        return pd.DataFrame(rows).astype({"layer": "Int64", "head": "Int64"})


@without_autocast()
def direct_attribution(
    cache: ViTActivationCache,
    directions: Tensor | TextBank,
    *,
    captions: Sequence[str] | None = None,
    minus: Tensor | str | None = None,
    units: Units = "cosine",
    neuron_layers: Indices = (),
    start_layer: int = 0,
) -> Attribution:
    """Return how much each part of the model contributes, directly, along directions of the embedding.

    The analogue of TransformerLens' direct logit attribution. Units:

    ========== ==================================================== =========================================
    ``dot``    part . direction                                     sums to embedding . direction
    ``cosine`` divided by the norms of embedding and direction      sums to the cosine
    ``logit``  ``cosine`` times the bank's ``logit_scale``          with ``logit_bias`` as a term of its own,
                                                                    sums to the zero-shot logit
    ========== ==================================================== =========================================

    The norm of the embedding is the whole image's and held fixed, as the LayerNorm's scale is: a direct effect.

    Args:
        cache: The cache of the run, with what :func:`split_embedding` reads.
        directions: A :class:`vit_lens.texts.TextBank`, or embeddings [direction d_embed] (of texts, of other images).
        captions: The captions of a bank to measure along, None for all; for a tensor, the names of its rows.
        minus: A caption of the bank, or an embedding [d_embed]: attribute the difference to it, as a logit
            difference. None for the directions themselves.
        units: What the values add up to, see the table: ``dot``, ``cosine`` or ``logit``.
        neuron_layers: The layers whose MLP is split into its neurons, see :func:`split_embedding`.
        start_layer: The layer before which everything stays one term, see :func:`split_embedding`.

    Raises:
        LensError: The directions have another width, are not finite or zero, or the run was edited so that its parts
            do not add up.
        TextError: A caption is unknown, or the bank was made for another encoder (for a fine-tune that still pairs
            with its text tower: ``dataclasses.replace(bank, encoder_id=model.encoder_id)``).
        UnknownHookError: The cache lacks an activation; the message names it.

    >>> found = vl.attribution.direct_attribution(cache, bank, captions=["a blue star"], minus="a red star")
    >>> found.to_frame(sort=True)[["component", "direction"]].head(1).values.tolist()
    [['L7H3', 'a blue star - a red star']]
    >>> cosines = bank.cosines(model(pixels))
    >>> torch.allclose(found.total[:, 0], cosines[:, 1] - cosines[:, 0], atol=1e-4)
    True
    """
    chosen = Directions.of(check_cache(cache).model, directions, captions=captions, minus=minus, units=units)
    parts = split_embedding(cache, neuron_layers=neuron_layers, start_layer=start_layer)
    along = chosen.vectors.to(parts.values)
    values = parts.values @ along.T / chosen.divisor(parts.total)[:, None]
    components = parts.components
    if chosen.bias:
        components = (*components, Component(Address(hook="logit_bias")))
        values = torch.cat([values, torch.full_like(values[:1], chosen.bias)])
    return Attribution(components, chosen.names, values, units)
