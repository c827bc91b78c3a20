"""What a decode costs, counted on the meta device: FLOPs, and the most memory that activations hold."""

__all__ = ["DecodingCost", "count_call", "decoding_cost", "unet_cost"]

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vit_lens.decoders.contract import Cost
from vit_lens.decoders.kandinsky_parts import movq_output, unet_output
from vit_lens.decoders.memory import MovqChunk
from vit_lens.decoders.settings import DecodeSettings
from vit_lens.errors import DecoderError


@dataclass(frozen=True, kw_only=True)
class DecodingCost(Cost):
    """What it takes to decode some rows in one pass, part by part.

    Attributes:
        unet_flops: Those of the UNet, all steps together.
        movq_flops: Those of MoVQ's decoder.
        unet_rows: Rows that the UNet evaluates in all steps together; a guided step evaluates a row twice.
        unet_peak_bytes: Most memory that activations of a UNet call hold at once.
        movq_peak_bytes: Most memory that activations of a MoVQ call hold at once.
    """

    unet_flops: int
    movq_flops: int
    unet_rows: int
    unet_peak_bytes: int
    movq_peak_bytes: int


def decoding_cost(decoder: Any, settings: DecodeSettings, rows: int) -> DecodingCost:
    """Count what one pass of a decoder costs, without running it and without copying a weight.

    Activations are counted as the operations hand them out; what an operation holds inside, such as the workspace of a
    convolution, is not. Attention counts as fused.

    Args:
        decoder: A :class:`~vit_lens.decoders.KandinskyDecoder`, on any device, the meta device included.
        settings: Of the decode.
        rows: Pictures of the pass.

    Raises:
        DecoderError: Rows below 1, or a size that the decoder cannot run.
    """
    if rows < 1:
        raise DecoderError(f"rows must be at least 1, got {rows}")
    latent = decoder.layout.latent_shape(settings.height, settings.width)
    counts = [2 * rows if guided else rows for guided in settings.guided_steps]
    if settings.guided_steps[0]:  # its unguided half is one row: it is the same for all pictures
        counts[0] = rows + 1
    unet_flops, unet_peak = unet_cost(decoder.unet, latent, max(counts))
    unet_flops = unet_flops * sum(counts) // max(counts)
    at_once = min(rows, MovqChunk().rows(settings))
    latents = torch.empty(at_once, *latent, device="meta", dtype=decoder.movq.dtype)
    movq_flops, movq_peak = count_call(decoder.movq, lambda movq: movq_output(movq, latents).float())
    movq_flops = movq_flops * rows // at_once
    return DecodingCost(
        flops=unet_flops + movq_flops, unet_flops=unet_flops, movq_flops=movq_flops, unet_rows=sum(counts),
        weight_bytes=sum(p.numel() * p.element_size() for m in (decoder.unet, decoder.movq) for p in m.parameters()),
        peak_bytes=max(unet_peak, movq_peak), unet_peak_bytes=unet_peak, movq_peak_bytes=movq_peak,
    )  # fmt: skip


def unet_cost(unet: Any, latent: tuple[int, int, int], rows: int) -> tuple[int, int]:
    """Run a UNet once on the meta device; return its FLOPs and the peak of its activations in bytes."""

    def call(unet: Any) -> Tensor:
        latents = torch.empty(rows, *latent, device="meta", dtype=torch.promote_types(unet.dtype, torch.float32))
        embeds = torch.empty(rows, unet.config.encoder_hid_dim, device="meta", dtype=latents.dtype)
        return unet_output(unet, latents, torch.empty((), dtype=torch.int64, device="meta"), embeds)

    return count_call(unet, call)


class _Call(nn.Module):
    """A computation with a part, whose parameters can be replaced by others."""

    def __init__(self, part: nn.Module, call: Callable[[Any], Tensor]):
        super().__init__()
        self.part, self._run = part, call

    def forward(self) -> Tensor:
        return self._run(self.part)


def count_call(part: nn.Module, call: Callable[[Any], Tensor]) -> tuple[int, int]:
    """Run a call of a part with meta parameters; return its FLOPs and the peak of its activations in bytes."""
    module = _Call(part, call)
    held = [*module.named_parameters(), *module.named_buffers()]
    meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in held}
    # In inference mode the modes see whole operations: what is inside of fused ones is not taken for an activation.
    with torch.inference_mode(), FlopCounterMode(display=False) as flops, _LivePeak() as live:
        torch.func.functional_call(module, meta)
    return flops.get_total_flops(), live.peak


class _LivePeak(TorchDispatchMode):
    """Follows the storages that operations hand out, and keeps the largest sum of those alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        self.peak = max(self.peak, self._now)
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key not in self._alive:
            self._now += size
            self._alive[key] = weakref.ref(storage, lambda _: self._forget(key, size))

    def _forget(self, key: int, size: int) -> None:
        del self._alive[key]
        self._now -= size
