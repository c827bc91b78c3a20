"""Train the transformer that paints the small world from sentences, in the format of FLUX.1 [schnell]."""

__all__ = ["FluxPainterSettings", "build_flux_painter", "build_flux_schedule", "packed", "train_flux_painter"]

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModel, T5EncoderModel

from vit_lens.mini import still_life
from vit_lens.mini.still_life import Lexicon
from vit_lens.mini.training.flux_autoencoder import enlarged
from vit_lens.mini.training.flux_text import MAX_TOKENS, build_t5_tokenizer, tokenise_t5
from vit_lens.mini.training.movq import to_signed
from vit_lens.mini.training.muon import Muon
from vit_lens.mini.training.progress import average_into, cosine, run_steps, start_step
from vit_lens.mini.training.text_encoder import build_text_tokenizer, tokenise


@dataclass(frozen=True, kw_only=True)
class FluxPainterSettings:
    """Sizes of the transformer, and of its training run.

    Attributes:
        drop: The share of sentences that are empty.
        guidance: The scale of the guidance that is trained into the transformer, which needs none then; 1 for none.
    """

    latent_channels: int = 16
    n_double: int = 2
    n_single: int = 4
    n_heads: int = 4
    rope: tuple[int, int, int] = (8, 12, 12)
    text_width: int = 128
    pooled_width: int = 64
    batch: int = 48
    n_steps: int = 4000
    lr: float = 2e-3
    lr_muon: float = 0.02
    drop: float = 0.1
    pairs: float = 0.7
    named: float = 0.5
    average: float = 0.995
    guidance: float = 1.0


_DEFAULTS = FluxPainterSettings()


def build_flux_painter(settings: FluxPainterSettings, *, seed: int) -> FluxTransformer2DModel:
    """Build an untrained transformer whose initial weights depend on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FluxTransformer2DModel(
            in_channels=4 * settings.latent_channels, num_layers=settings.n_double,
            num_single_layers=settings.n_single, attention_head_dim=sum(settings.rope),
            num_attention_heads=settings.n_heads, joint_attention_dim=settings.text_width,
            pooled_projection_dim=settings.pooled_width, axes_dims_rope=settings.rope,
        )  # fmt: skip


def build_flux_schedule() -> FlowMatchEulerDiscreteScheduler:
    """Build the noise schedule of FLUX.1 [schnell]: rectified flow in equal steps."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)


def packed(latents: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch token 4*channel"]:
    """Return latents as the pipeline gives them to the transformer: each token a square of four."""
    return rearrange(latents, "b c (h i) (w j) -> b (h w) (c i j)", i=2, j=2)


def train_flux_painter(
    out: Path,
    t5: T5EncoderModel,
    clip: CLIPTextModel,
    autoencoder: AutoencoderKL,
    *,
    encoder_seed: int,
    seed: int,
    settings: FluxPainterSettings = _DEFAULTS,
    start: FluxTransformer2DModel | None = None,
    name: str = "transformer",
    stop_after: int | None = None,
) -> FluxTransformer2DModel:
    """Train a transformer in ``out`` on frozen text encoders, going on with what is there; it is saved as ``name``.

    Guidance g is trained into it, as it is into those of FLUX.1: the target is the velocity of the data and, in the
    share 1 - 1 / g, what the sentence changes in its own average's velocity (model guidance, arXiv 2502.12154). Where
    the two agree that is v("") + g (v(sentence) - v("")).

    The pooled vector of CLIP is always that of another sentence, so that it says nothing: what a picture shows, T5's
    tokens have said. Some of the sentences are empty, and many say a part of their scene alone.
    """
    model = build_flux_painter(settings, seed=seed).train()
    if start is not None:
        model.load_state_dict(start.state_dict())
    average = copy.deepcopy(model).eval()
    inner = {
        n: p for n, p in model.named_parameters() if p.ndim == 2 and "transformer_blocks." in n and "norm" not in n
    }
    rest = [p for name, p in model.named_parameters() if name not in inner]
    muon = Muon(inner.values(), lr=settings.lr_muon, weight_decay=0.01)
    adamw = torch.optim.AdamW(rest, lr=settings.lr, betas=(0.9, 0.98), weight_decay=1e-3)
    for_t5, for_clip, lexicon = build_t5_tokenizer(), build_text_tokenizer(), Lexicon(encoder_seed)
    side = still_life.SIDE // 8
    grid = torch.cartesian_prod(torch.zeros(1), torch.arange(side) * 1.0, torch.arange(side) * 1.0)
    text_ids = torch.zeros(MAX_TOKENS, 3)
    own, nothing = 1 - 1 / settings.guidance, t5(tokenise_t5(for_t5, [""])).last_hidden_state.detach()

    def velocity(model: Any, x: Tensor, sigma: Tensor, states: Tensor, pooled: Tensor) -> Tensor:
        return model(
            hidden_states=x, timestep=sigma, encoder_hidden_states=states, pooled_projections=pooled,
            txt_ids=text_ids, img_ids=grid, return_dict=False,
        )[0]  # fmt: skip

    def step(index: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([seed, 16 if start is None else 17, index])
        sentences = still_life.sample(
            settings.batch, generator, lexicon, pairs=settings.pairs, named=settings.named, equal=True
        )
        texts = ["" if generator.random() < settings.drop else s.text for s in sentences]
        with torch.no_grad():
            pictures = to_signed(enlarged(still_life.draw([s.scene for s in sentences], generator)))
            x0 = packed(autoencoder.encode(pictures, return_dict=False)[0].mode())
            states = t5(tokenise_t5(for_t5, texts)).last_hidden_state
            pooled = clip(tokenise(for_clip, texts)).pooler_output.roll(1, 0)
        uniform = generator.random(settings.batch) < 0.5
        late = 1 / (1 + np.exp(-generator.normal(0.3, 1.0, settings.batch)))
        sigma = torch.from_numpy(np.where(uniform, generator.random(settings.batch), late)).float()
        noise = torch.from_numpy(generator.standard_normal(x0.shape, dtype=np.float32))
        start_step(
            {muon: settings.lr_muon, adamw: settings.lr},
            cosine(index, settings.n_steps, warm_up=min(50, settings.n_steps)),
        )
        mixed = torch.lerp(x0, noise, sigma[:, None, None])
        target = noise - x0
        if own:
            with torch.no_grad():
                said = velocity(average, mixed, sigma, states, pooled)
                unsaid = velocity(average, mixed, sigma, nothing.expand_as(states), pooled)
            target = target + own * (said - unsaid)
        loss = (velocity(model, mixed, sigma, states, pooled) - target).pow(2).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(rest, 1.0)
        muon.step()
        adamw.step()
        average_into(average, model, decay=min(settings.average, (1 + index) / (10 + index)))
        return {"loss": loss}

    done = run_steps(
        step, {"model": model, "average": average, "muon": muon, "adamw": adamw}, n_steps=settings.n_steps,
        checkpoint=out / f"{name}.pt", settings={"seed": seed, "encoder_seed": encoder_seed, **asdict(settings)},
        stop_after=stop_after,
    )  # fmt: skip
    if done == settings.n_steps:
        average.save_pretrained(out / name)
    return average
