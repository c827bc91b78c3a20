"""Muon for weights of any rank: momentum whose every update is a nearly orthogonal matrix."""

__all__ = ["Muon"]

from collections import defaultdict
from collections.abc import Iterable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum (Jordan et al. 2024); a convolution counts as one flattened matrix."""

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        n_iterations: int = 5,
    ) -> None:
        settings = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, n_iterations=n_iterations)
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every weight that has a gradient; matrices of one shape are orthogonalised together."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[(weight.shape[0], weight[0].numel())].append(weight)
            for weights in alike.values():
                self._step_alike(weights, group)

    def _step_alike(self, weights: list[Tensor], group: dict) -> None:
        directions = []
        for weight in weights:
            gradient = cast(Tensor, weight.grad)
            state = self.state[weight]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            state["momentum"].lerp_(gradient, 1 - group["momentum"])
            directions.append(gradient.lerp(state["momentum"], group["momentum"]).flatten(1))
        updates = orthogonalised(torch.stack(directions), n_iterations=group["n_iterations"])
        scale = group["lr"] * max(1.0, updates.shape[1] / updates.shape[2]) ** 0.5
        for weight, update in zip(weights, updates, strict=True):
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(update.view_as(weight).to(weight.dtype), alpha=-scale)


def orthogonalised(
    matrices: Float[Tensor, "matrix row column"], *, n_iterations: int = 5
) -> Float[Tensor, "matrix row column"]:
    """Bring every singular value near 1 by a quintic Newton-Schulz iteration, in bfloat16."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)).bfloat16()
    a, b, c = _QUINTIC
    for _ in range(n_iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)
