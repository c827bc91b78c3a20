"""The pairs of the content study on the embedded pair: scenes of its world with one attribute swapped."""

__all__ = ["PAIR_ATTRIBUTES", "pair_images", "study_pairs"]

import numpy as np

from vit_lens.mini import world
from vit_lens.studies import StudyImages
from vit_lens.studies.content.pairs import AttributePairs
from vit_lens.studies.images import content_of
from vit_lens.studies.mini_images import study_images

PAIR_ATTRIBUTES = (
    "shape", "colour", "texture", "size", "row", "column", "background", "pattern", "symbol", "overlay"
)  # fmt: skip
"""In which base and partner differ; ``overlay`` is taken away, ``symbol`` exchanged."""

_STREAM = 21


def study_pairs(n: int, *, seed: int) -> AttributePairs:
    """Draw ``n`` held-out scenes with an overlay, each with one partner for every attribute.

    Partners may be scenes that encoders were trained on; bases never are.

    Args:
        n: How many base scenes are drawn.
        seed: The seed of the scenes and of what attributes change to.
    """
    generator = np.random.default_rng([seed, _STREAM])
    scenes = world.sample_scenes(n, generator, overlay=1.0, held_out=True)
    partners, captions, partner_captions = [], [], []
    for scene in scenes:
        for name in PAIR_ATTRIBUTES:
            other = world.without_overlay(scene) if name == "overlay" else world.swap(scene, name, generator)
            partners.append(other)
            captions.append(_prompt(scene, name))
            partner_captions.append(_prompt(other, name))
    per_base = len(PAIR_ATTRIBUTES)
    return AttributePairs(
        images=list(world.render([*scenes, *partners])),
        base=tuple(index // per_base for index in range(n * per_base)),
        partner=tuple(range(n, n + n * per_base)),
        attribute=PAIR_ATTRIBUTES * n,
        caption=tuple(captions),
        partner_caption=tuple(partner_captions),
    )


def pair_images(pairs: AttributePairs, *, seed: int) -> StudyImages:
    """Return the images of pairs, with scenes of the world for the means; none of these is among the pairs."""
    world_images = study_images(1, seed=seed)
    tested = {content_of(image) for image in pairs.images}
    anchor, ablation = (
        [image for image in images if content_of(image) not in tested]
        for images in (world_images.anchor, world_images.ablation)
    )
    return StudyImages(pairs.images, anchor, ablation)


def _prompt(scene: world.Scene, attribute: str) -> str:
    label = world.labels(world.encode([scene]), attribute)[0]
    return world.prompts(attribute)[int(label)]
