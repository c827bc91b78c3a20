"""A judge of still lifes that has learnt to see: a small convolutional net, to hold the exact judge against."""

__all__ = ["ANSWERS", "SecondJudge"]

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vit_lens.errors import CheckpointError
from vit_lens.files import damaged, file_tensors, open_safetensors
from vit_lens.mini.still_life import COLOURS, LAYOUTS, SHAPES, SIDE, TEXTURES, Scene, scenes_of

ANSWERS = {
    "layout": len(LAYOUTS),
    **{
        f"{part} {place}": len(values)
        for place in (0, 1)
        for part, values in (("colour", COLOURS), ("texture", TEXTURES), ("shape", SHAPES))
    },
}
"""What there is to ask of a scene, and how many answers there are."""


class SecondJudge(nn.Module):
    """Three strided convolutions and a linear layer; it answers every question of ``ANSWERS``.

    ``vit-lens mini train-text`` trains one; :meth:`load` reads it.

    >>> logits = vl.mini.SecondJudge()(torch.zeros(2, 3, 32, 32))
    >>> logits["layout"].shape, logits["shape 1"].shape
    (torch.Size([2, 3]), torch.Size([2, 6]))
    """

    def __init__(self, channels: tuple[int, int, int] = (24, 48, 64)):
        super().__init__()
        layers, before = [], 3
        for width in channels:
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.GELU()]
            before = width
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.answers = nn.Linear(before * (SIDE // 8) ** 2, sum(ANSWERS.values()))

    @classmethod
    def load(cls, path: Path) -> "SecondJudge":
        """Load a trained judge.

        Raises:
            CheckpointError: There is no such file, or it is damaged or holds other weights.
        """
        judge, advice = cls(), "train it with `vit-lens mini train-text`"
        with (
            open_safetensors(path, CheckpointError, advice) as file,
            damaged(CheckpointError, f"{path} is no judge", advice),
        ):
            judge.load_state_dict(file_tensors(file))
        return judge.eval()

    def forward(self, signed: Float[Tensor, "picture 3 height width"]) -> dict[str, Float[Tensor, "picture answer"]]:
        """Return the logits of each question; values are in [-1, 1]."""
        logits = self.answers(self.features(signed))
        return dict(zip(ANSWERS, logits.split(list(ANSWERS.values()), dim=1), strict=True))

    @torch.no_grad()
    def scenes(self, pictures: UInt8[np.ndarray, "picture height width 3"]) -> list[Scene]:
        """Return what the pictures show."""
        signed = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
        codes = torch.stack([logits.argmax(dim=1) for logits in self(signed).values()], dim=1)
        return scenes_of(codes.numpy())
