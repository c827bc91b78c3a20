"""Train a representation autoencoder's decoder for an encoder of the world: patch tokens in, picture out.

The folder has the format of diffusers' ``AutoencoderRAE`` without the encoder. That class builds its encoder from one
of three architectures with heads of 64 dimensions (DINOv2 with registers, SigLIP, MAE), and a CLIP with a class token,
a norm before the blocks and heads of 16 is none of them. So ``encoder_type`` says ``outside``, which stock diffusers
refuses by name, and the card beside it says whose tokens the decoder reads.
"""

__all__ = ["RAESettings", "build_rae_decoder", "make_rae", "rae_config", "save_rae", "train_rae"]

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_rae import RAEDecoder
from jaxtyping import Float
from torch import Tensor, nn

from vit_lens.files import make_directory, save_tensors
from vit_lens.identity import MINI_ENCODER
from vit_lens.mini import world
from vit_lens.mini.training.encoder import to_pixels
from vit_lens.mini.training.folders import write_json
from vit_lens.mini.training.progress import average_into, cosine, run_steps, start_step
from vit_lens.mini.training.rae_evaluate import measure_rae
from vit_lens.models import HookedViT
from vit_lens.reference import ReferenceMeans
from vit_lens.towers import patch_tokens

_STREAM, _MEANS, _REFERENCE_SCENES = 31, 32, 512
_WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class RAESettings:
    """Sizes of the decoder, and of its training run.

    Attributes:
        width: The width of the decoder.
        n_layers: The number of its layers.
        n_heads: The number of its attention heads.
        batch: The pictures of a step.
        n_steps: The number of steps.
        lr: The learning rate of AdamW, for what is no block matrix.
        lr_muon: The learning rate of Muon, for block matrices.
        noise: The most noise on the tokens, in units of their standard deviation (``noise_tau``); each picture's own
            is uniform from 0.
        average: How much of the average weights a step keeps.
    """

    width: int = 128
    n_layers: int = 5
    n_heads: int = 4
    batch: int = 32
    n_steps: int = 2400
    lr: float = 2e-3
    lr_muon: float = 0.02
    noise: float = 0.2
    average: float = 0.995


_DEFAULTS = RAESettings()


def rae_config(model: HookedViT, settings: RAESettings) -> dict[str, Any]:
    """Return the ``config.json`` of a decoder for an encoder, in the words of ``AutoencoderRAE``.

    >>> from vit_lens.mini.training.rae import RAESettings, rae_config
    >>> config = rae_config(model, RAESettings())
    >>> config["encoder_type"], config["encoder_input_size"], config["patch_size"]
    ('outside', 64, 16)
    """
    cfg, spec = model.cfg, model.spec()
    return {
        "_class_name": "AutoencoderRAE", "_diffusers_version": diffusers.__version__, "encoder_type": "outside",
        "encoder_hidden_size": cfg.d_model, "encoder_patch_size": cfg.patch_size[0],
        "encoder_num_hidden_layers": cfg.n_layers, "decoder_hidden_size": settings.width,
        "decoder_num_hidden_layers": settings.n_layers, "decoder_num_attention_heads": settings.n_heads,
        "decoder_intermediate_size": 4 * settings.width, "patch_size": cfg.patch_size[0],
        "encoder_input_size": cfg.image_size[0], "image_size": cfg.image_size[0], "num_channels": 3,
        "encoder_norm_mean": list(spec.mean), "encoder_norm_std": list(spec.std), "latents_mean": None,
        "latents_std": None, "noise_tau": settings.noise, "reshape_to_2d": True, "use_encoder_loss": False,
        "scaling_factor": 1.0,
    }  # fmt: skip


