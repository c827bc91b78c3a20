"""What a control is: something that stands in for what a site writes. One registry; a further control is one file."""

__all__ = ["CONTROLS", "Change", "Control", "Material", "check_controls", "control", "control_named", "stand_in"]

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.controls.normalising import Normaliser
from vit_lens.errors import LensError, nearest
from vit_lens.towers import ViTActivationCache

OutputsOf = Callable[[ViTActivationCache], Tensor]
Change = Callable[[Tensor, Tensor | None, list[Site], OutputsOf], Tensor]
"""Of outputs, what the lens measures them from, their sites, and what reads the same outputs off another cache."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Material:
    """What a control of one image is made from, at some sites. Everything is without its mean over d_model.

    Attributes:
        own: How far the outputs lie from what the lens measures them from.
        others: The same of other images, the image itself not among them; None where there is no bank.
        pick: Which of ``others`` was drawn to stand in.
        generator: The source of random numbers, on the CPU.
        sites: The sites, for messages.
        memory: What was made of ``others`` before, and need not be made again.
    """

    own: Float[Tensor, "site row d_model"]
    others: Float[Tensor, "other site row d_model"] | None
    pick: int
    generator: torch.Generator
    sites: Sequence[Site]
    memory: dict[str, Any] = field(default_factory=dict)

    def remembered(self, name: str, make: Callable[[Tensor], Any]) -> Any:
        """Return what is made of ``others``, made once for many draws.

        Args:
            name: What it is called.
            make: Makes it of ``others``.
        """
        if name not in self.memory:
            self.memory[name] = make(cast(Tensor, self.others))
        return self.memory[name]

    def noise(self) -> Float[Tensor, "site row d_model"]:
        """Return standard normal numbers, drawn on the CPU in the outputs' dtype."""
        noise = torch.randn(self.own.shape, generator=self.generator, dtype=self.own.dtype, device="cpu")
        return noise.to(self.own.device)


class Control(ABC):
    """What stands in for a site's output; subclass it below ``@control("name")``, in a file of its own.

    Attributes:
        name: Its name in records, options and columns.
        words: What stands in, as a phrase: ``a random direction``.
        meaning: What likeness to the input under it says, in a sentence for people who look at numbers.
        needs: How many other images it needs.

    >>> sorted(vl.controls.CONTROLS)
    ['covariance', 'other', 'random']
    >>> vl.controls.control_named("other").words
    'what the site writes for another image'
    """

    name: ClassVar[str]
    words: ClassVar[str]
    meaning: ClassVar[str]
    needs: ClassVar[int] = 0

    @abstractmethod
    def directions(self, material: Material) -> Float[Tensor, "site row d_model"]:
        """Return what stands in, of any length: :func:`stand_in` gives it the length of the output."""

    def lacks(self, n_others: int) -> str:
        """Say why it cannot be made of so many other images, and what to do; empty if it can."""
        if n_others >= self.needs:
            return ""
        have = "there is none" if n_others < 1 else f"there {'is' if n_others == 1 else 'are'} {n_others}"
        return (
            f"the control {self.name!r} needs {self.needs} other image{'s' * (self.needs > 1)}, and {have}: give more "
            "images, or a bank of others (Controls(bank=ControlBank.from_images(model, images)), --control-images), or "
            "leave the control out"
        )


CONTROLS: dict[str, Control] = {}
"""The controls of sites by name, in the order in which pages show them."""
_C = TypeVar("_C", bound=Control)


def control(name: str) -> Callable[[type[_C]], type[_C]]:
    """Return a decorator that registers a control under a name.

    Raises:
        LensError: The name is taken by another one.
    """

    def register(kind: type[_C]) -> type[_C]:
        if name in CONTROLS and type(CONTROLS[name]).__qualname__ != kind.__qualname__:
            raise LensError(f"the name {name!r} is taken by {type(CONTROLS[name]).__qualname__}; choose another")
        kind.name = name
        CONTROLS[name] = kind()
        return kind

    return register


def control_named(name: object) -> Control:
    """Return a control by its name.

    Raises:
        LensError: There is none of that name; the nearest are named.

    >>> vl.controls.control_named("covarianc")
    Traceback (most recent call last):
    vit_lens.errors.LensError: no control 'covarianc'; nearest: 'covariance', ...
    """
    if name not in CONTROLS:
        raise LensError(f"no control {name!r}; nearest: {nearest(str(name), CONTROLS)}")
    return CONTROLS[str(name)]


def check_controls(names: object) -> list[Control]:
    """Return controls by their names, all different.

    Raises:
        LensError: It is no list of names, or one is unknown.

    >>> [one.needs for one in vl.controls.check_controls(["random", "covariance"])]
    [0, 5]
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise LensError(f"controls={names!r}; expected a list of any of {', '.join(map(repr, CONTROLS))}")
    return [control_named(name) for name in dict.fromkeys(names)]


def stand_in(
    control: Control, material: Material, normaliser: Normaliser | None = None
) -> Float[Tensor, "site row d_model"]:
    """Return what a control puts in the place of deviations: as long as these, without a mean over d_model.

    Length is taken after mean removal over d_model, to which LayerNorm is blind, over all rows. With a normaliser the
    direction is made, and lengths are equalled, in normalised coordinates.

    Args:
        control: The control.
        material: What it is made from; its tensors without their mean over d_model.
        normaliser: Of the deviations, one for each site; None measures them as they are.

    Raises:
        LensError: What stands in has no direction: it writes nothing.
    """
    if normaliser is None:
        found = control.directions(material)
        found = found - found.mean(-1, keepdim=True)
        size, length = _norm(material.own), _norm(found)
    else:
        others = None if material.others is None else normaliser.forward(material.others)
        seen = replace(material, own=normaliser.forward(material.own), others=others)
        found = normaliser.inverse(control.directions(seen))
        found = found - found.mean(-1, keepdim=True)
        size, length = _norm(seen.own), _norm(normaliser.forward(found))
    least = torch.finfo(length.dtype).tiny
    if not length.is_meta and (length <= least).any():
        site = material.sites[int((length <= least).nonzero()[0])]
        raise LensError(
            f"site {site} writes nothing for the other image, so it has no direction for the control {control.name!r}; "
            "leave the site out"
        )
    return found * (size / length)[:, None, None]


def _norm(x: Float[Tensor, "site row d_model"]) -> Float[Tensor, " site"]:
    return x.flatten(1).norm(dim=1)
