"""Patch-token lenses: what a part writes at every patch, as the tokens that a representation autoencoder draws.

They are the Diffusion Lens and the Diffusion Steering Lens row by row: each patch row of the last residual is replaced,
the final norm takes fresh statistics of every row, without gain and bias, and all rows are drawn together.
"""

__all__ = ["PatchDiffusionLens", "PatchSteeringLens"]

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vit_lens.addresses import Site, Sites
from vit_lens.attribution import check_cache, in_full
from vit_lens.conditions import Condition
from vit_lens.errors import InterventionError, LensError
from vit_lens.lenses.contract import HookFn
from vit_lens.lenses.diffusion_lens import DiffusionLens
from vit_lens.lenses.patch_rows import PatchRows, mean_write, put, silent, whole, written
from vit_lens.lenses.residual import freeze, same_start, site_outputs
from vit_lens.lenses.steering_lens import DiffusionSteeringLens
from vit_lens.tokens import Tokens, describe_position, resolve_tokens
from vit_lens.towers import Tower, ViTActivationCache, at_patches, patches_of, write_of


@dataclass(frozen=True)
class PatchDiffusionLens(PatchRows):
    """Read what a site holds or writes at every patch as if it were the last residual there, and hand over the tokens.

    At the last ``resid_post`` these are the model's own patch tokens.

    >>> lens = vl.PatchDiffusionLens()
    >>> lens.read(cache, ["L3H4", "L5.resid_post"])
    Condition([2, 2] rows of tokens [16, 128])
    >>> own = vl.patch_tokens(cache)
    >>> bool(torch.allclose(lens.read(cache, "L7.resid_post").tokens[:, 0], own, atol=1e-4))
    True
    >>> with model.hooks(lens.hooks(cache, "L3H4")):
    ...     _, alone = model.run_with_cache(pixels)
    >>> bool(torch.allclose(vl.patch_tokens(alone), lens.read(cache, "L3H4").tokens[:, 0], atol=1e-3))
    True
    """

    name = "patch-diffusion"

    @property
    def label(self) -> str:
        """The lens's name; there is nothing to set."""
        return "Diffusion Lens of patches"

    @property
    def words(self) -> str:
        """A sentence on how a site is read."""
        return (
            "Reads what the site holds or writes at every patch as if it were the last residual there: final "
            "LayerNorm, without gain and bias, then all patch tokens are drawn together."
        )

    def settings(self) -> dict[str, Any]:
        """Return the definition; there is nothing to set."""
        return {"definition": "N(h[patch])"}

    def _read(
        self, cache: ViTActivationCache, sites: list[Site], outputs: Float[Tensor, "batch site row d_model"]
    ) -> Float[Tensor, "batch site row d_model"]:
        return outputs

    def hooks(self, cache: ViTActivationCache, site: Site | str) -> list[tuple[str, HookFn]]:
        """Return hooks under which nothing but the site reaches the end of the residual stream, at any token.

        Args:
            cache: The cache of the images that will be run under the hooks, at every token.
            site: One site.

        Raises:
            UnknownSiteError: The site is not one of the model's.
            LensError: The site belongs to attention pooling.
        """
        site = self.check_site(check_cache(cache).model, site)
        at_patches(cache)
        stream = cache.model.stream_of(site)
        if site.is_residual:
            return DiffusionLens().hooks(cache, site)  # which silences at every token
        own = write_of(site)
        silenced = [stream.start] if stream.start else []
        silenced += [name for name in stream.writes if name != own]
        alone = partial(put, value=written(cache, site))
        return [*same_start(cache, stream.start), *((name, silent) for name in silenced), (own, alone)]


