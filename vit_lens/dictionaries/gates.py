"""When a spliced dictionary acts: at the steps and in the branch that it was learnt at, or those that are given."""

__all__ = ["Gate"]

import math
from collections.abc import Sequence
from typing import Any

from vit_lens.addresses import as_index
from vit_lens.dictionaries.semantics import Provenance
from vit_lens.errors import DictionaryError

_NEAR = 1e-3  # of noise levels, relative


class Gate:
    """Says of each pass of a model whether a dictionary acts in it, and in the end whether it ever could.

    Args:
        model: The model that it is spliced into.
        origin: What the dictionary is of.
        at_steps: The steps it acts at; None for those that it was learnt at, where the noise level must be the same.
        branch: The branch it acts in, or "both"; None for the one that it was learnt in.

    Raises:
        DictionaryError: ``at_steps`` or ``branch`` is no such thing; or later, the run has other steps.
    """

    def __init__(self, model: Any, origin: Provenance, at_steps: Sequence[int] | None, branch: str | None):
        if branch not in (None, "cond", "uncond", "both"):
            raise DictionaryError(f"branch={branch!r}; expected 'cond', 'uncond' or 'both'")
        self.model, self.is_given = model, at_steps is not None
        steps = origin.at_steps if at_steps is None else [as_index(each) for each in at_steps]
        if steps is not None and (not steps or None in steps):
            raise DictionaryError(f"at_steps={at_steps!r}; expected a list of steps, as whole numbers from 0")
        self.steps: tuple[int, ...] | None = None if steps is None else tuple(s for s in steps if s is not None)
        self.branch = None if branch == "both" else branch or origin.branch
        self.sigmas = dict(zip(origin.at_steps or (), origin.sigmas or (), strict=False))
        self._seen: set[int] = set()
        self._branches: set[str] = set()

    def __call__(self) -> bool:
        """Whether the dictionary acts now; outside of steps and branches it does."""
        branch, step = getattr(self.model, "current_branch", None), self.model.current_step
        if branch is not None:
            self._branches.add(branch)
        if step is None:
            if self.is_given:
                raise DictionaryError("at_steps= is given, and the model runs in no steps: `with model.step(index):`")
            return self.branch in (None, branch) or branch is None
        self._seen.add(step.index)
        if self.steps is not None and step.index not in self.steps:
            return False
        expected = None if self.is_given else self.sigmas.get(step.index)
        if expected is not None and step.sigma is not None and not math.isclose(expected, step.sigma, rel_tol=_NEAR):
            raise DictionaryError(
                f"this dictionary was learnt at step {step.index} with noise level {expected:.4g}, which is "
                f"{step.sigma:.4g} in this run; run as many steps and pixels, or say at_steps= where it shall act"
            )
        return self.branch in (None, branch) or branch is None

    def check_reached(self) -> None:
        """Raise where runs never came to a step or a branch that the dictionary acts in.

        Raises:
            DictionaryError: They did not.
        """
        if self._seen and (absent := [step for step in self.steps or () if step not in self._seen]):
            raise DictionaryError(f"the dictionary acts at steps {absent}, too, and no run came to them")
        if self._branches and self.branch is not None and self.branch not in self._branches:
            raise DictionaryError(
                f"the dictionary acts in the branch {self.branch!r}, and runs had {sorted(self._branches)} alone"
            )
