"""The exact split of an embedding into what every part of the model wrote."""

__all__ = ["Component", "EmbeddingParts", "check_layers", "describe", "hook_names", "neuron_parts", "split_embedding"]

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, get_args

import pandas as pd
import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Address, Indices, Site, as_index, as_indices, spelled
from vit_lens.attribution.brief import Brief
from vit_lens.attribution.checks import check_model
from vit_lens.attribution.frozen import FrozenReadout, read_rows, same
from vit_lens.config import TowerConfig
from vit_lens.errors import LensError, UnknownSiteError, nearest
from vit_lens.numerics import without_autocast
from vit_lens.towers import Tower, ViTActivationCache

PartKind = Literal[
    "embed",
    "resid_pre",
    "head",
    "attn_bias",
    "mlp",
    "neuron",
    "mlp_bias",
    "feature",
    "pool_head",
    "pool_mlp",
    "constant",
]
_EMBEDS = ("hook_embed", "hook_pos_embed")
_CHUNK_NUMBERS = 2**26  # a quarter of a GiB of float32 for what neurons write


@dataclass(frozen=True)
class Component:
    """One term of an embedding: the part of the model that wrote it.

    Attributes:
        address: The address of that part: a site (``L3H4``, ``L3.mlp``), ``embed``, ``L3.b_O``, ``L3N17``,
            ``ln_final.b``, ...

    >>> component = vl.attribution.Component(vl.Address.parse("L3H4"))
    >>> component.label, component.kind, component.layer, component.head
    ('L3H4', 'head', 3, 4)
    >>> vl.attribution.Component(vl.Address.parse("L3.b_O")).kind
    'attn_bias'
    """

    address: Address

    @cached_property
    def label(self) -> str:
        """The address, as text."""
        return str(self.address)

    @property
    def kind(self) -> PartKind:
        """What kind of part it is, such as ``head``, ``attn_bias``, ``mlp``, ``neuron`` or ``constant``."""
        kinds = {"embed": "embed", "pos_embed": "embed", "b_O": "attn_bias", "b_out": "mlp_bias"}
        kind = self.address.kind
        return kinds.get(kind, kind if kind in get_args(PartKind) else "constant")  # pyright: ignore[reportReturnType]

    @property
    def layer(self) -> int | None:
        """The index of the block that wrote it, counted from 0; None for what lies before or behind the blocks."""
        return self.address.layer

    @property
    def head(self) -> int | None:
        """The index of the head in its layer (or in attention pooling), counted from 0; None for other parts."""
        return self.address.head

    @property
    def site(self) -> Site | None:
        """The component as a :class:`vit_lens.Site`; None if it is none."""
        return self.address.site


@dataclass(frozen=True, eq=False, repr=False)
class EmbeddingParts(Brief):
    """What each component contributes to the embeddings of one run; :func:`split_embedding` makes it.

    Attributes:
        components: The parts of the model that wrote the terms, in the order of the component axis.
        values: The vector that each component adds to each image's embedding, in units of the embedding.

    >>> parts = vl.attribution.split_embedding(cache)
    >>> len(parts), parts["L3H4"].shape, parts.select("mlp").labels[:2]
    (83, torch.Size([2, 128]), ['L0.mlp', 'L1.mlp'])
    >>> parts.to_frame().columns.tolist()
    ['component', 'layer', 'head', 'kind', 'image', 'norm', 'share']
    """

    components: tuple[Component, ...]
    values: Float[Tensor, "component batch d_embed"]

    @property
    def labels(self) -> list[str]:
        """The names of the components."""
        return [component.label for component in self.components]

    @property
    def sites(self) -> list[Site | None]:
        """The components as sites; None for those that are none."""
        return [component.site for component in self.components]

    @property
    def total(self) -> Float[Tensor, "batch d_embed"]:
        """The sum over the components: of a whole split, the embedding."""
        return self.values.sum(0)

    def __len__(self) -> int:
        return len(self.components)

    def __getitem__(self, label: str | Site | Address) -> Float[Tensor, "batch d_embed"]:
        """Return the contribution of one component, by its address: a copy.

        Raises:
            UnknownSiteError: There is no such component.
        """
        labels, name = self.labels, spelled(label)
        if name not in labels:
            raise UnknownSiteError(f"no component {name!r}; nearest: {nearest(name, labels)}")
        return self.values[labels.index(name)].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self.labels)

    def select(self, *wanted: str | Site | Address) -> "EmbeddingParts":
        """Return the components with these addresses or kinds, in their own order.

        Args:
            *wanted: Addresses (``L3H4``, ``embed``) and kinds (``head``, ``mlp``), in any mixture.

        Raises:
            UnknownSiteError: One of ``wanted`` names nothing.
        """
        names = [spelled(item) for item in wanted]
        own = [{c.label, c.kind} for c in self.components]
        known = {name for spellings in own for name in spellings}
        if unknown := [name for name in names if name not in known] or ([] if names else ["(nothing)"]):
            raise UnknownSiteError(
                f"no component or kind {unknown[0]!r}; nearest: {nearest(unknown[0], sorted(known))}"
            )
        index = [i for i, spellings in enumerate(own) if spellings & set(names)]
        return EmbeddingParts(tuple(self.components[i] for i in index), self.values[index])

    def to_frame(self) -> pd.DataFrame:
        """Return one row per component and image: its norm, and its share of the total.

        Columns: component, layer, head, kind, image, norm, share.

        The share is the component's projection on the total, in units of the total: shares add up to 1 and can be
        negative.
        """
        total = self.total
        norm = self.values.norm(dim=-1).tolist()
        share = (einsum(self.values, total, "c b d, b d -> c b") / total.pow(2).sum(-1)).tolist()
        rows = [
            {**describe(component), "image": image, "norm": norm[i][image], "share": share[i][image]}
            for i, component in enumerate(self.components)
            for image in range(len(total))
        ]
        return pd.DataFrame(rows).astype({"layer": "Int64", "head": "Int64"})


