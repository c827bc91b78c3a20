"""Denoisers that were trained on something else of the same text encoder, each drawing what it was trained on."""

__all__ = ["LayerReader", "Shown", "open_reader"]

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from vit_lens.conditions import Condition
from vit_lens.decoders import Decoder, PromptEncoder, TextDecoder
from vit_lens.errors import StudyError
from vit_lens.files import as_path, read_json
from vit_lens.lenses import TextDiffusionLens, TextRun
from vit_lens.studies.asked import Asked
from vit_lens.studies.layer_answers import LayerAnswers
from vit_lens.studies.text_setup import TextSetup
from vit_lens.studies.whose.states import EndLens, site_of

_ADVICE = "make it with vit-lens mini train-reader PIPELINE --reads 0|4|eos"


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerReader:
    """A denoiser of another layer.

    Attributes:
        reads: What it was trained on: the state after so many blocks, or the end of the text alone, at every position.
        decoder: What draws.
    """

    reads: int | Literal["eos"]
    decoder: Decoder

    @property
    def name(self) -> str:
        """``h0``, ``h4``, or ``eos``."""
        return "eos" if self.reads == "eos" else f"h{self.reads}"

    @property
    def lens(self) -> TextDiffusionLens:
        """How a state is shown to it."""
        return EndLens() if self.reads == "eos" else TextDiffusionLens()

    def site(self, encoder: PromptEncoder) -> str:
        """Return the address of the state that it is shown."""
        if self.reads != "eos":
            return site_of(self.reads)
        moved = self.lens.moved(encoder.format, {name: tower.cfg.n_layers for name, tower in encoder.towers.items()})
        return site_of(moved.layer(encoder.towers[moved.encoder].cfg.n_layers))

    def answers(self, setup: TextSetup, asked: Sequence[Asked]) -> dict[str, LayerAnswers]:
        """Return what the judge says of its pictures, by kind of prompt; guidance leads away from what it knows as "".

        Args:
            setup: The setup of the encoder's own denoiser.
            asked: The prompts.
        """
        encoder, site = setup.reader, self.site(setup.reader)
        with torch.no_grad():
            away = self.lens.read(TextRun.of(encoder, ""), site)[:, 0]
        own = replace(setup, reader=Shown(encoder, away), decoder=self.decoder)
        return dict(own.answers(f"denoiser-{self.name}", asked, lens=self.lens, sites=(site,)))


class Shown(PromptEncoder):
    """The text half of a pipeline, the same weights, that says of itself what guidance leads away from.

    Args:
        encoder: The text half of a pipeline.
        away: One row, in the place of what the pipeline makes of the text "".
    """

    def __init__(self, encoder: PromptEncoder, away: Condition):
        vars(self).update(vars(encoder))
        self._away = away

    def negative(self) -> Condition:
        """Return the row."""
        return self._away


def open_reader(spec: str, encoder: PromptEncoder, **where: Any) -> LayerReader:
    """Load a denoiser that ``vit-lens mini train-reader`` trained for an encoder.

    Args:
        spec: ``NAME=FOLDER``: what it reads (``h0``, ``h4``, ``eos``), and the folder of its pipeline.
        encoder: The text half of the pipeline that is studied.
        **where: Its ``dtype`` and ``device``, which are those of the encoder.

    Raises:
        StudyError: There is no such folder, what it reads is not what its name says, the encoder has no such layer, or
            it was trained for another encoder.
    """
    name, _, given = spec.partition("=")
    name, wanted = name.strip(), _reads(name.strip())
    if wanted is None or not given.strip():
        raise StudyError(f"--reader {spec}: expected NAME=FOLDER, the name h0, h4 or eos; {_ADVICE}")
    folder = as_path(given.strip(), StudyError, "reader")
    folder = folder / "sd" if (folder / "sd" / "metrics.json").is_file() else folder
    if not (folder / "metrics.json").is_file():
        raise StudyError(f"--reader {spec}: {folder} has no metrics.json that says what is read; {_ADVICE}")
    reads = read_json(folder / "metrics.json", StudyError, _ADVICE).get("reads")
    if isinstance(reads, bool) or reads != wanted:
        said = "does not say what it reads" if reads is None else f"reads {reads!r}"
        raise StudyError(f"--reader {spec}: the denoiser in {folder} {said}, and its name says {wanted!r}; {_ADVICE}")
    n_layers = max(tower.cfg.n_layers for tower in encoder.towers.values())
    if wanted != "eos" and wanted > n_layers:
        raise StudyError(f"--reader {spec}: the encoder has {n_layers} blocks, and so no layer {wanted}")
    trained = PromptEncoder.from_pretrained(folder, **where)
    if trained.encoder_id != encoder.encoder_id:
        raise StudyError(
            f"--reader {spec}: it was trained for the encoder {trained.encoder_id}, and {encoder.encoder_id} is "
            "studied; a denoiser reads its own encoder alone"
        )
    return LayerReader(reads=wanted, decoder=TextDecoder.from_pretrained(folder, encoder=encoder, **where))


def _reads(name: str) -> int | Literal["eos"] | None:
    if name == "eos":
        return "eos"
    return int(name[1:]) if name.startswith("h") and name[1:].isascii() and name[1:].isdecimal() else None
