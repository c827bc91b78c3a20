"""Train the UNet and the IP-Adapter of mini-ip, in the format of SDXL: an embedding is all that they are told."""

__all__ = ["IPPainterSettings", "build_ip_painter", "build_ip_schedule", "plain_unet", "train_ip_painter"]

import copy
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from vit_lens.decoders import adapter_weights, put_adapter
from vit_lens.mini import shapes
from vit_lens.mini.training.muon import Muon
from vit_lens.mini.training.progress import average_into, cosine, run_steps, start_step

_log = logging.getLogger(__name__)
_STREAM = 25
_IMAGE_TOKENS = 4  # which diffusers takes for granted


@dataclass(frozen=True, kw_only=True)
class IPPainterSettings:
    """Sizes of the UNet, of its bank of examples, and of the training run."""

    latent_channels: int = 8
    latent_size: int = 16
    channels: tuple[int, ...] = (32, 64, 80)
    cross_width: int = 96
    pooled_width: int = 16
    n_heads: int = 4
    d_embed: int = 128
    n_bank: int = 32_000
    batch: int = 48
    n_steps: int = 7000
    lr: float = 1e-3
    lr_muon: float = 0.02
    drop: float = 0.1
    average: float = 0.998
    bf16: bool = True


_DEFAULTS = IPPainterSettings()


def build_ip_painter(settings: IPPainterSettings, *, seed: int) -> UNet2DConditionModel:
    """Build an untrained UNet, with an untrained adapter, whose initial weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = _plain(settings)
        attentions = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
        parts: list[Any] = [unet.get_submodule(name.removesuffix(".processor")) for name in attentions]
        widths = [part.to_k.out_features for part in parts]
        project = nn.Linear(settings.d_embed, _IMAGE_TOKENS * settings.cross_width)
        norm = nn.LayerNorm(settings.cross_width)
        adapter = {
            f"ip_adapter.{2 * at + 1}.{part}.weight": nn.Linear(settings.cross_width, width, bias=False).weight
            for at, width in enumerate(widths)
            for part in ("to_k_ip", "to_v_ip")
        }
    named = {f"image_proj.proj.{name}": value for name, value in project.named_parameters()}
    named |= {f"image_proj.norm.{name}": value for name, value in norm.named_parameters()}
    put_adapter(unet, {name: value.detach() for name, value in {**named, **adapter}.items()})
    return unet


def build_ip_schedule() -> DDIMScheduler:
    """Build the noise schedule: that of SDXL with zero signal at the end, and the velocity predicted."""
    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True,
        timestep_spacing="trailing", prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=True,
        steps_offset=1,
    )  # fmt: skip


def conditions(
    embeds: Float[Tensor, "row d_embed"], settings: IPPainterSettings
) -> tuple[Tensor, dict[str, Tensor | list[Tensor]]]:
    """Return what the stock pipeline gives to the UNet beside latents and time, where nothing is said in words."""
    n, side = len(embeds), float(shapes.CANVAS)
    sizes = torch.tensor([side, side, 0.0, 0.0, side, side]).expand(n, -1)
    said = {"text_embeds": torch.zeros(n, settings.pooled_width), "time_ids": sizes, "image_embeds": [embeds[:, None]]}
    return torch.zeros(n, 1, settings.cross_width), said


def train_ip_painter(
    out: Path,
    bank: dict[str, Tensor],
    *,
    seed: int,
    settings: IPPainterSettings = _DEFAULTS,
    stop_after: int | None = None,
) -> UNet2DConditionModel:
    """Train UNet and adapter in `out` on a bank of latents and embeddings, going on with what is there.

    Their average is saved as `out/unet` and `out/ip_adapter.safetensors`. An embedding is replaced by zeros in a share
    of the rows, which is what guidance leads away from.
    """
    model = build_ip_painter(settings, seed=seed).train()
    average = copy.deepcopy(model).eval()
    inner = {n: p for n, p in model.named_parameters() if p.ndim >= 2 and ("_blocks." in n or "mid_block." in n)}
    rest = [p for name, p in model.named_parameters() if name not in inner]
    muon = Muon(inner.values(), lr=settings.lr_muon, weight_decay=0.01)
    adamw = torch.optim.AdamW(rest, lr=settings.lr, betas=(0.9, 0.98), weight_decay=1e-3)
    signal = build_ip_schedule().alphas_cumprod

    def step(index: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([seed, _STREAM, index])
        rows = torch.from_numpy(generator.integers(0, len(bank["latents"]), size=settings.batch))
        kept = torch.from_numpy(generator.random(settings.batch) >= settings.drop)
        t = torch.from_numpy(generator.integers(0, len(signal), size=settings.batch))
        x0 = bank["latents"][rows].float()
        noise = torch.from_numpy(generator.standard_normal(x0.shape, dtype=np.float32))
        a, b = signal[t].sqrt()[:, None, None, None], (1 - signal[t]).sqrt()[:, None, None, None]
        text, said = conditions(bank["embeds"][rows] * kept[:, None], settings)
        rate = cosine(index, settings.n_steps, warm_up=min(100, settings.n_steps))
        start_step({muon: settings.lr_muon, adamw: settings.lr}, rate)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            predicted = model(a * x0 + b * noise, t, text, added_cond_kwargs=said).sample
        error = (predicted.float() - (a * noise - b * x0)).pow(2).mean(dim=(1, 2, 3))
        error.mean().backward()
        nn.utils.clip_grad_norm_(rest, 1.0)
        muon.step()
        adamw.step()
        average_into(average, model, decay=min(settings.average, (1 + index) / (10 + index)))
        return {"loss": error.detach().mean(), "late": error.detach()[t > 700].mean()}

    def save(step_number: int) -> None:
        _log.info("saving the average of step %d", step_number)
        plain_unet(average, settings).half().save_pretrained(out / "unet")
        save_file(
            {name: value.half() for name, value in adapter_weights(average).items()}, out / "ip_adapter.safetensors"
        )

    run_steps(
        step,
        {"model": model, "average": average, "muon": muon, "adamw": adamw},
        n_steps=settings.n_steps,
        checkpoint=out / "unet.pt",
        settings={"seed": seed, **asdict(settings)},
        stop_after=stop_after,
        on_save=save,
    )
    return average


def plain_unet(unet: UNet2DConditionModel, settings: IPPainterSettings) -> UNet2DConditionModel:
    """Return a copy of the UNet without its adapter, as it is published."""
    plain = _plain(settings)
    trained = unet.state_dict()
    plain.load_state_dict({name: trained[name] for name in plain.state_dict()})
    return plain


def _plain(settings: IPPainterSettings) -> UNet2DConditionModel:
    n_inner, time_width = len(settings.channels) - 1, 8
    return UNet2DConditionModel(
        sample_size=settings.latent_size, in_channels=settings.latent_channels, out_channels=settings.latent_channels,
        block_out_channels=settings.channels, layers_per_block=1, norm_num_groups=16,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * n_inner),
        up_block_types=(*["CrossAttnUpBlock2D"] * n_inner, "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn", cross_attention_dim=settings.cross_width,
        attention_head_dim=settings.n_heads, use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=time_width,
        projection_class_embeddings_input_dim=6 * time_width + settings.pooled_width,
    )  # fmt: skip
