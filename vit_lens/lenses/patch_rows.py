"""What lenses of patches share: sites seen at the patch rows, the final norm without gain and bias, tokens out."""

__all__ = ["PatchRows", "mean_write", "put", "silent", "whole", "written"]

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.addresses import Site, Sites
from vit_lens.attribution import check_cache, check_finite, check_model, in_full
from vit_lens.conditions import Condition
from vit_lens.controls import Change
from vit_lens.errors import LensError
from vit_lens.lenses.residual import ResidualLens, check_batch, site_outputs
from vit_lens.reference import ReferenceMeans
from vit_lens.towers import PatchTokens, Tower, ViTActivationCache, at_patches, patches_of, read_wide

_CHUNK_NUMBERS = 2**26  # a quarter of a GiB of float32 for the outputs that are held at once


class PatchRows(ResidualLens):
    """A lens whose sites are seen at the patch rows of a last residual, read as patch tokens."""

    parts = ("tokens",)
    rows = "all"

    def reads(self, site: Site) -> bool:
        """Return whether the site lies in the residual stream: attention pooling comes behind every patch."""
        return not site.is_pool

    def check_sites(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: Tower, sites: Sites
    ) -> list[Site]:
        """Return the sites, parsed and in range, if the lens is defined on all of them for this model.

        Raises:
            UnknownSiteError: A site is not one of the model's.
            LensError: A site belongs to attention pooling, or the model sees no patches.
        """
        check_model(model)
        patches_of(model.cfg)
        resolved = Site.resolve(sites, model.cfg)
        if pooled := [str(site) for site in resolved if site.is_pool]:
            raise LensError(
                f"{pooled[0]} comes behind the patch tokens: what it writes is in none of them; read it with "
                "DiffusionLens() or DiffusionSteeringLens()"
            )
        return resolved

    def clean(self, embeds: Tensor, cache: ViTActivationCache) -> Condition:
        """Return the model's own patch tokens."""
        view = at_patches(check_cache(cache))
        with in_full(cache.model):
            return view.read_out.condition(cache.model.streams[0].last(view))

    def numbers(self, model: Tower) -> int:
        """Return how many numbers a row's condition has."""
        cfg = patches_of(model.cfg)
        return cfg.n_patches * cfg.d_model

    def written_norms(self, cache: ViTActivationCache, sites: Sites) -> Float[Tensor, "batch site"]:
        """Return how long what each site writes is, over all patch rows together."""
        return site_outputs(at_patches(check_cache(cache)), sites).flatten(2).norm(dim=-1)

    def other_image(self, cache: ViTActivationCache, sites: Sites) -> Float[Tensor, "batch site d_embed"]:
        """Refuse: this is the pooled part of the control.

        Raises:
            LensError: Always.
        """
        raise LensError(
            f"{self.describe().label} reads tokens, and this control is pooled: read_against(cache, sites, "
            "Against(control='other', generator=generator, others=bank.others(hashes))) reads its tokens"
        )

    def read_writes(self, cache: ViTActivationCache, site: Site | str, writes: Tensor) -> Condition:
        """Refuse: parts of an activation are read as embeddings.

        Raises:
            LensError: Always.
        """
        raise LensError(f"{self.describe().label} reads tokens; read_writes is of lenses that read embeddings")

    def read_changed(self, cache: ViTActivationCache, sites: Sites, change: Change) -> Condition:
        """Return what is read where something else stands in for each site's output, patch by patch.

        What stands in is made for every patch by itself, as if it were a site: a control is as long as what is written
        there, and another image's is that of the same patch.

        Args:
            cache: The cache that :meth:`read` takes.
            sites: Sites as :meth:`read` takes them.
            change: As :meth:`vit_lens.Lens.read_changed` takes it.

        Raises:
            UnknownSiteError: A site is not one of the model's.
            LensError: The lens is not defined on a site, or what is read is not finite.
        """
        check_cache(cache)
        own = self.check_sites(cache.model, sites)
        view, found = at_patches(cache), []
        chunk = max(1, _CHUNK_NUMBERS // cache.model.streams[0].last(view).numel())
        for some in (own[start : start + chunk] for start in range(0, len(own), chunk)):
            with torch.no_grad(), in_full(cache.model):
                outputs = self._changed(view, some, change)
                read = view.read_out.read(self._read(view, some, outputs))
            check_finite(read.flatten(2), some, cache)
            found.append(read)
        return Condition(tokens=torch.cat(found, dim=1))

    def _outputs(self, cache: ViTActivationCache, sites: list[Site]) -> Float[Tensor, "batch site patch d_model"]:
        return site_outputs(at_patches(cache), sites)

    def _changed(
        self, view: ViTActivationCache, sites: list[Site], change: Change
    ) -> Float[Tensor, "batch site patch d_model"]:
        def apart(x: Float[Tensor, "batch site patch d_model"]) -> Float[Tensor, "batch place 1 d_model"]:
            return rearrange(x, "batch site patch d -> batch (site patch) 1 d")

        outputs, origin = self._outputs(view, sites), self._origin(view, sites)
        places = [site for site in sites for _ in range(outputs.shape[2])]
        made = change(
            apart(outputs), None if origin is None else apart(origin), places,
            lambda other: apart(self._outputs(other, sites)),
        )  # fmt: skip
        return rearrange(made, "batch (site patch) 1 d -> batch site patch d", site=len(sites))


def written(cache: ViTActivationCache, site: Site) -> Float[Tensor, "batch pos d_model"]:
    """Return what a site writes at every token: of a head ``z W_O``."""
    if site.head is None:
        return whole(cache, site.hook_name)
    z = whole(cache, site.hook_name)[:, :, site.head]
    return einsum(z, cache.model.attention_of(site).W_O.detach()[site.head].to(z), "b pos k, k d -> b pos d")


def whole(cache: ViTActivationCache, name: str) -> Float[Tensor, "batch pos *axes"]:
    """Return an activation at every token, in float32 or wider, on the model's device."""
    every = PatchTokens(cache.model.cfg, cache.model.ln_final, None)  # without a prefix every token is one of the rows
    held = type(cache)(cache.cache_dict, cache.model, True, cache.rows, cache.start_at_layer, every)
    return read_wide(held, name)


def mean_write(means: ReferenceMeans, model: Tower, name: str) -> Float[Tensor, "pos d_model"]:
    """Return the mean of what is written at a hook point, an attention's or an MLP's, at every token."""
    layer, kind = name.split(".")[1:]
    return means.output(model, Site(int(layer), "attn" if kind == "hook_attn_out" else "mlp"))


def put(act: Tensor, hook: HookPoint, *, value: Float[Tensor, "#batch pos d_model"], of_images: bool = True) -> Tensor:
    """Set a hook point at every token: to a value for each image of a cache, or to one for all.

    Raises:
        LensError: The run has another number of images than the cache.
    """
    if of_images:
        check_batch(act, value, hook)
    return value.to(act).expand_as(act).clone()


def silent(act: Tensor, hook: HookPoint) -> Tensor:
    """Set a hook point to zero."""
    return act * 0