@without_autocast()
def split_embedding(cache: ViTActivationCache, *, neuron_layers: Indices = (), start_layer: int = 0) -> EmbeddingParts:
    """Split the embeddings of a run into terms that add up to them, the last LayerNorm's scale held fixed.

    Terms: the patch and position embeddings, each head (``z W_O``), each ``b_O``, each MLP (with ``b_out``), and
    the constants of the read-out, see :class:`FrozenReadout`. They sum to the embedding up to rounding (1e-10 in
    float64). Each is a direct effect: what the part wrote, read by the read-out alone. What later parts made of it
    is counted with them, and the scale is the whole image's; so a term is not what the embedding would lose
    without the part.

    A cache with ``rows="readout"`` is enough, except for neurons, which need ``mlp.hook_post`` (see
    :func:`hook_names`). Memory: terms x images x d_embed, and one layer's heads.

    Args:
        cache: The cache of the run.
        neuron_layers: The layers whose MLP is split into its neurons ``L3N17`` and ``b_out``: d_mlp terms for each.
        start_layer: The first layer that is split. What earlier blocks wrote stays in one term,
            ``L{start_layer}.resid_pre``. With 0, the embeddings are one term ``L0.resid_pre`` where the cache does not
            hold ``hook_embed`` and ``hook_pos_embed``.

    Raises:
        LensError: The run was edited so that its parts do not add up to its embedding; or a layer is out of
            range, or its neurons lie before ``start_layer``.
        UnknownHookError: The cache lacks an activation; the message names it.

    Source: Gandelsman et al. 2024 (arXiv 2310.05916), section 3, there with the mean over heads' tokens.

    >>> parts = vl.attribution.split_embedding(cache)
    >>> torch.allclose(parts.total, model(pixels), atol=1e-4)
    True
    >>> parts.labels[:3], parts.labels[-2:]
    (['embed', 'pos_embed', 'L0H0'], ['L7.mlp', 'ln_final.b'])
    """
    readout = FrozenReadout(cache)
    start_layer = check_layer(readout.model.cfg, start_layer)
    neuron_layers = check_layers(readout.model.cfg, neuron_layers)
    if early := [layer for layer in neuron_layers if layer < start_layer]:
        raise LensError(
            f"neuron_layers={neuron_layers}: what layer {early[0]} writes stays in the one term "
            f"L{start_layer}.resid_pre; leave it out, or pass start_layer={min(early)}"
        )
    components, values = [], []
    found = torch.zeros_like(readout.final_reduced)
    for some, reduced in _reduced_parts(readout, neuron_layers, start_layer):
        components += some
        values.append(readout.project(reduced))
        found = found + reduced.sum(0)
    _check_whole(readout, found)
    for name, value in readout.constants.items():
        components.append(Component(Address.parse(name)))
        values.append(value[None])
    return EmbeddingParts(tuple(components), torch.cat(values))


