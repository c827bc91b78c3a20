"""All read-outs of every site side by side: captions and nearest images, raw and centred, with controls."""

__all__ = ["SiteAnswers", "read_sites"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from vit_lens.addresses import Site
from vit_lens.attribution import Brief, check_cache, whole
from vit_lens.controls import Others
from vit_lens.errors import LensError, expect
from vit_lens.lenses import Lens, Sites
from vit_lens.readers.embeddings import checked_lenses, sites_of_each
from vit_lens.readers.gallery import Gallery
from vit_lens.readers.retrieval import retrieval_lens
from vit_lens.readers.site_means import SiteMeans, check_means
from vit_lens.readers.zero_shot import zero_shot_lens
from vit_lens.texts import TextBank
from vit_lens.towers import ViTActivationCache


@dataclass(frozen=True, eq=False, repr=False)
class SiteAnswers(Brief):
    """What captions and images say about every site, lens and control.

    Attributes:
        captions: The columns of :meth:`vit_lens.readers.ZeroShot.to_frame`, after a column ``reading``, the place
            of the lens in the list that was given; None without a text bank.
        images: Likewise, the columns of :meth:`vit_lens.readers.Neighbours.to_frame`; None without a gallery.

    >>> found = vl.readers.read_sites(cache, vl.DiffusionLens(), ["L5H2", "L7.resid_post"], bank=bank, k=1)
    >>> found.of(image=0, site="L7.resid_post")["captions"]["raw"][0]["caption"]
    'a blue star'
    >>> sorted(found.captions["control"].unique())
    ['', 'random']
    """

    captions: pd.DataFrame | None
    images: pd.DataFrame | None

    def of(self, image: int, site: Site | str, *, control: str = "", reading: int = 0) -> dict[str, Any]:
        """Return what stands beside one picture.

        Args:
            image: The place of the image in the cache.
            site: The site, such as ``L5H2``.
            control: The control, ``""`` for the site itself.
            reading: The place of the lens in the list that was given.

        Returns:
            ``{"captions": {form: [{"caption", "cosine", "logit", "prob"}, ...]}, "images": {form: [{"name", "index",
            "cosine", "copies"}, ...]}}``, best first, as JSON takes it: None where a site has no centred form.

        Raises:
            LensError: There is no such row.
            UnknownSiteError: It is no site.
        """
        site = site if isinstance(site, Site) else Site.parse(site)
        image, reading = whole("image", image, LensError, 0), whole("reading", reading, LensError, 0)
        expect(control, str, "control", LensError, "'' for the site itself")
        numbers = {"captions": ["caption", "cosine", "logit", "prob"], "images": ["name", "index", "cosine", "copies"]}
        found: dict[str, Any] = {}
        for what, columns in numbers.items():
            table: pd.DataFrame | None = getattr(self, what)
            if table is None:
                continue
            here = table.loc[
                (table["image"] == image) & (table["site"] == str(site))
                & (table["control"] == control) & (table["reading"] == reading)
            ]  # fmt: skip
            if here.empty:
                raise LensError(f"no row for image {image}, site {site}, control {control!r}, reading {reading}")
            for row in here.to_dict("records"):
                numbers_of = {name: None if pd.isna(row[name]) else row[name] for name in columns}
                found.setdefault(what, {}).setdefault(row["form"], []).append(numbers_of)
        return found


def read_sites(
    cache: ViTActivationCache,
    lens: Lens | Sequence[Lens],
    sites: Sites,
    *,
    bank: TextBank | None = None,
    gallery: Gallery | None = None,
    images: Any = None,
    means: Sequence[SiteMeans] | SiteMeans = (),
    controls: Sequence[str] = ("random",),
    k: int = 5,
    seed: int = 0,
    others: Others | None = None,
    normalise: str | None = None,
) -> SiteAnswers:
    """Return, for every image, site and lens, the best captions and the nearest images, and those of controls.

    Args:
        cache: The cache of the images; ``rows="readout"`` is enough.
        lens: One lens, or several, each of which reads the sites that it is defined on.
        sites: Sites as ``Site.resolve`` takes them.
        bank: Captions, embedded for this encoder; None leaves them out.
        gallery: A gallery made with this model; None leaves the images out.
        images: The images of the cache, so that they are not their own neighbours; None leaves nothing out.
        means: The means of each lens that is read in the centred form too; a lens without means has the raw form alone.
        controls: Any of ``random``, ``other`` and ``covariance``; see :func:`vit_lens.readers.site_embeddings`.
        k: The number of captions and of images for each embedding.
        seed: The seed of the random directions; captions and images see the same ones.
        others: The other images that controls are made of; None takes those of the cache.
        normalise: The coordinates in which controls are made; None takes outputs as they are.

    Raises:
        LensError: Neither a bank nor a gallery was given, no lens reads a site, means belong to no lens or two to one,
            or the seed is no whole number.
        TextError: The captions belong to another encoder.
        GalleryError: The gallery is another model's, or too small.
        ReferenceMismatchError: Means are another model's.

    >>> lenses = [vl.DiffusionSteeringLens(alpha=5), vl.DiffusionLens()]
    >>> found = vl.readers.read_sites(cache, lenses, "heads", bank=bank, controls=(), k=1)
    >>> found.captions.groupby("lens").size().to_dict(), found.images
    ({'diffusion': 128, 'dsl': 128}, None)
    """
    if bank is None and gallery is None:
        raise LensError("nothing to read with: give bank=, gallery= or both")
    check_cache(cache)
    k = whole("k", k, LensError)
    start = whole("seed", seed, LensError, -(2**63))
    lenses = checked_lenses(lens)
    means = [check_means(mean) for mean in (means if isinstance(means, Sequence) else [means])]
    captions, neighbours, generator = [], [], torch.Generator()
    for place, (one, own) in enumerate(sites_of_each(cache.model, lens, sites)):
        mean, *more = [m for m in means if m.reads(one)] or [None]
        if more:
            raise LensError(f"{len(more) + 1} means of {one.describe().label}: give one, of all its sites")
        common: dict[str, Any] = {"lens": one, "means": mean, "controls": controls}
        common |= {"others": None if others is None else others.fresh(), "normalise": normalise}
        if bank is not None:
            found = zero_shot_lens(cache, bank, own, generator=generator.manual_seed(start), **common)
            captions.append(found.to_frame(min(k, len(bank))).assign(reading=place))
        if gallery is not None:
            near = retrieval_lens(
                cache, gallery, own, images=images, k=k, generator=generator.manual_seed(start), **common
            )
            neighbours.append(near.to_frame().assign(reading=place))
    if unused := [mean for mean in means if not any(mean.reads(one) for one in lenses)]:
        raise LensError(f"{unused[0]!r} belongs to none of the lenses {[one.describe().label for one in lenses]}")
    tables = [pd.concat(parts, ignore_index=True) if parts else None for parts in (captions, neighbours)]
    return SiteAnswers(*tables)
