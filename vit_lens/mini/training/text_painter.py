"""Train the UNet that paints the small world from sentences, in Stable Diffusion's format."""

__all__ = ["PainterSettings", "Reads", "build_painter", "build_schedule", "read_states", "train_painter"]

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPTextModel

from vit_lens.errors import TextError
from vit_lens.mini import still_life
from vit_lens.mini.still_life import Lexicon
from vit_lens.mini.training.movq import to_signed
from vit_lens.mini.training.muon import Muon
from vit_lens.mini.training.progress import average_into, cosine, run_steps, start_step
from vit_lens.mini.training.text_encoder import TextEncoder, build_text_tokenizer, tokenise
from vit_lens.texts import ENCODER_KINDS

Reads = int | Literal["last", "eos"]
"""What a UNet is shown of its text encoder: the state after so many blocks, after the last, or the end of the text."""


@dataclass(frozen=True, kw_only=True)
class PainterSettings:
    """Sizes of the UNet, and of its training run; ``reads`` is what it is shown of its text encoder."""

    latent_channels: int = 8
    channels: tuple[int, ...] = (64, 112)
    text_width: int = 128
    batch: int = 32
    n_steps: int = 4000
    lr: float = 1e-3
    lr_muon: float = 0.02
    drop: float = 0.1
    pairs: float = 0.7
    named: float = 0.5
    average: float = 0.995
    reads: Reads = "last"


_DEFAULTS = PainterSettings()


def build_painter(settings: PainterSettings, *, seed: int) -> UNet2DConditionModel:
    """Build an untrained UNet whose initial weights depend on ``seed`` alone."""
    n_levels = len(settings.channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel(
            sample_size=still_life.SIDE // 4, in_channels=settings.latent_channels,
            out_channels=settings.latent_channels, block_out_channels=settings.channels, layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * n_levels, up_block_types=("CrossAttnUpBlock2D",) * n_levels,
            mid_block_type="UNetMidBlock2DCrossAttn", cross_attention_dim=settings.text_width,
            attention_head_dim=4, norm_num_groups=16, resnet_time_scale_shift="scale_shift",
            use_linear_projection=True,
        )  # fmt: skip


def build_schedule() -> DDIMScheduler:
    """Build the noise schedule: scaled-linear, zero signal at the end, and the clean latents predicted."""
    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True,
        timestep_spacing="trailing", prediction_type="sample", clip_sample=False, steps_offset=1,
    )  # fmt: skip


@torch.no_grad()
def read_states(
    text_encoder: TextEncoder, ids: Int[Tensor, "text token"], reads: int | str
) -> Float[Tensor, "text token d_model"]:
    """Return what a UNet is shown of texts, behind the final norm.

    The end of the text stands at every position, so that the shape is a pipeline's own.

    Raises:
        TextError: The encoder has no such layer.
    """
    found = text_encoder(ids, output_hidden_states=True)
    if reads == "last":
        return found.last_hidden_state
    if reads == "eos":
        end: Any = text_encoder.config.eos_token_id
        ends = ids.eq(end).int().argmax(1)
        return found.last_hidden_state[torch.arange(len(ids)), ends][:, None].expand(-1, ids.shape[1], -1)
    n_layers = len(found.hidden_states) - 1
    if isinstance(reads, str) or not 0 <= reads <= n_layers:
        raise TextError(f"reads={reads!r}: expected 'last', 'eos', or the number of blocks before it, 0 to {n_layers}")
    if reads == n_layers:  # T5 hands out its last state normed
        return found.last_hidden_state
    kind = ENCODER_KINDS["clip" if isinstance(text_encoder, CLIPTextModel) else "t5"]
    return kind.norm_of(text_encoder)(found.hidden_states[reads])


def train_painter(
    out: Path,
    text_encoder: TextEncoder,
    autoencoder: AutoencoderTiny,
    *,
    encoder_seed: int,
    seed: int,
    settings: PainterSettings = _DEFAULTS,
    stop_after: int | None = None,
) -> UNet2DConditionModel:
    """Train a UNet in ``out`` on a frozen text encoder, going on with what is there; saved in ``out/unet``.

    Every name is as frequent as every other here, so that what is rare is rare for the text encoder alone.
    """
    model = build_painter(settings, seed=seed).train()
    average = copy.deepcopy(model).eval()
    inner = {n: p for n, p in model.named_parameters() if p.ndim >= 2 and ("_blocks." in n or "mid_block." in n)}
    rest = [p for name, p in model.named_parameters() if name not in inner]
    muon = Muon(inner.values(), lr=settings.lr_muon, weight_decay=0.01)
    adamw = torch.optim.AdamW(rest, lr=settings.lr, betas=(0.9, 0.98), weight_decay=1e-3)
    tokenizer, lexicon = build_text_tokenizer(), Lexicon(encoder_seed)
    signal = build_schedule().alphas_cumprod

    def step(index: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([seed, 6, index])
        sentences = still_life.sample(
            settings.batch, generator, lexicon, pairs=settings.pairs, named=settings.named, equal=True
        )
        texts = ["" if generator.random() < settings.drop else s.text for s in sentences]
        with torch.no_grad():
            pictures = to_signed(still_life.draw([s.scene for s in sentences], generator))
            x0 = autoencoder.encode(pictures, return_dict=False)[0]
        states = read_states(text_encoder, tokenise(tokenizer, texts), settings.reads)
        t = torch.from_numpy(generator.integers(0, len(signal), size=settings.batch))
        noise = torch.from_numpy(generator.standard_normal(x0.shape, dtype=np.float32))
        a = signal[t][:, None, None, None]
        start_step(
            {muon: settings.lr_muon, adamw: settings.lr},
            cosine(index, settings.n_steps, warm_up=min(50, settings.n_steps)),
        )
        error = model(a.sqrt() * x0 + (1 - a).sqrt() * noise, t, states).sample - x0
        weight = 1 / (1 - a + 0.3)
        loss = (weight * error.pow(2)).mean() / weight.mean()
        loss.backward()
        nn.utils.clip_grad_norm_(rest, 1.0)
        muon.step()
        adamw.step()
        average_into(average, model, decay=min(settings.average, (1 + index) / (10 + index)))
        return {"loss": loss, "square": error.detach().pow(2).mean()}

    done = run_steps(
        step, {"model": model, "average": average, "muon": muon, "adamw": adamw}, n_steps=settings.n_steps,
        checkpoint=out / "unet.pt", settings={"seed": seed, "encoder_seed": encoder_seed, **_told(settings)},
        stop_after=stop_after,
    )  # fmt: skip
    if done == settings.n_steps:
        average.save_pretrained(out / "unet")
    return average


def _told(settings: PainterSettings) -> dict[str, Any]:
    """Return what a checkpoint says of its run; those of before knew no ``reads``, and read the last layer."""
    found = asdict(settings)
    if settings.reads == "last":
        found.pop("reads")
    return found
