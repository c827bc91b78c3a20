"""Soft projection: any lens's embedding, moved to the mean of the real embeddings that its direction points to."""

__all__ = ["KAPPA", "OwnPictureWarning", "ProjectedLens", "check_kappa", "soft_projection"]

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from vit_lens.addresses import Site, Sites
from vit_lens.attribution import check_cache, check_tensor, finite
from vit_lens.conditions import Condition
from vit_lens.config import HookedTextConfig
from vit_lens.controls import Against, Change
from vit_lens.errors import GalleryError, LensError, VitLensError, expect
from vit_lens.identity import fingerprint
from vit_lens.lenses.anchored import alike, average_reading
from vit_lens.lenses.contract import Addressed, HookFn, Lens
from vit_lens.numerics import without_autocast
from vit_lens.texts import TextBank
from vit_lens.towers import ViTActivationCache

KAPPA = 40.0
"""How sharply a projection looks at the nearest: what was tried on the embedded pair, and no optimum."""
_SHARPEST = 1e6


class OwnPictureWarning(UserWarning):
    """A gallery holds an input itself, which was left out of what it was projected on."""


@runtime_checkable
class Targets(Protocol):
    """Real embeddings of one encoder: a :class:`vit_lens.readers.Gallery`, or of texts a :class:`vit_lens.TextBank`."""

    @property
    def embeds(self) -> Tensor: ...
    def check(self, model: Any) -> Any: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class ProjectedLens(Lens):
    """Read through any lens of one vector, and project on real embeddings: ``sum_i softmax_i(kappa cos(e, g_i)) g_i``.

    It is the mean of a gallery's embeddings given the direction of ``e`` (under a von Mises-Fisher likelihood of
    concentration kappa), rescaled to their mean length: a form of the attention of modern Hopfield networks (Ramsauer
    et al. 2020, arXiv 2008.02217). What comes out lies among real embeddings, so a decoder draws what it was asked for.
    That proves nothing: what comes out of a *random* direction does so, too. So the control of a projected lens
    is the projection of its control, and pictures are to be looked at beside it. What no picture of the gallery has is
    never drawn, so what is missing says nothing either (docs/trust.md).

    The gallery must not hold the input. A row that equals its embedding is left out, for this input alone, with an
    :class:`OwnPictureWarning`; the same picture has the same embedding, whatever its file is called.

    Args:
        lens: What is projected: a lens that reads a pooled vector. States of every token of a prompt have no gallery,
            since the k-th tokens of two prompts are different words.
        gallery: Embeddings of the same encoder: a :class:`vit_lens.readers.Gallery` of images, of a text tower a
            :class:`vit_lens.TextBank`.
        kappa: The sharpness, above 0: towards 0 everything becomes the gallery's mean, at 1e6 the nearest picture.

    Raises:
        LensError: The lens reads tokens, or the sharpness is no finite number above 0.
        GalleryError: The gallery is empty, or none.

    >>> gallery = vl.readers.Gallery.from_images(model, images)
    >>> lens = vl.ProjectedLens(lens=vl.DiffusionLens(), gallery=gallery)
    >>> lens.label
    'Diffusion Lens, projected (kappa 40)'
    >>> _, other = model.run_with_cache(pixels[:1].flip(2))
    >>> lens.embed(other, ["L3H4", "L5.mlp"]).shape
    torch.Size([1, 2, 128])
    """

    lens: Lens
    gallery: Targets
    kappa: float | int = KAPPA

    def __post_init__(self) -> None:
        expect(self.lens, Lens, "lens", LensError, "such as DiffusionLens()")
        if set(self.lens.parts) != {"pooled"}:
            raise LensError(
                f"{self.lens.describe().label} reads {' and '.join(self.lens.parts)}, and a projection is of one "
                "vector: tokens of different prompts have no common gallery"
            )
        advice = "Gallery.from_folder(model, folder) makes one, of a text tower TextBank.from_module(...)"
        expect(self.gallery, Targets, "gallery", GalleryError, advice)
        check_tensor("the gallery's embeddings", self.gallery.embeds, "row d_embed", GalleryError)
        if not len(self.gallery.embeds):
            raise GalleryError("the gallery is empty, so that there is nothing to project on")
        if not bool((self._targets.norm(dim=-1) > 0).all()):
            raise GalleryError("an embedding of the gallery is zero and has no direction; make the gallery again")
        object.__setattr__(self, "kappa", check_kappa(self.kappa))
        object.__setattr__(self, "name", self.lens.name or type(self.lens).__name__)
        object.__setattr__(self, "rows", self.lens.rows)

    # ---- how it describes itself

    def settings(self) -> dict[str, Any]:
        """Return the settings of the lens, the sharpness, and which gallery it is."""
        held = {"kappa": self.kappa, "gallery": self._content, "gallery_n": len(self._targets)}
        return {**self.lens.settings(), "projection": "sum softmax(kappa cos(e, g)) g, at the usual length", **held}

    @property
    def label(self) -> str:
        """The lens's own, and the sharpness."""
        return f"{self.lens.label}, projected (kappa {self.kappa:g})"

    @property
    def words(self) -> str:
        """The lens's own words, and what is made of it."""
        return (
            f"{self.lens.words} Then moved to the mean of the {len(self._targets)} real embeddings that lie in its "
            "direction, which can be drawn whatever was read: look at the control beside it."
        )

    @property
    def has_control(self) -> bool:
        """Whether the lens that is projected says what its control is."""
        return self.lens.has_control

    @property
    def has_controls(self) -> bool:
        """Whether the lens that is projected has all controls."""
        return self.lens.has_controls

    def each(self) -> list[Lens]:
        """Return the projections of the lenses that are drawn in the place of the one that is projected."""
        own = self.lens.each()
        if len(own) == 1:
            return [self]
        return [ProjectedLens(lens=one, gallery=self.gallery, kappa=self.kappa) for one in own]

    def starts(self) -> dict[str, Image.Image]:
        """Return the pictures that the lens that is projected starts from."""
        return self.lens.starts()

    def knows(self, cache: ViTActivationCache) -> list[bool]:
        """Return which inputs of a run are part of the lens that is projected; those of the gallery are left out."""
        return self.lens.knows(cache)

    def reads(self, site: Site) -> bool:
        """Return whether the lens that is projected is defined on a site."""
        return self.lens.reads(site)

    def check_sites(self, model: Addressed, sites: Sites) -> list[Site]:
        """Return the sites, if the lens that is projected is defined on them and the gallery is the model's.

        Raises:
            UnknownSiteError: A site is not one of the model's.
            LensError: The lens is not defined on a site.
            GalleryError: The gallery is another model's.
            TextError: The bank is another encoder's.
        """
        found = self.lens.check_sites(model, sites)
        self._check_gallery(model)
        return found

    def _check_gallery(self, model: Any) -> None:
        if isinstance(self.gallery, TextBank) and not isinstance(model.cfg, HookedTextConfig):
            raise GalleryError(
                "a text bank holds embeddings of texts, which lie apart from those of images: project what a model of "
                "images reads on a Gallery"
            )
        self.gallery.check(model)

    # ---- reading

    def read(self, cache: ViTActivationCache, sites: Sites) -> Condition:
        """Return the projection of what the lens reads of every site.

        Raises:
            UnknownSiteError: A site is not one of the model's.
            LensError: The lens is not defined on a site, or what it reads has no direction.
            GalleryError: The gallery is another model's, or holds nothing but the input.
        """
        return self._project(cache, [one.embed(cache, sites) for one in self.lens.each()])

    def read_control(self, cache: ViTActivationCache, sites: Sites, *, generator: torch.Generator) -> Condition:
        """Return the projection of the lens's control: what the gallery makes of a random direction."""
        expect(generator, torch.Generator, "generator", LensError, "torch.Generator().manual_seed(0) makes one")

        def read(one: Lens) -> Tensor:
            return one.placebo(cache, sites, generator=generator)

        return self._project(cache, alike(self.lens.each(), generator, read))

    def read_changed(self, cache: ViTActivationCache, sites: Sites, change: Change) -> Condition:
        """Return the projection of what the lens reads where something else stands in: every control is projected.

        Raises:
            LensError: The lens reads no outputs that could be changed, or nothing can stand in.
            GalleryError: The gallery is another model's, or holds nothing but the input.
        """
        generator = change.generator if isinstance(change, Against) else None

        def read(one: Lens) -> Tensor:
            return one._pooled(one.read_changed(cache, sites, change))

        return self._project(cache, alike(self.lens.each(), generator, read))

    def other_image(self, cache: ViTActivationCache, sites: Sites) -> Float[Tensor, "batch site d_embed"]:
        """Return the projection of the lens's control "other"."""
        return self._pooled(self._project(cache, [one.other_image(cache, sites) for one in self.lens.each()]))

    def hooks(self, cache: ViTActivationCache, site: Site | str) -> list[tuple[str, HookFn]]:
        """Return the hooks of the lens that is projected, and one that projects what the model outputs under them.

        Raises:
            LensError: The lens has no hooks.
        """
        model = check_cache(cache).model
        self._check_gallery(model)
        without = self._own(cache)

        def project(act: Tensor, hook: Any) -> Tensor:
            if len(act) != len(without):
                raise LensError(f"the cache holds {len(without)} inputs, this run has {len(act)}; run the cached ones")
            return soft_projection(act[:, None], self._targets, self.kappa, without)[:, 0].to(act)

        return [*self.lens.hooks(cache, site), (model.output_point, project)]

    def clean(self, embeds: Float[Tensor, "batch d_embed"], cache: ViTActivationCache) -> Condition:
        """Return what the whole input is to the lens that is projected."""
        return self.lens.clean(embeds, cache)

    def project(
        self, cache: ViTActivationCache, embeds: Float[Tensor, "batch site d_embed"]
    ) -> Float[Tensor, "batch site d_embed"]:
        """Return the projection of embeddings that were read of a run, whatever read them.

        Args:
            cache: The cache of the run, whose inputs the gallery may hold.
            embeds: Embeddings of any length.

        Raises:
            LensError: An embedding has no direction, or another width.
            GalleryError: The gallery is another model's, or holds nothing but an input.
        """
        return self._pooled(self._project(cache, [embeds]))

    def _project(self, cache: ViTActivationCache, embeds: Sequence[Float[Tensor, "batch site d_embed"]]) -> Condition:
        self._check_gallery(check_cache(cache).model)
        without = self._own(cache)
        found = [soft_projection(one, self._targets, self.kappa, without) for one in embeds]
        return Condition(pooled=found[0] if len(found) == 1 else average_reading(torch.stack(found)))

    @cached_property
    def _targets(self) -> Float[Tensor, "row d_embed"]:
        """The embeddings of different pictures: two copies of one would count twice."""
        rows = getattr(self.gallery, "distinct", None)
        return self.gallery.embeds if rows is None else self.gallery.embeds[list(rows)]

    @cached_property
    def _content(self) -> str:
        return fingerprint({"embeds": self._targets})

    def _own(self, cache: ViTActivationCache) -> Bool[Tensor, "batch row"]:
        """Return which rows of the gallery are which inputs of a run themselves, and tell it."""
        stream = cache.model.streams[-1]
        embeds = stream.read(stream.last(cache))
        targets = self._targets.to(embeds.device, torch.float64)
        # Half of the digits: a run of another batch size, or in bfloat16, differs in the others.
        dtypes = (cache.model.dtype, self._targets.dtype)
        allowed = max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5 * targets.norm(dim=-1)
        apart = torch.cdist(embeds.double(), targets, compute_mode="donot_use_mm_for_euclid_dist")
        same = apart <= allowed
        if bool(same.any()):
            names, rows = self._names(), sorted({row for _, row in same.nonzero().tolist()})
            inputs = sorted({image for image, _ in same.nonzero().tolist()})
            warnings.warn(
                f"the gallery holds {'input' if len(inputs) == 1 else 'inputs'} {', '.join(map(str, inputs[:4]))} "
                f"itself, as {', '.join(repr(names[row]) for row in rows[:4])}, and projects on the others: a gallery "
                "apart from what is read says more",
                OwnPictureWarning,
                stacklevel=4,
            )
        return same

    def _names(self) -> list[str]:
        held = self.gallery
        named = held.captions if isinstance(held, TextBank) else getattr(held, "names", range(len(held.embeds)))
        rows = getattr(self.gallery, "distinct", None)
        return [str(named[row]) for row in (range(len(named)) if rows is None else rows)]


