"""What each head does: how far the embedding turns when it is replaced, with and without recomputing what follows."""

__all__ = ["REPLACEMENTS", "Effect", "direct_effects", "total_effects"]

import hashlib
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from vit_lens.addresses import Site
from vit_lens.interventions import mean, patch, run_many, zero
from vit_lens.metrics import cosine
from vit_lens.models import HookedViT
from vit_lens.reference import ReferenceMeans
from vit_lens.studies.importance.head_outputs import Written
from vit_lens.studies.kept_tensors import kept

REPLACEMENTS = ("mean", "resample", "zero")
"""What takes the place of a head: its mean over the ablation images, its output for another image, nothing."""

Effect = tuple[str, str]  # total or direct, and a replacement

_FORMAT = "vit_lens.head_effects.1"
_IMAGES = 16  # in one run, and kept in one file: what an interruption can cost


@torch.no_grad()
def total_effects(
    model: HookedViT,
    pixels: Float[Tensor, "image channel height width"],
    donors: Int[Tensor, " image"],
    reference: ReferenceMeans,
    heads: list[Site],
    *,
    folder: Path,
    label: str = "total effects",
    progress: bool = False,
) -> dict[Effect, Float[Tensor, "image head"]]:
    """Return 1 - cos(embedding, embedding with the head replaced at every token), everything later recomputed.

    Finished images are kept in ``folder`` and never run twice.

    Args:
        model: The model.
        pixels: Images.
        donors: From which image each takes a head's output in resample ablation.
        reference: Means at every position.
        heads: Sites.
        folder: Of finished images.
        label: Of the bar.
        progress: Show it.
    """
    found = []
    with tqdm(total=len(pixels), desc=label, unit="image", disable=not progress) as bar:
        for start in range(0, len(pixels), _IMAGES):
            own, other = pixels[start : start + _IMAGES], pixels[donors[start : start + _IMAGES]]
            path = folder / f"{_key(model, own, other, reference, heads)}.safetensors"
            found.append(kept(path, _FORMAT, "head effects", partial(_run, model, own, other, reference, heads)))
            bar.update(len(own))
    return {("total", kind): torch.cat([part[kind] for part in found]) for kind in REPLACEMENTS}


def direct_effects(
    written: Written, other: Float[Tensor, "image head row d_model"], means: Float[Tensor, "head row d_model"]
) -> dict[Effect, Float[Tensor, "image head"]]:
    """Return the same with everything later frozen, in closed form: only the last residual loses the head.

    Args:
        written: What the heads wrote.
        other: What they wrote for another image.
        means: Their means over the ablation images.
    """
    values = {"mean": means[None], "resample": other, "zero": torch.zeros_like(means)[None]}
    return {("direct", kind): _turn(written.replaced(values[kind]), written.clean) for kind in REPLACEMENTS}


def _run(
    model: HookedViT, own: Tensor, other: Tensor, reference: ReferenceMeans, heads: list[Site]
) -> dict[str, Tensor]:
    names = list(dict.fromkeys(head.hook_name for head in heads))
    cache = model.run_with_cache(other, names_filter=names)[1]
    sets = [mean(model, head, reference) for head in heads]
    sets += [patch(model, head, cache) for head in heads]
    sets += [zero(model, head) for head in heads]
    embeds = run_many(model, own, [[], *sets])
    clean, edited = embeds[0], embeds[1:].unflatten(0, (len(REPLACEMENTS), len(heads))).transpose(1, 2)
    return {kind: _turn(part, clean).cpu() for kind, part in zip(REPLACEMENTS, edited, strict=True)}


def _turn(edited: Float[Tensor, "image head d_embed"], clean: Float[Tensor, "image d_embed"]) -> Tensor:
    return 1 - cosine(edited, clean[:, None].to(edited))


def _key(model: HookedViT, own: Tensor, other: Tensor, reference: ReferenceMeans, heads: list[Site]) -> str:
    said = f"{model.fingerprint} {reference.content} {own.shape} {own.dtype} {' '.join(map(str, heads))}"
    digits = hashlib.sha256(said.encode())
    for part in (own, other):
        digits.update(part.contiguous().cpu().float().numpy().tobytes())
    return digits.hexdigest()[:32]
