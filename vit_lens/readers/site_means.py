"""Mean lens embeddings of sites over a reference set: what the centred read-outs take away."""

__all__ = ["SiteMeans", "check_means"]

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.attribution import check_model, check_tensor, in_full, whole
from vit_lens.errors import GalleryError, LensError, OutputError, ReferenceMismatchError, expect
from vit_lens.files import as_path, load_fields, save_fields
from vit_lens.identity import forget_fingerprints
from vit_lens.lenses import DiffusionLens, Lens, OwnPictureWarning, Sites, run_for
from vit_lens.models import HookedViT, pixel_batches, several
from vit_lens.readers.embeddings import checked_lenses
from vit_lens.readers.gallery import Gallery
from vit_lens.readers.patches import check_residual, patch_embeddings
from vit_lens.towers import other_preprocessing, other_weights, preprocessing_of

_FORMAT = "vit_lens.readout_means.1"
_MEAN_IMAGES = 256
_ADVICE = "make the means with SiteMeans.from_images(...).save(path)"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SiteMeans:
    """The mean, over ``n`` images, of what a lens reads at each site: one vector of the embedding space per site.

    It is the mean of embeddings, taken after LayerNorm and projection, not the embedding of a mean activation. So
    deviations from it have mean zero over the reference set, whatever the lens; they do not add up over sites.

    Attributes:
        encoder_id: The id of the model.
        fingerprint: Digits that identify the model's weights by content, rounded to bfloat16.
        n: The number of images.
        lens: The name and settings of the lens.
        sites: The sites along the site axis.
        patches: Whether every patch token was read alone; the mean is then over images and patches.
        values: The mean embedding of each site.
        weights: What identifies the model's weights to the last bit; empty for files of an earlier version.
        preprocess: How images became pixels, as plain values; empty where that is not known.

    Raises:
        LensError: There is not one for each site, or one is not finite.

    >>> means = vl.readers.SiteMeans.from_images(model, images, "heads")
    >>> means
    SiteMeans('vit_lens/mini', diffusion, 64 sites, n=2)
    >>> vl.readers.SiteMeans.load(means.save(tmp / "readout.safetensors")).values.shape
    torch.Size([64, 128])
    """

    encoder_id: str
    fingerprint: str
    n: int
    lens: dict[str, Any]
    sites: tuple[Site, ...]
    patches: bool
    values: Float[Tensor, "site d_embed"]
    weights: str = ""
    preprocess: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expect(self.preprocess, dict, "preprocess", LensError, _ADVICE)
        expect(self.sites, (tuple, list), "sites", LensError, "a Site for each mean")
        check_tensor("values", self.values, f"{len(self.sites)} d_embed")
        if not self.values.isfinite().all() or whole("n", self.n, LensError) < 1:
            raise LensError("means of sites are not finite; make them again")

    @classmethod
    def from_images(
        cls,
        model: HookedViT,
        images: Any,
        sites: Sites,
        *,
        lens: Lens | None = None,
        patches: bool = False,
        batch_size: int = 32,
        progress: bool = False,
    ) -> "SiteMeans":
        """Run the model over images (paths, PIL images, arrays) or preprocessed pixels and average.

        Args:
            model: The model, without hooks.
            images: A few hundred images that stand for what the model is used on; those that the lens itself starts
                from are left out.
            sites: Sites as ``Site.resolve`` takes them; with ``patches``, places of the residual stream.
            lens: The lens; None for the Diffusion Lens.
            patches: Whether to read every patch token alone, for :func:`vit_lens.readers.zero_shot_maps`.
            batch_size: The number of images in one run.
            progress: Whether to show a bar.

        Raises:
            LensError: There are no images, the lens is not defined on a site, or ``patches`` with another lens.
            VitLensError: A batch would hold no image.
        """
        check_model(model)
        lens = DiffusionLens() if lens is None else lens
        expect(lens, Lens, "lens", LensError, "such as DiffusionLens()")
        chosen = check_residual(model, lens, sites) if patches else lens.check_sites(model, sites)
        images = several(images)
        if not len(images):
            raise LensError("means need at least one image; a few hundred give stable ones")
        model.refuse_hooks("saved means")
        forget_fingerprints(model)
        made = {"encoder_id": model.encoder_id, "fingerprint": model.fingerprint}  # first: on meta there is none
        made["weights"] = model.exact_fingerprint()
        total, n = torch.zeros(len(chosen), model.cfg.d_embed, dtype=torch.float64, device="cpu"), 0
        for _, pixels in pixel_batches(model, images, batch_size, label="read-out means", progress=progress):
            some, counted = _summed(model, pixels, lens, chosen, patches)
            total, n = total + some, n + counted
        if not n:
            raise LensError(f"every image is an anchor of {lens.describe().label}; give others to take means over")
        return cls(
            **made, n=n, preprocess=preprocessing_of(model, images), lens=_said(lens), sites=tuple(chosen),
            patches=patches,
            values=(total / n).to(torch.promote_types(model.dtype, torch.float32)),
        )  # fmt: skip

    @classmethod
    def of_gallery(cls, model: HookedViT, gallery: Gallery, lenses: Sequence[Lens], sites: Sites) -> "list[SiteMeans]":
        """Average what each lens reads, at those of the sites that it is defined on, over images of a gallery.

        At most 256 of its different pictures are read, evenly spread; not those that a lens starts from. A lens of
        several anchors has means for each of them.

        Args:
            model: The model, without hooks.
            gallery: The gallery, whose files are still there.
            lenses: Lenses; one that is defined on none of the sites gets no means.
            sites: Sites as ``Site.resolve`` takes them.

        Raises:
            UnknownSiteError: A site is not one of the model's.
            LensError: Something is no lens.
            GalleryError: The gallery is another model's, or a picture of it cannot be read.
        """
        expect(gallery, Gallery, "gallery", GalleryError, "Gallery.from_folder(model, folder) makes one")
        chosen, resolved = gallery.check(model).distinct, Site.resolve(sites, model.cfg)
        paths = [gallery.path(index) for index in chosen[:: -(-len(chosen) // _MEAN_IMAGES)]]
        each = [one for lens in checked_lenses(lenses) for one in lens.each()]
        own = [(lens, [site for site in resolved if lens.reads(site)]) for lens in each]
        return [cls.from_images(model, paths, some, lens=lens) for lens, some in own if some]

    @classmethod
    def load(cls, path: str | Path) -> "SiteMeans":
        """Read saved means.

        Raises:
            LensError: The file is missing, truncated, or not one of these.
        """
        fields = load_fields(
            cls, as_path(path, LensError), _FORMAT, what="read-out means", error=LensError, advice=_ADVICE
        )
        fields["sites"] = tuple(map(Site.parse, fields["sites"]))
        return cls(**fields)

    def save(self, path: str | Path) -> Path:
        """Write the means as safetensors, atomically.

        Raises:
            OutputError: The file cannot be written.
        """
        return save_fields(self, as_path(path, OutputError), _FORMAT)

    def __repr__(self) -> str:
        what = "patches of " if self.patches else ""
        return f"SiteMeans({self.encoder_id!r}, {self.lens['lens']}, {what}{len(self.sites)} sites, n={self.n})"

    def of(
        self, model: HookedViT, lens: Lens, sites: Sequence[Site], *, patches: bool = False
    ) -> Float[Tensor, "site d_embed"]:
        """Return the means of some sites.

        Args:
            model: The model that the sites are read in.
            lens: The lens that reads them.
            sites: The sites.
            patches: Whether every patch token is read alone.

        Raises:
            ReferenceMismatchError: The means are another model's, or of another preprocessing.
            LensError: The means are of another lens, or of other sites, or differ in ``patches``.
        """
        check_model(model)
        expect(sites, (tuple, list), "sites", LensError, "a list of Site")
        if told := other_weights(self, model):
            raise ReferenceMismatchError(
                f"these read-out means (n={self.n}) were {told}. Make its own: SiteMeans.from_images(model, images, "
                "sites)"
            )
        if told := other_preprocessing(self.preprocess, model):
            raise ReferenceMismatchError(
                f"these read-out means (n={self.n}) are of images that were preprocessed with {told}. Make its own: "
                "SiteMeans.from_images(model, images, sites)"
            )
        if self.lens != _said(lens) or self.patches != patches:
            raise LensError(
                f"these read-out means are of {self.lens} with patches={self.patches}; asked for {_said(lens)} with "
                f"patches={patches}. Make them with SiteMeans.from_images(model, images, sites, lens=, patches=)"
            )
        if missing := [str(site) for site in sites if site not in self.sites]:
            raise LensError(
                f"these read-out means lack {len(missing)} of the sites, such as {missing[0]}; make them with all "
                "sites that are read"
            )
        return self.values[[self.sites.index(site) for site in sites]]

    def reads(self, lens: Lens, *, patches: bool = False) -> bool:
        """Return whether these are the means of a lens."""
        return self.lens == _said(lens) and self.patches == patches


def _said(lens: Lens) -> dict[str, Any]:
    expect(lens, Lens, "lens", LensError, "such as DiffusionLens()")
    described = lens.describe()
    return {"lens": described.lens} | {name: value for name, value in described.settings.items() if value is not None}


def check_means(means: SiteMeans) -> SiteMeans:
    """Return the means of a lens.

    Raises:
        LensError: They are something else, such as reference means of activations.
    """
    advice = "SiteMeans.from_images(model, images, sites) makes them (ReferenceMeans are of activations)"
    expect(means, SiteMeans, "means", LensError, advice)
    return means


def _summed(
    model: HookedViT, pixels: Tensor, lens: Lens, sites: list[Site], patches: bool
) -> tuple[Float[Tensor, "site d_embed"], int]:
    """Return the sum over images, and how many were read: not those that a lens starts from."""
    with torch.no_grad(), in_full(model), warnings.catch_warnings():
        warnings.simplefilter("ignore", OwnPictureWarning)  # a gallery's own pictures are each projected on the others
        if not patches:
            _, cache = run_for(model, pixels, lens)
            if any(known := lens.knows(cache)):
                kept = [index for index, own in enumerate(known) if not own]
                if not kept:
                    return torch.zeros(len(sites), model.cfg.d_embed, dtype=torch.float64, device="cpu"), 0
                _, cache = run_for(model, pixels[kept], lens)
            read = lens.embed(cache, sites).cpu().double()
            return read.sum(0), len(read)
        _, cache = model.run_with_cache(pixels, names_filter=[site.hook_name for site in sites])
        found = [patch_embeddings(cache, site).cpu().double().mean((1, 2)).sum(0) for site in sites]
        return torch.stack(found), len(pixels)