@without_autocast()
def soft_projection(
    embeds: Float[Tensor, "batch site d_embed"], targets: Float[Tensor, "row d_embed"], kappa: float | int = KAPPA,
    without: Bool[Tensor, "batch row"] | None = None,
) -> Float[Tensor, "batch site d_embed"]:  # fmt: skip
    """Return ``sum_i softmax_i(kappa cos(e, g_i)) g_i``, at the mean length of the ``g_i``.

    Args:
        embeds: Embeddings of any length.
        targets: Real embeddings of the same encoder.
        kappa: The sharpness, above 0.
        without: The targets that an input is not projected on; None leaves out none.

    Raises:
        LensError: The sharpness is no number above 0, or an embedding has no direction or another width.
        GalleryError: No target is left for an input.

    >>> from vit_lens.lenses import soft_projection
    >>> targets = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    >>> soft_projection(torch.tensor([[[1.0, 1.0]], [[9.0, 0.0]]]), targets, 40).round(decimals=4)
    tensor([[[1.4142, 1.4142]],
    <BLANKLINE>
            [[2.0000, 0.0000]]])
    """
    check_kappa(kappa)
    check_tensor("targets", targets, "row d_embed", GalleryError)
    check_tensor("embeds", embeds, f"batch site {targets.shape[1]}")
    wide = torch.promote_types(embeds.dtype, targets.dtype)
    embeds, targets = embeds.to(wide), targets.to(embeds.device, wide)
    lengths = embeds.norm(dim=-1, keepdim=True)
    if bool((lengths == 0).any()):
        raise LensError("an embedding is zero: it has no direction to project along")
    cosines = (embeds / lengths) @ (targets / targets.norm(dim=-1, keepdim=True)).T
    kept = torch.ones(len(embeds), len(targets), dtype=torch.bool, device=embeds.device)
    if without is not None:
        kept = kept & ~without.to(embeds.device)
    if not bool(kept.any(-1).all()):
        raise GalleryError("the gallery holds nothing but the input itself, so that there is nothing to project on")
    weights = (kappa * cosines).masked_fill(~kept[:, None], -torch.inf).softmax(-1)
    mean = weights @ targets
    usual = (kept * targets.norm(dim=-1)).sum(-1) / kept.sum(-1)
    return mean * (usual[:, None, None] / mean.norm(dim=-1, keepdim=True))


def check_kappa(kappa: object) -> float:
    """Return a sharpness.

    Raises:
        LensError: It is no finite number above 0, or too large for float32.
    """
    try:
        found = finite("kappa", kappa, LensError)
    except VitLensError:
        found = 0
    if not 0 < found <= _SHARPEST:
        raise LensError(f"kappa={kappa!r}; expected a number above 0, at most {_SHARPEST:g}; {KAPPA:g} is usual")
    return float(found)
