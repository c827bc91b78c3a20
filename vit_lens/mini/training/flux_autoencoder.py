"""Train the autoencoder of mini-flux: four blocks, in the format of FLUX.1, on pictures of twice the world's side."""

__all__ = [
    "SCALE",
    "FluxAutoencoderSettings",
    "build_flux_autoencoder",
    "enlarged",
    "reduced",
    "train_flux_autoencoder",
]

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jaxtyping import UInt8
from torch import Tensor, nn

from vit_lens.mini import still_life
from vit_lens.mini.still_life import Lexicon
from vit_lens.mini.training.movq import to_signed
from vit_lens.mini.training.progress import average_into, cosine, run_steps, start_step

SCALE = 2
"""A pipeline of FLUX.1 has a token for 16 x 16 pixels; at twice its side a picture of the world has 4 x 4 of them."""


@dataclass(frozen=True, kw_only=True)
class FluxAutoencoderSettings:
    """Sizes of the autoencoder, and of its training run."""

    channels: tuple[int, ...] = (16, 24, 40, 56)
    latent_channels: int = 16
    batch: int = 16
    n_steps: int = 2000
    lr: float = 2e-3
    latent_noise: float = 0.4
    average: float = 0.995


_DEFAULTS = FluxAutoencoderSettings()


def enlarged(pictures: UInt8[np.ndarray, "picture height width 3"]) -> UInt8[np.ndarray, "picture tall wide 3"]:
    """Return pictures with every pixel as a square of four."""
    return pictures.repeat(SCALE, axis=1).repeat(SCALE, axis=2)


def reduced(pictures: UInt8[np.ndarray, "picture tall wide 3"]) -> UInt8[np.ndarray, "picture height width 3"]:
    """Return pictures with every square of four pixels as their mean: the world's own side, which judges read.

    >>> from vit_lens.mini.training.flux_autoencoder import enlarged, reduced
    >>> pictures = vl.mini.still_life.draw([vl.mini.still_life.Scene("alone", (7,))])
    >>> bool((reduced(enlarged(pictures)) == pictures).all())
    True
    """
    n, height, width, _ = pictures.shape
    squares = pictures.reshape(n, height // SCALE, SCALE, width // SCALE, SCALE, 3)
    return np.rint(squares.mean((2, 4))).astype(np.uint8)


def build_flux_autoencoder(settings: FluxAutoencoderSettings, *, seed: int) -> AutoencoderKL:
    """Build an untrained autoencoder of an eighth of the side whose initial weights depend on ``seed`` alone."""
    n_blocks = len(settings.channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes: dict[str, Any] = dict(
            down_block_types=("DownEncoderBlock2D",) * n_blocks, up_block_types=("UpDecoderBlock2D",) * n_blocks,
            block_out_channels=settings.channels, layers_per_block=1, norm_num_groups=8,
            latent_channels=settings.latent_channels, sample_size=SCALE * still_life.SIDE, use_quant_conv=False,
            use_post_quant_conv=False, mid_block_add_attention=False, scaling_factor=1.0, shift_factor=0.0,
        )  # fmt: skip
        return AutoencoderKL(**sizes)


def train_flux_autoencoder(
    out: Path, *, seed: int, settings: FluxAutoencoderSettings = _DEFAULTS, stop_after: int | None = None
) -> AutoencoderKL:
    """Train the autoencoder in ``out``, going on with what is there, and save it in ``out/vae`` when it is done.

    As that of mini-sd it sees the scenes that are held out, and its latents are given noise: it only carries pictures.
    """
    model = build_flux_autoencoder(settings, seed=seed).train()
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    lexicon = Lexicon(seed)

    def step(index: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([seed, 15, index])
        sentences = still_life.sample(settings.batch, generator, lexicon, pairs=0.8, held_out=None)
        target = to_signed(enlarged(still_life.draw([s.scene for s in sentences], generator)))
        start_step({optimizer: settings.lr}, cosine(index, settings.n_steps, warm_up=50))
        latents = model.encode(target, return_dict=False)[0].mode()
        noise = torch.from_numpy(generator.standard_normal(latents.shape, dtype=np.float32))
        given: Any = latents + settings.latent_noise * noise
        error = model.decode(given, return_dict=False)[0] - target
        square = error.pow(2).mean()
        centred = latents.mean((0, 2, 3)).pow(2).sum() + (latents.std((0, 2, 3)) - 1).pow(2).sum()
        (square + 0.1 * error.abs().mean() + 2e-3 * centred).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average_into(average, model, decay=min(settings.average, (1 + index) / (10 + index)))
        return {"psnr": -10 * torch.log10(square.detach() / 4), "std": latents.detach().std()}

    done = run_steps(
        step, {"model": model, "average": average, "optimizer": optimizer}, n_steps=settings.n_steps,
        checkpoint=out / "vae.pt", settings={"seed": seed, **asdict(settings)}, stop_after=stop_after,
    )  # fmt: skip
    if done == settings.n_steps:
        average.save_pretrained(out / "vae")
    return average
