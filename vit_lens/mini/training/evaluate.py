"""Measure an embedded pair on held-out scenes: zero-shot labels, autoencoding, round trip through pictures."""

__all__ = ["Pair", "contact_sheet", "decode_embeds", "evaluate_pair", "load_pair", "zero_shot"]

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, CLIPModel, PreTrainedTokenizerBase

from vit_lens.conditions import Condition
from vit_lens.decoders import Decoder, KandinskyDecoder
from vit_lens.engine import OWN, Bench, draw
from vit_lens.mini import world
from vit_lens.mini.training.encoder import image_embeds, text_embeds, to_pixels
from vit_lens.mini.training.movq import to_signed
from vit_lens.models import HookedViT

_NOISES, _BATCH = 8, 25


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An encoder and a decoder made for it, in float32.

    Attributes:
        clip: The encoder with its text tower.
        tokenizer: Of the text tower.
        model: The encoder's image tower.
        decoder: The decoder.
    """

    clip: CLIPModel
    tokenizer: PreTrainedTokenizerBase
    model: HookedViT
    decoder: Decoder

    @torch.no_grad()
    def embed(self, images: UInt8[np.ndarray, "image height width 3"]) -> Float[Tensor, "image d_embed"]:
        """Embed pictures, without normalising."""
        parts = torch.split(to_pixels(images), 250)
        return torch.cat([image_embeds(self.clip, part) for part in parts])


def load_pair(directory: Path) -> Pair:
    """Load a pair that `train_pair` wrote, encoder and decoder in their published layouts."""
    return Pair(
        clip=CLIPModel.from_pretrained(directory / "encoder").float().eval(),
        tokenizer=AutoTokenizer.from_pretrained(directory / "encoder"),
        model=HookedViT.from_pretrained(directory / "encoder").requires_grad_(False),
        decoder=KandinskyDecoder.from_pretrained(directory / "decoder"),
    )


def decode_embeds(
    pair: Pair, embeds: Float[Tensor, "image d_embed"], *, seed: int, **settings: float | int | None
) -> tuple[UInt8[np.ndarray, "image 64 64 3"], Float[Tensor, "image d_embed"]]:
    """Turn embeddings into pictures and embed these again; eight noises in turn, settings by default the pair's own."""
    bench = Bench(model=pair.model, decoder=pair.decoder, negative=pair.decoder.negative(pair.model))
    chosen = {name: value for name, value in settings.items() if value is not None}
    pictures, again = torch.empty(len(embeds), 64, 64, 3, dtype=torch.uint8), torch.empty_like(embeds)
    for noise in range(min(_NOISES, len(embeds))):
        drawn, seen = draw(
            bench, Condition(pooled=embeds[noise::_NOISES]), pair.decoder.settings(seed=seed + noise, **chosen), _BATCH
        )
        pictures[noise::_NOISES], again[noise::_NOISES] = drawn, seen[OWN].flat
    return pictures.numpy(), again


@torch.no_grad()
def zero_shot(
    pair: Pair, embeds: Float[Tensor, "image d_embed"], codes: Int[np.ndarray, "image attribute"]
) -> dict[str, float]:
    """Give, for each attribute, the share of pictures whose nearest prompt is the true one."""
    accuracy = {}
    for name in world.PROBES:
        tokens = pair.tokenizer(world.prompts(name), padding=True, return_tensors="pt")
        text = functional.normalize(text_embeds(pair.clip, tokens), dim=-1)
        guess = (functional.normalize(embeds, dim=-1) @ text.T).argmax(dim=1).numpy()
        truth = world.labels(codes, name)
        accuracy[name] = round(float((guess == truth)[truth >= 0].mean()), 4)
    return accuracy


