"""The released tables of Toker et al. 2024 recomputed: means, emergence, GPT against people, curves."""

__all__ = ["Recomputed", "gpt_against_people", "recompute", "table_means"]

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from vit_lens.errors import OutputError
from vit_lens.figures import save
from vit_lens.files import as_path, make_directory, write_atomic
from vit_lens.records import csv_bytes
from vit_lens.studies.annotate.agreeing import EVERY_QUESTION
from vit_lens.studies.annotate.curves import Curve, curves_figure
from vit_lens.studies.annotate.emerging import emergence
from vit_lens.studies.annotate.released_tables import FOLDERS, MODELS, Released, ReleasedTable, paired, read_released
from vit_lens.studies.annotate.shares import share_over_prompts
from vit_lens.studies.statistics import auc

_RIGHT = 5  # of GPT's 0 to 10, from which on its answer counts as yes
_TITLE = (
    "Share of pictures that people judged right, by annotated layer of the text encoder; 95 % intervals over prompts"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Recomputed:
    """What the released tables say.

    Attributes:
        counts: Files, tables, repeats, cells, those that are empty, unreadable or there twice, of people and
            of GPT.
        means: By table, question, model and layer: ``mean, low, high, n, prompts``, of people.
        emergence: By table, question and model; see :func:`vit_lens.studies.annotate.emergence`.
        gpt: Of GPT against people: ``question, tables, pairs, auc, accuracy``.
    """

    counts: dict[str, dict[str, Any]]
    means: pd.DataFrame
    emergence: pd.DataFrame
    gpt: pd.DataFrame


def recompute(checkout: str | os.PathLike[str], out: str | os.PathLike[str], *, seed: int = 0) -> Recomputed:
    """Recompute the tables; write ``means.csv``, ``emergence.csv``, ``gpt.csv``, ``counts.json``, ``curves.html``.

    A file that repeats another's answers counts once; empty cells are left out and counted. The pictures were not
    released, and who annotated was not either: there is no agreement between people to compute.

    Args:
        checkout: A checkout of github.com/tokeron/DiffusionLens.
        out: A folder.
        seed: Of the intervals' draws.

    Raises:
        StudyError: The checkout is not as released.
        OutputError: The folder cannot be written.
    """
    folder = as_path(out, OutputError, "out")
    people, gpt = (read_released(checkout, kind) for kind in FOLDERS)
    both = paired(people.tables, gpt.tables)
    found = Recomputed(
        counts={"human": _counts(people), "gpt": _counts(gpt)},
        means=pd.DataFrame([row for one in people.tables for row in table_means(one, seed)]),
        emergence=pd.DataFrame([_emergence(one, seed) for one in people.tables]), gpt=gpt_against_people(both),
    )  # fmt: skip
    make_directory(folder)
    for name, frame in {"means": found.means, "emergence": found.emergence, "gpt": found.gpt}.items():
        write_atomic(folder / f"{name}.csv", csv_bytes(frame))
    write_atomic(folder / "counts.json", json.dumps(found.counts, indent=1).encode())
    save(curves_figure(_curves(found.means), _TITLE), folder / "curves.html")
    return found


def gpt_against_people(both: pd.DataFrame) -> pd.DataFrame:
    """Return how well GPT's scores tell what people judged right, over all questions and by question.

    Args:
        both: What :func:`vit_lens.studies.annotate.paired` returned.

    Returns:
        ``question, tables, pairs, auc, accuracy``: accuracy counts a score of 5 or more as yes. An AUC is missing where
        people always gave one answer.
    """
    parts = [(EVERY_QUESTION, both), *both.groupby("question", sort=True)]
    return pd.DataFrame([_against(str(question), part) for question, part in parts if len(part)])


def _against(question: str, both: pd.DataFrame) -> dict[str, Any]:
    scores, right = both["gpt"].to_numpy(dtype=np.float64), both["human"].to_numpy(dtype=np.float64) == 1
    return {
        "question": question, "tables": len(both[["table", "question", "model"]].drop_duplicates()), "pairs": len(both),
        "auc": auc(scores, right), "accuracy": float(((scores >= _RIGHT) == right).mean()),
    }  # fmt: skip


def _counts(released: Released) -> dict[str, Any]:
    return {
        "files": released.n_files, "tables": len(released.tables), "repeats": list(released.repeats),
        "cells": sum(len(one.cells) for one in released.tables), "empty": sum(one.empty for one in released.tables),
        "unreadable": sum(one.unreadable for one in released.tables),
        "twice": sum(one.twice for one in released.tables),
    }  # fmt: skip


def table_means(one: ReleasedTable, seed: int) -> list[dict[str, Any]]:
    """Return the share that people judged right, layer by layer, with its interval over prompts."""
    rows = []
    for layer, cells in one.cells.groupby("layer", sort=True):
        found = share_over_prompts(cells["value"], cells["prompt"], seed=seed)
        rows.append({
            "table": one.table, "question": one.question, "model": one.model, "layer": layer, "mean": found.value,
            "low": found.low, "high": found.high, "n": len(cells), "prompts": cells["prompt"].nunique(),
        })  # fmt: skip
    return rows


def _emergence(one: ReleasedTable, seed: int) -> dict[str, Any]:
    found = asdict(emergence(one.cells, seed=seed))
    row: dict[str, Any] = {"table": one.table, "question": one.question, "model": one.model}
    for name in ("first", "stays", "equal"):
        row |= {name: found[name]["value"], f"{name}: low": found[name]["low"], f"{name}: high": found[name]["high"]}
    return row | {name: found[name] for name in ("n", "lost", "wrong")}


def _curves(means: pd.DataFrame) -> list[Curve]:
    ordered = means.sort_values(["table", "model", "question", "layer"], ascending=[True, False, True, True])
    groups: Any = ordered.groupby(["table", "model", "question"], sort=False)
    return [
        Curve(
            panel=f"{table.removeprefix('positional_').replace('_', ' ')}, {MODELS[model]}", name=question,
            layers=[str(layer) for layer in part["layer"]], mean=_plain(part["mean"]), low=_plain(part["low"]),
            high=_plain(part["high"]),
        )
        for (table, model, question), part in groups
    ]  # fmt: skip


def _plain(column: pd.Series) -> list[float | None]:
    return [None if pd.isna(value) else float(value) for value in column]
