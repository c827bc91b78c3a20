"""Train the whole embedded pair from a seed and lay it out as it ships."""

__all__ = ["assemble_pair", "measure_pair", "train_pair", "write_references", "write_ridge"]

import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import torch

from vit_lens.files import make_directory, write_atomic
from vit_lens.mini import world
from vit_lens.mini.training.encoder import EncoderSettings, train_encoder
from vit_lens.mini.training.evaluate import evaluate_pair, load_pair
from vit_lens.mini.training.movq import MoVQSettings, train_movq
from vit_lens.mini.training.unet import UNetSettings, build_scheduler, train_unet, train_unet_by_workers
from vit_lens.models import HookedTextEncoder, HookedViT
from vit_lens.readers import Gallery, TextImageRidge
from vit_lens.reference import ReferenceMeans, make_jacobians

_CARD = {"image_size": 64, "steps": 10, "guidance": 1.5, "scheduler": "ddim"}
_REFERENCE_SCENES, _STREAM = 512, 7
_FITTED, _HELD_OUT = 96, 32  # of them, for Jacobians and their error
_RIDGE_SCENES, _RIDGE_STREAM, _AT_ONCE = 2000, 13, 100
_ENCODER, _MOVQ, _UNET = EncoderSettings(), MoVQSettings(), UNetSettings()


def train_pair(
    out: Path,
    seed: int,
    *,
    encoder: EncoderSettings = _ENCODER,
    movq: MoVQSettings = _MOVQ,
    unet: UNetSettings = _UNET,
    threads: int | None = None,
    n_workers: int = 2,
    n_images: int = 1000,
    n_decoded: int = 200,
) -> dict[str, object]:
    """Train encoder, MoVQ and UNet in `out/work`, write `out/pair`, and return its measured bars.

    The decoder's card names the encoder by its fingerprint, so that it refuses the embeddings of any other.

    Killed and started again, it goes on from the last checkpoint. Lengths are numbers of steps, so that a seed
    gives the same weights on the same machine with the same `threads` and `n_workers` (processes of one thread
    for the UNet, the longest part). `n_images` and `n_decoded` are the sizes of the final measurement.
    """
    if encoder.d_embed != unet.d_embed:
        raise ValueError(f"the encoder embeds in {encoder.d_embed} dimensions, the UNet expects {unet.d_embed}")
    work = out / "work"
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        train_encoder(work, seed=seed, settings=encoder)
        train_movq(work, seed=seed, settings=movq)
        if n_workers > 1:
            train_unet_by_workers(work, seed=seed, n_workers=n_workers, settings=unet)
        else:
            train_unet(work, seed=seed, settings=unet)
        model = HookedViT.from_pretrained(work / "encoder")
        pair = assemble_pair(work, out / "pair", encoder_id=f"module@{model.fingerprint}", d_embed=encoder.d_embed)
        write_references(model, pair, seed=seed)
        write_ridge(
            model, HookedTextEncoder.from_pretrained(work / "encoder"), pair / "text_image_ridge.safetensors", seed=seed
        )
        return measure_pair(pair, n_images=n_images, n_decoded=n_decoded)
    finally:
        torch.set_num_threads(before)


def measure_pair(pair: Path, *, n_images: int = 1000, n_decoded: int = 200) -> dict[str, object]:
    """Measure the bars of the pair in `pair` on held-out scenes, and write them to its `metrics.json`."""
    metrics = evaluate_pair(load_pair(pair), n_images=n_images, n_decoded=n_decoded)
    _write(pair / "metrics.json", metrics)
    return metrics


def assemble_pair(work: Path, pair: Path, *, encoder_id: str, d_embed: int = 128) -> Path:
    """Copy the trained parts in `work` into the published layouts of encoder and decoder, and return `pair`."""
    decoder = pair / "decoder"
    make_directory(decoder)
    for source, target in (("encoder", pair / "encoder"), ("unet", decoder / "unet"), ("movq", decoder / "movq")):
        shutil.copytree(work / source, target, dirs_exist_ok=True, copy_function=shutil.copyfile)
    scheduler = build_scheduler()
    scheduler.save_pretrained(decoder / "scheduler")
    parts = {"unet": "UNet2DConditionModel", "movq": "VQModel", "scheduler": type(scheduler).__name__}
    _write(
        decoder / "model_index.json",
        {
            "_class_name": "KandinskyV22Pipeline",
            "_diffusers_version": diffusers.__version__,
            **{name: ["diffusers", kind] for name, kind in parts.items()},
        },
    )
    _write(decoder / "vit_lens.json", {**_CARD, "encoder_id": encoder_id, "embed_dim": d_embed})
    return pair


def write_references(model: HookedViT, pair: Path, *, seed: int) -> None:
    """Write what lenses need into `pair`: means, Jacobians and a gallery of scenes that evaluation never shows.

    Half of them have overlays, as in training. The first 96 are those of the Jacobians, the next 32 of their error.
    """
    generator = np.random.default_rng([seed, _STREAM])
    scenes = list(world.render_codes(world.sample_codes(_REFERENCE_SCENES, generator, held_out=False)))
    ReferenceMeans.from_images(model, scenes).save(pair / "reference_means.safetensors")
    make_jacobians(
        model, scenes[:_FITTED], held_out=scenes[_FITTED : _FITTED + _HELD_OUT], test=True,
        out=pair / "jacobians.safetensors", per_row=False, batch_size=16, progress=False,
    )  # fmt: skip
    Gallery.from_images(model, scenes).save(pair / "gallery.safetensors")


@torch.no_grad()
def write_ridge(model: HookedViT, text: HookedTextEncoder, path: Path, *, seed: int) -> TextImageRidge:
    """Fit the map from captions to scenes that evaluation never shows, without overlays, and save it."""
    scenes = world.sample_scenes(_RIDGE_SCENES, np.random.default_rng([seed, _RIDGE_STREAM]), held_out=False)
    pictures = list(world.render(scenes))
    images = [model(model.preprocess(pictures[i : i + _AT_ONCE])) for i in range(0, len(pictures), _AT_ONCE)]
    texts = text([world.caption(scene) for scene in scenes])
    ridge = TextImageRidge.fit(texts, torch.cat(images), encoder_id=model.encoder_id)
    ridge.save(path)
    return ridge


def _write(path: Path, content: dict[str, object]) -> None:
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())
