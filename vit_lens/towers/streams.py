"""Streams: what parts of a tower add up in, one after another, and how the sum is read.

Every tower has the residual stream of its blocks. Attention pooling is a second, short one behind it: its attention
and its MLP add up to the pooled vector.
"""

__all__ = ["PoolingStream", "ResidualStream", "Stream", "by_stream"]

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_lens.addresses import Site
from vit_lens.towers.layers import AttentionPool, wide
from vit_lens.towers.readout import Activations, Readout


class Stream(ABC):
    """What sites write to, and how its end becomes the output.

    Args:
        readout: The read-out of the tower.

    >>> (stream,) = model.streams
    >>> stream.start, stream.writes[-2:]
    ('blocks.0.hook_resid_pre', ('blocks.7.hook_attn_out', 'blocks.7.hook_mlp_out'))
    >>> stream.after(Site.parse("L6.resid_post"))
    ['blocks.7.hook_attn_out', 'blocks.7.hook_mlp_out']
    >>> bool(torch.allclose(stream.read(stream.last(cache)), model(pixels), atol=1e-4))
    True
    """

    start: str | None = None
    """The hook point of what the stream begins with; None where it begins with nothing."""

    def __init__(self, readout: Readout):
        self.readout = readout

    @property
    @abstractmethod
    def writes(self) -> tuple[str, ...]:
        """The hook points of what is added to the stream, in order."""

    @abstractmethod
    def last(self, cache: Activations) -> Float[Tensor, "batch row d"]:
        """Return the end of the stream in a run, at the read-out rows."""

    @abstractmethod
    def read(self, states: Float[Tensor, "*batch row d"]) -> Float[Tensor, "*output d_embed"]:
        """Return the outputs of ends of the stream, without hooks and with fresh statistics."""

    @abstractmethod
    def rows(self, x: Float[Tensor, "batch pos *axes"]) -> Float[Tensor, "batch row *axes"]:
        """Return the rows of an activation of this stream that the output is read from."""

    def after(self, site: Site) -> list[str]:
        """Return the hook points of what is added to the stream behind a site, in order."""
        if site.is_residual:
            attn = self.writes.index(write_of(Site(site.layer, "attn")))
            first = attn + ("resid_pre", "resid_mid", "resid_post").index(site.kind)
        else:
            first = self.writes.index(write_of(site)) + 1
        return list(self.writes[first:])


class ResidualStream(Stream):
    """The residual stream of the blocks."""

    start = "blocks.0.hook_resid_pre"

    def __init__(self, readout: Readout, blocks: nn.ModuleList):
        super().__init__(readout)
        self.blocks = blocks

    @property
    def writes(self) -> tuple[str, ...]:
        """The attention and MLP output of every block."""
        layers, parts = range(len(self.blocks)), ("attn_out", "mlp_out")
        return tuple(f"blocks.{layer}.hook_{part}" for layer in layers for part in parts)

    def last(self, cache: Activations) -> Float[Tensor, "batch row d_model"]:
        return read_wide(cache, f"blocks.{len(self.blocks) - 1}.hook_resid_post")

    def read(self, states: Float[Tensor, "*batch row d_model"]) -> Float[Tensor, "*output d_embed"]:
        return self.readout.read(states)

    def rows(self, x: Float[Tensor, "batch pos *axes"]) -> Float[Tensor, "batch row *axes"]:
        return self.readout.rows(x)


class PoolingStream(Stream):
    """What attention pooling adds up, of one row: its attention's output and its MLP's."""

    def __init__(self, readout: Readout, pool: AttentionPool):
        super().__init__(readout)
        self.pool = pool

    @property
    def writes(self) -> tuple[str, ...]:
        """The attention's output and, where there is an MLP, its."""
        return ("attn_pool.hook_attn_out", *["attn_pool.hook_mlp_out"] * (self.pool.mlp is not None))

    def last(self, cache: Activations) -> Float[Tensor, "batch 1 d_pooled"]:
        return torch.stack([read_wide(cache, name) for name in self.writes]).sum(0)

    def read(self, states: Float[Tensor, "*batch 1 d_pooled"]) -> Float[Tensor, "*batch d_embed"]:
        return self.readout.read_pooled(self.pool.finish(states[..., 0, :]))

    def rows(self, x: Float[Tensor, "batch 1 *axes"]) -> Float[Tensor, "batch 1 *axes"]:
        return x


def write_of(site: Site) -> str:
    """Return the hook point of what a site adds to its stream: for a head, all of its attention.

    >>> write_of(Site.parse("L3H4")), write_of(Site.parse("L3.mlp"))
    ('blocks.3.hook_attn_out', 'blocks.3.hook_mlp_out')
    """
    return site.hook_name if site.head is None else site.hook_name.replace("attn.hook_z", "hook_attn_out")


def read_wide(cache: Activations, name: str) -> Float[Tensor, "batch row *axes"]:
    """Return an activation at the read-out rows, in float32 or wider, on the model's device.

    Args:
        cache: The cache of a run.
        name: The name of a hook point.

    Raises:
        UnknownHookError: The cache does not hold it.
        LensError: The cache has lost its batch axis, or positions.

    >>> read_wide(cache, "blocks.3.hook_mlp_out").shape
    torch.Size([2, 1, 128])
    """
    return wide(cache.readout(name), cache.model.device)


def by_stream(streams: Sequence[Stream], sites: Sequence[Site]) -> list[tuple[Stream, list[Site]]]:
    """Return the streams that some of the sites write to, each with its sites in their order.

    Args:
        streams: The streams of a tower, the residual stream first.
        sites: Sites of the tower.

    >>> [(type(stream).__name__, len(sites)) for stream, sites in by_stream(model.streams, Site.heads(model))]
    [('ResidualStream', 64)]
    """
    groups = [[site for site in sites if site.is_pool == bool(at)] for at in range(len(streams))]
    return [(stream, some) for stream, some in zip(streams, groups, strict=True) if some]