@without_autocast()
def neuron_parts(cache: ViTActivationCache, layer: int, neurons: slice | Indices = slice(None)) -> EmbeddingParts:
    """Return what single neurons of one MLP contribute; all of them and ``b_out`` add up to the MLP's term.

    Memory: neurons x images x d_embed.

    Args:
        cache: A cache with ``blocks.{layer}.mlp.hook_post`` and the last residual, at the read-out rows at least.
        layer: The index of the block, counted from 0.
        neurons: The indices of neurons, counted from 0, or a slice of them; by default all.

    Raises:
        LensError: The layer or a neuron is out of range.
        UnknownHookError: The cache lacks an activation; the message names it.

    >>> vl.attribution.neuron_parts(cache, layer=3, neurons=[4, 17]).labels
    ['L3N4', 'L3N17']
    """
    readout = FrozenReadout(cache)
    layer = check_layer(readout.model.cfg, layer)
    components, values = [], []
    for some, reduced in _reduced_neurons(readout, layer, _indices(readout.model.cfg.d_mlp, neurons)):
        components += some
        values.append(readout.project(reduced))
    return EmbeddingParts(tuple(components), torch.cat(values))


def hook_names(
    model: Tower, *, tokens: bool = False, neuron_layers: Indices = (), layers: Indices | None = None
) -> list[str]:
    """Return the names of the hook points that attribution reads, for ``run_with_cache(names_filter=...)``.

    Args:
        model: The model that will be run.
        tokens: Whether to add what :func:`token_parts`, :func:`attention_map` and :func:`token_attribution` read.
        neuron_layers: The layers whose neurons are wanted.
        layers: The layers that the hooks of ``tokens`` are restricted to; None means all.

    Raises:
        LensError: A layer is out of range, or ``layers`` without ``tokens`` would have no effect.

    >>> names = vl.attribution.hook_names(model, tokens=True, layers=[6, 7])
    >>> _, few = model.run_with_cache(pixels, names_filter=names)
    >>> vl.attribution.token_parts(few, layers=[6, 7]).shape
    torch.Size([2, 2, 8, 17, 128])
    """
    check_model(model)
    cfg = model.cfg
    if layers is not None and not tokens:
        raise LensError("layers= restricts the hooks of tokens=True; without it there is nothing to restrict")
    neuron_layers = check_layers(cfg, neuron_layers)
    layers = check_layers(cfg, layers)
    names = {*_EMBEDS, "ln_final.hook_scale", f"blocks.{cfg.n_layers - 1}.hook_resid_post", model.output_point}
    names |= {f"blocks.{i}.{part}" for i in range(cfg.n_layers) for part in ("attn.hook_z", "hook_mlp_out")}
    names |= {f"blocks.{i}.mlp.hook_post" for i in neuron_layers}
    if tokens:
        names |= {f"blocks.{i}.attn.hook_{part}" for i in layers for part in ("pattern", "v")}
    pool = ("attn.hook_pattern", "attn.hook_z", "hook_mlp_out", "ln_post.hook_scale")
    names |= {f"attn_pool.{part}" for part in pool}.intersection(model.hook_dict)
    return [name for name in model.hook_dict if name in names]


def describe(component: Component) -> dict[str, Any]:
    """Return the columns of a table that say what a component is."""
    return {"component": component.label, "layer": component.layer, "head": component.head, "kind": component.kind}


def _reduced_parts(
    readout: FrozenReadout, neuron_layers: list[int], start_layer: int
) -> Iterator[tuple[list[Component], Float[Tensor, "part batch pool_head d_model"]]]:
    model, cache = readout.model, readout.cache
    wide = readout.weights
    rows = wide.sum(-1)[..., None]  # what a vector that stands in every row counts
    yield _reduced_start(readout, start_layer)
    for layer in range(start_layer, model.cfg.n_layers):
        block = model.blocks[layer]
        z = readout.reduce(read_rows(cache, f"blocks.{layer}.attn.hook_z").flatten(2))
        z = rearrange(z, "b c (h k) -> b c h k", h=model.cfg.n_heads)
        part = partial(Address, block="L", layer=layer)
        heads = [Component(part(head=head)) for head in range(model.cfg.n_heads)]
        yield heads, einsum(z, block.attn.W_O.detach().to(wide), "b c h k, h k d -> h b c d")
        yield [Component(part(hook="b_O"))], (rows * block.attn.b_O.detach().to(wide))[None]
        if layer in neuron_layers:
            yield from _reduced_neurons(readout, layer, range(model.cfg.d_mlp))
            yield [Component(part(hook="b_out"))], (rows * block.mlp.b_out.detach().to(wide))[None]
        else:
            mlp = readout.reduce(read_rows(cache, f"blocks.{layer}.hook_mlp_out"))
            yield [Component(part(hook="mlp"))], mlp[None]


