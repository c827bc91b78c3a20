"""Every patch token of the residual stream, read alone."""

__all__ = ["check_residual", "patch_embeddings"]

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.attribution import check_finite, in_full
from vit_lens.errors import LensError
from vit_lens.lenses import DiffusionLens, Lens, Sites
from vit_lens.models import HookedViT
from vit_lens.towers import ViTActivationCache


def check_residual(model: HookedViT, lens: Lens, sites: Sites) -> list[Site]:
    """Return the sites if they are places of the residual stream, read by the Diffusion Lens.

    Raises:
        UnknownSiteError: A site is not one of the model's.
        LensError: A site is not the residual stream, or the lens is another.
    """
    chosen = Site.resolve(sites, model.cfg)
    if not isinstance(lens, DiffusionLens):
        raise LensError(
            f"a patch token is read as if it were the last residual (DiffusionLens), not by {lens.describe().label}"
        )
    if other := [str(site) for site in chosen if not site.is_residual]:
        raise LensError(
            f"patch maps read the residual stream, for example 'resid_post', not {', '.join(other[:4])}; what each "
            "token sends through a head is in vit_lens.attribution.token_attribution"
        )
    return chosen


def patch_embeddings(cache: ViTActivationCache, site: Site) -> Float[Tensor, "batch grid_row grid_column d_embed"]:
    """Return the embedding that every patch token would give if it were the only token that is read.

    The final LayerNorm takes fresh statistics of that token; with attention pooling the query attends to it alone.

    Raises:
        LensError: The cache holds only some positions, or what is read is not finite.
    """
    if cache.rows != "all" or not cache.has_batch_dim:
        raise LensError(
            f"patch maps need {site.hook_name} at every token, with a batch axis; this cache holds "
            f"rows={cache.rows!r}. Make it with run_with_cache(pixels, names_filter=['{site.hook_name}'])"
        )
    model, tokens = cache.model, cache[site.hook_name].detach()
    rows, columns = model.cfg.grid
    patches = tokens[:, model.cfg.n_prefix :].to(model.device)
    with torch.no_grad(), in_full(model):
        embeds = model.embed_rows(patches[:, :, None])
    check_finite(embeds[:, None], [f"{site} at a patch"], cache)
    return rearrange(embeds, "b (y x) d -> b y x d", y=rows, x=columns)
