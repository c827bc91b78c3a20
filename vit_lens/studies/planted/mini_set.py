"""Labelled images of the embedded pair's world, for studies that need to know what a picture shows."""

__all__ = ["labelled_images"]

import numpy as np

from vit_lens.mini import world
from vit_lens.studies import StudyImages
from vit_lens.studies.planted.labelled import LabelledAttribute, LabelledImages

_MEANS = 512
_STREAMS = {"test": 31, "anchor": 32, "ablation": 33}
_CLASSES = {"colour": ("red", "blue"), "size": ("small", "large"), "row": ("top", "bottom"), "overlay": (0, 1)}


def labelled_images(n: int, *, seed: int, n_means: int = _MEANS) -> LabelledImages:
    """Draw scenes of which every one is red or blue, small or large, at the top or bottom, with or without overlay.

    What else a scene has is free. Test scenes are held out from training, no scene comes twice.

    Args:
        n: How many scenes are tested.
        seed: The seed of all draws.
        n_means: How many scenes each set of means has.
    """
    values = {name: _indices(name) for name in _CLASSES}
    codes, seen = {}, set()
    for kind, size in (("test", n), ("anchor", n_means), ("ablation", n_means)):
        generator = np.random.default_rng([seed, _STREAMS[kind]])
        rows: list[np.ndarray] = []
        while len(rows) < size:
            drawn = world.sample_codes(2048, generator, held_out=kind == "test")
            fits = np.all([np.isin(world.labels(drawn, name), pair) for name, pair in values.items()], axis=0)
            rows += [row for row in drawn[fits] if not (row.tobytes() in seen or seen.add(row.tobytes()))]
        codes[kind] = np.stack(rows[:size])
    attributes = tuple(
        LabelledAttribute(
            name=name,
            captions=(world.prompts(name)[pair[0]], world.prompts(name)[pair[1]]),
            anchor=(world.labels(codes["anchor"], name) == pair[1]).astype(np.int64),
            test=(world.labels(codes["test"], name) == pair[1]).astype(np.int64),
        )
        for name, pair in values.items()
    )
    return LabelledImages(StudyImages(**{kind: list(world.render_codes(c)) for kind, c in codes.items()}), attributes)


def _indices(name: str) -> tuple[int, int]:
    first, second = _CLASSES[name]
    if name == "overlay":
        return int(first), int(second)
    return world.ATTRIBUTES[name].index(str(first)), world.ATTRIBUTES[name].index(str(second))
