"""The Diffusion Lens (Toker et al. 2024, arXiv 2403.05846): the judge sees the word in the picture of the layer."""

__all__ = ["LensPictures", "shown_pictures"]

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image

from vit_lens.studies.asked import Asked
from vit_lens.studies.compare.erased import CLASSES, Erased, Scores
from vit_lens.studies.compare.erasing import ErasedLens
from vit_lens.studies.text_setup import TextSetup

_RUNS = {"nothing": (), **CLASSES}


@dataclass(frozen=True)
class LensPictures:
    """How often, over noises, the judge sees what the word says in the picture of the state."""

    name = "diffusion lens"
    level = "decoded"
    words = "how often, over noises, the judge sees the word's attribute in the picture of the state"

    def score(self, erased: Erased) -> Scores:
        """Return the share of pictures in which the word is seen; pictures are kept in the setup's folder."""
        runs = []
        for name, words in _RUNS.items():
            (found,) = erased.setup.answers(_folder(name), erased.asked, lens=ErasedLens(words_erased=words)).values()
            both = [found.of(part) for part in CLASSES] + [found.chance(part) for part in CLASSES]
            runs.append(np.stack(both, 2).mean(1)[..., : erased.last + 1])
        return erased.spread(np.stack(runs))

    def cost(self, erased: Erased) -> str:
        """Say how many pictures there are."""
        n = len(_RUNS) * len(erased.asked) * (erased.last + 1) * len(erased.setup.noise)
        return f"{n} pictures"


def _folder(name: str) -> str:
    return f"erased-{name.split()[0]}"


def shown_pictures(setup: TextSetup, asked: Sequence[Asked], prompt: int = 0) -> dict[str, list[PIL.Image.Image]]:
    """Return the pictures of one prompt with the first noise, layer by layer, by what is erased."""
    found = {}
    for name, words in _RUNS.items():
        record = setup.drawn(_folder(name), asked, lens=ErasedLens(words_erased=words))
        rows = record.table[(record.table["input"] == prompt) & (record.table["seed"] == setup.noise[0])]
        pictures = [PIL.Image.fromarray(np.asarray(record.picture(int(row)))) for row in rows["row"]]
        found[f"{name.split()[0]} erased"] = pictures
    return found
