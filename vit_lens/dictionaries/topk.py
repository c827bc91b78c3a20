"""A TopK sparse autoencoder, trained here: no other package, resumable to the bit."""

__all__ = ["TopK"]

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vit_lens.addresses import as_index
from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.normalisation import Normalisation
from vit_lens.dictionaries.semantics import Semantics
from vit_lens.dictionaries.source import ActivationSource, Place
from vit_lens.dictionaries.training import Checkpoint, Trainer, trainer
from vit_lens.errors import DictionaryError
from vit_lens.hooking import as_device

_AUX_SHARE, _THRESHOLD_RATE = 1 / 32, 0.01


@trainer("topk")
@dataclass(frozen=True, kw_only=True)
class TopK(Trainer):
    """Train a TopK or BatchTopK autoencoder with Adam on the squared error of normalised activations.

    Rows of the decoder have length 1, are the encoder's columns at the start, and lose the part of their gradient along
    themselves; the bias starts at the mean. These starts keep latents alive. Those that have not fired for
    ``dead_after`` tokens explain what is left over, with 1/32 of the loss (arXiv 2406.04093). Training stops early
    where the FVU of whole windows of tokens no longer falls.

    Attributes:
        n_features: The number of features.
        k: How many codes of a token are not zero; with ``batchtopk`` on average.
        activation: ``topk``; or ``batchtopk``, whose ``k`` is of a batch while it learns, and a threshold afterwards.
        lr: The learning rate of Adam.
        dead_after: How many tokens without firing make a latent dead.
        window: How many tokens the FVU is averaged over that decides whether to stop.
        least_gain: The share by which FVU must fall from window to window.
        patience: How many windows in a row may fall by less; 0 never stops early.
        save_every: How many steps lie between two checkpoints.
        device: Where it is trained; the dictionary comes back to the CPU.

    Raises:
        DictionaryError: A number is out of range.

    >>> x = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
    >>> source = vl.ActivationSource.of_array(x, batch_size=60)
    >>> found = vl.dictionaries.fit(source, TopK(n_features=12, k=3, n_tokens=3000))
    >>> found, round(found.statistics["held_out"]["l0"])
    (Dictionary(12 features of width 8, topk k=3, of no site), 3)
    """

    n_features: int
    k: int
    activation: Literal["topk", "batchtopk"] = "topk"
    lr: float = 1e-3
    dead_after: int = 200_000
    window: int = 100_000
    least_gain: float = 0.01
    patience: int = 3
    save_every: int = 500
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("n_features", "k", "n_tokens", "window", "save_every", "dead_after"):
            if (as_index(getattr(self, name)) or 0) < 1:
                raise DictionaryError(f"{name}={getattr(self, name)!r}; expected a whole number, at least 1")
        if self.k > self.n_features or self.activation not in ("topk", "batchtopk") or not self.lr > 0:
            raise DictionaryError(
                f"k={self.k} of {self.n_features} features, activation={self.activation!r}, lr={self.lr}; expected k "
                "of at most n_features, 'topk' or 'batchtopk', and a rate above 0"
            )

    def learn(
        self, source: ActivationSource, normalisation: Normalisation, checkpoint: Checkpoint
    ) -> tuple[Dictionary, dict[str, Any]]:
        state = _State(self, normalisation)
        place = Place()
        if (kept := checkpoint.load()) is not None:
            place = state.restore(*kept)
        for batch in source.stream(place):
            if state.n_tokens >= self.n_tokens or state.has_stopped(self.patience):
                break
            state.step(normalisation.apply(batch.tokens.to(self.device, torch.float32), self.clip))
            if state.n_steps % self.save_every == 0:
                checkpoint.save(*state.kept(batch.then))
        told = {
            "n_steps": state.n_steps,
            "n_tokens_seen": state.n_tokens,
            "windows": [round(w, 6) for w in state.windows],
        }
        return state.dictionary(), told


