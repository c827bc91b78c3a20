"""The images of studies on the embedded pair: scenes of its world, the three sets disjoint."""

__all__ = ["study_images"]

import numpy as np

from vit_lens.mini import world
from vit_lens.studies import StudyImages

_MEANS = 512
_STREAMS = {"test": 11, "anchor": 12, "ablation": 13}


def study_images(n: int, *, seed: int, overlay: float = 0.5, n_means: int = _MEANS) -> StudyImages:
    """Draw held-out scenes to test, and training scenes for the two sets of means; no scene twice.

    Args:
        n: How many scenes are tested.
        seed: The seed of all three draws.
        overlay: The share of scenes with an overlay, in all sets, 0 to 1.
        n_means: How many scenes each set of means has.

    >>> scenes = vl.studies.study_images(2, seed=0, n_means=8)
    >>> len(scenes.test), len(scenes.anchor), scenes.test[0].shape
    (2, 8, (64, 64, 3))
    """
    seen: set[bytes] = set()
    sets = {}
    for name, size in (("test", n), ("anchor", n_means), ("ablation", n_means)):
        generator = np.random.default_rng([seed, _STREAMS[name]])
        codes = world.sample_codes(size + 200, generator, overlay=overlay, held_out=name == "test")
        fresh = [row for row in codes if not (row.tobytes() in seen or seen.add(row.tobytes()))]
        sets[name] = list(world.render_codes(np.stack(fresh[:size])))
    return StudyImages(**sets)
