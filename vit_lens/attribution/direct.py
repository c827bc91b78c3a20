"""Direct attribution: how much of a cosine, a logit or a dot product each part of the model wrote by itself."""

__all__ = ["Attribution", "direct_attribution"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Address, Indices
from vit_lens.attribution.directions import Directions, Units
from vit_lens.attribution.frozen import check_cache
from vit_lens.attribution.parts import Component, describe, split_embedding, with_index_columns
from vit_lens.texts import TextBank
from vit_lens.towers import ViTActivationCache

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Attribution:
    """What each component contributes along each direction.

    Attributes:
        components: The terms.
        names: Of the directions.
        values: In :attr:`units`; they add up to :attr:`total`.
        units: ``dot``, ``cosine`` or ``logit``.
    """

    components: tuple[Component, ...]
    names: tuple[str, ...]
    values: Float[Tensor, "component batch direction"]
    units: Units

    @property
    def total(self) -> Float[Tensor, "batch direction"]:
        """The sum over components: the dot product, cosine or logit of the embedding (or their difference)."""
        return self.values.sum(0)

    def to_frame(self, *, sort: bool = False) -> "pd.DataFrame":
        """Return one row per component, image and direction.

        Columns: component, layer, head, kind, image, direction, value.

        Args:
            sort: Largest absolute value first, within each image and direction.
        """
        import pandas as pd

        rows = [
            {**describe(component), "image": image, "direction": name, "value": value}
            for component, of_image in zip(self.components, self.values.tolist(), strict=True)
            for image, of_direction in enumerate(of_image)
            for name, value in zip(self.names, of_direction, strict=True)
        ]
        frame = with_index_columns(pd.DataFrame(rows))
        if not sort:
            return frame
        order = {name: i for i, name in enumerate(self.names)}
        keys = pd.DataFrame(
            {"image": frame["image"], "direction": frame["direction"].map(order), "size": -frame["value"].abs()}
        )
        return frame.loc[keys.sort_values(list(keys), kind="stable").index].reset_index(drop=True)


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
        cache: As for :func:`split_embedding`.
        directions: A :class:`vit_lens.texts.TextBank`, or embeddings [direction d_embed] (of texts, of other images).
        captions: Of a bank, only these; of a tensor, the names of its rows.
        minus: A caption of the bank, or an embedding: attribute the difference to it, as a logit difference.
        units: See above.
        neuron_layers: As for :func:`split_embedding`.
        start_layer: As for :func:`split_embedding`.

    Raises:
        LensError: The directions have another width, are not finite or zero, or the run was edited so that its parts
            do not add up.
        TextError: A caption is unknown, or the bank was made for another encoder (for a fine-tune that still pairs
            with its text tower: ``dataclasses.replace(bank, encoder_id=model.encoder_id)``).
        UnknownHookError: The cache lacks an activation; the message names it.
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
