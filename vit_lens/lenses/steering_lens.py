"""Diffusion Steering Lens (Takatsuki et al. 2025, arXiv 2504.13763), as far as it can be reconstructed."""

__all__ = ["Anchor", "DiffusionSteeringLens"]

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.addresses import Site, Sites
from vit_lens.attribution import check_cache, check_model, finite
from vit_lens.errors import LensError
from vit_lens.lenses.contract import HookFn
from vit_lens.lenses.residual import (
    ResidualLens,
    centred_norm,
    check_same_run,
    freeze,
    same_start,
    set_rows,
    site_outputs,
    spoken,
)
from vit_lens.reference import ReferenceMeans
from vit_lens.towers import Readout, Tower, ViTActivationCache, write_of

Anchor = Literal["clean", "mean"]
_STRONGEST = 1e12  # far beyond where the other terms are lost to rounding


@dataclass(frozen=True, kw_only=True)
class DiffusionSteeringLens(ResidualLens):
    """Make one submodule louder, hold everything later fixed, and read the embedding.

    With ``h`` the submodule's output, ``r_L`` the last residual, and ``mu`` means over a reference set:

    ===================== ==============================================================================
    ``anchor="clean"``    ``LN(r_L + (alpha - 1) h) proj``: definition D1, our reconstruction of the paper,
                          whose equations could not be read. The rest of the clean residual stays, so every
                          picture keeps the input's content.
    ``anchor="mean"``     ``LN(mu_L + alpha (h - mu_h)) proj``: nothing of the input but what ``h`` carries
                          (not in the paper).
    ===================== ==============================================================================

    Args:
        alpha: The strength, any number up to 1e12: at 1 the clean anchor gives the model's own embedding. None where
            ``share`` says it.
        share: The norm-matched strength ``c``: what is added has ``c`` times the norm of the last residual, both
            after mean removal over d_model. So ``alpha = 1 + c ||r_L|| / ||h||`` for the clean anchor, and
            ``alpha = c ||r_L|| / ||h - mu_h||`` for the mean anchor, for each image. None where ``alpha`` says it.
        anchor: Where steering starts: ``clean`` or ``mean``.
        reference: The means at the read-out rows, for ``anchor="mean"``; None for the clean anchor.

    Raises:
        LensError: There is not exactly one finite strength, or a reference where none belongs, or none where one does.

    >>> vl.DiffusionSteeringLens(alpha=5).embed(cache, ["L3H4", "L5.mlp"]).shape
    torch.Size([2, 2, 128])
    >>> lens = vl.DiffusionSteeringLens(share=1, anchor="mean", reference=vl.ReferenceMeans.shipped(model))
    >>> lens.label, lens.embed(cache, "heads").shape
    ('DSL, mean-anchored, share 1', torch.Size([2, 64, 128]))
    >>> lens.embed(cache, "L5.resid_post")
    Traceback (most recent call last):
    vit_lens.errors.LensError: the steering lens amplifies what one submodule adds to the residual stream; ...
    """

    alpha: float | int | None = None
    share: float | int | None = None
    anchor: str = "clean"
    reference: ReferenceMeans | None = None

    def __post_init__(self) -> None:
        if (self.alpha is None) == (self.share is None):
            raise LensError(f"give exactly one of alpha={self.alpha} and share={self.share}")
        name, strength = ("alpha", self.alpha) if self.share is None else ("share", self.share)
        object.__setattr__(self, name, finite(name, strength, LensError))
        if abs(getattr(self, name)) > _STRONGEST:
            raise LensError(
                f"{name}={strength!r}; at most {_STRONGEST:g}: in float32 the LayerNorm's squares would overflow"
            )
        if self.anchor not in get_args(Anchor):
            raise LensError(f"anchor={self.anchor!r}; expected 'clean' or 'mean'")
        if self.reference is not None and not isinstance(self.reference, ReferenceMeans):
            raise LensError(f"reference={self.reference!r}; expected ReferenceMeans, such as ReferenceMeans.load(path)")
        if (self.anchor == "mean") != (self.reference is not None):
            raise LensError(
                "anchor='mean' needs reference=ReferenceMeans.from_images(model, images)"
                if self.reference is None
                else "reference= goes with anchor='mean'; with anchor='clean' it would have no effect"
            )

    name = "dsl"

    def settings(self) -> dict[str, Any]:
        """Return definition, strength, anchor, and which means it starts from."""
        definition = "D1 (reconstruction)" if self.anchor == "clean" else "mean-anchored DSL"
        said = {"definition": definition, "alpha": self.alpha, "share": self.share, "anchor": self.anchor}
        means = self.reference
        return said if means is None else said | {"reference": means.content, "reference_n": means.n}

    @property
    def label(self) -> str:
        """The lens's anchor and strength, for legends."""
        name, strength = ("alpha", self.alpha) if self.share is None else ("share", self.share)
        return f"DSL, {self.anchor}-anchored, {name} {strength:g}"

    @property
    def words(self) -> str:
        """Two sentences on what is steered, and from where."""
        start = (
            "It starts from the average image, so that whatever resembles the input comes from this site."
            if self.anchor == "mean"
            else "It starts from the input's own residual stream, so the input shows through whatever the site does."
        )
        steers = "Steers the residual stream along what this site writes, freezes everything later, and decodes."
        return f"{steers} {start}"

    def reads(self, site: Site) -> bool:
        """Return whether the site is something written to the residual stream, not the stream itself."""
        return not site.is_residual

    def check_sites(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: Tower, sites: Sites
    ) -> list[Site]:
        """Return the sites if they are heads, attention blocks or MLPs of the model.

        Raises:
            UnknownSiteError: A site is not one of the model's.
            LensError: A site is the residual stream.
            ReferenceMismatchError: The reference means are another model's.
        """
        check_model(model)
        resolved = Site.resolve(sites, model.cfg)
        if residual := [str(s) for s in resolved if not self.reads(s)]:
            verb = "are" if len(residual) > 1 else "is"
            raise LensError(
                "the steering lens amplifies what one submodule adds to the residual stream; "
                f"{', '.join(residual)} {verb} the stream itself: read it with DiffusionLens() (--lens diffusion)"
            )
        if self.reference is not None:
            self.reference.check(model)
        return resolved

    def _origin(self, cache: ViTActivationCache, sites: list[Site]) -> Float[Tensor, "1 site row d_model"] | None:
        if self.reference is None:
            return None
        return torch.stack([self.reference.output(cache.model, site) for site in sites])[None]

    def _read(
        self, cache: ViTActivationCache, sites: list[Site], outputs: Float[Tensor, "batch site row d_model"]
    ) -> Float[Tensor, "batch site row d_model"]:
        strength = self._strength(cache, sites, outputs)[..., None, None]
        origin = self._origin(cache, sites)
        if self.reference is None or origin is None:
            return cache.model.stream_of(sites[0]).last(cache)[:, None] + (strength - 1) * outputs
        anchor = self.reference.last_state(cache.model, pooled=sites[0].is_pool)
        return anchor + strength * (outputs - origin)

    def _strength(
        self, cache: ViTActivationCache, sites: list[Site], outputs: Float[Tensor, "batch site row d_model"]
    ) -> Float[Tensor, "batch site"]:
        if self.alpha is not None:
            return torch.full(outputs.shape[:2], float(self.alpha), dtype=outputs.dtype, device=outputs.device)
        _, norm = spoken(outputs, self._origin(cache, sites), sites, "no direction to match a norm with (use alpha=)")
        added = (self.share or 0) * centred_norm(cache.model.stream_of(sites[0]).last(cache))[:, None] / norm
        return added + 1 if self.reference is None else added

    def hooks(self, cache: ViTActivationCache, site: Site | str) -> list[tuple[str, HookFn]]:
        """Return hooks under which the model outputs the steered embedding, for the cached images.

        Clean anchor: the site's live output is scaled, everything that runs after it is set to its cached value.
        Mean anchor: block 0's residual and every attention and MLP output go to their means (for a head, the
        other heads' ``z``), the site to ``mu_h + alpha (h - mu_h)`` with the cached ``h``.

        Raises:
            UnknownSiteError: The site is not one of the model's.
            LensError: The site is the residual stream.
            ReferenceMismatchError: The reference means are another model's.
        """
        site = self.check_site(check_cache(cache).model, site)
        strength = self._strength(cache, [site], site_outputs(cache, [site]))[:, 0]
        if self.reference is not None:
            start = cache.model.stream_of(site).start
            return [*same_start(cache, start), *_mean_hooks(self.reference, cache, site, strength)]
        later = cache.model.stream_of(site).after(site)
        own = {"rows": cache.readout(site.hook_name), "read_out": cache.read_out, "head": site.head}
        scaled = partial(_scale, strength=strength, **own)
        return [(site.hook_name, scaled), *(freeze(cache, name) for name in later)]


