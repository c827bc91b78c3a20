"""Pictures of embeddings, kept as files, so that an interrupted figure goes on where it stopped."""

__all__ = ["Drawn", "draw"]

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from vit_lens.files import make_directory, write_atomic
from vit_lens.metrics import cosine
from vit_lens.records.pictures import encode_png, is_whole_png
from vit_lens.studies.paper.setup import PaperSetup


@dataclass(frozen=True, eq=False, kw_only=True)
class Drawn:
    """Pictures, and how far they are what was asked for.

    Attributes:
        pictures: One for each embedding.
        faithfulness: Cosine of each re-encoded picture with the embedding that it was drawn from.
        likeness: Cosine of each re-encoded picture with the input's embedding.
    """

    pictures: list[UInt8[np.ndarray, "height width 3"]]
    faithfulness: Float[Tensor, " row"]
    likeness: Float[Tensor, " row"]


@torch.no_grad()
def draw(setup: PaperSetup, embeds: Float[Tensor, "row d_embed"], clean: Float[Tensor, "row d_embed"]) -> Drawn:
    """Draw every embedding with the same noise, and embed the pictures again; those in ``out`` are not drawn anew.

    Args:
        setup: Pair and folder.
        embeds: What is drawn.
        clean: Embedding of the image that each was read from.
    """
    folder = setup.out / "pictures"
    make_directory(folder)
    paths = [folder / f"{_key(setup, row)}.png" for row in embeds]
    missing = [row for row, path in enumerate(paths) if not is_whole_png(path)]
    size = setup.pictures.batch_size
    with tqdm(total=len(missing), desc="pictures", unit="picture", disable=not setup.pictures.progress) as bar:
        for start in range(0, len(missing), size):
            rows = missing[start : start + size]
            drawn = setup.pictures.draw(embeds[rows], noise_seed=setup.pictures.settings.seed)
            for row, picture in zip(rows, drawn, strict=True):
                write_atomic(paths[row], encode_png(picture))
            bar.update(len(rows))
    pictures = [_open(path) for path in paths]
    again = _embed(setup, pictures)
    return Drawn(pictures=pictures, faithfulness=cosine(again, embeds), likeness=cosine(again, clean))


def _embed(setup: PaperSetup, pictures: list[UInt8[np.ndarray, "height width 3"]]) -> Float[Tensor, "row d_embed"]:
    size = setup.pictures.batch_size
    batches = [pictures[start : start + size] for start in range(0, len(pictures), size)]
    return torch.cat([setup.model(setup.model.preprocess(some)).float().cpu() for some in batches])


def _open(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    with PIL.Image.open(path, formats=["PNG"]) as picture:
        return np.asarray(picture.convert("RGB"))


def _key(setup: PaperSetup, row: Float[Tensor, " d_embed"]) -> str:
    settings = setup.pictures.settings.to_dict()
    said = json.dumps([setup.pictures.decoder.fingerprint, str(setup.pictures.decoder.dtype), settings], sort_keys=True)
    return hashlib.sha256(said.encode() + row.contiguous().numpy().tobytes()).hexdigest()[:24]
