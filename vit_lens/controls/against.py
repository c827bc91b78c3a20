"""A site held against a control: how a lens puts what stands in in the place of what the site writes."""

__all__ = ["Against"]

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.controls.bank import Others
from vit_lens.controls.contract import Control, Material, OutputsOf, control_named, stand_in
from vit_lens.controls.covariance import samples_of
from vit_lens.controls.normalising import Normaliser, check_normalisation
from vit_lens.errors import LensError, expect

_ROUNDING = 64  # a deviation below this many units in the last place of its terms is noise


@dataclass(frozen=True, eq=False, kw_only=True)
class Against:
    """What sites are held against: a control, other images that it is made of, and the coordinates it is equal in.

    It is a :data:`vit_lens.controls.Change`: any lens that has ``read_changed`` has every control.

    Attributes:
        control: The name of a control.
        generator: The source of random numbers, on the CPU.
        others: Other images, for controls that are made of them, and for normalisation; None for none.
        normalise: ``std`` or ``whiten``: the control is made, and its length equalled, in normalised coordinates of
            each site (:class:`vit_lens.controls.Normaliser`); None takes outputs as they are.

    Raises:
        LensError: There is no such control or normalisation, too few other images for it, or the generator is none.

    >>> bank = vl.controls.ControlBank.from_images(model, images)
    >>> lens, generator = vl.DiffusionSteeringLens(alpha=10), torch.Generator().manual_seed(0)
    >>> against = vl.controls.Against(control="other", generator=generator, others=bank.others(bank.hashes))
    >>> lens.read_against(cache, "L3H4", against)
    Condition([2, 1] rows of pooled [128])
    """

    control: str
    generator: torch.Generator
    others: Others | None = None
    normalise: str | None = None

    def __post_init__(self) -> None:
        kind = control_named(self.control)
        check_normalisation(self.normalise)
        expect(self.generator, torch.Generator, "generator", LensError, "torch.Generator().manual_seed(0) makes one")
        if self.generator.device.type != "cpu":
            raise LensError(f"generator is on {self.generator.device}; random directions are drawn on the CPU")
        if self.others is not None:
            expect(self.others, Others, "others", LensError, "bank.others(hashes) of a ControlBank")
        n_others = 0 if self.others is None else self.others.least()
        if lacks := kind.lacks(n_others):
            raise LensError(lacks)
        if self.normalise is not None and self.others is None:
            raise LensError(
                f"normalise={self.normalise!r} is fitted on other images, and there is no bank of them: "
                "ControlBank.from_images(model, images) makes one"
            )

    @property
    def kind(self) -> Control:
        """The control."""
        return control_named(self.control)

    @property
    def is_plain(self) -> bool:
        """Whether this is the control that every lens may have: a random direction, nothing normalised."""
        return self.control == "random" and self.normalise is None

    def __call__(
        self,
        outputs: Float[Tensor, "batch site row d_model"],
        origin: Float[Tensor, "#batch site row d_model"] | None,
        sites: list[Site],
        outputs_of: OutputsOf,
    ) -> Float[Tensor, "batch site row d_model"]:
        """Return what stands in the place of outputs.

        Args:
            outputs: What the sites write.
            origin: What the lens measures that from; None for zero.
            sites: The sites.
            outputs_of: Returns the same outputs of another cache.

        Raises:
            LensError: There is another number of images than others stand beside, or a site writes nothing there.
        """
        if self.others is not None and len(self.others.orders) != len(outputs):
            raise LensError(
                f"others stand beside {len(self.others.orders)} images, and the cache holds {len(outputs)}: "
                "bank.others(hashes) takes the hash of each image of the cache"
            )
        if self.is_plain:
            return self._random(outputs, origin)
        found = [self._of_image(i, outputs, origin, sites, outputs_of) for i in range(len(outputs))]
        made = torch.stack(found)
        return made if origin is None else origin + made

    def _random(self, outputs: Tensor, origin: Tensor | None) -> Tensor:
        """Return the isotropic control of all images at once: the numbers, in this order, of every earlier version."""
        deviation = outputs if origin is None else outputs - origin
        noise = torch.randn(outputs.shape, generator=self.generator, dtype=outputs.dtype, device="cpu")
        noise = noise.to(outputs.device)
        noise = noise - noise.mean(-1, keepdim=True)
        noise = noise * (centred_norm(deviation) / centred_norm(noise))[..., None, None]
        return noise if origin is None else origin + noise

    def _of_image(
        self, i: int, outputs: Tensor, origin: Tensor | None, sites: list[Site], outputs_of: OutputsOf
    ) -> Float[Tensor, "site row d_model"]:
        start = None if origin is None else origin[min(i, len(origin) - 1)]
        own = _centred(outputs[i] if start is None else outputs[i] - start)
        others, pick, memory = None, 0, {}
        if self.others is not None and (order := self.others.orders[i]):
            written, beside = self._bank_outputs(own, sites, outputs_of), sorted(order)
            said = b"" if start is None else start.detach().cpu().double().numpy().tobytes()
            digest = hashlib.sha256(said).hexdigest()
            memory = self.others.memory((tuple(beside), tuple(map(str, sites)), tuple(own.shape), digest))
            others = _once(memory, "others", lambda: _measured(written[beside].to(own), start))
            pick = beside.index(order[self.others.turn % len(order)])
        material = Material(
            own=own, others=others, pick=pick, generator=self.generator, sites=sites,
            memory=_once(memory, f"made {self.control} {self.normalise}", dict),
        )  # fmt: skip
        normaliser = None
        if self.normalise is not None:
            samples = samples_of(cast(Tensor, others))
            normaliser = _once(memory, self.normalise, lambda: Normaliser.fit(samples, self.normalise or ""))
        return stand_in(self.kind, material, normaliser)

    def _bank_outputs(self, own: Tensor, sites: list[Site], outputs_of: OutputsOf) -> Tensor:
        """Return what the sites write for every image of the bank, asked for once for all images and draws."""
        others = cast(Others, self.others)
        memory = others.memory(("bank", tuple(map(str, sites)), tuple(own.shape)))
        return _once(memory, "outputs", lambda: outputs_of(others.bank.cache))


def centred_norm(x: Float[Tensor, "*batch row d_model"]) -> Float[Tensor, "*batch"]:
    """Return the norm after mean removal over d_model, taken over all rows: what a LayerNorm sees of a size.

    >>> vl.lenses.centred_norm(torch.tensor([[4.0, 10.0]]))  # one row of width 2, whose mean is 7
    tensor(4.2426)
    """
    return (x - x.mean(-1, keepdim=True)).flatten(-2).norm(dim=-1)


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def _measured(
    outputs: Float[Tensor, "other site row d_model"], start: Float[Tensor, "site row d_model"] | None
) -> Float[Tensor, "other site row d_model"]:
    """Return how far outputs lie from an origin, without the mean; what is rounding of it is none."""
    found = _centred(outputs if start is None else outputs - start)
    size = centred_norm(outputs) + (0 if start is None else centred_norm(start))
    silent = centred_norm(found) <= _ROUNDING * torch.finfo(found.dtype).eps * size
    return found.masked_fill(silent[..., None, None], 0.0)


def _once(memory: dict[str, Any], name: str, make: Callable[[], Any]) -> Any:
    if name not in memory:
        memory[name] = make()
    return memory[name]
