"""``PipelineVLM``: a local image-text-to-text model explains and judges."""

__all__ = ["PipelineVLM"]

import os
from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vit_lens.errors import ExplanationError
from vit_lens.explaining.asking import contact_sheet, explaining_words, highlighted, judging_words, shortened
from vit_lens.explaining.image_text import ImageTextModel
from vit_lens.explaining.replies import Replies
from vit_lens.identity import exact_fingerprint
from vit_lens.images import picture_hash

_CELLS = 4  # rows and columns that a picture is cut into, each judged by itself


class PipelineVLM:
    """Explains by what a local model writes of the highlighted images, and judges by its chance of saying yes.

    The images to explain stand side by side in one picture, since many models take one. The score of the judge is the
    chance of yes as the first word of the answer, as a share of yes and no. A place is judged by cutting it out: a
    sixteenth of the picture at a time, so that it is rough and slow.

    Args:
        model: The model.
        replies: Where replies are kept; None keeps them in memory.

    >>> PipelineVLM.load(tmp)
    Traceback (most recent call last):
    vit_lens.errors.ExplanationError: ... holds no config.json; give the folder of an image-text-to-text model
    """

    def __init__(self, model: ImageTextModel, replies: Replies | None = None):
        self.name, self._model = model.name, model
        self._replies = Replies() if replies is None else replies
        self._who = f"{model.name}@{exact_fingerprint(model.model.state_dict())}"

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], *, device: str | torch.device = "cpu", replies: Replies | None = None
    ) -> "PipelineVLM":
        """Load a model and its processor from a folder; nothing is downloaded, and no code of the folder is run.

        Args:
            folder: What ``save_pretrained`` of model and processor wrote, weights as safetensors.
            device: Where it runs.
            replies: Where replies are kept; None keeps them in memory.

        Raises:
            ExplanationError: There is no such folder.
            CheckpointError: A file of it is missing or damaged, or transformers has no such model.
        """
        return cls(ImageTextModel.load(folder, device=device), replies)

    def explain(self, images: Sequence[Image.Image], maps: Sequence[Tensor]) -> str:
        sheet = contact_sheet([highlighted(one, map) for one, map in zip(images, maps, strict=True)])
        words = explaining_words(len(images))
        return self._replies.ask(
            [self._who, words, picture_hash(sheet)], lambda: self._model.write(sheet, words),
            lambda reply: shortened(reply, self.name),
        )  # fmt: skip

    def judge(self, image: Image.Image, text: str, map: Tensor | None = None) -> float:
        shown = image if map is None else highlighted(image, map)
        return self._yes(shown, judging_words(text, map is not None))

    def localise(self, image: Image.Image, text: str) -> Float[Tensor, "grid_row grid_column"]:
        edges = [[side * k // _CELLS for k in range(_CELLS + 1)] for side in (image.width, image.height)]
        if min(image.size) < _CELLS:
            raise ExplanationError(f"an image of {image.width} x {image.height} pixels has no {_CELLS} rows of cells")
        (across, down), words = edges, judging_words(text, False)
        return torch.tensor([
            [self._yes(image.crop((across[c], down[r], across[c + 1], down[r + 1])), words) for c in range(_CELLS)]
            for r in range(_CELLS)
        ])  # fmt: skip

    def _yes(self, picture: Image.Image, words: str) -> float:
        return self._replies.ask(
            [self._who, words, picture_hash(picture)], lambda: " ".join(map(repr, self._model.chances(picture, words))),
            _share_of_yes,
        )  # fmt: skip


def _share_of_yes(reply: str) -> float:
    yes, no = map(float, reply.split())
    return yes / (yes + no) if yes + no > 0 else 0.5
