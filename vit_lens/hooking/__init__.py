"""Loud hooks: TransformerLens' hook interface in which nothing is ignored in silence.

An unknown name raises with the nearest names; a filter that matches nothing raises; a hook that changes a
shape or dtype raises with both; a hook that cannot fire in a call raises before the call; a cache keeps every
pass of a model that runs its blocks several times, and never the last only.
"""

__all__ = [
    "CODES", "Activations", "Aim", "AimedGuard", "Aiming", "CodesPoint", "Keeper", "LoudHookedRootModule", "Name",
    "Step", "SteppedCache", "aims_at", "as_device", "check_hook_result", "find_feature", "is_hooked",
]  # fmt: skip

from vit_lens.hooking.aims import Aim, AimedGuard, Aiming, aims_at
from vit_lens.hooking.codes import CODES, CodesPoint, find_feature
from vit_lens.hooking.guard import Name, as_device, check_hook_result, is_hooked
from vit_lens.hooking.keeping import Keeper
from vit_lens.hooking.root import LoudHookedRootModule
from vit_lens.hooking.stepped import Activations, Step, SteppedCache
