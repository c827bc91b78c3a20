"""The passes of a denoiser in a run of its pipeline: which step each is in, at what noise, for which branch."""

__all__ = ["Passes", "n_steps", "sigma_at"]

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from vit_lens.errors import VitLensError


class Passes:
    """Counts passes while a pipeline runs, and tells the model the step and the branches of each.

    Args:
        model: The hooked model.
        of_step: For each pass of a step the branches in its rows.
        n_pictures: How many pictures are drawn.
    """

    def __init__(self, model: Any, of_step: Sequence[tuple[str, ...]], n_pictures: int):
        self.model, self.of_step, self.n_pictures = model, of_step, n_pictures
        self._n = 0
        self._time: float | None = None
        self._step = ExitStack()

    @contextmanager
    def counted(self, denoiser: nn.Module) -> Iterator[None]:
        """Count inside the ``with`` block."""
        handles = []
        try:
            handles.append(denoiser.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True))
            handles.append(denoiser.register_forward_hook(self._after))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._after()
        if self._n % len(self.of_step):
            raise self._unknown(f"{self._n} passes, which are no whole number of steps")

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        index, which = divmod(self._n, len(self.of_step))
        self._n += 1
        branches = self.of_step[which]
        rows = len(args[0] if args else kwargs["hidden_states"])
        if rows != self.n_pictures * len(branches):
            raise self._unknown(f"{rows} rows")
        if len(self.of_step) > 1:
            time = _first(kwargs["timestep"])
            if which and time != self._time:
                raise self._unknown(f"timesteps {self._time} and {time} in one step")
            self._time = time
        self._step.enter_context(self.model.step(index, sigma=sigma_at(self.model.pipeline.scheduler, index)))
        self.model.row_branches = branches

    def _after(self, *given: Any) -> None:
        self.model.row_branches = ()
        self._step.close()

    def _unknown(self, told: str) -> VitLensError:
        return VitLensError(
            f"{type(self.model.pipeline).__name__} ran its denoiser with {told}; expected passes {list(self.of_step)} "
            f"of {self.n_pictures} rows for each branch in every step. This way of calling it is not known, and steps "
            "and branches would be wrong"
        )


def _first(timestep: Tensor) -> float:
    return float(timestep.flatten()[0])


def sigma_at(scheduler: Any, index: int) -> float | None:
    """Return the noise level of a step, as a multiple of the picture's own scale; None where it is not finite or known.

    For flow matching it is the share of noise, from 1 to 0; for diffusion sqrt((1 - alpha_bar) / alpha_bar).
    """
    sigmas, times = getattr(scheduler, "sigmas", None), scheduler.timesteps
    if sigmas is not None and len(sigmas) >= len(times):
        return float(sigmas[index])
    if getattr(scheduler, "alphas_cumprod", None) is None or index >= len(times):
        return None
    kept = float(scheduler.alphas_cumprod[int(times[index])])
    return math.sqrt((1 - kept) / kept) if kept > 0 else None


def n_steps(scheduler: Any, steps: int, call: Mapping[str, Any]) -> int:
    """Return how many steps a run will have; a scheduler may take some twice."""
    for name in ("timesteps", "sigmas"):
        if call.get(name) is not None:
            return len(call[name])
    if type(scheduler).__name__.startswith("FlowMatchEuler"):
        return steps
    own = copy.deepcopy(scheduler)
    own.set_timesteps(steps)
    return len(own.timesteps)
