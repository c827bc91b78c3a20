"""Diffusion Lens (Toker et al. 2024, arXiv 2403.05846) on a vision transformer."""

__all__ = ["DiffusionLens"]

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.addresses import Site
from vit_lens.attribution import check_cache
from vit_lens.lenses.contract import HookFn
from vit_lens.lenses.residual import ResidualLens, same_start, set_rows
from vit_lens.towers import ViTActivationCache, write_of


@dataclass(frozen=True)
class DiffusionLens(ResidualLens):
    """Read a state ``v`` as if it were the last residual: ``LN(v) @ proj``, with fresh LayerNorm statistics.

    The paper defines it for text encoders; for a vision tower, ``v`` is the residual stream at the read-out
    rows (the CLS token), or the output of one head, attention block or MLP. This is our reading by analogy,
    as in arXiv 2504.13763. At the last ``resid_post`` it gives the model's own embedding. What a part of attention
    pooling writes is read as if it were the pooled vector.

    >>> lens = vl.DiffusionLens()
    >>> lens.embed(cache, ["L3H4", "L5.mlp"]).shape
    torch.Size([2, 2, 128])
    >>> torch.allclose(lens.embed(cache, "L7.resid_post")[:, 0], model(pixels), atol=1e-4)
    True
    >>> hooked = model.run_with_hooks(pixels, fwd_hooks=lens.hooks(cache, "L3H4"))
    >>> torch.allclose(hooked, lens.embed(cache, "L3H4")[:, 0], atol=1e-4)
    True
    """

    name = "diffusion"

    @property
    def label(self) -> str:
        """The lens's name; there is nothing to set."""
        return "Diffusion Lens"

    @property
    def words(self) -> str:
        """A sentence on how a vector is read."""
        return "Reads the vector as if it were the last residual stream: final LayerNorm, projection, decoder."

    def settings(self) -> dict[str, Any]:
        """Return the definition; there is nothing to set."""
        return {"definition": "LN(v) proj"}

    def reads(self, site: Site) -> bool:
        """Return True: the lens is defined on sites of all kinds."""
        return True

    def _read(
        self, cache: ViTActivationCache, sites: list[Site], outputs: Float[Tensor, "batch site row d_model"]
    ) -> Float[Tensor, "batch site row d_model"]:
        return outputs

    def hooks(self, cache: ViTActivationCache, site: Site | str) -> list[tuple[str, HookFn]]:
        """Return hooks under which nothing but the site reaches the end of the residual stream.

        For a residual site, what later blocks write is set to zero, so edits before the site show. For a head,
        attention block or MLP, everything else is set to zero and the site to its cached output: a run of other images
        than the cached ones raises :class:`LensError`, where the cache can tell.

        Raises:
            UnknownSiteError: The site is not one of the model's.
        """
        site = self.check_site(check_cache(cache).model, site)
        stream = cache.model.stream_of(site)
        if site.is_residual:
            return [(name, _zero) for name in stream.after(site)]
        own = write_of(site)
        silenced = [stream.start] if stream.start else []
        silenced += [name for name in stream.writes if name != own]
        silent = ((name, _zero) for name in silenced)
        return [*same_start(cache, stream.start), *silent, *_own_hooks(cache, site, own)]


def _zero(act: Tensor, hook: HookPoint) -> Tensor:
    return act * 0


def _own_hooks(cache: ViTActivationCache, site: Site, own: str) -> list[tuple[str, HookFn]]:
    put = set_rows(cache, cache.readout(site.hook_name))
    if site.head is None:
        return [(own, put)]
    bias = cache.model.attention_of(site).b_O
    return [(site.hook_name, partial(_alone, put=put, head=site.head)), (own, partial(_without, bias=bias))]


def _alone(act: Tensor, hook: HookPoint, *, put: HookFn, head: int) -> Tensor:
    out = torch.zeros_like(act)
    out[:, :, head] = put(act, hook)[:, :, head]
    return out


def _without(act: Tensor, hook: HookPoint, *, bias: Tensor) -> Tensor:
    return act - bias
