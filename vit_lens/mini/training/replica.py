"""Encoders of further seeds with decoders of their own, for studies whose unit is the encoder.

Training a UNet takes half an hour, and two encoders of one world differ by little more than a change of basis. So a
replica's decoder is the shipped one, whose two layers that read the embedding are composed with an affine map from the
new encoder's embeddings to the shipped encoder's.
"""

__all__ = ["JUDGE_SEED", "JUDGE_SETTINGS", "affine_map", "fit_unet", "train_replica"]

import json
import shutil
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPModel

from vit_lens.files import write_atomic
from vit_lens.mini import PAIR, world
from vit_lens.mini.training.encoder import EncoderSettings, image_embeds, to_pixels, train_encoder
from vit_lens.mini.training.evaluate import evaluate_pair, load_pair
from vit_lens.mini.training.pair import assemble_pair, write_reference_means
from vit_lens.models import HookedViT

JUDGE_SEED = 9
JUDGE_SETTINGS = EncoderSettings(width=96, n_layers=6, n_heads=6, d_embed=96, text_width=96)
"""Of the shipped judge: `train_encoder(out, seed=JUDGE_SEED, settings=JUDGE_SETTINGS)`."""

_STREAM = 21
_CHUNK = 250
_RIDGE = 1e-2
_ENCODER = EncoderSettings()


def train_replica(
    out: Path,
    seed: int,
    *,
    encoder: EncoderSettings = _ENCODER,
    n_scenes: int = 8_000,
    n_images: int = 500,
    n_decoded: int = 200,
) -> dict[str, object]:
    """Train an encoder from a seed in `out/work`, fit the shipped decoder to it, and measure the pair in `out/pair`.

    Killed and started again, it goes on from the last checkpoint. `n_scenes` fit the affine map; `n_images` and
    `n_decoded` are the sizes of the measurement.
    """
    work = out / "work"
    train_encoder(work, seed=seed, settings=encoder)
    shutil.copytree(PAIR / "decoder" / "movq", work / "movq", dirs_exist_ok=True, copy_function=shutil.copyfile)
    fit_unet(work, seed=seed, n_scenes=n_scenes)
    model = HookedViT.from_pretrained(work / "encoder")
    pair = assemble_pair(work, out / "pair", encoder_id=f"module@{model.fingerprint}", d_embed=encoder.d_embed)
    write_reference_means(model, pair / "reference_means.safetensors", seed=seed)
    metrics = evaluate_pair(load_pair(pair), n_images=n_images, n_decoded=n_decoded, steps=3, guidance=1.0)
    write_atomic(pair / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())
    return metrics


@torch.no_grad()
def fit_unet(work: Path, *, seed: int, n_scenes: int) -> UNet2DConditionModel:
    """Write `work/unet`: the shipped UNet behind a map from the embeddings of `work/encoder` to the shipped ones."""
    new, shipped = (CLIPModel.from_pretrained(path).float().eval() for path in (work / "encoder", PAIR / "encoder"))
    generator = np.random.default_rng([seed, _STREAM])
    ours, theirs = [], []
    for _ in range(0, n_scenes, _CHUNK):
        pixels = to_pixels(world.render_codes(world.sample_codes(_CHUNK, generator, held_out=False)))
        ours.append(image_embeds(new, pixels))
        theirs.append(image_embeds(shipped, pixels))
    weight, bias = affine_map(torch.cat(ours), torch.cat(theirs))
    unet = UNet2DConditionModel.from_pretrained(PAIR / "decoder" / "unet").float()
    for name in ("encoder_hid_proj.image_embeds", "add_embedding.image_proj"):
        unet.set_submodule(name, _after(cast(nn.Linear, unet.get_submodule(name)), weight, bias))
    unet.register_to_config(encoder_hid_dim=weight.shape[1])
    unet.half().save_pretrained(work / "unet")
    return unet


def affine_map(
    source: Float[Tensor, "scene d_source"], target: Float[Tensor, "scene d_target"], *, ridge: float | int = _RIDGE
) -> tuple[Float[Tensor, "d_target d_source"], Float[Tensor, " d_target"]]:
    """Return the weight and bias of the ridge regression from `source` to `target`.

    Images fill few directions of an embedding. Without a penalty (`ridge` in units of the mean variance) the weights
    along the others are huge: half precision breaks them, and so does any embedding that is not an image's.
    """
    means = source.double().mean(0), target.double().mean(0)
    x, y = source.double() - means[0], target.double() - means[1]
    penalty = ridge * x.square().sum() / x.shape[1] * torch.eye(x.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(x.T @ x + penalty, x.T @ y).T
    return weight.float().contiguous(), (means[1] - weight @ means[0]).float()


def _after(layer: nn.Linear, weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return the layer that applies the affine map first."""
    out = nn.Linear(weight.shape[1], layer.out_features)
    with torch.no_grad():
        out.weight.copy_(layer.weight @ weight)
        out.bias.copy_(layer.weight @ bias + layer.bias)
    return out