class _State:
    """Weights, Adam's moments and counts: all that a step depends on."""

    def __init__(self, config: TopK, normalisation: Normalisation):
        self.config, self.variance = config, normalisation.variance
        d, generator = len(normalisation.mean), torch.Generator().manual_seed(config.seed)
        rows = torch.nn.functional.normalize(torch.randn(config.n_features, d, generator=generator), dim=1)
        start = {"W_enc": rows.T.clone(), "b_enc": torch.zeros(config.n_features), "W_dec": rows,
                 "b_dec": normalisation.centre.float()}  # fmt: skip
        device = as_device(config.device)
        self.weights = {name: value.to(device).requires_grad_() for name, value in start.items()}
        self.adam = torch.optim.Adam(self.weights.values(), lr=config.lr)
        self.idle = torch.zeros(config.n_features, dtype=torch.long, device=device)  # tokens since each latent fired
        self.threshold = torch.zeros((), device=device)
        self.n_steps = self.n_tokens = 0
        self.windows: list[float] = []
        self.error, self.seen, self.flat = 0.0, 0, 0

    def step(self, z: Tensor) -> None:
        with torch.enable_grad():
            w, config = self.weights, self.config
            pre = (z - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
            codes = self._codes(pre)
            recons = codes @ w["W_dec"] + w["b_dec"]
            error = (z - recons).square().sum(1).mean()
            loss = error / self.variance + _AUX_SHARE * self._dead_loss(pre, z - recons.detach())
            self.adam.zero_grad()
            loss.backward()
        with torch.no_grad():
            rows, gradient = w["W_dec"], w["W_dec"].grad
            if gradient is not None:
                gradient -= (gradient * rows).sum(1, keepdim=True) * rows
            self.adam.step()
            rows /= rows.norm(dim=1, keepdim=True)
            fired = (codes > 0).any(0)
            self.idle = torch.where(fired, 0, self.idle + len(z))
            if config.activation == "batchtopk" and (codes > 0).any():
                least = codes[codes > 0].min()
                rate = _THRESHOLD_RATE if self.n_steps else 1.0
                self.threshold += rate * (least - self.threshold)
        self._count(float(error.detach()) / self.variance, len(z))

    def _codes(self, pre: Tensor) -> Tensor:
        k = self.config.k
        if self.config.activation == "topk":
            top = pre.topk(k, dim=-1)
            return torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())
        flat = pre.relu().flatten()
        top = flat.topk(k * len(pre))
        return torch.zeros_like(flat).scatter(0, top.indices, top.values).view_as(pre)

    def _dead_loss(self, pre: Tensor, left: Tensor) -> Tensor:
        """Return the share of what is left over that dead latents do not explain; 0 where none is dead."""
        dead = (self.idle > self.config.dead_after).nonzero()[:, 0]
        if not len(dead):
            return pre.new_zeros(())
        top = pre[:, dead].topk(min(self.config.k, len(dead)), dim=-1)
        codes = torch.zeros_like(pre[:, dead]).scatter(-1, top.indices, top.values.relu())
        missed = (left - codes @ self.weights["W_dec"][dead]).square().sum()
        return missed / left.square().sum().clamp(min=torch.finfo(left.dtype).tiny)

    def _count(self, fvu: float, n: int) -> None:
        if not math.isfinite(fvu):
            raise DictionaryError(f"the loss is {fvu} at step {self.n_steps}; lower lr, or normalise by 'std'")
        self.n_steps, self.n_tokens = self.n_steps + 1, self.n_tokens + n
        self.error, self.seen = self.error + fvu * n, self.seen + n
        if self.seen >= self.config.window:
            self.windows.append(self.error / self.seen)
            self.error, self.seen = 0.0, 0
            if len(self.windows) > 1:
                gained = self.windows[-2] - self.windows[-1] >= self.config.least_gain * self.windows[-2]
                self.flat = 0 if gained else self.flat + 1

    def has_stopped(self, patience: int) -> bool:
        return 0 < patience <= self.flat

    def kept(self, place: Place) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {"idle": self.idle, "threshold": self.threshold}
        for name, weight in self.weights.items():
            moments = self.adam.state[weight]
            tensors |= {name: weight, f"{name}.mean": moments["exp_avg"], f"{name}.square": moments["exp_avg_sq"]}
        numbers = {
            "place": [place.epoch, place.input, place.batch], "n_steps": self.n_steps, "n_tokens": self.n_tokens,
            "windows": self.windows, "error": self.error, "seen": self.seen, "flat": self.flat,
        }  # fmt: skip
        return tensors, numbers

    def restore(self, kept: dict[str, Tensor], numbers: dict[str, Any]) -> Place:
        tensors = {name: value.to(self.threshold.device) for name, value in kept.items()}
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(tensors[name])
                self.adam.state[weight] = {
                    "step": torch.tensor(float(numbers["n_steps"])), "exp_avg": tensors[f"{name}.mean"],
                    "exp_avg_sq": tensors[f"{name}.square"],
                }  # fmt: skip
        self.idle, self.threshold = tensors["idle"], tensors["threshold"]
        self.n_steps, self.n_tokens, self.windows = numbers["n_steps"], numbers["n_tokens"], list(numbers["windows"])
        self.error, self.seen, self.flat = numbers["error"], numbers["seen"], numbers["flat"]
        return Place(*numbers["place"])

    def dictionary(self) -> Dictionary:
        plain: dict[str, Any] = {name: weight.detach().cpu().clone() for name, weight in self.weights.items()}
        if self.config.activation == "topk":
            return Dictionary(semantics=Semantics.plain("topk", self.config.k), **plain)
        threshold = self.threshold.cpu().expand(self.config.n_features).clone()
        return Dictionary(semantics=Semantics.plain("batchtopk"), threshold=threshold, **plain)
