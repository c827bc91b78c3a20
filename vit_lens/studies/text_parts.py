"""What commands of studies of text encoders share: options, and from options to a setup and prompts."""

__all__ = ["Kinds", "TextStudy"]

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vit_lens.cli import flags
from vit_lens.errors import StudyError, nearest

if TYPE_CHECKING:
    from vit_lens.studies.asked import Asked
    from vit_lens.studies.question_judge import QuestionJudge
    from vit_lens.studies.scene_judges import ExactSceneJudge, SecondSceneJudge
    from vit_lens.studies.text_setup import TextSetup, TrainedText

Kinds = Mapping[str, int]
_ANSWERS = "answers.json"
_BESIDE = "second_judge.safetensors"
_OF_WORLD, _OF_ANY = ("exact", "second"), ("clip:", "vqa:")


@dataclass(kw_only=True)
class TextStudy:
    """Options of every study of a text encoder."""

    model: flags.Model = "mini-sd"
    denoiser: flags.Denoiser = None
    prompt_table: Annotated[
        Path | None,
        typer.Option(
            help="Table (.csv) of prompts with the columns prompt,kind,part,question and maybe caption,alternatives. "
            "Default: of the world."
        ),
    ] = None
    judge: Annotated[str, flags.JUDGE] = "exact"
    prompt_seed: Annotated[int, typer.Option(min=0, help="Of prompts and of everything else at random.")] = 0
    decoder_seed: flags.DecoderSeeds = None
    steps: flags.Steps = None
    guidance: flags.Guidance = None
    size: flags.Size = None
    batch_size: flags.BatchSize = None
    device: flags.Device = "cpu"
    encoder_dtype: flags.EncoderDtype = "float32"
    decoder_dtype: flags.DecoderDtype = "float32"

    def open(self, out: Path, kinds: Kinds, asked: "list[Asked] | None" = None) -> "tuple[TextSetup, list[Asked]]":
        """Load what the options name; return the setup, and the prompts.

        Args:
            out: The folder of the study.
            kinds: How many prompts of each kind of the embedded world, where no others are given.
            asked: The prompts, where the study has its own; None for those of the table or the world.

        Raises:
            StudyError: The pipeline has no prompts or judge of its own, and none are given; or the judge cannot judge
                the prompts.
        """
        from vit_lens.decoders import PromptEncoder, TextDecoder
        from vit_lens.mini import still_life
        from vit_lens.studies.asked import ask_of_world, read_asked
        from vit_lens.studies.text_setup import TextSetup

        if asked is None and self.prompt_table is not None:
            asked = read_asked(self.prompt_table)
        metrics = self._metrics()
        lexicon = None if metrics is None else still_life.Lexicon(metrics["encoder_seed"])
        if asked is None and lexicon is None:
            what = "is none of the embedded world's" if self._folder().is_dir() else "is no folder here"
            raise StudyError(
                f"--model {self.model} {what}, and has no prompts of its own: give mini-sd, a folder that vit-lens "
                "mini train-text made, or --prompt-table TABLE.csv and --judge"
            )
        if self.judge not in _OF_WORLD and not self.judge.startswith(_OF_ANY):
            raise StudyError(f"--judge {self.judge}: expected exact, second, clip:NAME or vqa:DIR")
        place = flags.torch_device(self.device)
        reader = PromptEncoder.from_pretrained(self.model, dtype=flags.torch_dtype(self.encoder_dtype), device=place)
        judge = self._judge(out)
        if asked is None and lexicon is not None:
            asked = ask_of_world(kinds, lexicon, seed=self.prompt_seed)
        judge.check(asked or [])
        trained = None if metrics is None else _trained(metrics, reader)
        drawer = TextDecoder.from_pretrained(
            self.denoiser or self.model, dtype=flags.torch_dtype(self.decoder_dtype), device=place
        )
        given = flags.known(steps=self.steps, guidance=self.guidance, height=self.size, width=self.size)
        setup = TextSetup(
            reader=reader, decoder=drawer, judge=judge, lexicon=lexicon, settings=drawer.settings(**given),
            noise=tuple(self.decoder_seed or (0, 1)), seed=self.prompt_seed, out=out, trained=trained,
            second=self._second(), batch_size=self.batch_size, progress=True,
        )  # fmt: skip
        return setup, asked or []

    def refuse_table(self, why: str) -> None:
        """Raise where prompts of one's own are given to a study of the embedded world's.

        Args:
            why: What the study needs that a table of prompts does not say.

        Raises:
            StudyError: There is a table.
        """
        if self.prompt_table is not None:
            raise StudyError(f"--prompt-table {self.prompt_table}: {why}; leave it, and give a model of the world")

    def _metrics(self) -> dict[str, Any] | None:
        """Return what the metrics of an embedded encoder say, its seed at least; None for another pipeline."""
        from vit_lens.files import read_json

        path = self._folder() / "metrics.json"
        if not path.is_file():
            return None
        metrics = read_json(path, StudyError, "make the pipeline again")
        return metrics if isinstance(metrics.get("encoder_seed"), int) else None

    def _folder(self) -> Path:
        from vit_lens.mini import STILL_LIFE

        return STILL_LIFE if self.model == "mini-sd" else Path(self.model).expanduser()

    def _second(self) -> "SecondSceneJudge | None":
        """Return the other judge of the embedded world, where the exact one judges."""
        from vit_lens.studies.scene_judges import SecondSceneJudge

        path = self._folder() / _BESIDE
        return SecondSceneJudge(path) if self.judge == "exact" and path.is_file() else None

    def _judge(self, out: Path) -> "ExactSceneJudge | SecondSceneJudge | QuestionJudge":
        from vit_lens.studies.annotate import named_judge
        from vit_lens.studies.question_judge import QuestionJudge
        from vit_lens.studies.scene_judges import ExactSceneJudge, SecondSceneJudge

        if self.judge == "exact":
            return ExactSceneJudge()
        if self.judge == "second":
            return SecondSceneJudge(self._folder() / _BESIDE)
        return QuestionJudge(named_judge(self.judge, self.device), out / _ANSWERS)


def _trained(metrics: Mapping[str, Any], reader: Any) -> "TrainedText":
    """Return how an embedded encoder was trained; metrics of before there were kinds say none, and are CLIP's.

    Raises:
        StudyError: The encoder is not of the kind that its metrics say.
    """
    from vit_lens.mini import FACTORS
    from vit_lens.studies.text_setup import TrainedText

    kind = metrics.get("kind", "clip")
    if kind not in FACTORS:
        raise StudyError(f"the pipeline's metrics.json says kind {kind!r}; nearest: {nearest(str(kind), FACTORS)}")
    found, expected = reader.format.readings[0].kind, "clip" if kind == "clip" else "t5"
    if found != expected:
        raise StudyError(
            f"the pipeline's metrics.json says kind {kind!r}, whose encoders are in the format of {expected}, and this "
            f"one is a {found}: metrics and encoder are not of one pipeline"
        )
    return TrainedText(seed=metrics["encoder_seed"], kind=kind, steps=metrics.get("text_steps"))
