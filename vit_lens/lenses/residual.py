"""Lenses that end at the model's own read-out: the outputs of sites, and the embeddings they lead to."""

__all__ = [
    "ResidualLens", "centred_norm", "check_same_run", "freeze", "same_start", "set_rows", "site_outputs", "spoken",
]  # fmt: skip

from abc import abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.addresses import Site, Sites, listed
from vit_lens.attribution import check_cache, check_finite, in_full
from vit_lens.conditions import Condition
from vit_lens.controls import Against, Change, centred_norm
from vit_lens.errors import LensError
from vit_lens.lenses.contract import HookFn, Lens
from vit_lens.towers import Readout, Stream, ViTActivationCache, by_stream, read_wide

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

    def _outputs(self, cache: ViTActivationCache, sites: list[Site]) -> Float[Tensor, "batch site row d_model"]:
        """Return the sites' outputs, as :meth:`_read` takes them."""
        return site_outputs(cache, sites)

    def _embed(
        self, stream: Stream, states: Float[Tensor, "batch site row d_model"]
    ) -> Float[Tensor, "batch site *row d_embed"]:
        """Return the embeddings of what :meth:`_read` returned; of encoders that pool nothing, of every row."""
        return stream.read(states)

    def read(self, cache: ViTActivationCache, sites: Sites) -> Condition:
        """Return the lens embedding of every site, pooled, from the cached run alone.

        Raises:
            UnknownSiteError: A site is not one of the model's.
            LensError: The lens is not defined on a site, the cache is not one of a run of the model, or what is read is
                not finite.
        """
        return self.read_changed(cache, sites, lambda outputs, origin, sites, outputs_of: outputs)

    def read_writes(
        self, cache: ViTActivationCache, site: Site | str, writes: Float[Tensor, "batch write row d_model"]
    ) -> Condition:
        """Return what is read of vectors that are written at a site, each in the place of the site's output.

        A feature's share of an activation is one: see :func:`vit_lens.dictionaries.feature_embeddings`.

        Args:
            cache: The cache of the run in which they are written.
            site: Where: an attention block, an MLP, or a place of the residual stream.
            writes: The vectors, at the read-out rows.

        Raises:
            UnknownSiteError: The site is not one of the model's.
            LensError: The writes have another shape, what is read is not finite, or the lens measures outputs from a
                mean, which a part of one has not.

        >>> outputs = vl.lenses.site_outputs(cache, "L5.mlp")
        >>> lens = vl.DiffusionSteeringLens(alpha=5)
        >>> whole = lens.embed(cache, "L5.mlp")
        >>> torch.allclose(lens.read_writes(cache, "L5.mlp", outputs).pooled, whole, atol=1e-5)
        True
        """
        model = check_cache(cache).model
        (one,) = Site.resolve(site, model.cfg)
        stream = model.stream_of(one)
        last = stream.last(cache)
        if writes.ndim != 4 or writes.shape[0] != len(last) or writes.shape[2:] != last.shape[1:]:
            raise LensError(
                f"writes are {tuple(writes.shape)}; expected [{len(last)} images, writes, {last.shape[1]} read-out "
                f"rows, {last.shape[2]}]"
            )
        if self._origin(cache, [one]) is not None:
            raise LensError(
                f"{self.describe().label} measures outputs from a mean, and a part of one has none; take the clean "
                "anchor"
            )
        sites = [one] * writes.shape[1]
        with in_full(model):
            read = stream.read(self._read(cache, sites, writes.to(last)))
        check_finite(read, sites, cache)
        return Condition(pooled=read)

    def read_control(self, cache: ViTActivationCache, sites: Sites, *, generator: torch.Generator) -> Condition:
        """Return the control: each site's output replaced by a random direction of equal norm.

        The norm is that of the output after mean removal over d_model (LayerNorm is blind to the mean), for
        ``anchor="mean"`` that of its deviation from the reference mean. One direction for each site and image.

        Raises:
            UnknownSiteError: A site is not one of the model's.
            LensError: The lens is not defined on a site, the cache is not one of a run of the model, what is read is
                not finite, or the generator is none.
        """
        return self.read_changed(cache, sites, Against(control="random", generator=generator))

    def other_image(self, cache: ViTActivationCache, sites: Sites) -> Float[Tensor, "batch site d_embed"]:
        """Return the control: each site's output is that of the next image, scaled to the norm of its own.

        Norms are those after mean removal over d_model; for ``anchor="mean"`` deviations from the reference mean are
        exchanged and scaled. What stays is content that says nothing about this image.

        Raises:
            UnknownSiteError: A site is not one of the model's.
            LensError: The cache holds one image, or the lens is not defined on a site.
        """

        def exchange(outputs: Tensor, origin: Tensor | None, sites: list[Site], outputs_of: object) -> Tensor:
            if len(outputs) < 2:
                raise LensError("the control 'other' needs another image: cache at least two, or leave the control out")
            own, norm = spoken(outputs, origin, sites, "no direction for the control 'other'")
            other = own.roll(-1, 0) * (norm / norm.roll(-1, 0))[..., None, None]
            return other if origin is None else origin + other

        return self._pooled(self.read_changed(cache, sites, exchange))

    def read_changed(self, cache: ViTActivationCache, sites: Sites, change: Change) -> Condition:
        check_cache(cache)
        own = self.check_sites(cache.model, sites)
        found: dict[Site, Tensor] = {}
        for stream, group in by_stream(cache.model.streams, own):
            chunk = max(1, _CHUNK_NUMBERS // stream.last(cache).numel())
            for some in (group[start : start + chunk] for start in range(0, len(group), chunk)):
                with in_full(cache.model):
                    reading = partial(self._outputs, sites=some)
                    outputs = change(reading(cache), self._origin(cache, some), some, reading)
                    read = self._embed(stream, self._read(cache, some, outputs))
                check_finite(read, some, cache)
                found.update(zip(some, read.unbind(1), strict=True))
        return Condition(pooled=torch.stack([found[site] for site in own], dim=1))


def site_outputs(cache: ViTActivationCache, sites: Sites) -> Float[Tensor, "batch site row d_model"]:
    """Return what each site holds or writes at the read-out rows, in float32 or wider; a head's is ``z W_O``.

    It lies on the model's device, wherever the cache is kept. Sites of attention pooling have one row, of the
    pooled width, and go together.

    Args:
        cache: The cache of one run; ``rows="readout"`` is enough.
        sites: Sites as ``Site.resolve`` takes them; one that is given twice comes twice.

    Raises:
        UnknownSiteError: A site is not one of the model's.
        LensError: The cache is none.

    >>> sites = vl.Site.resolve("L3H4, L5.mlp", model.cfg)
    >>> vl.lenses.site_outputs(cache, sites).shape
    torch.Size([2, 2, 1, 128])
    """
    cfg = check_cache(cache).model.cfg
    sites = [site for given in listed(sites) for site in Site.resolve(given, cfg)]
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
    return name, set_rows(cache, value) if cache.rows == "readout" else partial(_set_whole, value=value)


def _set_whole(act: Tensor, hook: HookPoint, *, value: Tensor) -> Tensor:
    check_batch(act, value, hook)
    if act.shape != value.shape:
        raise LensError(
            f"{hook.name}: the cache holds {tuple(value.shape)}, the run has {tuple(act.shape)}; make the cache "
            "without pos_slice, or with rows='readout'"
        )
    return value.to(act, copy=True)


def set_rows(
    cache: ViTActivationCache, rows: Float[Tensor, "#batch row *axes"], *, of_images: bool = True
) -> Callable[..., Tensor]:
    """Return a hook that sets a hook point at the read-out rows.

    Args:
        cache: The cache of one run.
        rows: What is set.
        of_images: Whether there is one for each image of the cache; otherwise there is one for all.
    """
    return partial(_set_rows, rows=rows, read_out=cache.read_out, of_images=of_images)


def _set_rows(act: Tensor, hook: HookPoint, *, rows: Tensor, read_out: Readout, of_images: bool) -> Tensor:
    if of_images:
        check_batch(act, rows, hook)
    return read_out.with_rows(act, rows)


def check_same_run(
    act: Float[Tensor, "batch pos *axes"], rows: Float[Tensor, "_ row *axes"], read_out: Readout, hook: HookPoint
) -> None:
    """Raise if a site's live output is not the cached one: other images, or an edit before the site.

    Raises:
        LensError: They differ by more than rounding.
    """
    check_batch(act, rows, hook)
    _check_equal(read_out.rows(act).to(rows), rows, act.dtype, hook)


def same_start(cache: ViTActivationCache, name: str | None) -> list[tuple[str, HookFn]]:
    """Return a hook that raises where the residual stream of a run does not start as the cached one.

    Under a lens that sets everything to what is cached nothing else would tell. There is none where the cache does not
    hold the start at every token: the class token's alone is the same for all images.
    """
    if name is None or cache.rows != "all" or name not in cache:
        return []
    return [(name, partial(_check_start, value=cache[name]))]


def _check_start(act: Tensor, hook: HookPoint, *, value: Tensor) -> Tensor:
    if act.shape == value.shape:  # else the others say what differs
        _check_equal(act.to(value), value, act.dtype, hook)
    return act


def _check_equal(live: Tensor, cached: Tensor, dtype: torch.dtype, hook: HookPoint) -> None:
    allowed = min(1e4 * torch.finfo(dtype).eps, 0.1) * cached.abs().amax()
    if not (live - cached).abs().amax() <= allowed:  # so that NaN is a difference too
        raise LensError(
            f"{hook.name} differs between this run and the cached one: other images, or an edit before the site. Make "
            "the cache of these images under the same edits: "
            "`with model.hooks(edits): _, cache = model.run_with_cache(pixels)`"
        )


def check_batch(act: Tensor, value: Tensor, hook: HookPoint) -> None:
    """Raise if a run has another number of images than the cache.

    Raises:
        LensError: It has.
    """
    if len(act) != len(value):
        raise LensError(
            f"{hook.name}: the cache holds {len(value)} images, this run has {len(act)}; run the cached images"
        )


def spoken(
    outputs: Float[Tensor, "batch site row d_model"], origin: Tensor | None, sites: list[Site], lacks: str
) -> tuple[Float[Tensor, "batch site row d_model"], Float[Tensor, "batch site"]]:
    """Return outputs, measured from an origin where there is one, and their norms.

    Raises:
        LensError: A site writes nothing but rounding errors, so that it ``lacks`` something.
    """
    own = outputs if origin is None else outputs - origin
    norm, size = centred_norm(own), centred_norm(outputs) + (0 if origin is None else centred_norm(origin))
    silent = norm <= _ROUNDING * torch.finfo(norm.dtype).eps * size
    if not silent.is_meta and silent.any():
        image, index = silent.nonzero()[0].tolist()
        raise LensError(
            f"site {sites[index]} writes nothing for image {image} (zero but for rounding), so it has {lacks}; leave "
            "the site out"
        )
    return own, norm
