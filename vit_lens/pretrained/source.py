"""What every reader of a tower returns."""

__all__ = ["TowerSource"]

from dataclasses import dataclass, field

from torch import Tensor

from vit_lens.config import HookedViTConfig
from vit_lens.images import PreprocessSpec


@dataclass(frozen=True, kw_only=True)
class TowerSource:
    """A tower's sizes and weights, ready for ``HookedViT``.

    Attributes:
        cfg: Read from the instantiated tower, never from a name.
        state_dict: Weights under HookedViT's names, LayerScale folded.
        preprocess_spec: None if the source carries no preprocessing.
        encoder_id: See :mod:`vit_lens.identity`.
        aliases: Other ids of the same weights.
    """

    cfg: HookedViTConfig
    state_dict: dict[str, Tensor] = field(repr=False)
    preprocess_spec: PreprocessSpec | None
    encoder_id: str
    aliases: tuple[str, ...]
