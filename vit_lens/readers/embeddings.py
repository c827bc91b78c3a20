"""The lens embeddings of sites, beside those of controls."""

__all__ = ["BANK_ADVICE", "SiteEmbeddings", "checked_lenses", "site_embeddings", "sites_of_each"]

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.attribution import Brief, check_cache, check_model
from vit_lens.controls import Against, ControlBank, Others, check_controls
from vit_lens.errors import LensError, expect
from vit_lens.lenses import DiffusionLens, Lens, Sites
from vit_lens.models import HookedViT
from vit_lens.towers import ViTActivationCache

BANK_ADVICE = "TextBank.from_pretrained(name, captions) and TextBank.from_open_clip(name, tag, captions) make one"


@dataclass(frozen=True, eq=False, repr=False)
class SiteEmbeddings(Brief):
    """What a lens reads at sites, and what it reads when a control stands there.

    Attributes:
        sites: The sites along the site axis.
        lens: The lens that read them.
        values: The embeddings by control: ``""`` is the site itself, ``random`` a random direction of equal norm,
            ``other`` the same site of another image and ``covariance`` a direction with the site's covariance, of the
            same norm (:data:`vit_lens.controls.CONTROLS`).

    >>> found = vl.readers.site_embeddings(cache, ["L3H4", "L5.mlp"], controls=["random"])
    >>> found.values["random"].shape
    torch.Size([2, 2, 128])
    >>> found.describe(image=0, site=1, control="random")["site"]
    'L5.mlp'
    """

    sites: tuple[Site, ...]
    lens: Lens
    values: dict[str, Float[Tensor, "batch site d_embed"]]

    def describe(self, image: int, site: int, control: str) -> dict[str, Any]:
        """Return the columns of a table that say what one embedding is of.

        Args:
            image: The place of the image on the batch axis.
            site: The place of the site on the site axis.
            control: A key of :attr:`values`.
        """
        place = self.sites[site]
        return {
            "image": image, "site": str(place), "site_type": place.kind, "layer": place.layer, "head": place.head,
            "lens": self.lens.describe().lens, "control": control,
        }  # fmt: skip


def site_embeddings(
    cache: ViTActivationCache,
    sites: Sites,
    *,
    lens: Lens | None = None,
    controls: Sequence[str] = (),
    generator: torch.Generator | None = None,
    others: Others | None = None,
    normalise: str | None = None,
) -> SiteEmbeddings:
    """Read sites through a lens, and the controls that a picture would have.

    Args:
        cache: The cache of the images; ``rows="readout"`` is enough.
        sites: Sites as ``Site.resolve`` takes them.
        lens: The lens; None for the Diffusion Lens: the site read as if it were the last residual.
        controls: Any of ``random``, ``other`` and ``covariance``, see :class:`SiteEmbeddings`.
        generator: The source of the random directions, on the CPU; None for one seeded with 0.
        others: The other images that controls are made of, of a :class:`vit_lens.controls.ControlBank`; None takes
            those of the cache, where the next one stands in for each, for the last one the first.
        normalise: ``std`` or ``whiten``, see :class:`vit_lens.controls.Normaliser`; None takes outputs as they are.

    Raises:
        UnknownSiteError: A site is not one of the model's.
        LensError: The lens is not defined on a site, there is no such control, or too few other images.
        ReferenceMismatchError: The other images are another model's.

    >>> found = vl.readers.site_embeddings(cache, "heads", controls=["random", "other"])
    >>> {control: tuple(values.shape) for control, values in found.values.items()}
    {'': (2, 64, 128), 'random': (2, 64, 128), 'other': (2, 64, 128)}
    """
    check_cache(cache)
    lens = DiffusionLens() if lens is None else lens
    expect(lens, Lens, "lens", LensError, "such as DiffusionLens()")
    chosen = lens.check_sites(cache.model, sites)
    kinds = check_controls(controls)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    with torch.no_grad():
        values = {"": lens.embed(cache, chosen)}
        for kind in kinds:
            if kind.name == "other" and others is None and normalise is None:
                values[kind.name] = lens.other_image(cache, chosen)
                continue
            beside = others
            if beside is None and (kind.needs or normalise is not None):
                beside = ControlBank.of_cache(cache).beside_itself()
            against = Against(control=kind.name, generator=generator, others=beside, normalise=normalise)
            values[kind.name] = lens.pooled_against(cache, chosen, against)
    return SiteEmbeddings(tuple(chosen), lens, values)


def checked_lenses(lenses: Lens | Sequence[Lens]) -> list[Lens]:
    """Return one lens or several as a list.

    Raises:
        LensError: One of them is no lens.
    """
    found = [lenses] if isinstance(lenses, (Lens, str)) or not isinstance(lenses, Iterable) else list(lenses)
    for lens in found:
        expect(lens, Lens, "lens", LensError, "such as DiffusionLens(), or a list of lenses")
    return found


def sites_of_each(model: HookedViT, lens: Lens | Sequence[Lens], sites: Sites) -> list[tuple[Lens, list[Site]]]:
    """Return the sites that each lens reads: one alone must read all, of a list each those that it is defined on.

    Args:
        model: The model that the sites are of.
        lens: One lens, or several.
        sites: Sites as ``Site.resolve`` takes them.

    Raises:
        UnknownSiteError: A site is not one of the model's.
        LensError: No lens is defined on a site, something is no lens, or it is no model.

    >>> lenses = [vl.DiffusionSteeringLens(alpha=5), vl.DiffusionLens()]
    >>> found = vl.readers.sites_of_each(model, lenses, "L3H4, L7.resid_post")
    >>> [(lens.name, [str(site) for site in sites]) for lens, sites in found]
    [('dsl', ['L3H4']), ('diffusion', ['L3H4', 'L7.resid_post'])]
    """
    check_model(model)
    wanted = Site.resolve(sites, model.cfg)
    if isinstance(lens, Lens):
        return [(lens, lens.check_sites(model, wanted))]
    own = [(one, [site for site in wanted if one.reads(site)]) for one in checked_lenses(lens)]
    if unread := [str(site) for site in wanted if not any(site in some for _, some in own)]:
        raise LensError(
            f"none of the lenses is defined on {', '.join(unread[:4])}; add DiffusionLens() for residual sites"
        )
    return [(one, one.check_sites(model, some)) for one, some in own if some]