def _reduced_start(
    readout: FrozenReadout, layer: int
) -> tuple[list[Component], Float[Tensor, "part batch pool_head d_model"]]:
    cache = readout.cache
    embeds = [name for name in _EMBEDS if name in readout.model.hook_dict]
    if layer == 0 and all(name in cache.cache_dict for name in embeds):
        components = [Component(Address(hook=name.removeprefix("hook_"))) for name in embeds]
        return components, torch.stack([readout.reduce(read_rows(cache, name)) for name in embeds])
    rows = read_rows(cache, f"blocks.{layer}.hook_resid_pre")
    return [Component(Site(layer, "resid_pre").address)], readout.reduce(rows)[None]


def _reduced_neurons(
    readout: FrozenReadout, layer: int, neurons: Sequence[int]
) -> Iterator[tuple[list[Component], Float[Tensor, "part batch pool_head d_model"]]]:
    post = readout.reduce(read_rows(readout.cache, f"blocks.{layer}.mlp.hook_post"))
    weight = readout.model.blocks[layer].mlp.W_out.detach().to(post)
    chunk = max(1, _CHUNK_NUMBERS // (post.shape[0] * post.shape[1] * weight.shape[1]))
    for start in range(0, len(neurons), chunk):
        some = list(neurons[start : start + chunk])
        components = [Component(Address(block="L", layer=layer, neuron=i)) for i in some]
        yield components, einsum(post[..., some], weight[some], "b c n, n d -> n b c d")


def _check_whole(readout: FrozenReadout, found: Float[Tensor, "batch pool_head d_model"]) -> None:
    """Raise if the parts do not add up to the run's last residual, or that to the run's embedding."""
    final = readout.final_reduced
    if not same(found, final, final.abs().amax(), readout.eps):
        raise LensError(
            f"the parts of this run do not add up to its last residual (difference {(found - final).abs().amax():.2g}, "
            f"size {final.abs().amax():.2g}): it was edited between writing and reading (hook_resid_*, hook_attn_out "
            "or hook_result), or ran under torch.autocast, which rounds between them. Edit hook_z or hook_mlp_out "
            "instead, or begin after the edit with start_layer=; run without autocast"
        )
    if (point := readout.model.output_point) in readout.cache.cache_dict:
        own, out = readout.embedding, readout.cache[point].detach()
        if not same(own, out.to(own), out.abs().amax().to(own), readout.eps):
            raise LensError(
                "the frozen read-out does not give the embedding of this run: it was edited after the last block, at a "
                "point that is not a scale, a pattern or the pool's MLP; or it ran under torch.autocast"
            )


def check_layer(cfg: TowerConfig, layer: int) -> int:
    """Return a layer of the model.

    Raises:
        LensError: It is none.
    """
    found = as_index(layer)
    if found is None or not 0 <= found < cfg.n_layers:
        raise LensError(f"layer {layer!r}: the model has layers 0 to {cfg.n_layers - 1}")
    return found


def check_layers(cfg: TowerConfig, layers: Indices | None) -> list[int]:
    """Return layers of the model as a list, each once; one is a list of one, None is all.

    Raises:
        LensError: They are not layers of the model.
    """
    found = as_indices(range(cfg.n_layers) if layers is None else layers)
    if found is None:
        raise LensError(f"layers {layers!r}: expected whole numbers, 0 to {cfg.n_layers - 1}")
    return list(dict.fromkeys(check_layer(cfg, layer) for layer in found))


def _indices(n: int, wanted: slice | Indices) -> list[int]:
    try:
        found = list(range(n))[wanted] if isinstance(wanted, slice) else as_indices(wanted)
    except (TypeError, ValueError):  # a slice of texts, or of step 0
        found = None
    if not found or not all(0 <= i < n for i in found):
        raise LensError(f"neurons {wanted!r}: the layer has neurons 0 to {n - 1}, and at least one is needed")
    return list(dict.fromkeys(found))
