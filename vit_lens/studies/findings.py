"""What a study found: scores beside their intervals, nulls and controls, with what is needed to make it again."""

__all__ = ["LEAST_ENCODERS", "Null", "Score", "StudyResult", "load_result", "this_machine", "versions"]

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_lens import __version__
from vit_lens.errors import StudyError
from vit_lens.files import as_path, make_directory, read_json, write_atomic
from vit_lens.records import csv_bytes
from vit_lens.studies.statistics import Estimate

if TYPE_CHECKING:
    import pandas as pd

LEAST_ENCODERS = 6
"""How many text encoders allow an inference; the encoder is the unit."""
_FORMAT = "vit_lens.study.1"
_PACKAGES = ("torch", "diffusers", "transformers", "transformer-lens", "numpy", "scipy")


@dataclass(frozen=True, kw_only=True)
class Null:
    """What a score is when the lens has nothing to say: the mean and the 95% band of its draws.

    Attributes:
        mean: The mean of the draws; None without any.
        low: The 2.5% quantile of the draws; None without any.
        high: The 97.5% quantile of the draws; None without any.
        n_draws: How many draws are defined.

    >>> print(vl.studies.Null.of([0.0, 0.1, 0.2, None]))
    +0.10 [+0.01, +0.20] (3 draws)
    """

    mean: float | None
    low: float | None
    high: float | None
    n_draws: int

    @classmethod
    def of(cls, draws: Sequence[float | None]) -> "Null":
        """Summarise draws; undefined ones are left out and not counted."""
        known = [x for x in draws if x is not None and math.isfinite(x)]
        if not known:
            return cls(mean=None, low=None, high=None, n_draws=0)
        low, high = (float(x) for x in np.quantile(known, [0.025, 0.975]))
        return cls(mean=float(np.mean(known)), low=low, high=high, n_draws=len(known))

    def __str__(self) -> str:
        if self.mean is None or self.low is None or self.high is None:
            return "undefined"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}] ({self.n_draws} draws)"


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number of a study, with everything that says whether it means something.

    Attributes:
        measure: What was measured, in words that stay the same over encoders.
        reading: The lens with its strength, as the command line spells it, or the baseline's name.
        level: ``embedding`` (before decoding) or ``decoded`` (read off pictures).
        estimate: The value and its 95% interval.
        n: How many units the interval is over.
        unit: What those are: images, pairs, sites.
        nulls: What the score is where the lens has nothing to say, by name, such as ``equal-norm placebo``.
        controls: Single numbers by name, such as ``same site, other image``; None where one is undefined.

    >>> from vit_lens.studies.statistics import Estimate
    >>> score = vl.studies.Score(
    ...     measure="AUC", reading="diffusion", level="embedding", estimate=Estimate(0.7, 0.6, 0.8), n=50, unit="images"
    ... )
    >>> print(score)
    diffusion, embedding: +0.70 [+0.60, +0.80] (n = 50 images)
    """

    measure: str
    reading: str
    level: str
    estimate: Estimate
    n: int
    unit: str
    nulls: Mapping[str, Null] = field(default_factory=dict)
    controls: Mapping[str, float | None] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{self.reading}, {self.level}: {self.estimate} (n = {self.n} {self.unit})"]
        parts += [f"null, {name}: {null}" for name, null in self.nulls.items()]
        parts += [f"{name}: {'undefined' if x is None else f'{x:+.2f}'}" for name, x in self.controls.items()]
        return "; ".join(parts)


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """A study of one encoder, or several studies pooled.

    Attributes:
        study: The study by its command, such as ``content``, or ``pool``.
        setup: Model, decoder, judge, images, seeds, decoder settings: see :meth:`StudySetup.describe`.
        options: The study's own settings.
        scores: The numbers that it found.
        tables: Further tables by name, as lists of rows: per site, per attribute, per step.
        notes: What a reader must know, in sentences.
        command: The command that makes it again; None where there is none.

    >>> from vit_lens.studies.statistics import Estimate
    >>> score = vl.studies.Score(
    ...     measure="AUC", reading="diffusion", level="embedding", estimate=Estimate(0.7, 0.6, 0.8), n=50, unit="images"
    ... )
    >>> result = vl.studies.StudyResult(study="overlay", setup={"encoder": "mine"}, options={}, scores=(score,))
    >>> result.frame()[["reading", "value", "low", "high"]].values.tolist()
    [['diffusion', 0.7, 0.6, 0.8]]
    """

    study: str
    setup: Mapping[str, Any]
    options: Mapping[str, Any]
    scores: tuple[Score, ...]
    tables: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    command: str | None = None

    def frame(self, table: str | None = None) -> "pd.DataFrame":
        """Return the scores, or one of the tables, as a table.

        Args:
            table: The name of the table; None for the scores, one a row, with nulls and controls in columns.

        Raises:
            StudyError: There is no such table.
        """
        import pandas as pd

        if table is not None:
            if table not in self.tables:
                raise StudyError(f"no table {table!r} in this result; it has {', '.join(self.tables) or 'none'}")
            return pd.DataFrame(self.tables[table])
        return pd.DataFrame([_flat(score) for score in self.scores])

    def score(self, measure: str, reading: str, level: str) -> Score:
        """Return the score of a measure, reading and level, as :class:`Score` has them.

        Raises:
            StudyError: There is none, or more than one.
        """
        found = self._by_key.get((measure, reading, level), [])
        if len(found) != 1:
            wanted = (measure, reading, level)
            raise StudyError(f"{len(found)} scores are {wanted}; there are {sorted({s.measure for s in self.scores})}")
        return found[0]

    @cached_property
    def _by_key(self) -> dict[tuple[str, str, str], list[Score]]:
        found: dict[tuple[str, str, str], list[Score]] = {}
        for score in self.scores:
            found.setdefault((score.measure, score.reading, score.level), []).append(score)
        return found

    def __str__(self) -> str:
        return self.summary()

    def summary(self, measures: Sequence[str] | None = None) -> str:
        """Return the scores in words, those of some measures or all, and the notes."""
        found = dict.fromkeys(score.measure for score in self.scores)
        shown = [measure for measure in found if measures is None or measure in measures]
        seed = f", seed {self.setup['seed']}" if "seed" in self.setup else ""
        lines = [f"study {self.study}: {self.setup.get('encoder', '')}{seed}", *self._descriptive()]
        for measure in shown:
            lines += ["", measure]
            lines += [f"  {score}" for score in self.scores if score.measure == measure]
        if len(shown) < len(found):
            lines += ["", f"{len(found) - len(shown)} other measures: see scores.csv"]
        return "\n".join([*lines, "", *self.notes])

    def _descriptive(self) -> list[str]:
        """Say that so few text encoders, which the protocol of their studies counts, are described and no more."""
        n = len(self.setup.get("encoders", [self.setup]))
        is_few = "format" in self.setup and n < LEAST_ENCODERS
        return [f"descriptive: n = {n} of at least {LEAST_ENCODERS} encoders that are inferred from"] if is_few else []

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, None where something is undefined."""
        return {
            "format": _FORMAT, "study": self.study, "command": self.command, "setup": dict(self.setup),
            "options": dict(self.options), "machine": this_machine(), "versions": versions(),
            "scores": [asdict(score) for score in self.scores], "tables": dict(self.tables), "notes": list(self.notes),
        }  # fmt: skip

    def save(self, directory: Path) -> Path:
        """Write ``result.json`` and ``scores.csv``, and every table as ``<name>.csv``.

        Args:
            directory: The folder for the files, which is made where there is none.

        Returns:
            The path of ``result.json``, which :func:`load_result` reads.

        Raises:
            OutputError: They cannot be written.
            StudyError: A number is nan or infinite, which would say nothing about why.
        """
        make_directory(directory)
        try:
            text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        except ValueError as error:
            raise StudyError(f"a number of study {self.study} is not finite ({error}); say None and why") from error
        write_atomic(directory / "scores.csv", csv_bytes(self.frame()))
        for name in self.tables:
            write_atomic(directory / f"{name}.csv", csv_bytes(self.frame(name)))
        write_atomic(directory / "result.json", (text + "\n").encode())
        return directory / "result.json"


