"""The layer curves of Toker et al. 2024 on any text-to-image pipeline, from their prompts, beside people's answers."""

__all__ = ["TokerCurves", "cost_words", "toker_curves", "toker_plan"]

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from vit_lens.decoders import Decoder, PromptEncoder, settings_dict
from vit_lens.engine import duration_words
from vit_lens.errors import OutputError, StudyError
from vit_lens.figures import save
from vit_lens.files import as_path, make_directory, write_atomic
from vit_lens.lenses import TextDiffusionLens
from vit_lens.records import Record, csv_bytes
from vit_lens.studies.annotate.curves import Curve, curves_figure
from vit_lens.studies.annotate.judging import PictureJudge
from vit_lens.studies.annotate.kept_answers import KeptAnswers
from vit_lens.studies.annotate.released import table_means
from vit_lens.studies.annotate.released_tables import MODELS, read_released
from vit_lens.studies.annotate.shares import share_over_prompts
from vit_lens.studies.annotate.toker_prompts import FAMILIES, Family, read_families
from vit_lens.sweeping import Drawing, Plan, Prompts, plan, sweep

SEEDS = (0, 1, 2, 3)
"""Pictures of each prompt and layer, as many as were annotated; of one seed the noise is the same at every layer."""
_FORMAT = "vit_lens.toker.1"
_COLUMNS = ("family", "question", "site", "layer", "depth", "mean", "low", "high", "n", "unsure", "prompts")


