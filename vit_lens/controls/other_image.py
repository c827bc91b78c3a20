"""The control that keeps the site and loses the image: what it writes for another image."""

__all__ = ["OtherImage"]

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.controls.contract import Control, Material, control
from vit_lens.errors import LensError


@control("other")
class OtherImage(Control):
    """What the site writes for another image, drawn by seed from a bank and never the image itself."""

    words = "what the site writes for another image"
    meaning = "how much of it the site says of any image"
    needs = 1

    def directions(self, material: Material) -> Float[Tensor, "site row d_model"]:
        if material.others is None or not len(material.others):
            raise LensError(self.lacks(0))
        others = material.others.roll(-material.pick, 0)
        if others.is_meta:
            return others[0]
        # A site may write the very same for that image and for what it is measured from: then the next that differs.
        turns = torch.arange(len(others), device=others.device)[:, None]
        first = turns.masked_fill(~others.flatten(2).any(-1), len(others)).min(0).indices
        return others[first, torch.arange(others.shape[1], device=others.device)]