def load_result(path: str | Path) -> StudyResult:
    """Read what :meth:`StudyResult.save` wrote.

    Args:
        path: The file ``result.json``, or the folder that holds it.

    Raises:
        StudyError: The file is missing, damaged or something else.

    >>> result = vl.studies.StudyResult(study="overlay", setup={"encoder": "mine"}, options={}, scores=())
    >>> _ = result.save(tmp / "study")
    >>> vl.studies.load_result(str(tmp / "study")).setup
    {'encoder': 'mine'}
    """
    path = as_path(path, StudyError)
    path = path / "result.json" if path.is_dir() else path
    if not path.is_file():
        raise StudyError(f"no result of a study at {path}; give the folder of a study")
    found = read_json(path, StudyError, "run the study again")
    try:
        if found["format"] != _FORMAT:
            raise StudyError(f"{path} has format {found['format']!r}, expected {_FORMAT!r}; run the study again")
        _check_kinds(found)
        scores = tuple(_score(row) for row in found["scores"])
        return StudyResult(
            study=found["study"], setup=found["setup"], options=found["options"], scores=scores,
            tables=found["tables"], notes=tuple(found["notes"]), command=found["command"],
        )  # fmt: skip
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, StudyError):
            raise
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise StudyError(f"{path} is not a result of a study ({what}); run the study again") from error