@dataclass(frozen=True, kw_only=True, eq=False)
class TokerCurves:
    """What a judge saw in pictures of the released prompts.

    Attributes:
        curves: By family, question and site: ``layer`` (how many blocks have run), ``depth`` (its share of those that
            the format reads), ``mean, low, high, n, unsure, prompts``. "Cannot tell" counts as neither.
        people: The released answers of people, by family, question and model.
        about: Model, judge, settings, seeds and versions.
    """

    curves: pd.DataFrame
    people: pd.DataFrame
    about: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, None where something is undefined."""
        tables = {"curves": self.curves, "people": self.people}
        return {"format": _FORMAT, **self.about} | {name: _plain(one) for name, one in tables.items()}


def _plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{key: None if pd.isna(value) else value for key, value in row.items()} for row in table.to_dict("records")]


@dataclass(frozen=True, kw_only=True, eq=False)
class Layers:
    """Which states are drawn: sites by how many blocks have run, and after how many the format reads."""

    lens: TextDiffusionLens
    sites: Mapping[str, int]
    last: int

    @classmethod
    def of(cls, reader: PromptEncoder, stride: int, encoder: str | None) -> "Layers":
        """Take every so many layers, counted back from the one that the format reads; 0 is the embeddings."""
        lens = TextDiffusionLens(encoder=encoder)
        sizes = {name: tower.cfg.n_layers for name, tower in reader.towers.items()}
        read = lens.moved(reader.format, sizes)
        last = read.layer(sizes[read.encoder])
        layers = range(last % stride, last + 1, stride)
        sites = {"L0.resid_pre" if layer == 0 else f"L{layer - 1}.resid_post": layer for layer in layers}
        return cls(lens=lens, sites=sites, last=last)


def toker_plan(
    checkout: str | os.PathLike[str], reader: PromptEncoder, decoder: Decoder, *, families: Sequence[str] = FAMILIES,
    stride: int = 4, encoder: str | None = None, drawing: Drawing | None = None,
) -> dict[str, Plan]:  # fmt: skip
    """Return the plan of each family's pictures, which says how many there are and how long they take.

    See :func:`toker_curves` for the arguments and errors.
    """
    layers = Layers.of(reader, _stride(stride), encoder)
    drawn = drawing or Drawing(seeds=list(SEEDS))
    return {
        one.name: plan(reader, decoder, Prompts(one.prompts), lens=layers.lens, sites=list(layers.sites), drawing=drawn)
        for one in read_families(checkout, families)
    }


def cost_words(plans: Mapping[str, Plan], reader: PromptEncoder, decoder: Decoder) -> str:
    """Say how many pictures there are and about how long they take.

    Where the decoder does not say what it costs, one picture is drawn and timed; drawn together they take less.
    """
    n = sum(len(one.rows) for one in plans.values())
    first = next(iter(plans.values()))
    seconds, how = first.seconds(first.settings, n), "as the decoder says"
    if seconds is None:
        started = time.monotonic()
        decoder.decode(reader.encode([""]), negative=reader.negative(), settings=first.settings, batch_size=1)
        seconds, how = n * (time.monotonic() - started), "at most, by one picture that was timed"
    return f"{n:,} pictures, about {duration_words(seconds)} ({how}), besides what the judge takes"


def toker_curves(
    checkout: str | os.PathLike[str], reader: PromptEncoder, decoder: Decoder, judge: PictureJudge, *,
    out: str | os.PathLike[str], families: Sequence[str] = FAMILIES, stride: int = 4, encoder: str | None = None,
    drawing: Drawing | None = None, seed: int = 0, progress: bool = False, command: str | None = None,
) -> TokerCurves:  # fmt: skip
    """Draw layers of the released prompts, ask a judge what people were asked, and write curves beside theirs.

    In the folder stand ``curves.json``, ``curves.csv``, ``people.csv``, a figure ``FAMILY.html`` and a record
    ``FAMILY/`` for each family, and ``answers.json``; the same call again goes on from there.

    Args:
        checkout: A checkout of github.com/tokeron/DiffusionLens.
        reader: The text half of a pipeline of any format.
        decoder: What draws its conditions.
        judge: Who looks; a CLIP is given other prompts' captions as alternatives.
        out: A folder.
        families: Which prompts, of :data:`vit_lens.studies.annotate.FAMILIES`.
        stride: Every so many layers are drawn, counted back from the one that the format reads; the paper has 4.
        encoder: The text encoder whose layers are drawn, where there are several; None for the lens's choice.
        drawing: Settings, noise seeds and batch size; None for the decoder's own settings and :data:`SEEDS`.
        seed: Of the intervals' draws.
        progress: Whether bars are shown.
        command: The command that makes this again; None where there is none.

    Raises:
        StudyError: The checkout is not as released, there is no such family, or the judge cannot answer a question.
        RecordError: The folder holds pictures of another model or of other settings.
        OutputError: The folder cannot be written.
    """
    folder = as_path(out, OutputError, "out")
    layers, read = Layers.of(reader, _stride(stride), encoder), read_families(checkout, families)
    drawn = drawing or Drawing(seeds=list(SEEDS))
    people = _people(checkout, read, seed)
    judge.check([question for one in read for asked in one.questions.values() for question in asked])
    kept = KeptAnswers(judge, folder / "answers.json")
    rows = []
    for one in read:
        record = sweep(
            reader, decoder, Prompts(one.prompts), lens=layers.lens, sites=list(layers.sites), drawing=drawn,
            out=folder / one.name, progress=progress, command=command,
        )  # fmt: skip
        judge.check([question for asked in one.questions.values() for question in asked])
        try:
            told = pd.DataFrame(_answers(record, one, kept, progress))
        finally:  # what was answered before an interruption stays
            kept.save()
        rows += _shares(told, one, layers, seed)
    curves = pd.DataFrame(rows, columns=list(_COLUMNS))
    settings = decoder.defaults if drawn.settings is None else drawn.settings
    about = {
        "command": command, "encoder": reader.encoder_id, "pipeline": reader.format.pipeline,
        "decoder": decoder.decoder_id, "judge": judge.name, "settings": settings_dict(settings),
        "noise_seeds": list(drawn.seeds or ()), "stride": stride, "layers": layers.last,
        "text_encoder": layers.lens.encoder, "families": {one.name: len(one.prompts) for one in read},
    }  # fmt: skip
    found = TokerCurves(curves=curves, people=people, about=about)
    _write(found, folder, read, len(drawn.seeds or (0,)))
    return found


def _stride(stride: int) -> int:
    if stride < 1:
        raise StudyError(f"stride={stride}: expected 1 or more, every so many layers")
    return stride


def _people(checkout: str | os.PathLike[str], families: Sequence[Family], seed: int) -> pd.DataFrame:
    rows = []
    tables = read_released(checkout, "human").tables
    for family in families:
        for one in tables:
            if one.table == family.table:
                rows += [
                    {"family": family.name, "depth": row["layer"] / one.cells["layer"].max(), **row}
                    for row in table_means(one, seed)
                ]
    columns = ["family", "question", "model", "layer", "depth", "mean", "low", "high", "n", "prompts"]
    return pd.DataFrame(rows, columns=columns)


def _answers(record: Record, family: Family, judge: KeptAnswers, progress: bool) -> Iterator[dict[str, Any]]:
    table = record.table
    shown = zip(table["row"], table["input"], table["site"], strict=True)
    for row, entry, site in tqdm(shown, total=len(table), desc=f"{family.name}, {judge.name}", disable=not progress):
        prompt = record.entry(int(entry))["text"]
        asked = family.questions[prompt]
        picture = record.picture(int(row)).convert("RGB")
        for question, verdict in zip(asked, judge.answer(picture, asked), strict=True):
            yield {"prompt": prompt, "site": site, "question": question.question, "answer": verdict.answer}


def _shares(told: pd.DataFrame, family: Family, layers: Layers, seed: int) -> Iterator[dict[str, Any]]:
    for question in family.asked:
        for site, layer in layers.sites.items():
            own: Any = told.loc[(told["question"] == question) & (told["site"] == site)]
            sure = own.loc[own["answer"] != "unsure"]
            share = share_over_prompts(sure["answer"] == "yes", sure["prompt"], seed=seed)
            yield {
                "family": family.name, "question": question, "site": site, "layer": layer, "depth": layer / layers.last,
                "mean": share.value, "low": share.low, "high": share.high, "n": len(sure),
                "unsure": len(own) - len(sure), "prompts": sure["prompt"].nunique(),
            }  # fmt: skip


def _write(found: TokerCurves, folder: Path, families: Sequence[Family], n_seeds: int) -> None:
    make_directory(folder)
    for one in families:
        title = (
            f"{one.name.replace('_', ' ')}: n = {len(one.prompts)} prompts x {n_seeds} pictures, 95 % intervals over "
            f"prompts. {found.about['encoder']}, judge {found.about['judge']}; dotted: what people answered"
        )
        figure = curves_figure(_lines(found, one), title, across="share of the layers that the format reads")
        save(figure, folder / f"{one.name}.html")
    write_atomic(folder / "curves.csv", csv_bytes(found.curves))
    write_atomic(folder / "people.csv", csv_bytes(found.people))
    write_atomic(folder / "curves.json", (json.dumps(found.to_dict(), indent=1, allow_nan=False) + "\n").encode())


def _lines(found: TokerCurves, family: Family) -> list[Curve]:
    lines = []
    for question in family.asked:
        own: Any = found.curves
        own = own.loc[(own["family"] == family.name) & (own["question"] == question)]
        lines.append(_line(own, question, str(found.about["judge"]), beside=False))
        told: Any = found.people
        told = told.loc[(told["family"] == family.name) & (told["question"] == question)]
        for model, words in reversed(MODELS.items()):
            part = told.loc[told["model"] == model]
            if len(part):
                lines.append(_line(part, question, f"people, {words}", beside=True))
    return lines


def _line(part: pd.DataFrame, question: str, name: str, *, beside: bool) -> Curve:
    ends = [[None if pd.isna(x) else float(x) for x in part[end]] for end in ("mean", "low", "high")]
    return Curve(
        panel=question, name=name, layers=[float(x) for x in part["depth"]], mean=ends[0], low=ends[1], high=ends[2],
        beside=beside,
    )  # fmt: skip
