"""A tower of another library to run and to listen to."""

__all__ = ["SourceTower"]

from collections.abc import Callable, Iterable
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

Embed = Callable[[Any, Tensor], Tensor]


class SourceTower(nn.Module):
    """A tower of another library: pixels or ids in, its output out.

    Args:
        kind: The library and class, for people.
        parts: What the embedding is computed with, and nothing else.
        embed: Makes the output of ``parts`` and pixels or ids; it must not close over modules, which are copied.
        blocks: The transformer blocks, in the order in which they run.
        final_norm: The norm that a hooked tower calls ``ln_final``.
        is_folded: Whether a hooked tower multiplies weights of it with each other when it loads them, which rounds once
            more; LayerScale is found by itself.
        tokens_first: Whether blocks pass [pos batch d_model], and not [batch pos d_model].
        least_bar: The least relative difference that its own rounding allows in a wide dtype; 0 for none.
        own_size: The image size (height, width) in pixels of its stored positions, where it interpolates them to
            another; None where it does not.

    >>> from vit_lens.sources import load_module, resolve_name, source_tower
    >>> source = source_tower(load_module(resolve_name("mini"), quick_gelu=False)).float()  # stored in float16
    >>> with torch.no_grad():
    ...     bool(torch.allclose(source(pixels), model(pixels), atol=1e-3))
    True
    """

    def __init__(
        self,
        kind: str,
        parts: nn.Module,
        embed: Embed,
        *,
        blocks: Iterable[nn.Module],
        final_norm: nn.Module,
        is_folded: bool = False,
        tokens_first: bool = False,
        least_bar: float = 0.0,
        own_size: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.kind, self.parts, self.embed = kind, parts, embed
        self.blocks, self.final_norm = nn.ModuleList(blocks), final_norm
        self.tokens_first, self.own_size, self.least_bar = tokens_first, own_size, least_bar
        self.is_folded = is_folded or any(type(part).__name__.endswith("LayerScale") for part in parts.modules())

    def forward(
        self, inputs: Float[Tensor, "batch channel height width"] | Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch *row d_embed"]:
        return self.embed(self.parts, inputs)
