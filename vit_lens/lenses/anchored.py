"""Lenses that start from other real images, each of which has readings and pictures of its own."""

__all__ = ["AnchoredLens", "alike", "average_reading", "check_share"]

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vit_lens.addresses import Site, Sites
from vit_lens.attribution import check_cache, check_model, finite
from vit_lens.conditions import Condition
from vit_lens.controls import Against, Change
from vit_lens.errors import LensError, VitLensError
from vit_lens.lenses.anchors import Anchors
from vit_lens.lenses.residual import ResidualLens, centred_norm
from vit_lens.towers import Tower, ViTActivationCache

_A = TypeVar("_A", bound="AnchoredLens")
_L = TypeVar("_L")
_STRONGEST = 1e6  # at which the anchor is lost to rounding in float32


class AnchoredLens(ResidualLens):
    """A lens that adds to another image what differs there, as long as a typical difference of that site may be.

    Subclasses are dataclasses with the anchors and the strength. They say what an anchor's output is read from
    (:meth:`_last`), and how long a difference usually is (:meth:`_typical`).

    >>> issubclass(vl.CounterfactualLens, vl.lenses.AnchoredLens)
    True
    """

    anchors: Anchors
    share: float | int
    _lacks = (
        "the counterfactual lens changes what one submodule adds to the residual stream, and this is the stream "
        "itself: read it with DiffusionLens() (--lens diffusion)"
    )

    @abstractmethod
    def _last(self, anchor: ViTActivationCache, sites: list[Site]) -> Float[Tensor, "1 row d_last"]:
        """Return what the anchor's output is read from, at some sites of one stream."""

    @abstractmethod
    def _typical(self, sites: Sequence[Site]) -> Float[Tensor, " site"]:
        """Return how far two inputs usually lie apart at some sites, in float64."""

    @abstractmethod
    def _check_made(self, model: Tower) -> None:
        """Raise unless everything that the lens holds is the model's own."""

    # ---- how it describes itself

    def _which(self) -> dict[str, Any]:
        """Return the settings that say from where it starts."""
        names, digits = self.anchors.names, self.anchors.content
        if len(names) == 1:
            return {"anchor": names[0], "anchor_content": digits[0]}
        return {"anchors": list(names), "anchors_content": list(digits)}

    def _which_words(self) -> str:
        first, *more = self.anchors.names
        if more:
            return f"{1 + len(more)} anchors"
        return first if first.startswith("anchor ") else f"anchor {first}"

    def each(self: _A) -> "list[_A]":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return a lens for every anchor, each with readings and pictures of its own."""
        if len(self.anchors) == 1:
            return [self]
        return [replace(self, anchors=self.anchors.at(place)) for place in range(len(self.anchors))]  # pyright: ignore[reportArgumentType, reportCallIssue]

    def starts(self) -> dict[str, Image.Image]:
        """Return the pictures of anchors by the digits of their content, of those that were given as images."""
        pairs = zip(self.anchors.content, self.anchors.pictures, strict=False)
        return dict(pairs)

    def knows(self, cache: ViTActivationCache) -> list[bool]:
        """Return which inputs of a run are anchors."""
        return self.anchors.equal(check_cache(cache)).any(1).tolist()

    def reads(self, site: Site) -> bool:
        """Return whether the site is something written to the residual stream, not the stream itself."""
        return not site.is_residual

    def check_sites(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: Tower, sites: Sites
    ) -> list[Site]:
        """Return the sites if they are heads, attention blocks or MLPs of the model, and the lens is the model's.

        Raises:
            UnknownSiteError: A site is not one of the model's.
            LensError: A site is the residual stream, or writes the same for every image.
            ReferenceMismatchError: The anchors or the norms are another model's.
        """
        check_model(model)
        resolved = Site.resolve(sites, model.cfg)
        if other := [str(s) for s in resolved if not self.reads(s)]:
            raise LensError(f"{', '.join(other)}: {self._lacks}")
        self._check_made(model)
        self._norms(resolved)
        return resolved

    # ---- reading

    def embed_each(self, cache: ViTActivationCache, sites: Sites) -> Float[Tensor, "anchor batch site d_embed"]:
        """Return the embedding of every anchor, apart.

        Args:
            cache: The cache that :meth:`read` takes.
            sites: Sites as :meth:`read` takes them.
        """
        return torch.stack([one.embed(cache, sites) for one in self.each()])

    def read_changed(self, cache: ViTActivationCache, sites: Sites, change: Change) -> Condition:
        """Return what is read where something else stands in; of several anchors the mean direction at the mean length.

        All anchors are given the same directions, and none of them stands in as another image.

        Raises:
            UnknownSiteError: A site is not one of the model's.
            LensError: The lens is not defined on a site, an input is an anchor, what is read is not finite, or nothing
                can stand in.
            ReferenceMismatchError: The anchors or the norms are another model's.
        """
        self._check_inputs(cache)
        apart = self._apart(change)
        generator = change.generator if isinstance(change, Against) else None

        def read(one: AnchoredLens) -> Tensor:
            return self._pooled(ResidualLens.read_changed(one, cache, sites, apart))

        found = alike(self.each(), generator, read)
        return Condition(pooled=found[0] if len(found) == 1 else average_reading(torch.stack(found)))

    def read_writes(
        self, cache: ViTActivationCache, site: Site | str, writes: Float[Tensor, "batch write row d_model"]
    ) -> Condition:
        """Refuse what is written without what is written for the anchor.

        Raises:
            LensError: Always.
        """
        raise LensError(
            f"{self.label} reads changes: give what is written less what is written for the anchor to read_changes() "
            "of a CounterfactualLens"
        )

    def _read(
        self, cache: ViTActivationCache, sites: list[Site], outputs: Float[Tensor, "batch site row d_last"]
    ) -> Float[Tensor, "batch site row d_last"]:
        last = self._last(self._one_anchor(), sites).to(outputs)
        strength = self._strength(sites).to(outputs)[..., None, None]
        return last[:, None] + strength * (outputs - self._origin(cache, sites).to(outputs))

    @abstractmethod
    def _origin(self, cache: ViTActivationCache, sites: list[Site]) -> Float[Tensor, "1 site row d_last"]:
        """Return what the sites write for the anchor."""

    def _strength(self, sites: list[Site]) -> Float[Tensor, "1 site"]:
        """Return by what a difference is multiplied at each site, in float64: sites of one stream."""
        size = centred_norm(self._last(self._one_anchor(), sites).double()).cpu()
        return self.share * size[:, None] / self._norms(sites)

    def _norms(self, sites: Sequence[Site]) -> Float[Tensor, " site"]:
        norms = self._typical(sites)
        if constant := [str(site) for site, norm in zip(sites, norms.tolist(), strict=True) if not norm]:
            raise LensError(
                f"{', '.join(constant[:4])} holds the same for every reference image (but for rounding), so that "
                "nothing of it can change; leave it out"
            )
        return norms

    def _apart(self, change: Change) -> Change:
        """Return a control without the anchors among its other images: their difference from themselves is none."""
        if not isinstance(change, Against) or change.others is None:
            return change
        own = set(self.anchors.equal(change.others.bank.cache).any(1).nonzero()[:, 0].tolist())
        if not own:
            return change
        orders = tuple(tuple(place for place in order if place not in own) for order in change.others.orders)
        return replace(change, others=replace(change.others, orders=orders))

    def _check_inputs(self, cache: ViTActivationCache) -> None:
        self.anchors.check(check_cache(cache).model)  # others have no ends that could be compared
        same = self.anchors.equal(cache).nonzero()
        if len(same):
            image, place = same[0].tolist()
            raise LensError(
                f"image {image} is the anchor {self.anchors.names[place]!r} itself, in which nothing changes: leave "
                "it out of what is read, or take another anchor"
            )

    def _one_anchor(self) -> ViTActivationCache:
        if len(self.anchors) > 1:
            raise LensError(
                f"{self.label}: this shows one anchor at a time; take lens.each(), which has a lens for every anchor"
            )
        return self.anchors.cache


def alike(lenses: Iterable[_L], generator: torch.Generator | None, read: Callable[[_L], Tensor]) -> list[Tensor]:
    """Return what is read through several lenses, all of which are given the same random numbers.

    Args:
        lenses: The lenses.
        generator: The source of the numbers; None where there are none.
        read: Reads through one of the lenses.
    """
    before, found = None if generator is None else generator.get_state(), []
    for one in lenses:
        if generator is not None and before is not None:
            generator.set_state(before)
        found.append(read(one))
    return found


def average_reading(embeds: Float[Tensor, "anchor *batch d_embed"]) -> Float[Tensor, "*batch d_embed"]:
    """Return the mean direction of several readings, at their mean length.

    Its cosine with any vector is the mean of the readings' cosines, but for a factor that is the same for all vectors.

    >>> from vit_lens.lenses import average_reading
    >>> average_reading(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    tensor([1.4142, 1.4142])
    """
    norms = embeds.norm(dim=-1, keepdim=True)
    mean = (embeds / norms).mean(0)
    return mean * (norms.mean(0) / mean.norm(dim=-1, keepdim=True))


def check_share(share: object) -> float:
    """Return a strength.

    Raises:
        LensError: It is no finite number above 0, or so large that the anchor would be lost to rounding.
    """
    try:
        found = finite("share", share, LensError)
    except VitLensError:
        found = 0
    if not 0 < found <= _STRONGEST:
        raise LensError(f"share={share!r}; expected a number above 0, at most {_STRONGEST:g}: how long a typical "
                        "difference is beside the anchor's last residual")  # fmt: skip
    return float(found)