@dataclass(frozen=True, kw_only=True)
class PatchSteeringLens(PatchRows, DiffusionSteeringLens):
    """Steer every patch row of the last residual along what a site writes there, and hand over the tokens.

    With ``h`` the site's output, ``r_L`` the last residual, ``mu`` means over a reference set, all at one patch, and
    ``N`` the final norm without gain and bias:

    ===================== ==============================================================================
    ``anchor="mean"``     ``N(mu_L + alpha (h - mu_h))``: an average picture, but for what the site writes here
    ``anchor="clean"``    ``N(r_L + (alpha - 1) h)``
    ===================== ==============================================================================

    Args:
        alpha: The strength, as for :class:`vit_lens.DiffusionSteeringLens`; None where ``share`` says it.
        share: The norm-matched strength, of all patch rows together, so that rows keep their sizes among each other;
            None where ``alpha`` says it.
        anchor: Where steering starts: ``clean`` or ``mean``.
        reference: The means at every token (``positions="all"``), for ``anchor="mean"``; None for the clean anchor.
        at: The patches whose write counts, as ``tokens`` of interventions are named (``"patch5"``, ``(1, 2)``, a list);
            every other row stays at the anchor. None takes all.

    Raises:
        LensError: As for :class:`vit_lens.DiffusionSteeringLens`; or the means hold the read-out rows alone.

    >>> means = vl.ReferenceMeans.shipped(model, positions="all")
    >>> lens = vl.PatchSteeringLens(alpha=5, anchor="mean", reference=means)
    >>> lens.read(cache, ["L3H4", "L5.mlp"])
    Condition([2, 2] rows of tokens [16, 128])
    >>> here = vl.PatchSteeringLens(alpha=5, anchor="mean", reference=means, at=(1, 2))
    >>> here.label
    'DSL of patches, mean-anchored, alpha 5, at (1, 2)'
    >>> with model.hooks(here.hooks(cache, "L3H4")):
    ...     _, steered = model.run_with_cache(pixels)
    >>> bool(torch.allclose(vl.patch_tokens(steered), here.read(cache, "L3H4").tokens[:, 0], atol=1e-3))
    True
    """

    at: Tokens | None = None

    name = "patch-dsl"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reference is not None and self.reference.positions != "all":
            raise LensError(
                "a lens of patches starts from the mean at every token, and these means hold the read-out rows alone; "
                "make them with ReferenceMeans.from_images(model, images, positions='all') (vit-lens reference "
                "--positions all)"
            )

    def settings(self) -> dict[str, Any]:
        """Return definition, strength, anchor, which means it starts from, and whose write counts."""
        said = super().settings() | {"definition": "DSL of patches, row by row"}
        return said | ({} if self.at is None else {"at": _said(self.at)})

    @property
    def label(self) -> str:
        """The lens's anchor and strength, and whose write counts, for legends."""
        return super().label.replace("DSL", "DSL of patches") + ("" if self.at is None else f", at {_said(self.at)}")

    @property
    def words(self) -> str:
        """Three sentences on what is steered, from where, and at which patches."""
        rows = "every patch" if self.at is None else f"the patch {_said(self.at)} alone, the others left at the anchor"
        return f"{super().words} Row by row, at {rows}; all patch tokens are drawn together."

    def reads(self, site: Site) -> bool:
        """Return whether the site is something written to the residual stream of the blocks."""
        return not (site.is_residual or site.is_pool)

    def check_sites(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: Tower, sites: Sites
    ) -> list[Site]:
        """Return the sites if they are heads, attention blocks or MLPs of the model.

        Raises:
            UnknownSiteError: A site is not one of the model's.
            LensError: A site is the residual stream or belongs to attention pooling, or ``at`` is no patch of the
                model.
            ReferenceMismatchError: The reference means are another model's.
        """
        resolved = super().check_sites(model, sites)
        if residual := [str(site) for site in resolved if site.is_residual]:
            raise LensError(
                f"{residual[0]} is the residual stream itself, and this lens amplifies what a part adds to it; read it "
                "with PatchDiffusionLens() (--lens patch-diffusion)"
            )
        if self.reference is not None:
            self.reference.check(model, "all")
        self._moved(model)
        return resolved

    def per_token(self, cache: ViTActivationCache, site: Site | str) -> Condition:
        """Return what is read of one site's write at each patch alone, every other row at the anchor.

        Row ``k`` of the result is that of this lens with ``at=f"patch{k}"``.

        Args:
            cache: The cache of one run, at every token.
            site: One site, such as ``L3H4``.

        Returns:
            Tokens, with rows [batch patch].

        Raises:
            UnknownSiteError: The site is not one of the model's.
            LensError: The lens is not defined on the site.

        >>> means = vl.ReferenceMeans.shipped(model, positions="all")
        >>> vl.PatchSteeringLens(alpha=5, anchor="mean", reference=means).per_token(cache, "L3H4")
        Condition([2, 16] rows of tokens [16, 128])
        """
        model = check_cache(cache).model
        own = self.check_site(model, site)
        (moved,) = replace(self, at=None).read(cache, own).parts().values()
        still = self.anchor_tokens(cache)
        n = still.shape[1]
        here = torch.eye(n, dtype=torch.bool, device=still.device)[None, :, :, None]
        return Condition(tokens=torch.where(here, moved, still[:, None].expand(-1, n, -1, -1)))

    def anchor_tokens(self, cache: ViTActivationCache) -> Float[Tensor, "batch patch d_model"]:
        """Return the tokens where no site speaks: the model's own, or those of the mean.

        Args:
            cache: The cache of one run, at every token.

        >>> vl.PatchSteeringLens(alpha=5).anchor_tokens(cache).shape
        torch.Size([2, 16, 128])
        """
        view = at_patches(check_cache(cache))
        with torch.no_grad(), in_full(cache.model):
            return view.read_out.read(self._anchor(view))

    def _anchor(self, view: ViTActivationCache) -> Float[Tensor, "batch row d_model"]:
        last = view.model.streams[0].last(view)
        if self.reference is None:
            return last
        means = self.reference.last_state(view.model)[view.read_out.places]
        return means.to(last).expand_as(last)

    def _origin(self, cache: ViTActivationCache, sites: list[Site]) -> Float[Tensor, "1 site row d_model"] | None:
        found = super()._origin(cache, sites)
        return None if found is None else found[:, :, cache.read_out.places]

    def _read(
        self, cache: ViTActivationCache, sites: list[Site], outputs: Float[Tensor, "batch site row d_model"]
    ) -> Float[Tensor, "batch site row d_model"]:
        strength, origin = self._strength(cache, sites, outputs)[..., None, None], self._origin(cache, sites)
        added = (strength - 1) * outputs if origin is None else strength * (outputs - origin)
        moved = self._moved(cache.model).to(added.device)[:, None]
        return self._anchor(cache)[:, None] + torch.where(moved, added, 0)

    def _moved(self, model: Tower) -> Bool[Tensor, " row"]:
        """Return at which patches the site's write counts."""
        cfg = patches_of(model.cfg)
        moved = torch.ones(cfg.n_patches, dtype=torch.bool)
        if self.at is not None:
            try:
                places = [position - cfg.n_prefix for position in resolve_tokens(self.at, cfg)]
            except InterventionError as error:
                raise LensError(f"at={self.at!r}: {error}") from None
            if before := [place for place in places if place < 0]:
                name = describe_position(before[0] + cfg.n_prefix, cfg)
                raise LensError(f"at={self.at!r}: {name} is no patch, and only patches are drawn; such as 'patch0'")
            moved = torch.zeros_like(moved).index_fill(0, torch.tensor(places), True)
        return moved

    def hooks(self, cache: ViTActivationCache, site: Site | str) -> list[tuple[str, HookFn]]:
        """Return hooks under which the patch tokens of a run are the steered ones, for the cached images.

        Everything that writes to the residual stream is set at every token, to what is cached or to the mean; the
        site, at the patches that count, to its steered output. Class token and registers are left at the anchor.

        Args:
            cache: The cache of the images that will be run under the hooks, at every token.
            site: One site, such as ``L3H4``.

        Raises:
            UnknownSiteError: The site is not one of the model's.
            LensError: The lens is not defined on the site.
            ReferenceMismatchError: The reference means are another model's.
        """
        model = check_cache(cache).model
        site = self.check_site(model, site)
        view, stream, own = at_patches(cache), model.stream_of(site), write_of(site)
        outputs = site_outputs(view, [site])
        strength = self._strength(view, [site], outputs)[..., None, None]
        origin = self._origin(view, [site])
        added = (strength - 1) * outputs if origin is None else strength * (outputs - origin)
        moved = self._moved(model).to(added.device)[:, None]
        more = torch.where(moved, added, 0)[:, 0]
        start = same_start(cache, stream.start)
        if self.reference is None:
            rest = [freeze(cache, name) for name in stream.writes if name != own]
            value = whole(cache, own)
        else:
            values = {name: mean_write(self.reference, model, name) for name in stream.writes}
            values[str(stream.start)] = self.reference.resid_pre
            value = values.pop(own).to(more).expand(len(more), -1, -1)
            rest = [(name, partial(put, value=mean[None], of_images=False)) for name, mean in values.items()]
        value = torch.cat([value[:, : view.read_out.n_prefix], value[:, view.read_out.places] + more], 1)
        return [*start, *rest, (own, partial(put, value=value))]


def _said(at: Any) -> str:
    """Say tokens as a record and a legend do."""
    return str(at.nonzero().tolist() if isinstance(at, Tensor) else at)
