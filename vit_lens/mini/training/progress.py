"""Resumable training: a step loop whose state is written atomically, so that a killed run goes on bit for bit."""

__all__ = ["Trainable", "average_into", "cosine", "run_steps", "start_step"]

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vit_lens.errors import OutputError
from vit_lens.files import damaged, make_directory

_log = logging.getLogger(__name__)


@runtime_checkable
class Trainable(Protocol):
    """Whatever has a state that can be saved and restored: a module or an optimizer."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


def cosine(step: int, n_steps: int, *, warm_up: int, floor: float = 0.0) -> float:
    """Give the learning rate's factor: a linear rise, then a cosine fall to `floor`."""
    if step < warm_up:
        return (step + 1) / warm_up
    share = (step - warm_up) / max(1, n_steps - warm_up)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def start_step(optimizers: Mapping[torch.optim.Optimizer, float], factor: float) -> None:
    """Set every optimizer's learning rate to its own times `factor`, and forget the gradients."""
    for optimizer, rate in optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        optimizer.zero_grad(set_to_none=True)


def average_into(average: nn.Module, model: nn.Module, *, decay: float) -> None:
    """Move every parameter of `average` a little towards `model`'s."""
    with torch.no_grad():
        for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)


def run_steps(
    step: Callable[[int], dict[str, Tensor]],
    parts: Mapping[str, Trainable],
    *,
    n_steps: int,
    checkpoint: Path,
    settings: Mapping[str, Any],
    log_every: int = 50,
    save_every: int = 200,
    stop_after: int | None = None,
    on_save: Callable[[int], None] | None = None,
    writes: bool = True,
) -> int:
    """Call `step(i)` for the steps that are left, saving `parts` as it goes, and return the next step's number.

    A checkpoint made under other `settings` is refused. `stop_after` ends this call early, at that step;
    only a call that `writes` saves anything. OutputError: the folder of the checkpoint cannot be made.
    """
    if writes:
        make_directory(checkpoint.parent)  # refused now, and not when the first steps are done
    first = _restore(parts, checkpoint, dict(settings))
    last = n_steps if stop_after is None else min(stop_after, n_steps)
    started = time.monotonic()
    for index in range(first, last):
        report = step(index)
        done = index + 1
        if done % log_every == 0 or done == last:
            numbers = " ".join(f"{name} {float(value.detach()):.4f}" for name, value in report.items())
            pace = (time.monotonic() - started) / (done - first)
            _log.info(
                "step %d/%d %s | %.3f s/step, %.1f min left", done, n_steps, numbers, pace, pace * (n_steps - done) / 60
            )
        if writes and (done % save_every == 0 or done == last):
            _save(parts, checkpoint, done, dict(settings))
            if on_save is not None:
                on_save(done)
    return max(first, last)


def _save(parts: Mapping[str, Trainable], path: Path, step: int, settings: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save({"step": step, "settings": settings, "parts": state}, partial)
    partial.replace(path)


def _restore(parts: Mapping[str, Trainable], path: Path, settings: dict[str, Any]) -> int:
    if not path.exists():
        return 0
    advice = "remove it, or choose another --out"
    with damaged(OutputError, f"{path} is no whole state of a training", advice):
        try:
            saved = torch.load(path, weights_only=True)
        except Exception as error:  # torch raises RuntimeError, EOFError and pickle's own
            raise ValueError(str(error).splitlines()[0]) from error
        if saved["settings"] != settings:
            raise OutputError(f"{path} was made with {saved['settings']}, not {settings}; {advice}")
        for name, part in parts.items():
            part.load_state_dict(saved["parts"][name])
        return int(saved["step"])
