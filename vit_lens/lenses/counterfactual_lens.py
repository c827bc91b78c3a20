"""The counterfactual lens: what of another image changes when one site's output is this image's."""

__all__ = ["CounterfactualLens", "alike", "anchored_hooks", "average_reading", "check_share"]

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vit_lens.addresses import Site, Sites
from vit_lens.attribution import check_cache, check_finite, check_model, finite, in_full
from vit_lens.conditions import Condition
from vit_lens.controls import Against, Change
from vit_lens.errors import LensError, VitLensError, expect
from vit_lens.lenses.anchors import Anchors
from vit_lens.lenses.contract import HookFn
from vit_lens.lenses.residual import ResidualLens, centred_norm, same_start, set_rows, site_outputs
from vit_lens.reference import DifferenceNorms
from vit_lens.towers import Tower, ViTActivationCache, read_wide, write_of

_L = TypeVar("_L")
_STRONGEST = 1e6  # at which the anchor is lost to rounding in float32


@dataclass(frozen=True, kw_only=True)
class CounterfactualLens(ResidualLens):
    """Carry over into an anchor, another real image ``A``, by how much one site's output differs in this one.

    ``LN(r_L(A) + c ||r_L(A)|| (h(x) - h(A)) / typical norm of that difference) proj``, where ``h`` is what the site
    writes and ``r_L`` the last residual: what of ``A`` changes when the site writes what it writes here. With ``c ||r||
    / typical`` at 1 it is the direct effect of patching the site from this image into ``A``. The strength is one for
    each *site* and not for each image, so that a small difference stays a small change. Norms are root mean squares
    over pairs of reference images, after mean removal over d_model (:class:`vit_lens.reference.DifferenceNorms`).

    Since everything but the site is a real image's, the embedding lies close to those of images, and a decoder draws
    what it was asked for (docs/counterfactual_lens.md has numbers). What it shows is a *change*: look at the anchor
    beside it. Of several anchors each has a reading and a picture of its own (:meth:`each`); :meth:`read` gives their
    mean direction, so that its cosine with any caption ranks as the mean of the anchors' cosines does.

    The form with one anchor and without a norm is the interchange intervention of Geiger et al. 2021 (arXiv
    2106.02997) and the activation patching of Vig et al. 2020 (arXiv 2004.12265), along the direct path alone; strength
    and read-out are ours.

    Args:
        anchors: Other inputs of the same model; none of them may be read.
        norms: How far two inputs usually lie apart at each site: ``ReferenceMeans.from_images(...).differences``.
        share: The strength ``c``, above 0: how long a typical difference is beside the anchor's last residual.

    Raises:
        LensError: The strength is no finite number above 0, or the anchors or the norms are none.

    >>> means = vl.ReferenceMeans.shipped(model)
    >>> lens = vl.CounterfactualLens(anchors=vl.lenses.Anchors.of(model, images[1]), norms=means.differences)
    >>> _, one = model.run_with_cache(pixels[:1])
    >>> lens.label, lens.embed(one, ["L3H4", "L5.mlp"]).shape
    ('counterfactual, share 0.5, anchor 2_heart.png', torch.Size([1, 2, 128]))
    >>> hooked = model.run_with_hooks(pixels[:1], fwd_hooks=lens.hooks(one, "L3H4"))
    >>> torch.allclose(hooked, lens.embed(one, "L3H4")[:, 0], atol=1e-4)
    True
    >>> lens.embed(cache, "L3H4")
    Traceback (most recent call last):
    vit_lens.errors.LensError: image 1 is the anchor '2_heart.png' itself, in which nothing changes: ...
    """

    anchors: Anchors
    norms: DifferenceNorms
    share: float | int = 0.5

    name = "counterfactual"

    def __post_init__(self) -> None:
        expect(self.anchors, Anchors, "anchors", LensError, "as Anchors.of(model, other_images) makes them")
        if self.norms is None:
            raise LensError(
                "norms=None: these reference means hold no norms of differences, being of one image or of an earlier "
                "version; make them again with ReferenceMeans.from_images(model, images), or DifferenceNorms.of"
            )
        expect(self.norms, DifferenceNorms, "norms", LensError, "such as ReferenceMeans.load(path).differences")
        object.__setattr__(self, "share", check_share(self.share))

    # ---- how it describes itself

    def settings(self) -> dict[str, Any]:
        """Return the definition, the strength, which anchors it starts from, and what it measures by."""
        names, digits = self.anchors.names, self.anchors.content
        alone = {"anchor": names[0], "anchor_content": digits[0]}
        which = alone if len(names) == 1 else {"anchors": list(names), "anchors_content": list(digits)}
        definition = "LN(r_L(A) + c |r_L(A)| (h(x) - h(A)) / typical norm) proj"
        measured = {"norms": self.norms.content, "norms_n": self.norms.n}
        return {"definition": definition, "share": self.share, **which, **measured}

    @property
    def label(self) -> str:
        """The lens's strength and anchor, for legends."""
        anchors = self.anchors.names
        return f"counterfactual, share {self.share:g}, " + (
            f"anchor {anchors[0]}" if len(anchors) == 1 else f"{len(anchors)} anchors"
        )

    @property
    def words(self) -> str:
        """Two sentences on what is changed, and in what."""
        names = ", ".join(self.anchors.names)
        return (
            f"Starts from another image ({names}) and changes in it what this site writes to what it writes for the "
            "input, everything else held. What differs from that image's own picture came from this site."
        )

    def each(self) -> "list[CounterfactualLens]":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return a lens for every anchor, each with readings and pictures of its own."""
        if len(self.anchors) == 1:
            return [self]
        return [replace(self, anchors=self.anchors.at(place)) for place in range(len(self.anchors))]

    def reads(self, site: Site) -> bool:
        """Return whether the site is something written to the residual stream, not the stream itself."""
        return not site.is_residual

    def check_sites(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: Tower, sites: Sites
    ) -> list[Site]:
        """Return the sites if they are heads, attention blocks or MLPs of the model.

        Raises:
            UnknownSiteError: A site is not one of the model's.
            LensError: A site is the residual stream, or writes the same for every image.
            ReferenceMismatchError: The anchors or the norms are another model's.
        """
        check_model(model)
        resolved = Site.resolve(sites, model.cfg)
        if residual := [str(s) for s in resolved if not self.reads(s)]:
            raise LensError(
                "the counterfactual lens changes what one submodule adds to the residual stream; "
                f"{', '.join(residual)} {'are' if len(residual) > 1 else 'is'} the stream itself: read it with "
                "DiffusionLens() (--lens diffusion)"
            )
        self._check_made(model)
        self._typical(resolved)
        return resolved

    def starts(self) -> dict[str, Image.Image]:
        """Return the pictures of anchors by the digits of their content, of those that were given as images."""
        pairs = zip(self.anchors.content, self.anchors.pictures, strict=False)
        return dict(pairs)

    def knows(self, cache: ViTActivationCache) -> list[bool]:
        """Return which inputs of a run are anchors."""
        return self.anchors.equal(check_cache(cache)).any(1).tolist()

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

        def read(one: CounterfactualLens) -> Tensor:
            return self._pooled(ResidualLens.read_changed(one, cache, sites, apart))

        found = alike(self.each(), generator, read)
        return Condition(pooled=found[0] if len(found) == 1 else average_reading(torch.stack(found)))

    def _apart(self, change: Change) -> Change:
        """Return a control without the anchors among its other images: their difference from themselves is none."""
        if not isinstance(change, Against) or change.others is None:
            return change
        own = set(self.anchors.equal(change.others.bank.cache).any(1).nonzero()[:, 0].tolist())
        if not own:
            return change
        orders = tuple(tuple(place for place in order if place not in own) for order in change.others.orders)
        return replace(change, others=replace(change.others, orders=orders))

    def read_writes(
        self, cache: ViTActivationCache, site: Site | str, writes: Float[Tensor, "batch write row d_model"]
    ) -> Condition:
        """Refuse what is written without what is written for the anchor; :meth:`read_changes` takes the difference.

        Raises:
            LensError: Always.
        """
        raise LensError(
            f"{self.label} reads changes: give what is written less what is written for the anchor to read_changes()"
        )

    def read_changes(
        self, cache: ViTActivationCache, site: Site | str, changes: Float[Tensor, "batch write row d_model"]
    ) -> Condition:
        """Return what is read where something that is written at a site changes, at the strength of that site.

        A feature's share of an activation is one; see :func:`vit_lens.dictionaries.feature_embeddings`, which takes the
        anchor's away.

        Args:
            cache: The cache of the run in which they are written.
            site: Where: an attention block, an MLP, or a place of the residual stream.
            changes: What is written less what is written for the anchor, at the read-out rows.

        Raises:
            UnknownSiteError: The site is not one of the model's.
            LensError: The changes have another shape, there are several anchors, or what is read is not finite.
        """
        self._check_inputs(cache)
        model, anchor = cache.model, self._one_anchor()
        (one,) = Site.resolve(site, model.cfg)
        self._check_made(model)
        stream = model.stream_of(one)
        last = stream.last(anchor)
        if changes.ndim != 4 or changes.shape[2:] != last.shape[1:]:
            raise LensError(
                f"changes are {tuple(changes.shape)}; expected [images, changes, {last.shape[1]} read-out rows, "
                f"{last.shape[2]}]"
            )
        with in_full(model):
            changes = changes.to(last)
            read = stream.read(last[:, None] + self._strength([one]).to(last)[..., None, None] * changes)
        check_finite(read, [one] * changes.shape[1], cache)
        return Condition(pooled=read)

    def _origin(self, cache: ViTActivationCache, sites: list[Site]) -> Float[Tensor, "1 site row d_model"]:
        return site_outputs(self._one_anchor(), sites)

    def _read(
        self, cache: ViTActivationCache, sites: list[Site], outputs: Float[Tensor, "batch site row d_model"]
    ) -> Float[Tensor, "batch site row d_model"]:
        anchor = self._one_anchor()
        last = anchor.model.stream_of(sites[0]).last(anchor).to(outputs)
        strength = self._strength(sites).to(outputs)[..., None, None]
        return last[:, None] + strength * (outputs - self._origin(cache, sites).to(outputs))

    def _strength(self, sites: list[Site]) -> Float[Tensor, "1 site"]:
        """Return by what a difference is multiplied at each site, in float64: sites of one stream."""
        anchor = self._one_anchor()
        size = centred_norm(anchor.model.stream_of(sites[0]).last(anchor).double()).cpu()
        return self.share * size[:, None] / self._typical(sites)

    def _typical(self, sites: Sequence[Site]) -> Float[Tensor, " site"]:
        norms = self.norms.of_sites(sites)
        if constant := [str(site) for site, norm in zip(sites, norms.tolist(), strict=True) if not norm]:
            raise LensError(
                f"{', '.join(constant[:4])} holds the same for every one of {self.norms.n} reference images (but for "
                "rounding), so that nothing of it can change; leave it out"
            )
        return norms

    def _check_made(self, model: Tower) -> None:
        self.anchors.check(model)
        self.norms.check(model)

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

    def hooks(self, cache: ViTActivationCache, site: Site | str) -> list[tuple[str, HookFn]]:
        """Return hooks under which the model outputs the embedding, for the cached images.

        What block 0 is given and every attention and MLP output go to the anchor's (for a head, the other heads'
        ``z``), the site to the anchor's plus the scaled difference.

        Raises:
            UnknownSiteError: The site is not one of the model's.
            LensError: The site is the residual stream, an input is an anchor, or there are several anchors.
            ReferenceMismatchError: The anchors or the norms are another model's.
        """
        own = self.check_site(check_cache(cache).model, site)
        self._check_inputs(cache)
        start = cache.model.stream_of(own).start
        strength = self._strength([own])[:, 0].expand(len(cache.readout(own.hook_name)))
        return [*same_start(cache, start), *anchored_hooks(cache, self._one_anchor(), own, strength)]


def anchored_hooks(
    cache: ViTActivationCache, anchor: ViTActivationCache, site: Site, strength: Float[Tensor, " batch"]
) -> list[tuple[str, HookFn]]:
    """Return hooks that hold a stream at an anchor's, but for one site that is moved away from it.

    Args:
        cache: The cache of the inputs that will be run.
        anchor: That of one anchor, or of one for each input.
        site: What is moved: a head, an attention block or an MLP.
        strength: By what its difference from the anchor is multiplied.
    """
    stream, own, one = cache.model.stream_of(site), site.hook_name, len(anchor.readout(site.hook_name)) == 1
    names = [*([] if stream.start is None else [stream.start]), *stream.writes]
    held = [name for name in names if name != write_of(site)]  # of a head, that follows from z
    hooks = [(name, set_rows(cache, read_wide(anchor, name), of_images=not one)) for name in held]
    there, here = (read_wide(each, own) for each in (anchor, cache))
    rows = there.expand_as(here).clone()
    which = slice(None) if site.head is None else (slice(None), slice(None), site.head)
    scale = strength.to(rows).reshape(-1, *[1] * (rows[which].ndim - 1))
    rows[which] += scale * (here - there)[which]
    return [*hooks, (own, set_rows(cache, rows))]


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
