"""Jacobians of the read-out with respect to every row of every layer, summed over a batch, and what they take."""

__all__ = ["FitCost", "fit_cost", "note", "sums_of_batch"]

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vit_lens.models import HookedViT
from vit_lens.reference.row_means import group_rows, last_state, row_groups, state_width
from vit_lens.verification import exact_float32

_CHUNK_NUMBERS = 2**27  # half a GiB of float32 for the gradients of one backward pass
_ALIVE = 6  # of the widest gradients, about, at once


@dataclass(frozen=True, kw_only=True)
class FitCost:
    """What averaged Jacobians take, before anything runs.

    Attributes:
        n: The number of images.
        products: The number of vector-Jacobian products: for every image, one for each number that the output is
            read from.
        flops: Operations of these, about.
        file_bytes: Bytes of the file.
        memory_bytes: Bytes beside the model: sums in float64, twice, and the gradients of one backward pass, about.

    >>> cost = vl.JacobianLens.cost(model, 100)
    >>> cost.products, cost.file_bytes
    (12800, 2246280)
    """

    n: int
    products: int
    flops: float
    file_bytes: int
    memory_bytes: int


def fit_cost(model: HookedViT, n: int, *, per_row: bool = False, batch_size: int = 8) -> FitCost:
    """Return what Jacobians averaged over ``n`` images take; see :class:`FitCost`.

    >>> from vit_lens.reference import fit_cost
    >>> fit_cost(model, 25).products  # a row for each token makes no more of them
    3200
    """
    cfg, width = model.cfg, state_width(model)
    groups, places = int(row_groups(cfg, per_row=per_row).max()) + 1, 2 * cfg.n_layers + 1
    inner = cfg.n_heads * cfg.d_head
    linear = 2 * cfg.n_ctx * cfg.d_model * (4 * inner + (2 + cfg.gated_mlp) * cfg.d_mlp)
    attended = 4 * cfg.n_ctx**2 * inner
    numbers = places * groups * width * cfg.d_model
    means = groups * (cfg.d_model + cfg.n_layers * (inner + cfg.d_model)) + width
    chunk = _chunk(model, min(batch_size, n))
    return FitCost(
        n=n, products=n * width, flops=float(n * width * cfg.n_layers * (linear + 2 * attended)),
        file_bytes=4 * (numbers + means) + 8 * cfg.n_ctx,
        memory_bytes=16 * numbers + 4 * _ALIVE * chunk * min(batch_size, n) * _widest(model),
    )  # fmt: skip


def _widest(model: HookedViT) -> int:
    """Return how many numbers the widest gradient of one image and one product has."""
    cfg = model.cfg
    inner = cfg.n_heads * cfg.d_head
    return cfg.n_ctx * max(cfg.d_mlp * (1 + cfg.gated_mlp), 3 * inner, cfg.d_model, cfg.n_heads * cfg.n_ctx)


def _chunk(model: HookedViT, n: int) -> int:
    """Return for how many numbers of the read-out one backward pass gives gradients."""
    return min(state_width(model), max(1, _CHUNK_NUMBERS // (_ALIVE * max(n, 1) * _widest(model))))


def sums_of_batch(
    model: HookedViT, pixels: Tensor, groups: Int[Tensor, " pos"]
) -> tuple[Float[Tensor, "place group d_last d_model"], dict[str, Tensor]]:
    """Return the sums, over a batch, of Jacobians and of activations, each averaged over the rows of a group.

    To every place a zero is added, one vector for each group. The gradient with respect to it is the sum over images
    and over the rows of the group, so that no gradient of single rows is kept.
    """
    cfg, size = model.cfg, torch.bincount(groups)
    member = torch.nn.functional.one_hot(groups).to(pixels)  # [pos group]
    names = ["blocks.0.hook_resid_pre"]
    names += [f"blocks.{layer}.hook_resid_{at}" for layer in range(cfg.n_layers) for at in ("mid", "post")]
    zeros = {
        name: torch.zeros(len(size), cfg.d_model, dtype=pixels.dtype, device=pixels.device, requires_grad=True)
        for name in names
    }
    held: dict[str, Tensor] = {}

    def add(act: Tensor, hook: Any) -> Tensor:
        return act + member @ zeros[hook.name]

    def keep(act: Tensor, hook: Any, name: str) -> None:
        summed = group_rows(act.detach(), groups).sum(0).cpu().double()
        held[name] = summed / size.reshape(-1, *[1] * (summed.ndim - 1))

    last: list[Tensor] = []
    hooks: list[Any] = [("blocks.0.hook_resid_pre", partial(keep, name="resid_pre"))]
    for layer in range(cfg.n_layers):
        hooks.append((f"blocks.{layer}.attn.hook_z", partial(keep, name=f"z {layer}")))
        hooks.append((f"blocks.{layer}.hook_mlp_out", partial(keep, name=f"mlp_out {layer}")))
    hooks += [(name, add) for name in names]
    hooks.append((names[-1], partial(note, into=last)))
    # Of torch's attentions this one alone is made of parts that give many gradients in one pass.
    with exact_float32(), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        model.run_with_hooks(pixels, fwd_hooks=hooks)
        state = last_state(model, last[0])
        width, chunk = state.shape[1], _chunk(model, len(pixels))
        found = torch.empty(len(names), len(size), width, cfg.d_model, dtype=torch.float64, device="cpu")
        for start in range(0, width, chunk):
            stop = min(start + chunk, width)
            one = torch.eye(width, dtype=state.dtype, device=state.device)[start:stop, None].expand(-1, len(state), -1)
            parts = torch.autograd.grad(
                state, list(zeros.values()), one, retain_graph=stop < width, is_grads_batched=True, allow_unused=True,
                materialize_grads=True,
            )  # fmt: skip
            for place, part in enumerate(parts):
                found[place, :, start:stop] = part.transpose(0, 1).cpu().double()
    found /= size[:, None, None]
    stacked = {
        kind: torch.stack([held.pop(f"{kind} {layer}") for layer in range(cfg.n_layers)]) for kind in ("z", "mlp_out")
    }
    return found, {"last": state.detach().sum(0).cpu().double(), "resid_pre": held["resid_pre"], **stacked}


def note(act: Tensor, hook: Any, *, into: list[Tensor]) -> None:
    """Keep what passes a hook point."""
    into.append(act)