def make_rae(
    out: Path, model: HookedViT, *, seed: int, settings: RAESettings = _DEFAULTS, n_images: int = 1000
) -> dict[str, object]:
    """Train a decoder in ``out``, write ``out/rae`` with the means of every token, and return what it measures.

    Args:
        out: The folder.
        model: The encoder.
        seed: The seed of weights, scenes and noise.
        settings: The sizes.
        n_images: The number of scenes of the measurement.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # so that a seed gives the same weights
    try:
        train_rae(out, model, seed=seed, settings=settings)
        write_means(out / "rae" / "reference_means.safetensors", model, seed=seed)
        return measure_rae(out / "rae", model, n_images=n_images)
    finally:
        torch.set_num_threads(before)


def write_means(path: Path, model: HookedViT, *, seed: int) -> ReferenceMeans:
    """Average over scenes that evaluation never shows, at every token, and save."""
    codes = world.sample_codes(_REFERENCE_SCENES, np.random.default_rng([seed, _MEANS]), held_out=False)
    means = ReferenceMeans.from_images(model, list(world.render_codes(codes)), positions="all")
    means.save(path)
    return means


def build_rae_decoder(model: HookedViT, settings: RAESettings, *, seed: int) -> RAEDecoder:
    """Build an untrained decoder for an encoder, whose initial weights depend on ``seed`` alone."""
    cfg = model.cfg
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RAEDecoder(
            hidden_size=cfg.d_model, decoder_hidden_size=settings.width, decoder_num_hidden_layers=settings.n_layers,
            decoder_num_attention_heads=settings.n_heads, decoder_intermediate_size=4 * settings.width,
            num_patches=cfg.n_patches, patch_size=cfg.patch_size[0], image_size=cfg.image_size[0],
        )  # fmt: skip


def train_rae(
    out: Path, model: HookedViT, *, seed: int, settings: RAESettings = _DEFAULTS, stop_after: int | None = None
) -> RAEDecoder:
    """Train a decoder in ``out``, going on with what is there, and save it in ``out/rae`` when it is done.

    Squared and absolute error of the pixels, on scenes that are not held out.

    Args:
        out: The folder.
        model: The encoder, which stays as it is.
        seed: The seed of weights, scenes and noise.
        settings: The sizes.
        stop_after: Ends this call early, at that step; None trains to the end.
    """
    decoder = build_rae_decoder(model, settings, seed=seed).train()
    average = copy.deepcopy(decoder).eval()
    muon, adamw = _optimizers(decoder, settings)

    def step(index: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([seed, _STREAM, index])
        pixels = to_pixels(world.render_codes(world.sample_codes(settings.batch, generator, held_out=False)))
        start_step({muon: settings.lr_muon, adamw: settings.lr}, cosine(index, settings.n_steps, warm_up=50))
        tokens = _noisy(encode(model, pixels), settings.noise, generator)
        error = (decoder.unpatchify(decoder(tokens).logits) - pixels) * _scale(model)
        square = error.pow(2).mean()
        (square + 0.2 * error.abs().mean()).backward()
        nn.utils.clip_grad_norm_([p for group in adamw.param_groups for p in group["params"]], 1.0)
        muon.step()
        adamw.step()
        average_into(average, decoder, decay=min(settings.average, (1 + index) / (10 + index)))
        return {"psnr": -10 * torch.log10(square.detach())}

    done = run_steps(
        step, {"decoder": decoder, "average": average, "muon": muon, "adamw": adamw}, n_steps=settings.n_steps,
        checkpoint=out / "rae.pt", settings={"seed": seed, "encoder": model.fingerprint, **asdict(settings)},
        stop_after=stop_after,
    )  # fmt: skip
    if done == settings.n_steps:
        save_rae(out / "rae", average, model, settings)
    return average


@torch.no_grad()
def encode(model: HookedViT, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch patch d_model"]:
    """Return the patch tokens of pixels."""
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    return patch_tokens(model.run_with_cache(pixels, names_filter=[last])[1])


def save_rae(folder: Path, decoder: RAEDecoder, model: HookedViT, settings: RAESettings) -> Path:
    """Write a decoder in float16 with its config, and the card that names its encoder by fingerprint."""
    make_directory(folder)
    spec = model.spec()
    statistics = {"encoder_mean": torch.tensor(spec.mean).view(1, 3, 1, 1)}
    statistics |= {"encoder_std": torch.tensor(spec.std).view(1, 3, 1, 1)}
    statistics |= {"_latents_mean": torch.zeros(1), "_latents_std": torch.ones(1)}
    weights = {f"decoder.{name}": value.half() for name, value in decoder.state_dict().items()}
    save_tensors({**statistics, **weights}, folder / _WEIGHTS, {"format": "pt"})
    write_json(folder / "config.json", rae_config(model, settings))
    known = model.encoder_id == MINI_ENCODER
    write_json(folder / "vit_lens.json", {"encoder_id": MINI_ENCODER if known else f"module@{model.fingerprint}"})
    return folder


def _scale(model: HookedViT) -> Float[Tensor, "3 1 1"]:
    """Return what brings normalised pixels to the range from 0 to 1."""
    return torch.tensor(model.spec().std).view(3, 1, 1)


def _noisy(
    tokens: Float[Tensor, "batch patch d_model"], most: float, generator: np.random.Generator
) -> Float[Tensor, "batch patch d_model"]:
    size = most * torch.from_numpy(generator.random((len(tokens), 1, 1), dtype=np.float32))
    return tokens + size * torch.from_numpy(generator.standard_normal(tokens.shape, dtype=np.float32))


def _optimizers(decoder: RAEDecoder, settings: RAESettings) -> tuple[torch.optim.Muon, torch.optim.AdamW]:
    blocks = {name: p for name, p in decoder.named_parameters() if "decoder_layers." in name and p.ndim == 2}
    rest = [p for name, p in decoder.named_parameters() if name not in blocks]
    muon = torch.optim.Muon(blocks.values(), lr=settings.lr_muon, weight_decay=0.01)
    return muon, torch.optim.AdamW(rest, lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01)
