"""Train the small MoVQ, the autoencoder whose latents the decoder's UNet paints in."""

__all__ = ["MoVQSettings", "build_movq", "to_signed", "train_movq"]

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.vq_model import VQModel
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vit_lens.mini import world
from vit_lens.mini.training.progress import average_into, cosine, run_steps, start_step


@dataclass(frozen=True, kw_only=True)
class MoVQSettings:
    """Sizes of the autoencoder, and of the training run."""

    channels: tuple[int, ...] = (32, 32, 64)
    batch: int = 32
    crop: int = 32
    n_steps: int = 2500
    whole_share: float = 0.25
    lr: float = 2e-3
    latent_noise: float = 0.1
    latent_weight: float = 2e-3
    average: float = 0.998


_DEFAULTS = MoVQSettings()


def build_movq(settings: MoVQSettings, *, seed: int) -> VQModel:
    """Build an untrained MoVQ whose initial weights depend on `seed` alone."""
    n_levels = len(settings.channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VQModel(
            block_out_channels=settings.channels,
            down_block_types=("DownEncoderBlock2D",) * n_levels,
            up_block_types=("UpDecoderBlock2D",) * n_levels,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=32,
            norm_type="spatial",
            num_vq_embeddings=16,
            vq_embed_dim=4,
            sample_size=64,
        )


def to_signed(images: UInt8[np.ndarray, "batch height width 3"]) -> Float[Tensor, "batch 3 height width"]:
    """Turn uint8 pictures into the autoencoder's range, -1 to 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_movq(out: Path, *, seed: int, settings: MoVQSettings = _DEFAULTS, stop_after: int | None = None) -> VQModel:
    """Train a MoVQ in `out`, continuing what is there, and save it in `out/movq` when it is done."""
    model, average = build_movq(settings, seed=seed).train(), build_movq(settings, seed=seed).eval()
    trained = [p for name, p in model.named_parameters() if not name.startswith("quantize.")]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, betas=(0.9, 0.99), weight_decay=1e-3)
    whole_from = int(settings.n_steps * (1 - settings.whole_share))

    def step(index: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([seed, 1, index])
        whole = index >= whole_from
        target = to_signed(_batch(settings, generator, whole=whole))
        start_step({optimizer: settings.lr}, cosine(index, settings.n_steps, warm_up=min(100, settings.n_steps)))
        latents = model.encode(target).latents
        noise = torch.from_numpy(generator.standard_normal(latents.shape, dtype=np.float32))
        decoded = model.decode(latents + settings.latent_noise * noise, force_not_quantize=True, return_dict=False)[0]
        error = decoded - target
        square, absolute = error.pow(2).mean(), error.abs().mean()
        means, scales = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
        centred = means.pow(2).sum() + (scales - 1).pow(2).sum()
        (square + 0.2 * absolute + settings.latent_weight * centred).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        average_into(average, model, decay=min(settings.average, (1 + index) / (10 + index)))
        psnr = -10 * torch.log10(square.detach() / 4)
        return {"psnr": psnr, "mean": means.detach().abs().max(), "std": scales.detach().mean()}

    done = run_steps(
        step,
        {"model": model, "average": average, "optimizer": optimizer},
        n_steps=settings.n_steps,
        checkpoint=out / "movq.pt",
        settings={"seed": seed, **asdict(settings)},
        stop_after=stop_after,
    )
    if done == settings.n_steps:
        average.half().save_pretrained(out / "movq")
    return average.float()


def _batch(
    settings: MoVQSettings, generator: np.random.Generator, *, whole: bool
) -> UInt8[np.ndarray, "batch height width 3"]:
    """Draw whole pictures, or for the same work a larger number of crops."""
    per_side = 64 // settings.crop
    n_images = max(1, settings.batch // per_side**2) if whole else settings.batch
    images = world.render_codes(world.sample_codes(n_images, generator, held_out=False))
    if whole:
        return images
    tops, lefts = generator.integers(0, 64 - settings.crop + 1, size=(2, n_images))
    return np.stack(
        [
            image[top : top + settings.crop, left : left + settings.crop]
            for image, top, left in zip(images, tops, lefts, strict=True)
        ]
    )
