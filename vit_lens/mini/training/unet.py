"""Train the small UNet that paints MoVQ latents from an image embedding, in the Kandinsky 2.2 format."""

__all__ = ["UNetSettings", "build_bank", "build_scheduler", "build_unet", "train_unet", "train_unet_by_workers"]

import copy
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPModel

from vit_lens.errors import OutputError
from vit_lens.files import damaged
from vit_lens.mini import world
from vit_lens.mini.training.encoder import image_embeds, to_pixels
from vit_lens.mini.training.movq import to_signed
from vit_lens.mini.training.muon import Muon
from vit_lens.mini.training.progress import average_into, cosine, run_steps, start_step
from vit_lens.mini.training.workers import Worker, run_workers

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class UNetSettings:
    """Sizes of the UNet, of its bank of examples, and of the training run."""

    channels: tuple[int, ...] = (64, 128, 128)
    cross_width: int = 64
    d_embed: int = 128
    latent_size: int = 16
    n_bank: int = 32_000
    batch: int = 64
    n_steps: int = 2200
    lr: float = 1e-3
    lr_muon: float = 0.02
    drop: float = 0.12
    average: float = 0.998
    bf16: bool = True


_DEFAULTS = UNetSettings()
_ALONE = Worker()


def build_unet(settings: UNetSettings, *, seed: int) -> UNet2DConditionModel:
    """Build an untrained UNet whose initial weights depend on `seed` alone."""
    n_inner = len(settings.channels) - 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel(
            in_channels=4,
            out_channels=8,
            sample_size=settings.latent_size,
            addition_embed_type="image",
            down_block_types=("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * n_inner),
            up_block_types=(*["SimpleCrossAttnUpBlock2D"] * n_inner, "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            block_out_channels=settings.channels,
            layers_per_block=1,
            encoder_hid_dim=settings.d_embed,
            encoder_hid_dim_type="image_proj",
            cross_attention_dim=settings.cross_width,
            attention_head_dim=16,
            norm_num_groups=32,
            resnet_time_scale_shift="scale_shift",
        )


def build_scheduler() -> DDIMScheduler:
    """Build the noise schedule of training and sampling: 1000 linear steps, v-prediction."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        timestep_spacing="trailing",
    )


@torch.no_grad()
def build_bank(
    path: Path,
    encoder: CLIPModel,
    to_latents: Callable[[Float[Tensor, "image 3 height width"]], Tensor],
    *,
    seed: int,
    n_images: int,
    stream: int = 2,
    chunk: int = 250,
) -> dict[str, Tensor]:
    """Give latents and embeddings of training scenes, from `path` if an earlier call wrote them there.

    `to_latents` encodes signed pictures; scenes of another `stream` are others.
    """
    if path.exists():
        with damaged(OutputError, f"{path} is no whole bank of scenes", "remove it, or choose another --out"):
            return load_file(path)
    codes = world.sample_codes(n_images, np.random.default_rng([seed, stream]), held_out=False)
    latents, embeds = [], []
    for first in range(0, n_images, chunk):
        images = world.render_codes(codes[first : first + chunk])
        latents.append(to_latents(to_signed(images)).half())
        embeds.append(image_embeds(encoder, to_pixels(images)))
        if first % (chunk * 20) == 0:
            _log.info("bank %d/%d", first, n_images)
    zero = image_embeds(encoder, torch.zeros(1, 3, 64, 64))
    bank = {"latents": torch.cat(latents).contiguous(), "embeds": torch.cat(embeds), "zero": zero}
    unfinished = path.with_suffix(".partial")
    save_file(bank, unfinished)
    unfinished.replace(path)
    return bank


def train_unet(
    out: Path,
    *,
    seed: int,
    settings: UNetSettings = _DEFAULTS,
    bank: dict[str, Tensor] | None = None,
    stop_after: int | None = None,
    worker: Worker = _ALONE,
) -> UNet2DConditionModel:
    """Train a UNet in `out` on the encoder and MoVQ that are there, and save its average in `out/unet`.

    `bank` replaces the examples that `build_bank` would make. Workers that have joined share each batch, and the
    first of them writes; `train_unet_by_workers` starts them.
    """
    if settings.batch % worker.n_workers:
        raise ValueError(f"batch={settings.batch} cannot be shared by {worker.n_workers} workers; give a multiple")
    if bank is None:
        bank = _bank_of(out, seed=seed, settings=settings)
    model = build_unet(settings, seed=seed).train()
    average = copy.deepcopy(model).eval()
    muon, adamw = _optimizers(model, settings)
    signal = build_scheduler().alphas_cumprod

    def step(index: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([seed, 3, index])
        whole = _draw(bank, settings, generator, n_times=len(signal))
        x0, embeds, t, noise = (worker.share(part) for part in whole)
        a, b = signal[t].sqrt()[:, None, None, None], (1 - signal[t]).sqrt()[:, None, None, None]
        rate = cosine(index, settings.n_steps, warm_up=min(100, settings.n_steps))
        start_step({muon: settings.lr_muon, adamw: settings.lr}, rate)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            predicted = model(a * x0 + b * noise, t, None, added_cond_kwargs={"image_embeds": embeds}).sample
        error = (predicted[:, :4].float() - (a * noise - b * x0)).pow(2).mean(dim=(1, 2, 3))
        loss = error.mean()
        loss.backward()
        worker.average([p.grad for p in model.parameters() if p.grad is not None])
        nn.utils.clip_grad_norm_([p for group in adamw.param_groups for p in group["params"]], 1.0)
        muon.step()
        adamw.step()
        average_into(average, model, decay=min(settings.average, (1 + index) / (10 + index)))
        return {"loss": loss.detach(), "late": error[t > 700].detach().mean()}

    def save(step_number: int) -> None:
        _log.info("saving the average of step %d", step_number)
        copy.deepcopy(average).half().save_pretrained(out / "unet")

    run_steps(
        step,
        {"model": model, "average": average, "muon": muon, "adamw": adamw},
        n_steps=settings.n_steps,
        checkpoint=out / "unet.pt",
        settings={"seed": seed, **asdict(settings)},
        stop_after=stop_after,
        on_save=save,
        writes=worker.rank == 0,
    )
    return average


def train_unet_by_workers(out: Path, *, seed: int, n_workers: int, settings: UNetSettings = _DEFAULTS) -> None:
    """Do what `train_unet` does with `n_workers` processes of one thread."""
    _bank_of(out, seed=seed, settings=settings)
    run_workers(partial(_train_as, out=out, seed=seed, settings=settings), n_workers)


def _train_as(worker: Worker, *, out: Path, seed: int, settings: UNetSettings) -> None:
    train_unet(out, seed=seed, settings=settings, worker=worker)


def _bank_of(out: Path, *, seed: int, settings: UNetSettings) -> dict[str, Tensor]:
    encoder = CLIPModel.from_pretrained(out / "encoder").float().eval()
    movq = VQModel.from_pretrained(out / "movq").float().eval()
    return build_bank(
        out / "bank.safetensors", encoder, lambda x: movq.encode(x).latents, seed=seed, n_images=settings.n_bank
    )


def _optimizers(model: UNet2DConditionModel, settings: UNetSettings) -> tuple[Muon, torch.optim.AdamW]:
    inner = {
        name: p for name, p in model.named_parameters() if p.ndim >= 2 and ("_blocks." in name or "mid_block." in name)
    }
    rest = [p for name, p in model.named_parameters() if name not in inner]
    return (
        Muon(inner.values(), lr=settings.lr_muon, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=settings.lr, betas=(0.9, 0.98), weight_decay=1e-3),
    )


def _draw(
    bank: dict[str, Tensor], settings: UNetSettings, generator: np.random.Generator, *, n_times: int
) -> tuple[
    Float[Tensor, "batch 4 height width"],
    Float[Tensor, "batch d_embed"],
    Int[Tensor, " batch"],
    Float[Tensor, "batch 4 height width"],
]:
    """Draw latents, embeddings, times and noises."""
    rows = torch.from_numpy(generator.integers(0, len(bank["latents"]), size=settings.batch))
    dropped = torch.from_numpy(generator.random(settings.batch) < settings.drop)
    embeds = torch.where(dropped[:, None], bank["zero"], bank["embeds"][rows])
    times = torch.from_numpy(generator.integers(0, n_times, size=settings.batch))
    latents = bank["latents"][rows].float()
    return latents, embeds, times, torch.from_numpy(generator.standard_normal(latents.shape, dtype=np.float32))
