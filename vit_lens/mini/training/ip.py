"""Train mini-ip, a second decoder of the embedded encoder that shares nothing with the first, as SDXL with an adapter.

Whatever two such decoders draw alike, neither made up alone: other weights, latents, scenes and architecture, and the
same embeddings. That is what it is for (docs/second_decoder.md).
"""

__all__ = ["assemble_ip", "measure_ip", "train_ip"]

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from transformers import CLIPModel

from vit_lens.decoders import load_decoder
from vit_lens.files import make_directory
from vit_lens.identity import MINI_ENCODER
from vit_lens.mini import PAIR
from vit_lens.mini.training.evaluate import evaluate_pair, load_pair
from vit_lens.mini.training.folders import write_json
from vit_lens.mini.training.ip_autoencoder import IPAutoencoderSettings, train_ip_autoencoder
from vit_lens.mini.training.ip_painter import IPPainterSettings, build_ip_schedule, train_ip_painter
from vit_lens.mini.training.unet import build_bank

_CARD = {"adapter": "ip_adapter.safetensors", "text": "zeros", "height": 64, "width": 64, "steps": 12, "guidance": 1.5}
_BANK = 24
_AUTOENCODER, _PAINTER = IPAutoencoderSettings(), IPPainterSettings()


def train_ip(
    out: Path,
    seed: int,
    *,
    autoencoder: IPAutoencoderSettings = _AUTOENCODER,
    painter: IPPainterSettings = _PAINTER,
) -> Path:
    """Train autoencoder, UNet and adapter in `out/work` on the shipped encoder, and return the decoder, `out/ip`.

    Killed and started again, it goes on from the last checkpoint.
    """
    work = out / "work"
    train_ip_autoencoder(work, seed=seed, settings=autoencoder)
    vae = AutoencoderKL.from_pretrained(work / "vae").float().eval()
    encoder = CLIPModel.from_pretrained(PAIR / "encoder").float().eval()
    bank = build_bank(
        work / "bank.safetensors", encoder, lambda x: vae.encode(x, return_dict=False)[0].mode(), seed=seed,
        n_images=painter.n_bank, stream=_BANK,
    )  # fmt: skip
    train_ip_painter(work, bank, seed=seed, settings=painter)
    return assemble_ip(work, out / "ip", encoder_id=MINI_ENCODER, d_embed=painter.d_embed)


def measure_ip(
    folder: Path, pair: Path = PAIR, *, n_images: int = 1000, n_decoded: int = 200, **settings: Any
) -> dict[str, Any]:
    """Measure the decoder in `folder` on held-out scenes, with the bars of the pair, and write its `metrics.json`.

    Args:
        folder: What `assemble_ip` wrote.
        pair: The pair whose encoder it is for.
        n_images: How many scenes the encoder is measured on.
        n_decoded: How many of them are drawn.
        **settings: `steps` and `guidance`, where not the decoder's own.
    """
    held = replace(load_pair(pair), decoder=load_decoder(folder))
    vae: Any = AutoencoderKL.from_pretrained(folder / "vae").float().eval()
    metrics = evaluate_pair(
        held, n_images=n_images, n_decoded=n_decoded, called="vae",
        autoencode=lambda x: vae.decode(vae.encode(x, return_dict=False)[0].mode(), return_dict=False)[0], **settings,
    )  # fmt: skip
    write_json(folder / "metrics.json", metrics)
    return metrics


def assemble_ip(work: Path, folder: Path, *, encoder_id: str, d_embed: int) -> Path:
    """Copy the trained parts in `work` into the layout of an SDXL pipeline without text encoders, and return it."""
    make_directory(folder)
    for part in ("unet", "vae"):
        shutil.copytree(work / part, folder / part, dirs_exist_ok=True, copy_function=shutil.copyfile)
    shutil.copyfile(work / "ip_adapter.safetensors", folder / "ip_adapter.safetensors")
    scheduler = build_ip_schedule()
    scheduler.save_pretrained(folder / "scheduler")
    parts = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": type(scheduler).__name__}
    absent = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "image_encoder", "feature_extractor")
    index: dict[str, object] = {
        "_class_name": "StableDiffusionXLPipeline", "_diffusers_version": diffusers.__version__,
        "force_zeros_for_empty_prompt": True,
        **{name: ["diffusers", kind] for name, kind in parts.items()}, **{name: [None, None] for name in absent},
    }  # fmt: skip
    write_json(folder / "model_index.json", index)
    write_json(folder / "vit_lens.json", {**_CARD, "encoder_id": encoder_id, "embed_dim": d_embed})
    return folder
