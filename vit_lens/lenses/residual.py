"""Lenses that end at the model's own read-out: the outputs of sites, and the embeddings they lead to."""

__all__ = ["ResidualLens", "centred_norm", "check_same_run", "check_speaks", "freeze", "set_rows", "site_outputs"]

from abc import abstractmethod
from collections.abc import Callable

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.addresses import Site, Sites
from vit_lens.attribution import check_cache
from vit_lens.conditions import Condition
from vit_lens.errors import LensError
from vit_lens.lenses.contract import HookFn, Lens
from vit_lens.towers import ViTActivationCache, by_stream, read_wide

_Change = Callable[[Tensor, Tensor | None, list[Site]], Tensor]  # of outputs, their origin and their sites
_ROUNDING = 64  # a deviation below this many units in the last place of its terms is noise
_CHUNK_NUMBERS = 2**26  # a quarter of a GiB of float32 for the outputs that are held at once


class ResidualLens(Lens):
    """A lens whose sites' outputs are seen in a last residual (of attention pooling: its sum), read by the model.

    Subclasses say which (:meth:`_read`), and from where an output is measured (:meth:`_origin`). Controls and batches
    of sites come with it.

    >>> lens = vl.DiffusionLens()
    >>> isinstance(lens, vl.lenses.ResidualLens)
    True
    >>> lens.placebo(cache, "L3H4", generator=torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1, 128])
    >>> lens.other_image(cache, "L3H4").shape
    torch.Size([2, 1, 128])
    """

    @abstractmethod
    def _read(
        self, cache: ViTActivationCache, sites: list[Site], outputs: Float[Tensor, "batch site row d_model"]
    ) -> Float[Tensor, "batch site row d_model"]:
        """Return the last residual (of attention pooling, the sum) in which the sites' outputs are seen."""

    def _origin(self, cache: ViTActivationCache, sites: list[Site]) -> Float[Tensor, "#batch site row d_model"] | None:
        """Return what a site's output is measured from, where that is not zero."""
        return None

    def read(self, cache: ViTActivationCache, sites: Sites) -> Condition:
        """Return the lens embedding of every site, pooled, from the cached run alone.

        Raises:
            UnknownSiteError: A site is not one of the model's.
            LensError: The lens is not defined on a site, or the cache is not one of a run of the model.
        """
        return self._change(cache, sites, lambda outputs, origin, sites: outputs)

    def read_control(self, cache: ViTActivationCache, sites: Sites, *, generator: torch.Generator) -> Condition:
        """Return the control: each site's output replaced by a random direction of equal norm.

        The norm is that of the output after mean removal over d_model (LayerNorm is blind to the mean), for
        ``anchor="mean"`` that of its deviation from the reference mean. One direction for each site and image.

        Raises:
            UnknownSiteError: A site is not one of the model's.
            LensError: The lens is not defined on a site, or the cache is not one of a run of the model.
        """

        def random_like(outputs: Tensor, origin: Tensor | None, sites: list[Site]) -> Tensor:
            deviation = outputs if origin is None else outputs - origin
            noise = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype).to(outputs.device)
            noise = noise - noise.mean(-1, keepdim=True)
            noise = noise * (centred_norm(deviation) / centred_norm(noise))[..., None, None]
            return noise if origin is None else origin + noise

        return self._change(cache, sites, random_like)

    def other_image(self, cache: ViTActivationCache, sites: Sites) -> Float[Tensor, "batch site d_embed"]:
        """Return the control: each site's output is that of the next image, scaled to the norm of its own.

        Norms are those after mean removal over d_model; for ``anchor="mean"`` deviations from the reference mean are
        exchanged and scaled. What stays is content that says nothing about this image.

        Raises:
            UnknownSiteError: A site is not one of the model's.
            LensError: The cache holds one image, or the lens is not defined on a site.
        """

        def exchange(outputs: Tensor, origin: Tensor | None, sites: list[Site]) -> Tensor:
            if len(outputs) < 2:
                raise LensError("the control 'other' needs another image: cache at least two, or leave the control out")
            own = outputs if origin is None else outputs - origin
            size = centred_norm(outputs) + (0 if origin is None else centred_norm(origin))
            check_speaks(centred_norm(own), size, sites, "no direction for the control 'other'")
            other = own.roll(-1, 0)
            other = other * (centred_norm(own) / centred_norm(other))[..., None, None]
            return other if origin is None else origin + other

        return self._pooled(self._change(cache, sites, exchange))

    def _change(self, cache: ViTActivationCache, sites: Sites, change: _Change) -> Condition:
        check_cache(cache)
        own = self.check_sites(cache.model, sites)
        found: dict[Site, Tensor] = {}
        for stream, group in by_stream(cache.model.streams, own):
            chunk = max(1, _CHUNK_NUMBERS // stream.last(cache).numel())
            for some in (group[start : start + chunk] for start in range(0, len(group), chunk)):
                outputs = change(site_outputs(cache, some), self._origin(cache, some), some)
                read = stream.read(self._read(cache, some, outputs))
                found.update(zip(some, read.unbind(1), strict=True))
        return Condition(pooled=torch.stack([found[site] for site in own], dim=1))


def site_outputs(cache: ViTActivationCache, sites: list[Site]) -> Float[Tensor, "batch site row d_model"]:
    """Return what each site holds or writes at the read-out rows, in float32 or wider; a head's is ``z W_O``.

    It lies on the model's device, wherever the cache is kept. Sites of attention pooling have one row, of the
    pooled width, and go together.

    Args:
        cache: The cache of one run; ``rows="readout"`` is enough.
        sites: Parsed sites, as :meth:`Lens.check_sites` returns them.

    >>> sites = vl.Site.resolve("L3H4, L5.mlp", model.cfg)
    >>> vl.lenses.site_outputs(cache, sites).shape
    torch.Size([2, 2, 1, 128])
    """
    found: dict[Site, Tensor] = {}
    for name in dict.fromkeys(s.hook_name for s in sites if s.head is not None):
        heads = [s for s in sites if s.hook_name == name and s.head is not None]
        index = [s.head for s in heads]
        z = read_wide(cache, name)[:, :, index]
        weight = cache.model.attention_of(heads[0]).W_O.detach()[index].to(z)
        found.update(zip(heads, einsum(z, weight, "b row h k, h k d -> h b row d"), strict=True))
    for site in sites:
        if site.head is None:
            found[site] = read_wide(cache, site.hook_name)
    return torch.stack([found[site] for site in sites], dim=1)


def freeze(cache: ViTActivationCache, name: str) -> tuple[str, HookFn]:
    """Return a hook that sets a hook point to its cached value, at the positions that the cache holds.

    From a cache of the read-out rows only those are set. That is exact for the model's output as long as
    everything that is written to these rows afterwards is frozen too.
    """
    value = cache[name]
    if cache.rows == "readout":
        return name, set_rows(cache, name, value)

    def set_cached(act: Tensor, hook: HookPoint) -> Tensor:
        check_batch(act, value, name)
        if act.shape != value.shape:
            raise LensError(
                f"{name}: the cache holds {tuple(value.shape)}, the run has {tuple(act.shape)}; make the cache "
                "without pos_slice, or with rows='readout'"
            )
        return value.to(act)

    return name, set_cached


def set_rows(
    cache: ViTActivationCache, name: str, rows: Float[Tensor, "#batch row *axes"], *, of_images: bool = True
) -> HookFn:
    """Return a hook that sets a hook point at the read-out rows.

    Args:
        cache: The cache of one run.
        name: The hook point's name, for the message.
        rows: What is set.
        of_images: Whether there is one for each image of the cache; otherwise there is one for all.
    """

    def put(act: Tensor, hook: HookPoint) -> Tensor:
        if of_images:
            check_batch(act, rows, name)
        return cache.read_out.with_rows(act, rows)

    return put


def check_same_run(
    act: Float[Tensor, "batch pos *axes"], rows: Float[Tensor, "_ row *axes"], cache: ViTActivationCache, name: str
) -> None:
    """Raise if a site's live output is not the cached one: other images, or an edit before the site.

    Raises:
        LensError: They differ by more than rounding.
    """
    check_batch(act, rows, name)
    live = cache.read_out.rows(act).to(rows)
    allowed = min(1e4 * torch.finfo(act.dtype).eps, 0.1) * rows.abs().amax()
    if not (live - rows).abs().amax() <= allowed:  # so that NaN is a difference too
        raise LensError(
            f"{name} differs between this run and the cached one: other images, or an edit before the site. Make the "
            "cache of these images under the same edits: "
            "`with model.hooks(edits): _, cache = model.run_with_cache(pixels)`"
        )


def check_batch(act: Tensor, value: Tensor, name: str) -> None:
    """Raise if a run has another number of images than the cache.

    Raises:
        LensError: It has.
    """
    if len(act) != len(value):
        raise LensError(f"{name}: the cache holds {len(value)} images, this run has {len(act)}; run the cached images")


def check_speaks(
    norm: Float[Tensor, "batch site"], size: Float[Tensor, "batch site"], sites: list[Site], lacks: str
) -> None:
    """Raise if a site writes nothing but rounding errors.

    Raises:
        LensError: It does, so that it ``lacks`` something.
    """
    silent = norm <= _ROUNDING * torch.finfo(norm.dtype).eps * size
    if silent.any():
        image, index = (int(i[0]) for i in torch.where(silent))
        raise LensError(
            f"site {sites[index]} writes nothing for image {image} (zero but for rounding), so it has {lacks}; leave "
            "the site out"
        )


def centred_norm(x: Float[Tensor, "*batch row d_model"]) -> Float[Tensor, "*batch"]:
    """Return the norm after mean removal over d_model, taken over all rows: what a LayerNorm sees of a size.

    >>> vl.lenses.centred_norm(torch.tensor([[4.0, 10.0]]))  # one row of width 2, whose mean is 7
    tensor(4.2426)
    """
    return (x - x.mean(-1, keepdim=True)).flatten(-2).norm(dim=-1)
