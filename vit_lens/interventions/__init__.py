"""Interventions: ablate and patch what the model computes, and measure what changes.

Hook functions, for ``run_with_hooks``, ``hooks()`` and ``run_many``: :func:`zero`, :func:`mean`, :func:`resample`,
:func:`patch`, :func:`path`. Sweeps over sites: :func:`ablate_each`, :func:`patch_each`, :func:`patch_paths`, with the
metrics :func:`cosine_to` and :func:`logit_difference` or any function of the embedding. See ``docs/interventions.md``.
"""

__all__ = [
    "Effects", "Hooks", "PathEffects", "ablate_each", "cosine_to", "derangement", "logit_difference", "mean", "patch",
    "patch_each", "patch_paths", "path", "resample", "resolve_receiver", "run_and_read", "run_many", "zero",
]  # fmt: skip

from vit_lens.interventions.metrics import cosine_to, logit_difference
from vit_lens.interventions.paths import patch_paths, path
from vit_lens.interventions.receivers import resolve_receiver
from vit_lens.interventions.replacing import Hooks, derangement, mean, patch, resample, zero
from vit_lens.interventions.results import Effects, PathEffects
from vit_lens.interventions.running import run_and_read, run_many
from vit_lens.interventions.sweeps import ablate_each, patch_each
