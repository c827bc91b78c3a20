"""How far averaged Jacobians carry apart what two images write: the unit of lenses that start from another image."""

__all__ = ["moved_norms"]

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.models import HookedViT, pixel_batches
from vit_lens.reference.differences import typical_norm
from vit_lens.reference.jacobians import Jacobians
from vit_lens.verification import exact_float32

_KINDS = ("head", "attn", "mlp")


@torch.no_grad()
def moved_norms(
    jacobians: Jacobians, model: HookedViT, images: Any, *, batch_size: int = 8
) -> dict[str, Float[Tensor, "layer *head"]]:
    """Return the root mean square, over all pairs of images, of how far apart what a site writes arrives.

    That is ``||sum_rows J[row] (h(row) - h'(row))||``, after mean removal, of heads, attention blocks and MLPs.

    Args:
        jacobians: Those of the model.
        model: The model, without hooks.
        images: Images or pixels, at least two.
        batch_size: The number of images in one run.

    >>> from vit_lens.reference.moved import moved_norms
    >>> jacobians = vl.JacobianLens.fit(model, images, test=False).jacobians
    >>> {kind: tuple(norms.shape) for kind, norms in moved_norms(jacobians, model, images).items()}
    {'head': (8, 8), 'attn': (8,), 'mlp': (8,)}
    """
    cfg = model.cfg
    heads = [site for site in Site.heads(model) if not site.is_pool]
    sites = [*heads, *(Site(layer, kind) for kind in _KINDS[1:] for layer in range(cfg.n_layers))]
    totals: dict[Site, Tensor] = {}
    squares: dict[Site, Tensor] = {}
    n = 0
    for _, pixels in pixel_batches(model, images, batch_size, label="", progress=False):
        n += len(pixels)
        with exact_float32():
            _, cache = model.run_with_cache(pixels.to(model.W_E), names_filter=model.is_readout_part)
            found = {site: jacobians.transport(jacobians.written(cache, site), site) for site in sites}
        for site, arrived in found.items():
            own = arrived.double().cpu()
            own = own - own.mean(-1, keepdim=True)
            totals[site] = totals.get(site, 0) + own.sum(0)
            squares[site] = squares.get(site, 0) + own.square().sum()
    eps = torch.finfo(model.dtype).eps
    norms = {site: typical_norm(squares[site] / n, (totals[site] / n).square().sum(), n, eps) for site in sites}
    shapes = {"head": (cfg.n_layers, cfg.n_heads), "attn": (cfg.n_layers,), "mlp": (cfg.n_layers,)}
    return {
        kind: torch.stack([norms[site] for site in sites if site.kind == kind]).reshape(shapes[kind]) for kind in _KINDS
    }
