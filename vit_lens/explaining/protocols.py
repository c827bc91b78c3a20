"""What says what a unit fires on, and what says whether that holds of another image."""

__all__ = ["Explainer", "FeatureJudge"]

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from PIL import Image
from torch import Tensor

Map = Float[Tensor, "grid_row grid_column"]


@runtime_checkable
class Explainer(Protocol):
    """Whatever says in words what a unit fires on.

    Attributes:
        name: What results call it.

    >>> oracle = vl.explaining.AttributeOracle.of_world(20)
    >>> isinstance(oracle, Explainer), oracle.name
    (True, 'oracle')
    """

    name: str

    def explain(self, images: Sequence[Image.Image], maps: Sequence[Map]) -> str:
        """Return what the images have in common where the unit fires.

        Args:
            images: What the tower sees of some images on which the unit fires.
            maps: Of each image how much it fires at every patch; 0 where it is silent.
        """
        ...


@runtime_checkable
class FeatureJudge(Protocol):
    """Whatever says how far an explanation holds of an image, and where.

    Attributes:
        name: What results call it.

    >>> isinstance(vl.explaining.AttributeOracle.of_world(20), FeatureJudge)
    True
    """

    name: str

    def judge(self, image: Image.Image, text: str, map: Map | None = None) -> float:
        """Return how surely an explanation holds of an image: 0 not at all, 1 surely.

        Args:
            image: What the tower sees of the image.
            text: The explanation.
            map: What is highlighted in the image, which the protocol ``paper`` asks for; None shows it plain.
        """
        ...

    def localise(self, image: Image.Image, text: str) -> Map:
        """Return how much of what the explanation says is at each place of a grid of the judge's own, in [0, 1]."""
        ...
