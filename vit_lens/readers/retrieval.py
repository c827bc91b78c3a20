"""The retrieval lens: the nearest images of the user's own to every lens embedding."""

__all__ = ["Neighbours", "retrieval_lens"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.attribution import Brief
from vit_lens.controls import Others
from vit_lens.errors import GalleryError, LensError, expect
from vit_lens.images import to_display
from vit_lens.lenses import Lens, Sites
from vit_lens.readers.embeddings import SiteEmbeddings, site_embeddings
from vit_lens.readers.gallery import Gallery, picture_hash
from vit_lens.readers.site_means import SiteMeans, check_means
from vit_lens.towers import ViTActivationCache


@dataclass(frozen=True, eq=False, repr=False)
class Neighbours(Brief):
    """The nearest pictures of a gallery to lens embeddings, in two forms.

    ``raw``: by the cosine of the lens embedding ``e`` with the gallery's embeddings ``g``. ``centred``, where means
    were given: by the cosine of ``e - mu`` with ``g - mean(g)``, where ``mu`` is the mean lens embedding of that site
    over a reference set. What all images share decides nothing in the centred form. (``mean(g)`` in place of ``mu``
    would not be what a site shares: all images would get the same neighbours.) Where a site holds the same for all
    images, so that nothing but rounding is left, there is no neighbour: index -1, cosine nan, no name.

    Attributes:
        embeddings: The lens embeddings that were asked with.
        gallery: The gallery that was searched.
        index: By form and control, such as ``("raw", "")``: indices into the gallery, best first.
        cosine: By form and control: the cosine of each neighbour.

    >>> from vit_lens.mini import world
    >>> pictures = list(world.render(world.sample_scenes(12, np.random.default_rng(0))))
    >>> gallery = vl.readers.Gallery.from_images(model, pictures)
    >>> found = vl.readers.retrieval_lens(cache, gallery, "L7.resid_post", images=images, k=2)
    >>> found.index["raw", ""].shape
    torch.Size([2, 1, 2])
    >>> found.to_frame()[["image", "form", "control"]].drop_duplicates().head(2).values.tolist()
    [[0, 'raw', ''], [1, 'raw', '']]
    """

    embeddings: SiteEmbeddings
    gallery: Gallery
    index: dict[tuple[str, str], Int[Tensor, "batch site k"]]
    cosine: dict[tuple[str, str], Float[Tensor, "batch site k"]]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per image, site, form, control and neighbour, best first.

        Columns: image, site, site_type, layer, head, lens, control, form, rank, index, name, cosine, copies (how
        many files of the gallery are this very picture).
        """
        copies = {name: len(group) for group in self.gallery.duplicates for name in group}
        rows: list[dict[str, Any]] = []
        for (form, control), index in self.index.items():
            cosine = self.cosine[form, control].tolist()
            for image, of_image in enumerate(index.tolist()):
                for site, best in enumerate(of_image):
                    place = self.embeddings.describe(image, site, control) | {"form": form}
                    for rank, found in enumerate(best):
                        name = None if found < 0 else self.gallery.names[found]
                        row = {"rank": rank, "index": found, "name": name, "cosine": cosine[image][site][rank]}
                        rows.append(place | row | {"copies": 0 if name is None else copies.get(name, 1)})
        return pd.DataFrame(rows).astype({"layer": "Int64", "head": "Int64"})


def retrieval_lens(
    cache: ViTActivationCache,
    gallery: Gallery,
    sites: Sites,
    *,
    images: Any,
    k: int = 5,
    lens: Lens | None = None,
    means: SiteMeans | None = None,
    controls: Sequence[str] = ("random",),
    generator: torch.Generator | None = None,
    others: Others | None = None,
    normalise: str | None = None,
) -> Neighbours:
    """Find the nearest pictures of a gallery to the lens embedding of every site.

    Args:
        cache: The cache of the images; ``rows="readout"`` is enough.
        gallery: A gallery made with this model.
        sites: Sites as ``Site.resolve`` takes them.
        images: The images of the cache (paths, PIL images, arrays), whose own pictures are left out of the answers;
            None leaves nothing out.
        k: The number of neighbours for each embedding.
        lens: The lens; None for the Diffusion Lens.
        means: Means of the same lens and sites, which add the form ``centred``, see :class:`Neighbours`; None for the
            raw form alone. :meth:`SiteMeans.of_gallery` makes them from the gallery itself.
        controls: Any of ``random``, ``other`` and ``covariance``; see :func:`vit_lens.readers.site_embeddings`.
        generator: The source of the random directions, on the CPU; None for one seeded with 0.
        others: The other images that controls are made of; None takes those of the cache.
        normalise: The coordinates in which controls are made; None takes outputs as they are.

    Raises:
        GalleryError: The gallery is another model's, or has fewer than ``k`` other pictures.
        UnknownSiteError: A site is not one of the model's.
        LensError: The lens is not defined on a site, the means do not fit, or there is another number of images.
        ImageError: An image cannot be read.
        PreprocessError: The images are preprocessed pixels.
        ReferenceMismatchError: The means are another model's.

    >>> from vit_lens.mini import world
    >>> pictures = list(world.render(world.sample_scenes(12, np.random.default_rng(0))))
    >>> gallery = vl.readers.Gallery.from_images(model, [*images, *pictures])
    >>> found = vl.readers.retrieval_lens(cache, gallery, "L7.resid_post", images=None, k=1, controls=())
    >>> found.index["raw", ""].flatten()  # every image is its own nearest, where it is not left out
    tensor([0, 1])
    """
    expect(gallery, Gallery, "gallery", GalleryError, "Gallery.from_images(model, images) makes one")
    read = site_embeddings(
        cache, sites, lens=lens, controls=controls, generator=generator, others=others, normalise=normalise
    )  # fmt: skip
    gallery.check(cache.model)
    n_images, n_sites = read.values[""].shape[:2]
    leave_out = None
    if images is not None:
        hashes = [picture_hash(picture) for picture in to_display(images, cache.model.preprocess_spec)]
        if len(hashes) != n_images:
            raise LensError(f"{len(hashes)} images for a cache of {n_images}")
        leave_out = [digest for digest in hashes for _ in range(n_sites)]
    forms: dict[str, Tensor | None] = {"raw": None}
    if means is not None:
        forms["centred"] = check_means(means).of(cache.model, read.lens, read.sites).repeat(n_images, 1)
    index, cosine = {}, {}
    for control, values in read.values.items():
        for form, origins in forms.items():
            found = gallery.nearest(values.flatten(0, 1), k, origins=origins, leave_out=leave_out)
            index[form, control], cosine[form, control] = (part.unflatten(0, (n_images, n_sites)) for part in found)
    return Neighbours(read, gallery, index, cosine)
