"""Train the autoencoder of mini-ip: in the format of SDXL, on the scenes of the embedded pair's world."""

__all__ = ["IPAutoencoderSettings", "build_ip_autoencoder", "train_ip_autoencoder"]

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from vit_lens.mini import shapes, world
from vit_lens.mini.training.movq import to_signed
from vit_lens.mini.training.muon import Muon
from vit_lens.mini.training.progress import average_into, cosine, run_steps, start_step

_STREAM = 23


@dataclass(frozen=True, kw_only=True)
class IPAutoencoderSettings:
    """Sizes of the autoencoder, and of its training run."""

    channels: tuple[int, ...] = (16, 32, 48)
    latent_channels: int = 8
    batch: int = 16
    n_steps: int = 2500
    lr: float = 2e-3
    lr_muon: float = 0.02
    latent_noise: float = 0.2
    latent_weight: float = 2e-3
    average: float = 0.998


_DEFAULTS = IPAutoencoderSettings()


def build_ip_autoencoder(settings: IPAutoencoderSettings, *, seed: int) -> AutoencoderKL:
    """Build an untrained autoencoder of a fourth of the side whose initial weights depend on `seed` alone."""
    n_blocks = len(settings.channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes: dict[str, Any] = dict(
            down_block_types=("DownEncoderBlock2D",) * n_blocks, up_block_types=("UpDecoderBlock2D",) * n_blocks,
            block_out_channels=settings.channels, layers_per_block=1, norm_num_groups=8,
            latent_channels=settings.latent_channels, sample_size=shapes.CANVAS, mid_block_add_attention=False,
            scaling_factor=1.0, force_upcast=False,
        )  # fmt: skip
        return AutoencoderKL(**sizes)


def train_ip_autoencoder(
    out: Path, *, seed: int, settings: IPAutoencoderSettings = _DEFAULTS, stop_after: int | None = None
) -> AutoencoderKL:
    """Train the autoencoder in `out`, going on with what is there, and save it in `out/vae` when it is done."""
    model = build_ip_autoencoder(settings, seed=seed).train()
    average = copy.deepcopy(model).eval()
    inner = {name: p for name, p in model.named_parameters() if p.ndim == 4 and "_block" in name}
    rest = [p for name, p in model.named_parameters() if name not in inner]
    muon = Muon(inner.values(), lr=settings.lr_muon, weight_decay=0.01)
    adamw = torch.optim.AdamW(rest, lr=settings.lr, betas=(0.9, 0.99), weight_decay=1e-4)

    def step(index: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([seed, _STREAM, index])
        target = to_signed(world.render_codes(world.sample_codes(settings.batch, generator, held_out=False)))
        rate = cosine(index, settings.n_steps, warm_up=min(50, settings.n_steps))
        start_step({muon: settings.lr_muon, adamw: settings.lr}, rate)
        latents = model.encode(target, return_dict=False)[0].mode()
        noise = torch.from_numpy(generator.standard_normal(latents.shape, dtype=np.float32))
        given: Any = latents + settings.latent_noise * noise
        error = model.decode(given, return_dict=False)[0] - target
        square = error.pow(2).mean()
        centred = latents.mean((0, 2, 3)).pow(2).sum() + (latents.std((0, 2, 3)) - 1).pow(2).sum()
        (square + 0.2 * error.abs().mean() + settings.latent_weight * centred).backward()
        nn.utils.clip_grad_norm_(rest, 1.0)
        muon.step()
        adamw.step()
        average_into(average, model, decay=min(settings.average, (1 + index) / (10 + index)))
        return {"psnr": -10 * torch.log10(square.detach() / 4), "std": latents.detach().std()}

    done = run_steps(
        step, {"model": model, "average": average, "muon": muon, "adamw": adamw}, n_steps=settings.n_steps,
        checkpoint=out / "vae.pt", settings={"seed": seed, **asdict(settings)}, stop_after=stop_after,
    )  # fmt: skip
    if done == settings.n_steps:
        copy.deepcopy(average).half().save_pretrained(out / "vae")
    return average
