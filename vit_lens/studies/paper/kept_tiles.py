"""Pictures of embeddings, kept as files, so that an interrupted figure goes on where it stopped."""

__all__ = ["DrawnTiles", "draw"]

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vit_lens.conditions import Condition
from vit_lens.decoders import settings_dict
from vit_lens.engine import OWN, Drawn
from vit_lens.errors import StudyError
from vit_lens.files import damaged, make_directory, write_atomic
from vit_lens.metrics import cosine
from vit_lens.records import encode_png, is_whole_png
from vit_lens.studies.paper.paper_setup import PaperSetup


@dataclass(frozen=True, eq=False, kw_only=True)
class DrawnTiles:
    """Pictures, and how far they are what was asked for.

    Attributes:
        pictures: One for each embedding.
        faithfulness: Cosine of each re-encoded picture with the embedding that it was drawn from.
        likeness: Cosine of each re-encoded picture with the input's embedding.
    """

    pictures: list[UInt8[np.ndarray, "height width 3"]]
    faithfulness: Float[Tensor, " row"]
    likeness: Float[Tensor, " row"]


def draw(setup: PaperSetup, asked: Condition, clean: Float[Tensor, "row d_embed"]) -> DrawnTiles:
    """Draw every row with the same noise, and read the pictures again; those in ``out`` are not drawn anew.

    Args:
        setup: Pair and folder.
        asked: What is drawn.
        clean: Embedding of the image that each was read from.
    """
    folder, asked = setup.out / "pictures", asked.kept()
    make_directory(folder)
    paths = [folder / f"{_key(setup, asked[[row]])}.png" for row in range(len(asked))]
    missing = [row for row, path in enumerate(paths) if not is_whole_png(path)]

    def keep(drawn: Drawn) -> None:
        for row, picture in zip(drawn.rows, drawn.pictures, strict=True):
            write_atomic(paths[missing[row]], encode_png(picture))

    if missing:
        setup.pictures.draw(asked[missing], noise_seed=getattr(setup.pictures.settings, "seed", 0), keep=keep)
    pictures, size = [_open(path) for path in paths], setup.pictures.batch_size
    batches = [torch.from_numpy(np.stack(pictures[start : start + size])) for start in range(0, len(pictures), size)]
    again = Condition.cat([setup.pictures.bench.look(some, size)[OWN] for some in batches])
    return DrawnTiles(
        pictures=pictures, faithfulness=cosine(again.flat, asked.flat), likeness=cosine(again.vector, clean)
    )


def _open(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    advice = "remove it, and run the same command again"
    with damaged(StudyError, f"{path} is no whole picture", advice), PIL.Image.open(path, formats=["PNG"]) as picture:
        return np.asarray(picture.convert("RGB"))


def _key(setup: PaperSetup, row: Condition) -> str:
    said = json.dumps([setup.pictures.decoder.identity(), settings_dict(setup.pictures.settings)], sort_keys=True)
    digest = hashlib.sha256(said.encode())
    for name, part in row.parts().items():
        digest.update(name.encode() + part.contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]