def _check_kinds(found: dict[str, Any]) -> None:
    kinds = {"study": str, "setup": dict, "options": dict, "scores": list, "tables": dict, "notes": list}
    for name, kind in kinds.items():
        if not isinstance(found[name], kind):
            raise TypeError(f"{name} is a {type(found[name]).__name__}, expected {kind.__name__}")
    for row in found["scores"]:
        numbers = [row["estimate"][part] for part in ("value", "low", "high")]
        numbers += [null[part] for null in row["nulls"].values() for part in ("mean", "low", "high")]
        if wrong := [x for x in (*numbers, *row["controls"].values()) if not isinstance(x, (int, float, type(None)))]:
            raise TypeError(f"{row['measure']!r} has {wrong[0]!r} where a number belongs")
        if isinstance(row["n"], bool) or not isinstance(row["n"], int) or row["n"] < 0:
            raise TypeError(f"{row['measure']!r} has n = {row['n']!r}")
        value, low, high = numbers[:3]
        if (low is None) != (high is None) or (low is not None and (value is None or low > high)):
            raise ValueError(f"{row['measure']!r} has the interval {low} to {high} of {value}")


def _score(row: dict[str, Any]) -> Score:
    nulls = {name: Null(**null) for name, null in row.pop("nulls").items()}
    return Score(**{**row, "estimate": Estimate(**row["estimate"]), "nulls": nulls})


def _flat(score: Score) -> dict[str, Any]:
    row: dict[str, Any] = {"measure": score.measure, "reading": score.reading, "level": score.level}
    row |= {"value": score.estimate.value, "low": score.estimate.low, "high": score.estimate.high}
    row |= {"n": score.n, "unit": score.unit, "why": score.estimate.why}
    for name, null in score.nulls.items():
        row |= {f"{name}: mean": null.mean, f"{name}: low": null.low, f"{name}: high": null.high}
    return row | dict(score.controls)


def this_machine() -> dict[str, Any]:
    """Return what a result says of the machine that it was made on.

    >>> sorted(this_machine())
    ['processor', 'system', 'threads']
    """
    import torch

    return {"system": platform.system(), "processor": platform.machine(), "threads": torch.get_num_threads()}


def versions() -> dict[str, str]:
    """Return the versions of this package, of Python, and of the packages that numbers depend on.

    >>> versions()["vit_lens"]
    '0.1.0'
    """
    return {"vit_lens": __version__, "python": platform.python_version()} | {name: version(name) for name in _PACKAGES}