def _scale(
    act: Tensor, hook: HookPoint, *, strength: Tensor, rows: Tensor, read_out: Readout, head: int | None
) -> Tensor:
    check_same_run(act, rows, read_out, hook)
    factor = strength.to(act).reshape(-1, 1, 1)
    if head is None:
        return act * factor
    out = act.clone()
    out[:, :, head] *= factor
    return out


def _mean_hooks(
    means: ReferenceMeans, cache: ViTActivationCache, site: Site, strength: Float[Tensor, " batch"]
) -> list[tuple[str, HookFn]]:
    model, stream = cache.model, cache.model.stream_of(site)
    writers = [part for part in (*Site.attns(model), *Site.mlps(model)) if part.hook_name in stream.writes]
    values = {part.hook_name: means.output(model, part)[None] for part in writers}
    if stream.start is not None:
        values[stream.start] = means.resid_pre[None]
    cached = cache.readout(site.hook_name)
    if site.head is not None:
        del values[write_of(site)]  # it follows from z
        mean = means.z_of(site).to(cached.device)
        rows = mean.repeat(len(cached), 1, 1, 1)
        factor = strength.to(mean)[:, None, None]
        rows[:, :, site.head] += factor * (cached[:, :, site.head].to(mean) - mean[:, site.head])
    else:
        mean = means.output(model, site)
        rows = mean + strength.to(mean)[:, None, None] * (cached.to(mean) - mean)
    values.pop(site.hook_name, None)
    means_hooks = [(name, set_rows(cache, value, of_images=False)) for name, value in values.items()]
    return [*means_hooks, (site.hook_name, set_rows(cache, rows))]
