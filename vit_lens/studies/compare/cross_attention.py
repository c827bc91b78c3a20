"""Cross-attention maps (Tang et al. 2022, "What the DAAM", arXiv 2210.04885): what the cells of a picture read."""

__all__ = ["CrossAttention"]

import hashlib
import json
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.decoders import TextDecoder, seeded, settings_dict
from vit_lens.diffusion import maps_of
from vit_lens.errors import StudyError
from vit_lens.studies.compare.erased import CLASSES, Erased, Scores
from vit_lens.studies.compare.erasing import ErasedLens
from vit_lens.studies.kept_tensors import kept
from vit_lens.studies.text_setup import STREAM

_FORM = "vit_lens.word_masses.1"


@dataclass(frozen=True)
class CrossAttention:
    """The share of cross-attention that the word's position has while the state is drawn, with the first noise."""

    name = "cross-attention"
    level = "decoded"
    words = (
        "the share of cross-attention on the word's position while the denoiser draws the state, mean over cells, "
        "heads, blocks and steps, with the first noise"
    )

    def score(self, erased: Erased) -> Scores:
        """Return the shares of positions; a word that stands nowhere in the prompt has none.

        Raises:
            StudyError: The decoder reads no text.
        """
        masses = torch.stack([self.masses(erased, words) for words in ((), *CLASSES.values())]).double()
        places = erased.places.cpu()[None, :, None].expand(*masses.shape[:3], -1)
        found = masses.gather(-1, places).transpose(2, 3).numpy()  # [run prompt word layer]
        return erased.at_word(erased.spread(found))

    def masses(self, erased: Erased, words: tuple[str, ...]) -> Float[Tensor, "prompt layer pos"]:
        """Return every position's share at every layer of the run without some words; kept in the setup's folder."""
        setup = erased.setup
        settings = seeded(setup.settings, setup.noise[0])
        said = [setup.reader.encoder_id, setup.decoder.identity(), settings_dict(settings), setup.batch_size, words]
        said += [one.prompt for one in erased.asked]
        digits = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:8]

        def make() -> dict[str, Tensor]:
            if not isinstance(setup.decoder, TextDecoder):
                raise StudyError(f"{setup.decoder.decoder_id} reads no text, and attends to no words")
            asked = ErasedLens(words_erased=words).read(erased.run, list(STREAM))
            drawn = maps_of(
                setup.decoder, asked.flatten_rows(), settings, negative=setup.reader.negative(), encoder=setup.reader,
                batch_size=setup.batch_size,
            )  # fmt: skip
            return {"masses": drawn.maps.mean((-2, -1)).unflatten(0, asked.rows)}

        path = setup.out / f"masses-{digits}.safetensors"
        return kept(path, _FORM, "shares of cross-attention", make)["masses"][:, : erased.last + 1]

    def cost(self, erased: Erased) -> str:
        """Say how many pictures there are."""
        return f"{(1 + len(CLASSES)) * len(erased.asked) * (erased.last + 1)} pictures, with maps"
