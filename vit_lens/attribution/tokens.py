"""Which image token a head's contribution comes from: the finest split that is still exact."""

__all__ = ["TokenAttribution", "pool_token_parts", "split_pooling", "token_attribution", "token_parts"]

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Address, Indices, Site, as_index
from vit_lens.attribution.brief import Brief
from vit_lens.attribution.directions import Directions, Units
from vit_lens.attribution.frozen import FrozenReadout, read_tokens
from vit_lens.attribution.maps import PatchMap
from vit_lens.attribution.parts import Component, EmbeddingParts, check_layers
from vit_lens.config import TowerConfig
from vit_lens.errors import LensError
from vit_lens.numerics import without_autocast
from vit_lens.texts import TextBank
from vit_lens.towers import ViTActivationCache


@without_autocast()
def token_parts(
    cache: ViTActivationCache, *, layers: Indices | None = None
) -> Float[Tensor, "batch layer head token d_embed"]:
    """Return what each token sends through each head into the embedding.

    Token ``t`` of head ``h`` is ``pattern[t] (v[t] W_O)`` at the read-out rows, through the :class:`FrozenReadout`.
    ``v`` has the value bias in it, which the pattern, whose rows sum to 1, spreads over the tokens. The sum over
    tokens is the head's term of :func:`split_embedding` (1e-10 in float64).

    A direct effect of the values alone: what a token does to patterns, to later layers and to the MLPs is not in
    it, and neither is what the token holds from other tokens, which earlier layers moved there.

    The result holds layers x heads x tokens x d_embed numbers for each image: 1 GB of float32 for ViT-bigG. Ask for
    a few ``layers`` at a time, or use :func:`token_attribution`, which never builds it.

    Args:
        cache: A cache with every token's ``pattern`` and ``v``, for example of
            ``run_with_cache(pixels, names_filter=hook_names(model, tokens=True))``.
        layers: The indices of the layers, counted from 0; None means all.

    Raises:
        LensError: The cache holds only some positions, or a layer is out of range.
        UnknownHookError: The cache lacks an activation; the message names it.

    Source: Gandelsman et al. 2024 (arXiv 2310.05916), equation 6.

    >>> parts = vl.attribution.token_parts(cache, layers=7)
    >>> parts.shape
    torch.Size([2, 1, 8, 17, 128])
    >>> head = vl.attribution.split_embedding(cache)["L7H3"]
    >>> torch.allclose(parts[:, 0, 3].sum(1), head, atol=1e-4)
    True
    """
    readout = FrozenReadout(cache)
    cfg, chosen = readout.model.cfg, _layers(readout.model.cfg, layers)
    batch = len(readout.weights)
    n_pos = readout.cache[f"blocks.{cfg.n_layers - 1}.hook_resid_post"].shape[1]
    out = readout.weights.new_empty(batch, len(chosen), cfg.n_heads, n_pos, cfg.d_embed)
    for i, layer in enumerate(chosen):
        mass, v = _mass_and_values(readout, layer)
        weight = readout.model.blocks[layer].attn.W_O.detach().to(v)
        for head in range(cfg.n_heads):  # one head at a time: with attention pooling each needs pool_head x d_model
            written = v[:, :, head] @ weight[head]
            reduced = einsum(mass[:, :, head], written, "b c t, b t d -> t b c d")
            out[:, i, head] = readout.project(reduced).transpose(0, 1)
    return out


