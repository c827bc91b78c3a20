"""Measure a decoder of patch tokens on held-out scenes: pixels, the judge's reading, the encoder's own."""

__all__ = ["evaluate_rae", "measure_rae", "patch_sheet"]

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vit_lens.decoders import RAEDecoder
from vit_lens.mini import JUDGE, world
from vit_lens.mini.training.folders import write_json
from vit_lens.models import HookedViT
from vit_lens.texts import TextBank

_AT_ONCE = 50


def measure_rae(folder: Path, model: HookedViT, *, n_images: int = 1000) -> dict[str, object]:
    """Measure the decoder in a folder, as it ships, and write its ``metrics.json``."""
    metrics = evaluate_rae(RAEDecoder.from_pretrained(folder), model, n_images=n_images)
    write_json(folder / "metrics.json", metrics)
    return metrics


@torch.no_grad()
def evaluate_rae(decoder: RAEDecoder, model: HookedViT, *, n_images: int = 1000, seed: int = 1000) -> dict[str, object]:
    """Measure a decoder on scenes that no training run draws from.

    Args:
        decoder: The decoder.
        model: The encoder whose tokens it draws.
        n_images: The number of scenes.
        seed: The seed of the scenes.

    Returns:
        The mean PSNR of 8-bit pictures, and as its floor that of the scenes' mean in the place of each; for every
        attribute how many scenes have it, and the judge's zero-shot accuracy on the scenes (the ceiling), on what is
        drawn of their tokens, and on what is drawn of the next scene's (the floor); cosines of the encoder's embedding
        and of its tokens, of what is drawn with what was asked for, and with the next scene's.
    """
    codes = world.sample_codes(n_images, np.random.default_rng(seed), held_out=True)
    scenes = world.render_codes(codes)
    drawn, before, after, tokens, again = [], [], [], [], []
    for start in range(0, n_images, _AT_ONCE):
        pixels = model.preprocess(list(scenes[start : start + _AT_ONCE]))
        asked = decoder.read(model, pixels)
        pictures = decoder.decode(asked, settings=decoder.defaults, batch_size=_AT_ONCE)
        seen = model.preprocess(list(pictures.numpy()))
        drawn.append(pictures.numpy())
        before.append(model(pixels))
        after.append(model(seen))
        tokens.append(asked.flat)
        again.append(decoder.read(model, seen).flat)
    made = np.concatenate(drawn)
    judge = HookedViT.from_pretrained(JUDGE).requires_grad_(False)
    return {
        "seed": seed, "n_images": n_images,
        "psnr": _psnr(made, scenes), "psnr_of_their_mean": _psnr(scenes.mean(0, keepdims=True), scenes),
        "judge_n": {name: int((world.labels(codes, name) >= 0).sum()) for name in world.PROBES},
        "judge_on_scenes": _read(judge, scenes, codes), "judge_on_pictures": _read(judge, made, codes),
        "judge_on_another": _read(judge, np.roll(made, 1, axis=0), codes),
        "cosine_embedding": _alike(torch.cat(after), torch.cat(before)),
        "cosine_tokens": _alike(torch.cat(again), torch.cat(tokens)),
    }  # fmt: skip


def patch_sheet(decoder: RAEDecoder, model: HookedViT, *, n_images: int = 12, seed: int = 2000) -> Image.Image:
    """Draw held-out scenes above what the decoder makes of their patch tokens."""
    scenes = world.render_codes(world.sample_codes(n_images, np.random.default_rng(seed), held_out=True))
    drawn = decoder.decode(decoder.read(model, model.preprocess(list(scenes)))).numpy()
    tiles = np.full((2, n_images, 68, 68, 3), 255, dtype=np.uint8)
    tiles[:, :, 2:66, 2:66] = np.stack([scenes, drawn])
    sheet = Image.fromarray(tiles.transpose(0, 2, 1, 3, 4).reshape(136, 68 * n_images, 3))
    return sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST)


def _psnr(made: np.ndarray, scenes: UInt8[np.ndarray, "picture 64 64 3"]) -> float:
    """Return the mean over pictures, in dB."""
    error = ((made.astype(np.float64) - scenes) / 255) ** 2
    return round(float(np.mean(-10 * np.log10(error.mean((1, 2, 3))))), 2)


def _read(
    judge: HookedViT, pictures: UInt8[np.ndarray, "picture 64 64 3"], codes: Int[np.ndarray, "picture attribute"]
) -> dict[str, float]:
    parts = [pictures[start : start + _AT_ONCE] for start in range(0, len(pictures), _AT_ONCE)]
    embeds = torch.cat([judge(judge.preprocess(list(part))) for part in parts])
    found = {}
    for name in world.PROBES:
        bank = TextBank.from_pretrained(JUDGE, world.prompts(name))
        guess, truth = bank.cosines(embeds).argmax(-1).numpy(), world.labels(codes, name)
        found[name] = round(float((guess == truth)[truth >= 0].mean()), 4)
    return found


def _alike(drawn: Float[Tensor, "picture numbers"], asked: Float[Tensor, "picture numbers"]) -> dict[str, float]:
    own = functional.cosine_similarity(drawn, asked, dim=-1)
    other = functional.cosine_similarity(drawn, asked.roll(1, 0), dim=-1)
    return {"own": round(float(own.mean()), 4), "another": round(float(other.mean()), 4)}
