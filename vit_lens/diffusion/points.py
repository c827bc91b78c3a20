"""Hook points of a denoiser, which know the step and the branch that they fire in."""

__all__ = ["DiffusionHookPoint"]

from typing import Any

from transformer_lens.hook_points import HookPoint

from vit_lens.hooking import Step


class DiffusionHookPoint(HookPoint):
    """A hook point that says, to the hook function that is given it, which step and branch it fires in.

    Args:
        model: The model that it belongs to.

    >>> sd = vl.HookedUNet.from_pretrained("mini-sd")
    >>> seen = []
    >>> def look(update, hook):
    ...     seen.append((hook.step.index, hook.branch, tuple(update.shape)))
    >>> made = sd.run_with_hooks("a red star", steps=2, fwd_hooks=[("mid.0.hook_update", look)])
    >>> seen[0], seen[-1]
    ((0, 'uncond', (1, 16, 112)), (1, 'cond', (1, 16, 112)))
    """

    def __init__(self, model: Any):
        super().__init__()
        self._model = (model,)  # in a tuple, where it is no part of the point

    @property
    def step(self) -> Step | None:
        """The step, with its index and its sigma; None outside of steps."""
        return self._model[0].current_step

    @property
    def sigma(self) -> float | None:
        """The noise level of the step; None where it is not known, or there is noise alone, of no finite level."""
        return None if self.step is None else self.step.sigma

    @property
    def branch(self) -> str | None:
        """The branch of guidance, "cond" or "uncond"; None in a pass that the pipeline did not run."""
        return self._model[0].current_branch
