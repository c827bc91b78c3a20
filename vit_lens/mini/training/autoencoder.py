"""Train the tiny autoencoder between pictures of the small world and the latents that they are painted in."""

__all__ = ["AutoencoderSettings", "build_autoencoder", "train_autoencoder"]

import copy
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor, nn

from vit_lens.mini import still_life
from vit_lens.mini.still_life import Lexicon
from vit_lens.mini.training.movq import to_signed
from vit_lens.mini.training.progress import average_into, cosine, run_steps, start_step


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings:
    """Sizes of the autoencoder, and of its training run."""

    channels: tuple[int, ...] = (32, 32, 32)
    latent_channels: int = 8
    batch: int = 32
    n_steps: int = 2000
    lr: float = 2e-3
    latent_noise: float = 0.5
    average: float = 0.995


_DEFAULTS = AutoencoderSettings()


def build_autoencoder(settings: AutoencoderSettings, *, seed: int) -> AutoencoderTiny:
    """Build an untrained autoencoder of a fourth of the side whose initial weights depend on ``seed`` alone."""
    one_each = (1,) * len(settings.channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderTiny(
            encoder_block_out_channels=settings.channels, decoder_block_out_channels=settings.channels,
            num_encoder_blocks=one_each, num_decoder_blocks=one_each, latent_channels=settings.latent_channels,
            scaling_factor=1.0,
        )  # fmt: skip


def train_autoencoder(
    out: Path, *, seed: int, settings: AutoencoderSettings = _DEFAULTS, stop_after: int | None = None
) -> AutoencoderTiny:
    """Train the autoencoder in ``out``, going on with what is there, and save it in ``out/vae`` when it is done.

    It sees the scenes that are held out, too: it only carries pictures, and what it could not carry would count as the
    denoiser's fault. So much noise on the latents makes it forgive a denoiser that is nearly right.
    """
    model = build_autoencoder(settings, seed=seed).train()
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    lexicon = Lexicon(seed)

    def step(index: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([seed, 5, index])
        sentences = still_life.sample(settings.batch, generator, lexicon, pairs=0.8, held_out=None)
        target = to_signed(still_life.draw([s.scene for s in sentences], generator))
        start_step({optimizer: settings.lr}, cosine(index, settings.n_steps, warm_up=50))
        latents = model.encode(target, return_dict=False)[0]
        noise = torch.from_numpy(generator.standard_normal(latents.shape, dtype=np.float32))
        error = model.decode(latents + settings.latent_noise * noise, return_dict=False)[0] - target
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
