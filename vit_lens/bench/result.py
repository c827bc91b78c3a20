"""What the bench found: a table, ``bench.json`` (schema.json beside this file says what is in it) and ``bench.csv``."""

__all__ = ["Bench", "Outcome", "load_bench"]

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_lens.bench.measuring import Measured, as_json
from vit_lens.bench.schema import schema_errors
from vit_lens.errors import StudyError
from vit_lens.estimates import Estimate
from vit_lens.files import as_path, make_directory, read_json, write_atomic
from vit_lens.records import csv_bytes
from vit_lens.studies import this_machine, versions

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "vit_lens.bench.1"
_SHOWN = ("planted", "fidelity", "selectivity", "kept", "decoys", "random weights")
_NOTES = (
    "Plants are drawn anew from the seeds; an interval is over plants. Everything is planted in two embedded models "
    "of procedural worlds: nothing here is known of larger models.",
    "planted: the area under the curve less its placebo, or less chance (.5) where the placebo is below; of heads, "
    "names and relations 0 is chance and .5 the best there is. Of features the placebo is as many random directions.",
    "fidelity: of lenses the rank correlation of what is read with what ablation takes away; of dictionaries what the "
    "model keeps of itself, between the mean token (0) and itself (1).",
    "selectivity: how far the output moves to the target, by how far the classes lie apart, less what equally long "
    "random changes do. kept: the share of other attributes whose nearest caption stays.",
    "decoys, random weights: what is shown where there is nothing to find. 0 is right.",
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one candidate.

    Attributes:
        name: The candidate.
        kind: ``lens``, ``dictionary`` or ``steer``.
        tasks: What it was asked.
        scores: The measures of the tasks that it finished.
        error: What it raised, or returned that is wrong, with the task; None where all went well.
        seconds: How long it took, plants that it was the first to ask for among it.

    >>> Outcome(name="mine", kind="lens", tasks=("heads",), scores=(), error="heads: ...", seconds=0.1).error
    'heads: ...'
    """

    name: str
    kind: str
    tasks: tuple[str, ...]
    scores: tuple[Measured, ...]
    error: str | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the bench found.

    Attributes:
        seeds: The seeds of the plants.
        n_plants: How many plants each task has for each seed.
        outcomes: What came of every candidate.
        command: The command that makes it again; None where there is none.

    >>> print(Bench(seeds=(0,), n_plants=6, outcomes=()).table().splitlines()[0])
    seeds 0, 6 plants of each: value less placebo [95% interval over plants]
    """

    seeds: tuple[int, ...]
    n_plants: int
    outcomes: tuple[Outcome, ...]
    command: str | None = None

    @property
    def failed(self) -> list[Outcome]:
        """The candidates that raised, or returned something wrong."""
        return [one for one in self.outcomes if one.error is not None]

    def with_outcome(self, outcome: Outcome) -> "Bench":
        """Return the same with one candidate more.

        Args:
            outcome: What came of it.
        """
        return replace(self, outcomes=(*self.outcomes, outcome))

    def table(self) -> str:
        """Return the table that the command prints: a block for each task, a line for each candidate."""
        lines = [
            f"seeds {', '.join(map(str, self.seeds))}, {self.n_plants} plants of each: value less placebo "
            "[95% interval over plants]"
        ]
        for task in dict.fromkeys(task for one in self.outcomes for task in one.tasks):
            lines += ["", *_block(task, self.outcomes)]
        lines += [f"\nfailed: {one.name} ({one.kind}): {one.error}" for one in self.failed]
        return "\n".join(lines)

    def frame(self) -> "pd.DataFrame":
        """Return every measure of every candidate, one a row."""
        import pandas as pd

        return pd.DataFrame([{k: v for k, v in row.items() if k != "values"} for row in self._rows()])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "format": FORMAT, "seeds": list(self.seeds), "n_plants": self.n_plants, "command": self.command,
            "machine": this_machine(), "versions": versions(), "notes": list(_NOTES),
            "candidates": [
                {"name": one.name, "kind": one.kind, "tasks": list(one.tasks), "error": one.error,
                 "seconds": one.seconds} for one in self.outcomes
            ],
            "scores": self._rows(),
        }  # fmt: skip

    def save(self, directory: str | Path) -> Path:
        """Write ``bench.json`` and ``bench.csv``, each whole or not at all, and return the path of the first.

        Args:
            directory: The folder, which is made where there is none.

        Raises:
            OutputError: They cannot be written.
            StudyError: They would not be what the schema says, such as a number that is not finite.
        """
        place, found = as_path(directory, StudyError), self.to_dict()
        make_directory(place)
        if wrong := schema_errors(found):
            raise StudyError(f"bench.json would not fit its schema: {wrong[0]}")
        write_atomic(place / "bench.csv", csv_bytes(self.frame()))
        write_atomic(place / "bench.json", (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
        return place / "bench.json"

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {"candidate": one.name, "kind": one.kind, **as_json(score)} for one in self.outcomes for score in one.scores
        ]


def load_bench(path: str | Path) -> Bench:
    """Read what :meth:`Bench.save` wrote.

    Args:
        path: The file ``bench.json``, or the folder that holds it.

    Raises:
        StudyError: There is none, or it is not what its schema says.

    >>> path = Bench(seeds=(1,), n_plants=2, outcomes=()).save(tmp / "bench")
    >>> vl.bench.load_bench(path).seeds
    (1,)
    """
    place = as_path(path, StudyError)
    place = place / "bench.json" if place.is_dir() else place
    if not place.is_file():
        raise StudyError(f"no results of a benchmark at {place}; `vit-lens bench --ours --out FOLDER` makes some")
    found = read_json(place, StudyError, "run the benchmark again")
    if wrong := schema_errors(found):
        raise StudyError(f"{place} does not fit the schema of benchmarks ({wrong[0]}); run the benchmark again")
    return Bench(
        seeds=tuple(found["seeds"]), n_plants=found["n_plants"], command=found["command"],
        outcomes=tuple(_outcome(one, found["scores"]) for one in found["candidates"]),
    )  # fmt: skip


def _outcome(one: Mapping[str, Any], rows: list[dict[str, Any]]) -> Outcome:
    own = [row for row in rows if (row["candidate"], row["kind"]) == (one["name"], one["kind"])]
    scores = tuple(
        Measured(
            task=row["task"], measure=row["measure"], raw=row["raw"], placebo=row["placebo"], less=row["less"],
            estimate=Estimate(row["value"], row["low"], row["high"], row["why"]), values=tuple(row["values"]),
        ) for row in own
    )  # fmt: skip
    return Outcome(**{**one, "tasks": tuple(one["tasks"])}, scores=scores)


def _block(task: str, outcomes: tuple[Outcome, ...]) -> list[str]:
    told = {one.name: {s.measure: s for s in one.scores if s.task == task} for one in outcomes if task in one.tasks}
    measures = [name for name in _SHOWN if any(name in row for row in told.values())]
    cells = [[task, *measures, "n"]]
    for name, row in told.items():
        n = max((score.n for score in row.values()), default=0)
        values = [str(row[measure].estimate) if measure in row else "-" for measure in measures]
        cells.append([name, *values, str(n)] if row else [name, "failed"])
    wide = [max(len(row[i]) for row in cells if i < len(row)) for i in range(len(cells[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=False)).rstrip() for row in cells]
