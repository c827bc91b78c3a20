"""The counterfactual lens by Jacobians: what of another image changes with what one site writes at all rows."""

__all__ = ["JacobianCounterfactualLens"]

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.attribution import check_cache
from vit_lens.errors import LensError, expect
from vit_lens.lenses.anchored import AnchoredLens, check_share
from vit_lens.lenses.anchors import Anchors
from vit_lens.lenses.contract import HookFn
from vit_lens.lenses.jacobian_lens import JacobianLens, keep_moved, put_state
from vit_lens.reference import Jacobians
from vit_lens.towers import Stream, Tower, ViTActivationCache


@dataclass(frozen=True, kw_only=True)
class JacobianCounterfactualLens(AnchoredLens):
    """Carry over into another real image ``A`` how a site's output differs at *all* rows, by averaged Jacobians.

    ``LN(last(A) + c ||last(A)|| sum_rows J[row] (h(row) - h_A(row)) / typical norm of that sum) proj``: the
    :class:`~vit_lens.CounterfactualLens`, but for the path. That one follows what a site writes at the read-out row and
    nothing else; this one follows every row to first order through all later blocks, as :class:`~vit_lens.JacobianLens`
    does, so that it sees early MLPs. The typical norm is one for each site, over pairs of the images on which the
    Jacobians' error was measured (:attr:`vit_lens.reference.Jacobians.moved`).

    Args:
        jacobians: The Jacobians, measured (``vit-lens jacobian``, or ``JacobianLens.fit(model, images)``).
        anchors: Other images, at all rows: ``Anchors.of(model, images, rows="all")``; none of them may be read.
        share: The strength ``c``, above 0: how long a typical difference is beside what the anchor is read from.

    Raises:
        LensError: The strength is no finite number above 0, the anchors are none or hold no rows but those that are
            read, or the Jacobians were not measured.

    >>> made = vl.JacobianLens.fit(model, images, held_out=pixels.flip(-1)).jacobians
    >>> anchors = vl.lenses.Anchors.of(model, images[1], rows="all")
    >>> lens = vl.JacobianCounterfactualLens(jacobians=made, anchors=anchors)
    >>> _, one = model.run_with_cache(pixels[:1])
    >>> lens.label, lens.embed(one, ["L3H4", "L2.mlp"]).shape
    ('Jacobian counterfactual, share 0.5, anchor 2_heart.png', torch.Size([1, 2, 128]))
    >>> hooked = model.run_with_hooks(pixels[:1], fwd_hooks=lens.hooks(one, "L2.mlp"))
    >>> torch.allclose(hooked, lens.embed(one, "L2.mlp")[:, 0], atol=1e-4)
    True
    """

    jacobians: Jacobians
    anchors: Anchors
    share: float | int = 0.5

    name = "jacobian"
    rows = "all"
    _lacks = "what differs is written by heads, attention blocks and MLPs of layers; take JacobianLens(alpha=5)"

    def __post_init__(self) -> None:
        expect(self.jacobians, Jacobians, "jacobians", LensError, "such as JacobianLens.load(path).jacobians")
        expect(self.anchors, Anchors, "anchors", LensError, "as Anchors.of(model, images, rows='all') makes them")
        if self.jacobians.moved is None:
            raise LensError(
                "these Jacobians do not know how far they usually move a difference, which is measured together with "
                "their error: give JacobianLens.measure(model, held_out) a few images that were not fitted on, or the "
                "command `vit-lens jacobian` without --n-held-out 0"
            )
        if self.anchors.cache.rows != "all":
            raise LensError(
                "these anchors hold the rows that are read alone, and what is carried is written at all rows: take "
                "Anchors.of(model, images, rows='all')"
            )
        object.__setattr__(self, "share", check_share(self.share))

    # ---- how it describes itself

    def settings(self) -> dict[str, Any]:
        """Return the definition, the strength, which anchors it starts from, and which Jacobians it goes by."""
        made = self.jacobians
        definition = "LN(last(A) + c |last(A)| sum J (h(x) - h(A)) / typical norm) proj, all rows"
        said = {"jacobian": made.content, "jacobian_n": made.n, "row_groups": made.values.shape[1]}
        return {"definition": definition, "share": self.share, **self._which(), **said}

    @property
    def label(self) -> str:
        """The lens's strength and anchor, for legends."""
        return f"Jacobian counterfactual, share {self.share:g}, {self._which_words()}"

    @property
    def words(self) -> str:
        """Two sentences on what is changed, and in what."""
        names = ", ".join(self.anchors.names)
        return (
            f"Starts from another image ({names}) and changes in it, to first order, what this site writes at all rows "
            "to what it writes for the input, and what later blocks make of it. What differs from that image's own "
            "picture came from this site."
        )

    def reads(self, site: Site) -> bool:
        """Return whether the site is a head, an attention block or an MLP of a layer."""
        return super().reads(site) and not site.is_pool

    # ---- reading

    @cached_property
    def _raw(self) -> JacobianLens:
        return JacobianLens(jacobians=self.jacobians, alpha=None)

    def _outputs(self, cache: ViTActivationCache, sites: list[Site]) -> Float[Tensor, "batch site 1 d_last"]:
        return self._raw.transport(cache, sites)[:, :, None]

    def _embed(
        self, stream: Stream, states: Float[Tensor, "batch site 1 d_last"]
    ) -> Float[Tensor, "batch site d_embed"]:
        return self._raw.read_last(self.anchors.cache.model, states[:, :, 0])

    def _origin(self, cache: ViTActivationCache, sites: list[Site]) -> Float[Tensor, "1 site 1 d_last"]:
        return self._outputs(self._one_anchor(), sites)

    def _last(self, anchor: ViTActivationCache, sites: list[Site]) -> Float[Tensor, "1 1 d_last"]:
        return self._raw.last(anchor)[:, None]

    def _typical(self, sites: Sequence[Site]) -> Float[Tensor, " site"]:
        moved = self.jacobians.moved or {}
        found = [moved[site.kind][site.layer or 0] for site in sites]
        return torch.stack(
            [one if site.head is None else one[site.head] for site, one in zip(sites, found, strict=True)]
        ).double()

    def _check_made(self, model: Tower) -> None:
        self.anchors.check(model)
        self.jacobians.check(model)

    def hooks(self, cache: ViTActivationCache, site: Site | str) -> list[tuple[str, HookFn]]:
        """Return hooks under which the model outputs the site's reading, for any images.

        What the site writes in the run, at every row, is carried to ``last``; what of it differs from the anchor's is
        added to the anchor's ``last``, in whose place the model's own norm, pooling and projection read it.

        Raises:
            UnknownSiteError: The site is not one of the model's.
            LensError: The site is the residual stream or one of attention pooling, or there are several anchors.
            ReferenceMismatchError: The anchors or the Jacobians are another model's.
        """
        model = check_cache(cache).model
        own = self.check_site(model, site)
        self._check_inputs(cache)
        origin = self._origin(cache, [own])[0, 0, 0]
        start = self._last(self._one_anchor(), [own])[0, 0].to(origin), origin
        moved: list[Tensor] = []
        keep = partial(keep_moved, moved=moved, jacobians=self.jacobians, model=model, site=own)
        put = partial(put_state, moved=moved, alpha=float(self._strength([own])), start=start, readout=model.readout)
        end = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post" if model.readout.sees_one_row else "hook_pooled"
        return [(own.hook_name, keep), (end, put)]
