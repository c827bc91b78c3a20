"""What ships with the package beside the pair's weights: sample images, and words for embeddings."""

__all__ = [
    "JUDGE", "PAIR", "SENTENCES", "STILL_LIFE", "mini_beside", "mini_gallery", "mini_groups", "mini_judge",
    "mini_labels", "mini_notes", "sample_images",
]  # fmt: skip

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from vit_lens.decoders import Decoder
from vit_lens.identity import EMBEDDED_PIPELINES, MINI_ENCODER, MINI_FILES, MINI_FLUX, MINI_SD
from vit_lens.mini import world
from vit_lens.mini.attributes import ATTRIBUTES, OVERLAY_ATTRIBUTES, PROBES
from vit_lens.models import HookedViT
from vit_lens.readers import Gallery
from vit_lens.sweeping import Beside
from vit_lens.texts import TextBank, ZeroShotLabels
from vit_lens.towers import Tower

_HERE = Path(__file__).parent
PAIR = MINI_FILES
STILL_LIFE = EMBEDDED_PIPELINES["mini-sd"]
SENTENCES = ("a red solid star left of a blue striped ring", "below a pink shaded square , a tul bo ven")
"""What the demo draws: two held-out scenes, the second fronted and with a name."""
JUDGE = _HERE / "judge"  # a CLIP of another seed and size, which never conditioned the decoder


_NOTES = {
    MINI_ENCODER: "Embedded pair: a small CLIP and decoder trained on synthetic 64-pixel scenes. "
    "Nothing here is known for larger models.",
    **dict.fromkeys(
        (MINI_SD, MINI_FLUX),
        "Embedded text-to-image model, trained on synthetic scenes of 32 pixels. "
        "Nothing here is known for larger models.",
    ),
}
_SCENES, _SCENE_SEED = 96, 2024


def sample_images() -> list[Path]:
    """Return the paths of the bundled scenes, 64 x 64 pixels each; no training run drew them.

    >>> from vit_lens.mini import sample_images
    >>> [path.name for path in sample_images()][:2]
    ['1_star.png', '2_heart.png']
    """
    return sorted((_HERE / "samples").glob("*.png"))


def mini_labels(texts: TextBank | None = None) -> ZeroShotLabels:
    """Return the world's attributes as zero-shot labels, embedded by the pair's own text tower.

    Args:
        texts: Captions that hold the prompts of the world; None takes those that ship with the pair.

    >>> from vit_lens.mini import mini_labels
    >>> list(mini_labels().names)[:3]
    ['shape', 'colour', 'texture']
    """
    texts = TextBank.mini() if texts is None else texts
    order = ("overlay", *OVERLAY_ATTRIBUTES)
    shown = [name for name in PROBES if name not in order] + list(order)
    return ZeroShotLabels(
        names={name: ATTRIBUTES.get(name, ("no", "yes")) for name in shown},
        embeds={name: texts.embeds[[texts.index(text) for text in world.prompts(name)]] for name in PROBES},
        only_if=dict.fromkeys(OVERLAY_ATTRIBUTES, ("overlay", "yes")),
    )


def mini_groups() -> dict[str, list[str]]:
    """Return the captions of the world that exclude each other, by attribute.

    >>> from vit_lens.mini import mini_groups
    >>> mini_groups()["size"]
    ['a small object', 'a medium object', 'a large object']
    """
    return {name: world.prompts(name) for name in PROBES}


def mini_beside(model: HookedViT, *, drawn: bool = True) -> Beside:
    """Return what stands beside pictures by default: on the embedded pair its labels and captions, else live numbers.

    Args:
        model: The encoder.
        drawn: Whether there are pictures, which labels describe.

    >>> from vit_lens.mini import mini_beside
    >>> beside = mini_beside(model)
    >>> beside.live, len(beside.groups), mini_beside(model, drawn=False).groups is None
    (True, 11, True)
    """
    if model.encoder_id != MINI_ENCODER or not drawn:
        return Beside(live=True)
    texts = TextBank.mini()
    return Beside(labels=mini_labels(texts), texts=texts, groups=mini_groups(), live=True)


def mini_judge(model: HookedViT) -> HookedViT | None:
    """Return the small CLIP that compares pictures of decoders for the embedded encoder; None for another encoder.

    No decoder was ever made for it.

    >>> from vit_lens.mini import mini_judge
    >>> judge = mini_judge(model)
    >>> judge.encoder_id == model.encoder_id, judge.cfg.d_embed
    (False, 96)
    """
    if model.encoder_id != MINI_ENCODER:
        return None
    return HookedViT.from_pretrained(JUDGE, device=model.device).requires_grad_(False)


def mini_notes(part: Tower | Decoder) -> list[str]:
    """Return what a record of an embedded model says of itself, by its encoder or decoder; nothing for another.

    >>> from vit_lens.mini import mini_notes
    >>> mini_notes(model)[0][:47]
    'Embedded pair: a small CLIP and decoder trained'
    """
    ids = (getattr(part, "encoder_id", None), getattr(part, "decoder_id", None))
    return [note for known, note in _NOTES.items() if known in ids]


@contextmanager
def mini_gallery(model: HookedViT) -> Iterator[Gallery]:
    """Give a gallery of 96 scenes of the world, always the same, whose pictures can be read inside the block.

    >>> from vit_lens.mini import mini_gallery
    >>> with mini_gallery(model) as gallery:
    ...     len(gallery.names), gallery.picture(0).size
    (96, (64, 64))
    """
    scenes = world.sample_scenes(_SCENES, np.random.default_rng(_SCENE_SEED), held_out=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, (scene, pixels) in enumerate(zip(scenes, world.render(scenes), strict=True)):
            Image.fromarray(pixels).save(Path(folder) / f"{number:03d} {world.caption(scene)}.png")
        yield Gallery.from_folder(model, folder)