@dataclass(frozen=True, eq=False, repr=False)
class TokenAttribution(Brief):
    """What each token sends along each direction, through each head; :func:`token_attribution` makes it.

    Attributes:
        values: The contributions in :attr:`units`; over the tokens they add up to the head's.
        layers: The index of each layer on the layer axis.
        names: The name of each direction.
        units: What the values are shares of: ``dot``, ``cosine`` or ``logit``.
        cfg: The configuration of the model.

    >>> found = vl.attribution.token_attribution(cache, bank, layers=[6, 7])
    >>> found.values.shape
    torch.Size([2, 2, 8, 17, 6])
    >>> found.map(layer=7, direction="a blue ring").title
    'tokens through L7, all heads, to a blue ring'
    """

    values: Float[Tensor, "batch layer head token direction"]
    layers: tuple[int, ...]
    names: tuple[str, ...]
    units: Units
    cfg: TowerConfig

    def map(self, *, layer: int | None = None, head: int | None = None, direction: int | str = 0) -> PatchMap:
        """Lay the tokens out as they lie in the image, summed over layers and heads that are not named.

        Args:
            layer: The index of a layer in :attr:`layers`; None sums over them.
            head: The index of a head, counted from 0; None sums over them.
            direction: The name of a direction, or its place on the last axis.

        Raises:
            LensError: A layer, head or direction is not in here.
        """
        if layer is not None and as_index(layer) not in self.layers:
            raise LensError(f"layer {layer!r}: this attribution holds layers {list(self.layers)}")
        if head is not None and as_index(head) not in range(self.cfg.n_heads):
            raise LensError(f"head {head!r}: a layer has heads 0 to {self.cfg.n_heads - 1}")
        named = isinstance(direction, str) and direction in self.names
        place = self.names.index(direction) if named else as_index(direction)
        if place is None or place not in range(len(self.names)):
            raise LensError(f"direction {direction!r}; expected one of {[*self.names, *range(len(self.names))]}")
        values = self.values[..., place]
        values = values.sum(1) if layer is None else values[:, self.layers.index(layer)]
        values = values.sum(1) if head is None else values[:, head]
        where = f"{'all layers' if layer is None else f'L{layer}'}, {'all heads' if head is None else f'H{head}'}"
        title = f"tokens through {where}, to {self.names[place]}"
        return PatchMap.of_tokens(values, self.cfg, title=title, units=self.units, signed=True)


@without_autocast()
def token_attribution(
    cache: ViTActivationCache,
    directions: Tensor | TextBank,
    *,
    captions: Sequence[str] | None = None,
    minus: Tensor | str | None = None,
    units: Units = "cosine",
    layers: Indices | None = None,
) -> TokenAttribution:
    """Return what each token sends through each head along directions: :func:`token_parts`, projected.

    The directions are pulled back to the values, so that nothing of width ``d_embed`` is built per token.

    Args:
        cache: A cache with every token's ``pattern`` and ``v``, as for :func:`token_parts`.
        directions: A text bank or embeddings, as for :func:`vit_lens.attribution.direct_attribution`.
        captions: The captions of a bank, or names for the rows of a tensor, as there; None for all.
        minus: The caption or embedding that is subtracted, as there; None for none.
        units: The units, as there; the sum over tokens of a head is its value there.
        layers: The indices of the layers, counted from 0; None means all.

    Raises:
        LensError: The cache holds only some positions, or the directions or layers do not fit.
        UnknownHookError: The cache lacks an activation; the message names it.

    >>> found = vl.attribution.token_attribution(cache, bank, captions=["a blue star"], layers=7)
    >>> whole = vl.attribution.direct_attribution(cache, bank, captions=["a blue star"])
    >>> head = [component.label for component in whole.components].index("L7H3")
    >>> torch.allclose(found.values[:, 0, 3].sum(1), whole.values[head], atol=1e-5)
    True
    """
    readout = FrozenReadout(cache)
    cfg, chosen = readout.model.cfg, _layers(readout.model.cfg, layers)
    along = Directions.of(readout.model, directions, captions=captions, minus=minus, units=units)
    back = readout.pull_back_reduced(along.vectors)
    out = []
    for layer in chosen:
        mass, v = _mass_and_values(readout, layer)
        keys = einsum(back, readout.model.blocks[layer].attn.W_O.detach().to(v), "n b c d, h k d -> n b c h k")
        out.append(einsum(mass, einsum(keys, v, "n b c h k, b t h k -> n b c h t"), "b c h t, n b c h t -> b h t n"))
    values = torch.stack(out, 1) / along.divisor(readout.embedding)[:, None, None, None, None]
    return TokenAttribution(values, tuple(chosen), along.names, units, cfg)


