"""The annotations that Toker et al. 2024 released, read from a checkout of their repository."""

__all__ = ["FOLDERS", "MODELS", "Released", "ReleasedTable", "paired", "read_released"]

import hashlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vit_lens.errors import StudyError
from vit_lens.files import as_path
from vit_lens.studies.annotate.tables import Line, read_table

FOLDERS = {"human": "human_annotations", "gpt": "gpt_annotations"}
MODELS = {"sd": "Stable Diffusion", "df": "DeepFloyd"}
_NAME = re.compile(
    r"(?:auto_prompts_)?(?P<table>[a-z_]+)_(?P<question>(?:Is|First|Second|Relation)[A-Za-z]+)_(?P<model>sd|df)"
    r"(?:_[a-z_]+_[0-9.]+)?\.csv"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class ReleasedTable:
    """The answers to one question about the pictures of one model.

    Attributes:
        table: Which prompts, such as ``classes``.
        question: The question, such as ``IsCorrect``.
        model: ``sd`` or ``df``.
        cells: A row for each answer: ``prompt``, ``seed``, ``layer``, ``value``.
        empty: How many cells hold nothing.
        unreadable: How many hold no number, such as a refusal.
        twice: How many stand in several lines of one prompt and seed, so that nobody knows which picture is meant; they
            are left out. Tables of people have none.
    """

    table: str
    question: str
    model: str
    cells: pd.DataFrame
    empty: int
    unreadable: int
    twice: int

    @property
    def name(self) -> tuple[str, str, str]:
        """Table, question and model."""
        return self.table, self.question, self.model


@dataclass(frozen=True, kw_only=True, eq=False)
class Released:
    """The tables of one folder.

    Attributes:
        tables: The tables, by name.
        n_files: How many files there are.
        repeats: Names of files that hold the same bytes as an earlier one about the same, which counts once.
    """

    tables: tuple[ReleasedTable, ...]
    n_files: int
    repeats: tuple[str, ...]


def read_released(checkout: str | os.PathLike[str], kind: str) -> Released:
    """Read a folder of released annotations.

    Files are named ``TABLE_QUESTION_MODEL....csv`` and hold ``prompt``, a column for each annotated layer, ``seed``.

    Args:
        checkout: A checkout of github.com/tokeron/DiffusionLens.
        kind: ``human`` (0 or 1), or ``gpt`` (0 to 10).

    Raises:
        StudyError: The folder or a file is not as released, or two files answer the same question differently.
    """
    folder = as_path(checkout, StudyError, "checkout") / FOLDERS[kind]
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise StudyError(f"{folder} holds no table; give a checkout of github.com/tokeron/DiffusionLens")
    found: dict[tuple[str, str, str], ReleasedTable] = {}
    contents: dict[tuple[str, str, str], tuple[str, Path]] = {}
    repeats: list[str] = []
    for file in files:
        if (name := _NAME.fullmatch(file.name)) is None:
            raise StudyError(f"{file} is named otherwise than the released tables: TABLE_QUESTION_sd.csv, or _df.csv")
        place, content = (name["table"], name["question"], name["model"]), hashlib.sha256(file.read_bytes()).hexdigest()
        if place not in contents:
            contents[place] = content, file
            found[place] = _read(file, place, most=1 if kind == "human" else 10)
        elif contents[place][0] == content:
            repeats.append(file.name)
        else:
            raise StudyError(f"{file} and {contents[place][1].name} answer the same question differently; keep one")
    return Released(tables=tuple(found[place] for place in sorted(found)), n_files=len(files), repeats=tuple(repeats))


def _read(file: Path, place: tuple[str, str, str], *, most: int) -> ReleasedTable:
    columns, lines = read_table(file, needed=["prompt", "seed"], optional=None)
    layers = [name for name in columns if name not in ("prompt", "seed")]
    if not layers or not all(name.isdecimal() for name in layers):
        raise StudyError(f"{file}: the columns are {', '.join(columns)}; expected prompt, layers as numbers, seed")
    rows, texts = [], 0
    for line in lines:
        prompt, seed = line.cells["prompt"], _seed(line)
        for layer in layers:
            if line.cells[layer].strip():
                value = _number(line.cells[layer])
                texts += value is None
                if value is not None and not 0 <= value <= most:
                    raise StudyError(f"{line.where}: {value:g} at layer {layer}; expected 0 to {most}")
                if value is not None:
                    rows.append((prompt, seed, int(layer), value))
    if texts and most == 1:
        raise StudyError(f"{file}: {texts} cells are neither 0 nor 1 nor empty")
    cells = pd.DataFrame(rows, columns=["prompt", "seed", "layer", "value"])
    twice = cells.duplicated(["prompt", "seed", "layer"], keep=False)
    if twice.any() and most == 1:
        raise StudyError(f"{file}: {cells['prompt'][twice.idxmax()]!r:.60} stands in two lines with one seed")
    return ReleasedTable(
        table=place[0], question=place[1], model=place[2], cells=cells.loc[~twice].reset_index(drop=True),
        empty=len(lines) * len(layers) - len(rows) - texts, unreadable=texts, twice=int(twice.sum()),
    )  # fmt: skip


def _seed(line: Line) -> int:
    found = _number(line.cells["seed"])
    if found is None or not found.is_integer():
        raise StudyError(f"{line.where}: the seed is {line.cells['seed']!r:.40}; expected a whole number")
    return int(found)


def _number(cell: str) -> float | None:
    try:
        found = float(cell)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def paired(human: Sequence[ReleasedTable], gpt: Sequence[ReleasedTable]) -> pd.DataFrame:
    """Return the cells that both judged: ``table, question, model, prompt, seed, layer, human, gpt``."""
    scores = {one.name: one.cells for one in gpt}
    parts = []
    for one in human:
        if one.name in scores:
            both = one.cells.merge(scores[one.name], on=["prompt", "seed", "layer"], suffixes=("_human", "_gpt"))
            both = both.rename(columns={"value_human": "human", "value_gpt": "gpt"})
            parts.append(both.assign(table=one.table, question=one.question, model=one.model))
    columns = ["table", "question", "model", "prompt", "seed", "layer", "human", "gpt"]
    return pd.concat(parts).loc[:, columns] if parts else pd.DataFrame(columns=columns)
