"""One pass over a reference set: sums, and the snapshots from which stability is read."""

__all__ = ["collect", "hook_points"]

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.models import HookedViT, pixel_batches
from vit_lens.reference.differences import DifferenceNorms, Spreads
from vit_lens.reference.stability import Stability
from vit_lens.towers import preprocessing_of
from vit_lens.verification import exact_float32

Positions = Literal["readout", "all"]

_CHECKPOINTS = 4  # n/2, n/4, n/8, n/16: each costs one more copy of the means while they are made
_ROUNDING = 4  # a spread below this many units in the last place of the mean is the rounding of a constant


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64, device="cpu")


@dataclass
class _Sums:
    """Of one hook point, in float64 on the CPU."""

    total: Tensor = field(default_factory=_zero)
    even: Tensor = field(default_factory=_zero)
    squares: float = 0.0
    snapshots: dict[int, Tensor] = field(default_factory=dict)

    def add(
        self, act: Float[Tensor, "batch *axes"], hook: Any, *, rows: Callable[[Tensor], Tensor], first: int
    ) -> None:
        act = rows(act).detach().cpu().double()
        self.total = self.total + act.sum(0)
        self.even = self.even + act[first % 2 :: 2].sum(0)
        self.squares += float(act.square().sum())


def _spread(
    act: Float[Tensor, "batch *axes"], hook: Any, *, spreads: Spreads, rows: Callable[[Tensor], Tensor]
) -> None:
    spreads.add(hook.name, rows(act))


def hook_points(model: HookedViT) -> dict[str, list[str]]:
    """Return the hook points whose means are kept, by kind: one for each layer, or one."""
    layers = range(model.cfg.n_layers)
    found = {
        "resid_pre": ["blocks.0.hook_resid_pre"],
        "z": [f"blocks.{layer}.attn.hook_z" for layer in layers],
        "mlp_out": [f"blocks.{layer}.hook_mlp_out" for layer in layers],
    }
    pool = {"pool_z": "attn_pool.attn.hook_z", "pool_mlp_out": "attn_pool.hook_mlp_out"}
    return found | {kind: [name] for kind, name in pool.items() if name in model.hook_dict}


def collect(
    model: HookedViT, images: Any, *, positions: Positions, batch_size: int, progress: bool
) -> tuple[dict[str, Tensor], Stability, DifferenceNorms | None]:
    """Return means by hook point, their stability, and how far two images lie apart, where there are two.

    The order of the images is that of the snapshots.
    """
    dtype = torch.promote_types(model.dtype, torch.float32)
    n = len(images)
    kinds = hook_points(model)
    sums = {name: _Sums() for names in kinds.values() for name in names}
    spreads = Spreads(model)
    whole = [name for name in sums if positions == "all" or model.pos_axis(name) is None]
    rows = dict.fromkeys(sums, model.readout.rows) | dict.fromkeys(whole, Tensor.detach)
    pooled = [name for name in spreads.names if model.pos_axis(name) is None]
    own = dict.fromkeys(spreads.names, model.readout.rows) | dict.fromkeys(pooled, Tensor.detach)
    checkpoints = [n >> k for k in range(1, _CHECKPOINTS + 1) if n >> k]
    batches = pixel_batches(model, images, batch_size, label="reference means", progress=progress, ends=checkpoints)
    for start, pixels in batches:
        stop = start + len(pixels)
        hooks = [(name, partial(held.add, rows=rows[name], first=start)) for name, held in sums.items()]
        hooks += [(name, partial(_spread, spreads=spreads, rows=own[name])) for name in spreads.names]
        with torch.no_grad(), exact_float32():
            model.run_with_hooks(pixels, fwd_hooks=hooks)
        if stop in checkpoints:
            for held in sums.values():
                held.snapshots[stop] = (held.total / stop).to(dtype)
    means = {name: held.total / n for name, held in sums.items()}
    stability = _stability(n, kinds, sums, means, torch.finfo(model.dtype).eps)
    norms = spreads.norms(n, preprocessing_of(model, images)) if n > 1 else None
    return {name: mean.to(dtype) for name, mean in means.items()}, stability, norms


def _stability(
    n: int, kinds: dict[str, list[str]], sums: dict[str, _Sums], means: dict[str, Tensor], eps: float
) -> Stability:
    def each(of: Callable[[str], float]) -> dict[str, tuple[float, ...]]:
        return {kind: tuple(of(name) for name in names) for kind, names in kinds.items()}

    def spread(name: str) -> float:
        size = float(means[name].square().sum())
        variance = sums[name].squares / n - size
        floor = max((_ROUNDING * eps) ** 2, 64 * torch.finfo(torch.float64).eps)
        return math.sqrt(variance * n / (n - 1)) if n > 1 and variance > floor * size else 0.0

    def distance(name: str, m: int) -> float:
        return float((sums[name].snapshots[m].double() - means[name]).norm())

    def halves(name: str) -> float:
        even = sums[name].even
        odd = sums[name].total - even
        return float((even / (n - n // 2) - odd / (n // 2)).norm())

    return Stability(
        n=n,
        spread=each(spread),
        distance={m: each(partial(distance, m=m)) for m in sorted(sums["blocks.0.hook_resid_pre"].snapshots)[::-1]},
        halves=each(halves) if n > 1 else {},
    )
