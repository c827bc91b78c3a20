"""Reference means of the pair's encoder over scenes of its own world."""

__all__ = ["REFERENCE_SCENES", "write_reference_means"]

from pathlib import Path

import numpy as np

from vit_lens.mini import world
from vit_lens.models import HookedViT
from vit_lens.reference import ReferenceMeans

REFERENCE_SCENES = 512
_STREAM = 7


def write_reference_means(model: HookedViT, path: Path, *, seed: int) -> ReferenceMeans:
    """Average over scenes that evaluation never shows, overlays in half of them as in training, and save."""
    generator = np.random.default_rng([seed, _STREAM])
    scenes = world.render_codes(world.sample_codes(REFERENCE_SCENES, generator, held_out=False))
    means = ReferenceMeans.from_images(model, list(scenes))
    means.save(path)
    return means
