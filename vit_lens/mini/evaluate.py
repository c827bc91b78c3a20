"""Measure an embedded pair on held-out scenes: zero-shot labels, autoencoding, round trip through pictures."""

__all__ = ["Pair", "contact_sheet", "decode_embeds", "evaluate_pair", "load_pair", "zero_shot"]

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, CLIPModel, PreTrainedTokenizerBase

from vit_lens.mini import world
from vit_lens.mini.train_encoder import image_embeds, text_embeds, to_pixels
from vit_lens.mini.train_movq import to_signed


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An encoder and a decoder made for it, in float32."""

    clip: CLIPModel
    tokenizer: PreTrainedTokenizerBase
    unet: UNet2DConditionModel
    movq: VQModel
    scheduler: DDIMScheduler
    steps: int
    guidance: float

    @torch.no_grad()
    def embed(self, images: UInt8[np.ndarray, "image height width 3"]) -> Float[Tensor, "image d_embed"]:
        """Embed pictures, without normalising."""
        parts = torch.split(to_pixels(images), 250)
        return torch.cat([image_embeds(self.clip, part) for part in parts])

    @torch.no_grad()
    def zero_embedding(self) -> Float[Tensor, "1 d_embed"]:
        """Embed the all-zero pixel tensor, the decoder's negative."""
        return image_embeds(self.clip, torch.zeros(1, 3, 64, 64))


def load_pair(directory: Path) -> Pair:
    """Load a pair that `train_pair` wrote, encoder and decoder in their published layouts."""
    decoder = directory / "decoder"
    card = json.loads((decoder / "vit_lens.json").read_text())
    return Pair(
        clip=CLIPModel.from_pretrained(directory / "encoder").float().eval(),
        tokenizer=AutoTokenizer.from_pretrained(directory / "encoder"),
        unet=UNet2DConditionModel.from_pretrained(decoder / "unet").float().eval(),
        movq=VQModel.from_pretrained(decoder / "movq").float().eval(),
        scheduler=cast(DDIMScheduler, DDIMScheduler.from_pretrained(decoder / "scheduler")),
        steps=card["steps"],
        guidance=card["guidance"],
    )


@torch.no_grad()
def decode_embeds(
    pair: Pair,
    embeds: Float[Tensor, "image d_embed"],
    *,
    generator: torch.Generator,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int = 50,
    bf16: bool = False,
) -> UInt8[np.ndarray, "image 64 64 3"]:
    """Turn embeddings into pictures by DDIM, each with its own noise; the pair's own settings by default."""
    scheduler = cast(DDIMScheduler, DDIMScheduler.from_config(pair.scheduler.config))
    guidance = pair.guidance if guidance is None else guidance
    scheduler.set_timesteps(pair.steps if steps is None else steps)
    noise = torch.randn((len(embeds), 4, 16, 16), generator=generator)
    negative, images = pair.zero_embedding(), []
    for latents, positive in zip(noise.split(batch), embeds.split(batch), strict=True):
        n, guided = len(positive), guidance > 1
        condition = torch.cat([negative.expand(n, -1), positive]) if guided else positive
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            for t in scheduler.timesteps:
                doubled = torch.cat([latents, latents]) if guided else latents
                out = pair.unet(doubled, t, None, added_cond_kwargs={"image_embeds": condition}).sample[:, :4].float()
                if guided:
                    out = out[:n] + guidance * (out[n:] - out[:n])
                latents = scheduler.step(out, int(t), latents, return_dict=False)[0]
            images.append(pair.movq.decode(latents, force_not_quantize=True, return_dict=False)[0].float())
    return _to_uint8(torch.cat(images))


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
) -> dict[str, object]:
    """Measure every bar on scenes that no training run draws from."""
    codes = world.sample_codes(n_images, np.random.default_rng(seed), held_out=True)
    images = world.render_codes(codes)
    embeds = pair.embed(images)
    few, few_codes = embeds[:n_decoded], codes[:n_decoded]
    started = time.monotonic()
    decoded = decode_embeds(pair, few, generator=torch.Generator().manual_seed(seed), steps=steps, guidance=guidance)
    seconds = time.monotonic() - started
    again = pair.embed(decoded)
    unit = functional.normalize(few, dim=-1)
    matched = functional.cosine_similarity(again, few, dim=-1)
    mismatched = functional.cosine_similarity(again, few.roll(1, 0), dim=-1)
    between = (unit @ unit.T)[~torch.eye(len(unit), dtype=torch.bool)]
    return {
        "seed": seed,
        "n_images": n_images,
        "n_decoded": n_decoded,
        "steps": pair.steps if steps is None else steps,
        "guidance": pair.guidance if guidance is None else guidance,
        "zero_shot": zero_shot(pair, embeds, codes),
        "zero_shot_decoded": zero_shot(pair, again, few_codes),
        "cosine_round_trip": _mean_and_spread(matched),
        "cosine_mismatched": _mean_and_spread(mismatched),
        "cosine_between_images": _mean_and_spread(between),
        "embedding_norm": _mean_and_spread(embeds.norm(dim=-1)),
        "movq_psnr": _movq_psnr(pair, images[:n_decoded]),
        "cosine_through_movq": _mean_and_spread(
            functional.cosine_similarity(pair.embed(_autoencode(pair, images[:n_decoded])), few, dim=-1)
        ),
        "seconds_per_picture": round(seconds / n_decoded, 4),
        "threads": torch.get_num_threads(),
    }


def contact_sheet(pair: Pair, *, n_images: int = 12, seed: int = 2000, zoom: int = 2) -> Image.Image:
    """Draw held-out inputs above the pictures that the decoder makes of their embeddings."""
    images = world.render_codes(world.sample_codes(n_images, np.random.default_rng(seed), held_out=True))
    decoded = decode_embeds(pair, pair.embed(images), generator=torch.Generator().manual_seed(seed))
    tiles = np.full((2, n_images, 68, 68, 3), 255, dtype=np.uint8)
    tiles[:, :, 2:66, 2:66] = np.stack([images, decoded])
    sheet = Image.fromarray(tiles.transpose(0, 2, 1, 3, 4).reshape(136, 68 * n_images, 3))
    return sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST)


@torch.no_grad()
def _autoencode(
    pair: Pair, images: UInt8[np.ndarray, "image height width 3"]
) -> UInt8[np.ndarray, "image height width 3"]:
    parts = [
        pair.movq.decode(pair.movq.encode(part).latents, force_not_quantize=True, return_dict=False)[0]
        for part in to_signed(images).split(50)
    ]
    return _to_uint8(torch.cat(parts))


def _movq_psnr(pair: Pair, images: UInt8[np.ndarray, "image height width 3"]) -> float:
    error = (_autoencode(pair, images).astype(np.float64) - images) / 255
    return round(float(np.mean(-10 * np.log10((error**2).mean(axis=(1, 2, 3))))), 2)


def _to_uint8(signed: Float[Tensor, "image 3 height width"]) -> UInt8[np.ndarray, "image height width 3"]:
    scaled = ((signed + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().numpy()


def _mean_and_spread(values: Float[Tensor, " value"]) -> dict[str, float]:
    return {"mean": round(float(values.mean()), 4), "std": round(float(values.std()), 4)}