@without_autocast()
def split_pooling(cache: ViTActivationCache) -> EmbeddingParts:
    """Split the embedding by the heads of attention pooling, in place of the parts of the residual stream.

    Terms: ``poolH{i}`` for each head (its value bias and the last LayerNorm's bias go through it), the pool's output
    bias, its MLP, and the biases that follow. They sum to the embedding (1e-10 in float64).

    Args:
        cache: The cache of a run, with :func:`hook_names` at least.

    Raises:
        LensError: The tower does not pool by attention.
        UnknownHookError: The cache lacks an activation; the message names it.

    >>> import dataclasses, vit_lens.config
    >>> pool = vit_lens.config.AttentionPoolConfig(n_heads=2, d_head=7, d_model=128, d_mlp=None, has_ln_post=True)
    >>> pooling = vl.HookedViT(dataclasses.replace(model.cfg, pool="attn", attn_pool=pool))  # weights of zero
    >>> _, pooled = pooling.run_with_cache(pixels)
    >>> vl.attribution.split_pooling(pooled).labels
    ['poolH0', 'poolH1', 'pool.b_O', 'pool.ln_post.b']
    """
    readout = FrozenReadout(cache)
    tokens = pool_token_parts(cache)
    heads = [Component(Address(block="pool", head=head)) for head in range(tokens.shape[1])]
    inside = ("ln_final.b", "pool.b_V")
    rest = {name: value for name, value in readout.constants.items() if name not in inside}
    others = [Component(Address.parse(name)) for name in rest]
    values = torch.cat([tokens.sum(2).transpose(0, 1), torch.stack(list(rest.values()))])
    return EmbeddingParts((*heads, *others), values)


@without_autocast()
def pool_token_parts(cache: ViTActivationCache) -> Float[Tensor, "batch head token d_embed"]:
    """Return what each token of the last residual sends through each head of attention pooling.

    The value bias and the last LayerNorm's bias are spread over the tokens by the pattern. The sum over tokens is
    the head's term of :func:`split_pooling`.

    Args:
        cache: The cache of a run, with :func:`hook_names` at least.

    Raises:
        LensError: The tower does not pool by attention.
        UnknownHookError: The cache lacks an activation; the message names it.

    >>> import dataclasses, vit_lens.config
    >>> pool = vit_lens.config.AttentionPoolConfig(n_heads=2, d_head=7, d_model=128, d_mlp=None, has_ln_post=True)
    >>> pooling = vl.HookedViT(dataclasses.replace(model.cfg, pool="attn", attn_pool=pool))  # weights of zero
    >>> _, pooled = pooling.run_with_cache(pixels)
    >>> vl.attribution.pool_token_parts(pooled).shape
    torch.Size([2, 2, 17, 128])
    """
    readout = FrozenReadout(cache)
    pattern, normed = readout.pattern, readout.normed
    attn = readout.model.attention_of(Site(None, "pool_attn"))
    W_V, b_V, W_O = (x.detach().to(normed) for x in (attn.W_V, attn.b_V, attn.W_O))
    out = pattern.new_empty(*pattern.shape, readout.model.cfg.d_embed)
    for head in range(pattern.shape[1]):
        value = normed @ W_V[head] + b_V[head]
        written = pattern[:, head, :, None] * (value @ W_O[head])
        out[:, head] = readout.pooled_to_embed(written.transpose(0, 1)).transpose(0, 1)
    return out


def _mass_and_values(
    readout: FrozenReadout, layer: int
) -> tuple[Float[Tensor, "batch pool_head head token"], Float[Tensor, "batch token head d_head"]]:
    """Return how much of each token the read-out sees through each head, and the tokens' values."""
    pattern = read_tokens(readout.cache, f"blocks.{layer}.attn.hook_pattern").to(readout.weights)
    rows = readout.cache.read_out.rows(pattern.transpose(1, 2))
    v = read_tokens(readout.cache, f"blocks.{layer}.attn.hook_v").to(readout.weights)
    return einsum(readout.weights, rows, "b c r, b r h t -> b c h t"), v


def _layers(cfg: TowerConfig, layers: Indices | None) -> list[int]:
    if not (chosen := check_layers(cfg, layers)):
        raise LensError(f"layers={layers!r}: at least one is needed, of 0 to {cfg.n_layers - 1}; None means all")
    return chosen
