"""What lenses, caches, attribution, interventions and verification need of a transformer."""

__all__ = ["Tower"]

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.addresses import Site
from vit_lens.config import TowerConfig
from vit_lens.towers.layers import LayerNorm, TransformerBlock
from vit_lens.towers.readout import Readout
from vit_lens.towers.streams import Stream


@runtime_checkable
class Tower(Protocol):
    """A hooked transformer: blocks on a residual stream, and a read-out behind them.

    :class:`vit_lens.towers.HookedTower` keeps it for whoever gives embedding, blocks and read-out; a wrapper of
    another library's modules can keep it too.

    Attributes:
        cfg: Sizes and switches.
        hook_dict: The hook points by name.
        blocks: The transformer blocks.
        ln_final: The norm behind the last block.
        readout: How the output is read.
        streams: What parts add up in.
        device: Where the weights are.
        encoder_id: Which weights these are.
        fingerprint: Sixteen digits that identify the weights by content.
    """

    hook_dict: dict[str, HookPoint]
    blocks: Sequence[TransformerBlock]
    ln_final: LayerNorm

    @property
    def cfg(self) -> TowerConfig: ...
    @property
    def readout(self) -> Readout: ...
    @property
    def streams(self) -> tuple[Stream, ...]: ...
    def stream_of(self, site: Site) -> Stream: ...
    @property
    def device(self) -> torch.device: ...

    def run_with_cache(self, *model_args: Any, **model_kwargs: Any) -> tuple[Tensor, Any]: ...
    def run_with_hooks(self, *model_args: Any, **model_kwargs: Any) -> Any: ...
    def hooks(self, fwd_hooks: Any = (), bwd_hooks: Any = ()) -> Any: ...
    def refuse_hooks(self, purpose: str) -> None: ...

    if TYPE_CHECKING:  # a check at run time asks for every attribute, and these are costly to answer

        @property
        def encoder_id(self) -> str: ...
        @property
        def fingerprint(self) -> str: ...
