"""What ships with the package beside the pair's weights: sample images, and words for embeddings."""

__all__ = ["JUDGE", "PAIR", "mini_labels", "sample_images"]

from pathlib import Path

import torch

from vit_lens.mini.attributes import ATTRIBUTES, OVERLAY_ATTRIBUTES, PROBES
from vit_lens.texts import ZeroShotLabels

_HERE = Path(__file__).parent
PAIR = _HERE / "pair"
JUDGE = _HERE / "judge"  # a CLIP of another seed and size, which never conditioned the decoder


def sample_images() -> list[Path]:
    """Return the bundled scenes; no training run drew them."""
    return sorted((_HERE / "samples").glob("*.png"))


def mini_labels() -> ZeroShotLabels:
    """Return the world's attributes as zero-shot labels, embedded by the pair's own text tower."""
    from transformers import AutoTokenizer, CLIPModel
    from transformers.utils import logging

    from vit_lens.mini import world
    from vit_lens.mini.train_encoder import text_embeds

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    clip = CLIPModel.from_pretrained(PAIR / "encoder", dtype=torch.float32).eval()
    if bars:
        logging.enable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(PAIR / "encoder")
    names = {**{name: ATTRIBUTES[name] for name in ATTRIBUTES}, "overlay": ("no", "yes")}
    embeds = {}
    with torch.no_grad():
        for name in PROBES:
            tokens = tokenizer(world.prompts(name), padding=True, return_tensors="pt")
            embeds[name] = text_embeds(clip, tokens)
    order = ("overlay", *OVERLAY_ATTRIBUTES)
    shown = [name for name in PROBES if name not in order] + list(order)
    only_if = {name: ("overlay", "yes") for name in OVERLAY_ATTRIBUTES}
    return ZeroShotLabels({name: names[name] for name in shown}, embeds, only_if)
