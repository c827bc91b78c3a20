"""The counterfactual lens: what of another image changes when one site's output is this image's."""

__all__ = ["CounterfactualLens", "anchored_hooks"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.attribution import check_cache, check_finite, in_full
from vit_lens.conditions import Condition
from vit_lens.errors import LensError, expect
from vit_lens.lenses.anchored import AnchoredLens, check_share
from vit_lens.lenses.anchors import Anchors
from vit_lens.lenses.contract import HookFn
from vit_lens.lenses.residual import same_start, set_rows, site_outputs
from vit_lens.reference import DifferenceNorms
from vit_lens.towers import Tower, ViTActivationCache, read_wide, write_of


@dataclass(frozen=True, kw_only=True)
class CounterfactualLens(AnchoredLens):
    """Carry over into an anchor, another real image ``A``, by how much one site's output differs in this one.

    ``LN(r_L(A) + c ||r_L(A)|| (h(x) - h(A)) / typical norm of that difference) proj``, where ``h`` is what the site
    writes and ``r_L`` the last residual: what of ``A`` changes when the site writes what it writes here. With ``c ||r||
    / typical`` at 1 it is the direct effect of patching the site from this image into ``A``. The strength is one for
    each *site* and not for each image, so that a small difference stays a small change. The typical norm is the root
    mean square over pairs of reference images (:class:`vit_lens.reference.DifferenceNorms`); all norms are those after
    mean removal over d_model.

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
        definition = "LN(r_L(A) + c |r_L(A)| (h(x) - h(A)) / typical norm) proj"
        measured = {"norms": self.norms.content, "norms_n": self.norms.n}
        return {"definition": definition, "share": self.share, **self._which(), **measured}

    @property
    def label(self) -> str:
        """The lens's strength and anchor, for legends."""
        return f"counterfactual, share {self.share:g}, {self._which_words()}"

    @property
    def words(self) -> str:
        """Two sentences on what is changed, and in what."""
        names = ", ".join(self.anchors.names)
        return (
            f"Starts from another image ({names}) and changes in it what this site writes to what it writes for the "
            "input, everything else held. What differs from that image's own picture came from this site."
        )

    # ---- reading

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

    def _last(self, anchor: ViTActivationCache, sites: list[Site]) -> Float[Tensor, "1 row d_model"]:
        return anchor.model.stream_of(sites[0]).last(anchor)

    def _typical(self, sites: Sequence[Site]) -> Float[Tensor, " site"]:
        return self.norms.of_sites(sites)

    def _check_made(self, model: Tower) -> None:
        self.anchors.check(model)
        self.norms.check(model)

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
