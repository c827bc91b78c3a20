"""The isotropic control: a random direction, alike in all dimensions."""

__all__ = ["RandomDirection"]

from jaxtyping import Float
from torch import Tensor

from vit_lens.controls.contract import Control, Material, control


@control("random")
class RandomDirection(Control):
    """Standard normal numbers: nothing of the site but how much it writes.

    A few dimensions of trained towers may hold most of what a site writes (massive activations). A direction that is
    alike in all of them then does more to the read-out than the site's own, and hides that the site says the same of
    every image: look at the other controls beside it.
    """

    words = "a random direction"
    meaning = "how much of it is there whatever the site writes"

    def directions(self, material: Material) -> Float[Tensor, "site row d_model"]:
        return material.noise()
