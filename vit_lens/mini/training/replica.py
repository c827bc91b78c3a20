"""Encoders of further seeds with decoders of their own, for studies whose unit is the encoder.

Training a UNet takes half an hour, and two encoders of one world differ by little more than a change of basis. So a
replica's decoders are the shipped ones, whose layers that read the embedding are composed with a map from the new
encoder's embeddings to the shipped encoder's.
"""

__all__ = ["JUDGE_SEED", "JUDGE_SETTINGS", "affine_map", "fit_ip", "fit_unet", "train_replica"]

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPModel

from vit_lens.errors import OutputError
from vit_lens.files import read_json, write_atomic
from vit_lens.identity import MINI_IP_FILES
from vit_lens.mini import PAIR, world
from vit_lens.mini.training.encoder import EncoderSettings, image_embeds, to_pixels, train_encoder
from vit_lens.mini.training.evaluate import evaluate_pair, load_pair
from vit_lens.mini.training.folders import write_json
from vit_lens.mini.training.ip import measure_ip
from vit_lens.mini.training.pair import assemble_pair, write_references
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
) -> dict[str, Any]:
    """Train an encoder from a seed, fit the shipped decoders to it, and measure both: `out/pair` and `out/ip`.

    Killed and started again, it goes on from the last checkpoint in `out/work`, and what is there is not made again.
    `n_scenes` fit the maps; `n_images` and `n_decoded` are the sizes of the measurement.

    Returns:
        The metrics of the pair, and under "ip" those of the second decoder.
    """
    pair, ip = out / "pair", out / "ip"
    if not (pair / "metrics.json").exists():
        _train_pair(out, seed, encoder=encoder, n_scenes=n_scenes, n_images=n_images, n_decoded=n_decoded)
    if not (ip / "metrics.json").exists():
        fit_ip(pair, ip, seed=seed, n_scenes=n_scenes)
        measure_ip(ip, pair, n_images=n_images, n_decoded=n_decoded)
    found = [json.loads((folder / "metrics.json").read_text()) for folder in (pair, ip)]
    return {**found[0], "ip": found[1]}


def _train_pair(
    out: Path, seed: int, *, encoder: EncoderSettings, n_scenes: int, n_images: int, n_decoded: int
) -> None:  # fmt: skip
    work = out / "work"
    train_encoder(work, seed=seed, settings=encoder)
    shutil.copytree(PAIR / "decoder" / "movq", work / "movq", dirs_exist_ok=True, copy_function=shutil.copyfile)
    fit_unet(work, seed=seed, n_scenes=n_scenes)
    model = HookedViT.from_pretrained(work / "encoder")
    pair = assemble_pair(work, out / "pair", encoder_id=f"module@{model.fingerprint}", d_embed=encoder.d_embed)
    write_references(model, pair, seed=seed)
    metrics = evaluate_pair(load_pair(pair), n_images=n_images, n_decoded=n_decoded, steps=3, guidance=1.0)
    write_atomic(pair / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())


def fit_ip(pair: Path, folder: Path, *, seed: int, n_scenes: int) -> Path:
    """Write the shipped second decoder behind a map from the embeddings of the pair's encoder to the shipped ones.

    The map has no constant, so that the zeros that guidance leads away from stay zeros.
    """
    ours, theirs = _embeds_of_both(pair / "encoder", seed=seed, n_scenes=n_scenes)
    weight, _ = affine_map(ours, theirs, constant=False)
    shutil.copytree(MINI_IP_FILES, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    for told in ("MODEL_CARD.md", "metrics.json"):  # of the shipped one
        (folder / told).unlink(missing_ok=True)
    card = read_json(folder / "vit_lens.json", OutputError, "remove the folder, and run the command again")
    adapter = load_file(folder / card["adapter"])
    adapter["image_proj.proj.weight"] = (adapter["image_proj.proj.weight"].float() @ weight).half()
    save_file(adapter, folder / card["adapter"])
    encoder_id = read_json(pair / "decoder" / "vit_lens.json", OutputError, "make the pair again")["encoder_id"]
    write_json(folder / "vit_lens.json", {**card, "encoder_id": encoder_id, "embed_dim": weight.shape[1]})
    return folder


@torch.no_grad()
def fit_unet(work: Path, *, seed: int, n_scenes: int) -> UNet2DConditionModel:
    """Write `work/unet`: the shipped UNet behind a map from the embeddings of `work/encoder` to the shipped ones."""
    weight, bias = affine_map(*_embeds_of_both(work / "encoder", seed=seed, n_scenes=n_scenes))
    unet = UNet2DConditionModel.from_pretrained(PAIR / "decoder" / "unet").float()
    for name in ("encoder_hid_proj.image_embeds", "add_embedding.image_proj"):
        unet.set_submodule(name, _after(cast(nn.Linear, unet.get_submodule(name)), weight, bias))
    unet.register_to_config(encoder_hid_dim=weight.shape[1])
    unet.half().save_pretrained(work / "unet")
    return unet


@torch.no_grad()
def _embeds_of_both(
    encoder: Path, *, seed: int, n_scenes: int
) -> tuple[Float[Tensor, "scene d_embed"], Float[Tensor, "scene d_shipped"]]:
    """Return the embeddings of training scenes of an encoder, and of the shipped one."""
    new, shipped = (CLIPModel.from_pretrained(path).float().eval() for path in (encoder, PAIR / "encoder"))
    generator = np.random.default_rng([seed, _STREAM])
    ours, theirs = [], []
    for _ in range(0, n_scenes, _CHUNK):
        pixels = to_pixels(world.render_codes(world.sample_codes(_CHUNK, generator, held_out=False)))
        ours.append(image_embeds(new, pixels))
        theirs.append(image_embeds(shipped, pixels))
    return torch.cat(ours), torch.cat(theirs)


def affine_map(
    source: Float[Tensor, "scene d_source"],
    target: Float[Tensor, "scene d_target"],
    *,
    ridge: float | int = _RIDGE,
    constant: bool = True,
) -> tuple[Float[Tensor, "d_target d_source"], Float[Tensor, " d_target"]]:
    """Return the weight and bias of the ridge regression from `source` to `target`.

    Images fill few directions of an embedding. Without a penalty (`ridge` in units of the mean variance) the weights
    along the others are huge: half precision breaks them, and so does any embedding that is not an image's.
    """
    means = source.double().mean(0) * constant, target.double().mean(0) * constant
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
