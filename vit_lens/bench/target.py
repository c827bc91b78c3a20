"""What a steering function is asked for: an attribute, with images of both its classes."""

__all__ = ["Target"]

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Target:
    """Images shall be changed from one class to the other.

    Attributes:
        captions: What says the class that images are of, and the one that they shall become.
        pixels: Images of both classes, preprocessed, from which a function may learn what to do.
        label: The class of each of them: 0 for the first caption, 1 for the second.

    >>> target = vl.bench.Target(captions=("a red object", "a blue object"), pixels=pixels, label=np.array([0, 1]))
    >>> vl.bench.OWN["steer"]["mean-difference"](model, target, 2.0)[0][0]
    'blocks.7.hook_resid_post'
    """

    captions: tuple[str, str]
    pixels: Float[Tensor, "image channel height width"]
    label: Int[np.ndarray, " image"]
