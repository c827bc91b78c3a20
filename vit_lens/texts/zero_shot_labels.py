"""Words for an embedding: zero-shot labels, as CLIP gives them to images."""

__all__ = ["ZeroShotLabels"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vit_lens.errors import VitLensError, expect
from vit_lens.numerics import without_autocast


@dataclass(frozen=True, eq=False)
class ZeroShotLabels:
    """Groups of labels, each with its text embedding; an embedding gets the nearest label of every group.

    Attributes:
        names: The labels of each group, for example ``{"colour": ("red", "green")}``.
        embeds: The text embeddings of each group's labels, in the same order.
        only_if: Groups that are named only if another group has a value, such as ``{"symbol": ("overlay", "yes")}``.

    Raises:
        VitLensError: A group has not as many text embeddings as names.

    >>> names = {"colour": ("red", "blue"), "shape": ("star", "ring")}
    >>> prompts = {"colour": ["a red star", "a blue star"], "shape": ["a red star", "a red ring"]}
    >>> labels = vl.ZeroShotLabels(names, {group: vl.TextBank.mini(texts).embeds for group, texts in prompts.items()})
    >>> labels.label(model(pixels))
    ['colour blue, shape star', 'colour red, shape ring']
    """

    names: Mapping[str, Sequence[str]]
    embeds: Mapping[str, Float[Tensor, "label d_embed"]]
    only_if: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("names", "embeds", "only_if"):
            expect(getattr(self, name), Mapping, name, VitLensError, "a dict by group")
        for group, names in self.names.items():
            if group in self.embeds:
                expect(self.embeds[group], Tensor, f"embeds[{group!r}]", VitLensError, "[label d_embed]")
            if group not in self.embeds or len(self.embeds[group]) != len(names):
                raise VitLensError(f"labels {group!r}: {len(names)} names need as many text embeddings")

    @without_autocast()
    def label(self, image_embeds: Float[Tensor, "batch d_embed"]) -> list[str]:
        """Return one line for each embedding: the best label of each group, by cosine.

        Raises:
            VitLensError: They are no embeddings, or of another width than the labels'.
        """
        expect(image_embeds, Tensor, "image_embeds", VitLensError, "[batch d_embed], such as model(pixels)")
        widths = {group: texts.shape[-1] for group, texts in self.embeds.items()}
        if image_embeds.ndim != 2 or {image_embeds.shape[1]} != {*widths.values()}:
            raise VitLensError(f"embeddings of shape {tuple(image_embeds.shape)}; the labels have widths {widths}")
        images = F.normalize(image_embeds.float(), dim=-1)
        nearest = {
            group: (images @ F.normalize(texts.float(), dim=-1).T).argmax(-1).tolist()
            for group, texts in self.embeds.items()
        }
        return [
            self._line({group: names[int(nearest[group][i])] for group, names in self.names.items()})
            for i in range(len(image_embeds))
        ]

    def _line(self, best: Mapping[str, str]) -> str:
        shown = [g for g in best if g not in self.only_if or best[self.only_if[g][0]] == self.only_if[g][1]]
        return ", ".join(f"{group} {best[group]}" for group in shown)
