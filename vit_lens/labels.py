"""Words for an embedding: zero-shot labels, as CLIP gives them to images."""

__all__ = ["ZeroShotLabels"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vit_lens.errors import VitLensError


@dataclass(frozen=True, eq=False)
class ZeroShotLabels:
    """Groups of labels, each with its text embedding; an embedding gets the nearest label of every group.

    Attributes:
        names: Labels of each group, for example ``{"colour": ("red", "green")}``.
        embeds: Text embeddings of each group's labels, in the same order.
    """

    names: Mapping[str, Sequence[str]]
    embeds: Mapping[str, Float[Tensor, "label d_embed"]]

    def __post_init__(self) -> None:
        for group, names in self.names.items():
            if group not in self.embeds or len(self.embeds[group]) != len(names):
                raise VitLensError(f"labels {group!r}: {len(names)} names need as many text embeddings")

    def label(self, image_embeds: Float[Tensor, "batch d_embed"]) -> list[str]:
        """Return one line per embedding: the best label of each group, by cosine."""
        best = {
            group: (F.normalize(image_embeds.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T)
            .argmax(-1)
            .tolist()
            for group, texts in self.embeds.items()
        }
        lines = range(len(image_embeds))
        return [", ".join(f"{group} {self.names[group][best[group][i]]}" for group in self.names) for i in lines]
