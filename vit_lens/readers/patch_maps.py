"""Captions for every patch token, laid out as the patches lie in the image."""

__all__ = ["ZeroShotMaps", "zero_shot_maps"]

from dataclasses import dataclass
from itertools import product

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.attribution import Brief, check_cache
from vit_lens.errors import LensError, TextError, expect
from vit_lens.lenses import DiffusionLens, Sites
from vit_lens.readers.cosines import deviations
from vit_lens.readers.embeddings import BANK_ADVICE
from vit_lens.readers.patches import check_residual, patch_embeddings
from vit_lens.readers.site_means import SiteMeans, check_means
from vit_lens.readers.zero_shot import top_captions
from vit_lens.texts import TextBank
from vit_lens.towers import ViTActivationCache


@dataclass(frozen=True, eq=False, repr=False)
class ZeroShotMaps(Brief):
    """Captions for every patch token, each read alone as if it were the last residual.

    No model was trained to be read like this. For towers that average their patches after the last LayerNorm the
    embedding is exactly the mean of the last layer's patch embeddings; for others a map is a projection of what a
    token holds, and late layers keep little of the place in it.

    Attributes:
        sites: The places of the residual stream along the site axis.
        bank: The captions along the last axis.
        cosines: The cosines by form: ``raw``, and ``centred``, with the mean over the reference images and their
            patches taken away, one vector per site (so what a position has in common is kept).

    >>> found = vl.readers.zero_shot_maps(cache, bank, ["L5.resid_post", "L7.resid_post"])
    >>> found.probs().shape  # [batch site grid_row grid_column caption]
    torch.Size([2, 2, 4, 4, 6])
    >>> found.to_frame().columns.tolist()
    ['image', 'site', 'layer', 'row', 'column', 'form', 'rank', 'caption', 'cosine', 'logit', 'prob']
    """

    sites: tuple[Site, ...]
    bank: TextBank
    cosines: dict[str, Float[Tensor, "batch site grid_row grid_column caption"]]

    def of(self, form: str = "raw") -> Float[Tensor, "batch site grid_row grid_column caption"]:
        """Return the cosines of one form.

        Raises:
            LensError: That form was not computed.
        """
        if str(form) not in self.cosines:
            raise LensError(f"no form {form!r} here; there are {list(self.cosines)}. The centred form needs means=")
        return self.cosines[form]

    def logits(self, form: str = "raw") -> Float[Tensor, "batch site grid_row grid_column caption"]:
        """Return scaled cosines, with the bias of SigLIP."""
        return self.bank.to_logits(self.of(form))

    def probs(self, form: str = "raw") -> Float[Tensor, "batch site grid_row grid_column caption"]:
        """Return the softmax over the captions of every patch, or for SigLIP a sigmoid of each."""
        return self.bank.to_probs(self.logits(form))

    def to_frame(self, k: int = 1) -> pd.DataFrame:
        """Return the ``k`` best captions of every patch.

        Columns: image, site, layer, row, column, form, rank, caption, cosine, logit, prob.

        Raises:
            LensError: ``k`` is not from 1 to the number of captions.
        """
        rows = []
        for form, cosines in self.cosines.items():
            best = top_captions(cosines, self.bank, k)
            for image, site, row, column in product(*map(range, cosines.shape[:4])):
                where = {"image": image, "site": str(self.sites[site]), "layer": self.sites[site].layer}
                where |= {"row": row, "column": column, "form": form}
                rows += [where | numbers for numbers in best.rows(self.bank, image, site, row, column)]
        return pd.DataFrame(rows)


def zero_shot_maps(
    cache: ViTActivationCache, bank: TextBank, sites: Sites = "resid_post", *, means: SiteMeans | None = None
) -> ZeroShotMaps:
    """Compare every patch token of the residual stream with captions.

    Args:
        cache: A cache with the sites at every token:
            ``run_with_cache(pixels, names_filter=[s.hook_name for s in sites])``.
        bank: Captions, embedded for this encoder.
        sites: Places of the residual stream, such as ``resid_post`` or ``L5.resid_mid``.
        means: Means made with ``patches=True``, which add the form ``centred``; None for the raw form alone.

    Raises:
        TextError: The captions belong to another encoder.
        LensError: A site is not the residual stream, the cache holds only some positions, or the means do not fit.
        ReferenceMismatchError: The means are another model's.

    >>> means = vl.readers.SiteMeans.from_images(model, images, "L7.resid_post", patches=True)
    >>> found = vl.readers.zero_shot_maps(cache, bank, "L7.resid_post", means=means)
    >>> found.of("centred").shape
    torch.Size([2, 1, 4, 4, 6])
    """
    expect(bank, TextBank, "bank", TextError, BANK_ADVICE)
    check_cache(cache)
    chosen = check_residual(cache.model, DiffusionLens(), sites)
    bank.check(cache.model)
    origin = None if means is None else check_means(means).of(cache.model, DiffusionLens(), chosen, patches=True)
    raw, centred = [], []
    for i, site in enumerate(chosen):  # one site at a time: embeddings are wider than most lists of captions
        embeds = patch_embeddings(cache, site)
        raw.append(bank.cosines(embeds))
        if origin is not None:
            centred.append(bank.cosines(deviations(embeds, origin[i])))
    found = {"raw": raw, "centred": centred} if centred else {"raw": raw}
    return ZeroShotMaps(tuple(chosen), bank, {form: torch.stack(parts, 1) for form, parts in found.items()})
