"""Which other images controls of a sweep are made of: a bank that was given, a gallery's, or the sweep's own inputs."""

__all__ = ["BankSource", "source_of"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vit_lens.controls import CONTROLS, ControlBank
from vit_lens.models import HookedViT
from vit_lens.readers import Gallery
from vit_lens.sweeping.lens_readings import LensReading
from vit_lens.sweeping.request import Controls, Inputs

_MOST = 64


@dataclass(frozen=True, eq=False, kw_only=True)
class BankSource:
    """Other images before they are run.

    Attributes:
        words: Where they come from, as a phrase; empty where there are none.
        n_others: How many stand beside each input, where no two are the same.
        images: What will be run; empty where a bank was given.
        are_inputs: Whether they are the inputs of the sweep, in order, which it has read already.
        names: What each is called.
        bank: The bank that was given.
        seed: Of the draw from many.
    """

    words: str = ""
    n_others: int = 0
    images: Sequence[Any] = ()
    are_inputs: bool = False
    names: Sequence[str] = ()
    bank: ControlBank | None = None
    seed: int = 0
    _made: list[ControlBank] = field(default_factory=list, init=False, repr=False)

    @property
    def left_out(self) -> dict[str, str]:
        """The controls that cannot be made of so many others, and why."""
        return {name: lacks for name, control in CONTROLS.items() if (lacks := control.lacks(self.n_others))}

    @property
    def numbered(self) -> list[str]:
        """The controls that sites are measured against before decoding."""
        return [name for name in CONTROLS if name not in self.left_out]

    def make(
        self, model: HookedViT, readings: Sequence[LensReading], seen: Mapping[int, Any] | None = None
    ) -> ControlBank | None:
        """Return the bank, whose images are run once; None where there is none, or no lens that it is for.

        Args:
            model: The model.
            readings: Of the sweep.
            seen: What the model sees of inputs that were read, by index; they are not read again.

        Raises:
            ImageError: An image cannot be read.
        """
        lenses = [reading.lens for reading in readings if reading.lens.has_controls]
        if self.bank is not None or not self.n_others or not lenses:
            return self.bank
        if not self._made:
            rows = "all" if any(lens.rows == "all" for lens in lenses) else "readout"
            known = seen if seen and self.are_inputs else {}
            images = [known.get(index, image) for index, image in enumerate(self.images)]
            found = ControlBank.from_images(
                model, images, names=self.names, rows=rows, most=_MOST, seed=self.seed
            )  # fmt: skip
            self._made.append(found)
        return self._made[0]


def source_of(model: HookedViT, inputs: Inputs, controls: Controls, gallery: Gallery | None) -> BankSource:
    """Return where the other images of a sweep come from.

    Raises:
        ReferenceMismatchError: The bank that was given is another model's.
    """
    if controls.bank is not None:
        n = len(controls.bank.check(model).but(""))
        return BankSource(words=f"a bank of {n} images", n_others=n, bank=controls.bank)
    if gallery is not None and gallery.folder:
        chosen = gallery.distinct[:: -(-len(gallery.distinct) // _MOST)]
        return BankSource(
            words=f"{len(chosen)} images of the gallery", n_others=len(chosen) - 1,
            images=[gallery.path(index) for index in chosen], names=[gallery.names[index] for index in chosen],
        )  # fmt: skip
    n = len(inputs)
    if n < 2:
        return BankSource()
    words = f"the {n} inputs themselves" if n <= _MOST else f"{_MOST} of the {n} inputs"
    return BankSource(
        words=words, n_others=min(n, _MOST) - 1, images=inputs.images, are_inputs=True,
        names=[inputs.name(i) for i in range(n)], seed=controls.seed,
    )  # fmt: skip