def evaluate_pair(
    pair: Pair,
    *,
    n_images: int = 1000,
    n_decoded: int = 200,
    seed: int = 1000,
    steps: int | None = None,
    guidance: float | None = None,
    autoencode: Callable[[Float[Tensor, "image 3 height width"]], Tensor] | None = None,
    called: str = "movq",
) -> dict[str, object]:
    """Measure every bar on scenes that no training run draws from.

    `autoencode` takes signed pictures through the decoder's autoencoder, which metrics call `called`; None for MoVQ.
    """
    through = _through_movq(pair) if autoencode is None else autoencode
    codes = world.sample_codes(n_images, np.random.default_rng(seed), held_out=True)
    images = world.render_codes(codes)
    embeds = pair.embed(images)
    few, few_codes = embeds[:n_decoded], codes[:n_decoded]
    started = time.monotonic()
    _, again = decode_embeds(pair, few, seed=seed, steps=steps, guidance=guidance)
    seconds = time.monotonic() - started
    unit = functional.normalize(few, dim=-1)
    matched = functional.cosine_similarity(again, few, dim=-1)
    mismatched = functional.cosine_similarity(again, few.roll(1, 0), dim=-1)
    between = (unit @ unit.T)[~torch.eye(len(unit), dtype=torch.bool)]
    return {
        "seed": seed,
        "n_images": n_images,
        "n_decoded": n_decoded,
        "steps": pair.decoder.defaults.steps if steps is None else steps,
        "guidance": pair.decoder.defaults.guidance if guidance is None else guidance,
        "zero_shot": zero_shot(pair, embeds, codes),
        "zero_shot_decoded": zero_shot(pair, again, few_codes),
        "cosine_round_trip": _mean_and_spread(matched),
        "cosine_mismatched": _mean_and_spread(mismatched),
        "cosine_between_images": _mean_and_spread(between),
        "embedding_norm": _mean_and_spread(embeds.norm(dim=-1)),
        f"{called}_psnr": _psnr(through, images[:n_decoded]),
        f"cosine_through_{called}": _mean_and_spread(
            functional.cosine_similarity(pair.embed(_autoencoded(through, images[:n_decoded])), few, dim=-1)
        ),
        "seconds_per_picture": round(seconds / n_decoded, 4),
        "threads": torch.get_num_threads(),
    }


def contact_sheet(pair: Pair, *, n_images: int = 12, seed: int = 2000, zoom: int = 2) -> Image.Image:
    """Draw held-out inputs above the pictures that the decoder makes of their embeddings."""
    images = world.render_codes(world.sample_codes(n_images, np.random.default_rng(seed), held_out=True))
    decoded, _ = decode_embeds(pair, pair.embed(images), seed=seed)
    tiles = np.full((2, n_images, 68, 68, 3), 255, dtype=np.uint8)
    tiles[:, :, 2:66, 2:66] = np.stack([images, decoded])
    sheet = Image.fromarray(tiles.transpose(0, 2, 1, 3, 4).reshape(136, 68 * n_images, 3))
    return sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST)


_Through = Callable[[Float[Tensor, "image 3 height width"]], Tensor]


def _through_movq(pair: Pair) -> _Through:
    movq: Any = getattr(pair.decoder, "movq", None)
    return lambda x: movq.decode(movq.encode(x).latents, force_not_quantize=True, return_dict=False)[0]


@torch.no_grad()
def _autoencoded(
    through: _Through, images: UInt8[np.ndarray, "image height width 3"]
) -> UInt8[np.ndarray, "image height width 3"]:
    return _to_uint8(torch.cat([through(part) for part in to_signed(images).split(50)]))


def _psnr(through: _Through, images: UInt8[np.ndarray, "image height width 3"]) -> float:
    error = (_autoencoded(through, images).astype(np.float64) - images) / 255
    return round(float(np.mean(-10 * np.log10((error**2).mean(axis=(1, 2, 3))))), 2)


def _to_uint8(signed: Float[Tensor, "image 3 height width"]) -> UInt8[np.ndarray, "image height width 3"]:
    scaled = ((signed + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().numpy()


def _mean_and_spread(values: Float[Tensor, " value"]) -> dict[str, float]:
    return {"mean": round(float(values.mean()), 4), "std": round(float(values.std()), 4)}
