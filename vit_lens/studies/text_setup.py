"""What every study of a text encoder starts from: both halves of a pipeline, prompts, and who looks at the pictures."""

__all__ = ["TextSetup", "TrainedText"]

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vit_lens.decoders import Decoder, PromptEncoder, settings_dict
from vit_lens.errors import StudyError
from vit_lens.lenses import Lens
from vit_lens.mini import FACTORS, TextKind, still_life
from vit_lens.records import Record
from vit_lens.studies.asked import Asked
from vit_lens.studies.layer_answers import LayerAnswers, answers_of
from vit_lens.studies.scene_judges import SceneJudge
from vit_lens.sweeping import Controls, Drawing, Prompts, sweep

STREAM = ("L0.resid_pre", "resid_post")
"""Every layer: the embeddings, and what each block leaves."""


@dataclass(frozen=True, kw_only=True)
class TrainedText:
    """How an encoder of the embedded world was trained.

    Attributes:
        seed: The seed of its names and weights; None where it is none of that world's.
        kind: Its kind, by which it has attention, positions and an objective; None where it is none of those.
        steps: For how many steps; None where that is not said.
    """

    seed: int | None = None
    kind: TextKind | None = None
    steps: int | None = None

    def describe(self) -> dict[str, Any]:
        """Return what a result must carry of it."""
        factors = None if self.kind is None else asdict(FACTORS[self.kind])
        return {"encoder_seed": self.seed, "kind": self.kind, "factors": factors, "text_steps": self.steps}


@dataclass(frozen=True, eq=False, kw_only=True)
class TextSetup:
    """What one study of one text encoder starts from.

    Attributes:
        reader: The text half of a pipeline.
        decoder: What draws conditions.
        judge: Who looks at the pictures.
        second: Who looks at them beside it, for the tables; None for nobody.
        lexicon: The names of an embedded encoder; None for another.
        settings: How pictures are drawn; the seed is given by ``noise``.
        trained: How an encoder of the embedded world was trained; None for another.
        noise: The seeds of the decoder's noise, which all layers share.
        seed: Of prompts and of everything else that is drawn at random.
        out: The folder for the study's files, which it goes on from.
        batch_size: Pictures drawn together; None for as many as are usual.
        progress: Whether bars are shown.
    """

    reader: PromptEncoder
    decoder: Decoder
    judge: SceneJudge
    lexicon: still_life.Lexicon | None
    settings: Any
    noise: tuple[int, ...]
    seed: int
    out: Path
    trained: TrainedText | None = None
    second: SceneJudge | None = None
    batch_size: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if not self.noise or len(set(self.noise)) < len(self.noise):
            raise StudyError(f"noise={list(self.noise)}: give different seeds, at least one")

    def drawn(
        self, name: str, asked: Sequence[Asked], *, lens: Lens | None = None, sites: Sequence[str] = STREAM,
        controls: Sequence[str] = (),
    ) -> Record:  # fmt: skip
        """Return the record of all layers of the prompts, drawn in the folder ``name``; a finished one is only read.

        Args:
            name: A name for it within the study.
            asked: The prompts.
            lens: How a state is read; None for the Diffusion Lens.
            sites: What is read.
            controls: The controls that are drawn beside it.
        """
        held = Controls(kinds=list(controls), draws=1, seed=self.seed) if controls else False
        return sweep(
            self.reader, self.decoder, Prompts([one.prompt for one in asked]), lens=lens, sites=list(sites),
            drawing=Drawing(settings=self.settings, seeds=list(self.noise), batch_size=self.batch_size),
            controls=held, out=self.out / name, progress=self.progress,
        )  # fmt: skip

    def answers(
        self, name: str, asked: Sequence[Asked], *, control: str | None = None, **options: Any
    ) -> Mapping[str, LayerAnswers]:
        """Return what the judge says of all layers, by kind of prompt; see :meth:`drawn`.

        Args:
            name: A name for the record within the study.
            asked: The prompts.
            control: The control whose pictures are looked at; None for the lens's own.
            **options: As for :meth:`drawn`.

        Raises:
            StudyError: The record holds no such control.
        """
        record = self.drawn(name, asked, **options)
        reading = None
        if control is not None:
            found = [one.id for one in record.readings.values() if one.control == control]
            if not found:
                raise StudyError(f"{record.path} holds no control {control!r}")
            reading = found[0]
        return answers_of(record, asked, self.judge, second=self.second, reading=reading, seed=self.seed)

    def generator(self, *stream: int) -> np.random.Generator:
        """Return random numbers of the setup's seed and a stream of their own."""
        return np.random.default_rng([self.seed, *stream])

    def describe(self) -> dict[str, Any]:
        """Return what a result must carry of its setup."""
        return {
            "encoder": self.reader.encoder_id, "fingerprint": self.reader.encoder_id,
            "format": self.reader.format.name,
            "decoder": self.decoder.decoder_id, "judge": self.judge.name, "settings": settings_dict(self.settings),
            "noise_seeds": list(self.noise), "seed": self.seed,
            **(self.trained or TrainedText()).describe(),
        }  # fmt: skip
