"""The figures of Shabalin et al. 2025 (arXiv 2505.24360) on any model that activations are read of."""

__all__ = ["FIGURES", "Shabalin", "chosen_figures", "shabalin_figures"]

import html
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from vit_lens.errors import OutputError, StudyError, nearest
from vit_lens.figures import save
from vit_lens.files import as_path, make_directory, read_json, write_atomic
from vit_lens.records import csv_bytes
from vit_lens.studies.paper.shabalin_bench import Bench
from vit_lens.studies.paper.shabalin_features import FEATURES
from vit_lens.studies.paper.shabalin_figure import PaperFigure, plain
from vit_lens.studies.paper.shabalin_lines import titled
from vit_lens.studies.paper.shabalin_norms import NORMS
from vit_lens.studies.paper.shabalin_reconstruction import OVER_BLOCKS, OVER_K, OVER_WIDTH
from vit_lens.studies.paper.shabalin_scores import SCORES
from vit_lens.studies.paper.shabalin_spatial import SPATIAL
from vit_lens.studies.paper.shabalin_spectrum import SPECTRUM
from vit_lens.studies.paper.shabalin_steering import STEERING
from vit_lens.studies.paper.shabalin_steps import STEPS

FIGURES: tuple[PaperFigure, ...] = (
    NORMS, SPECTRUM, OVER_K, OVER_WIDTH, OVER_BLOCKS, STEPS, FEATURES, SPATIAL, SCORES, STEERING,
)  # fmt: skip
"""The figures, in the order in which they are drawn. Another is a file that makes a
``PaperFigure``, and a name here."""
_FORMAT = "vit_lens.shabalin.1"
_ADVICE = "remove it, and run the same command again"
_PAPER = "Shabalin et al. 2025, arXiv 2505.24360"


@dataclass(frozen=True, kw_only=True)
class Shabalin:
    """What was drawn.

    Attributes:
        findings: What each figure says, by name.
        left_out: Why others are not drawn of this model, by name.
        page: The page with all of them.
    """

    findings: Mapping[str, str]
    left_out: Mapping[str, str]
    page: Path


def chosen_figures(names: Sequence[str] | None) -> tuple[PaperFigure, ...]:
    """Return figures by name; None for all.

    Raises:
        StudyError: There is none of that name.
    """
    known = {one.name: one for one in FIGURES}
    for name in names or ():
        if name not in known:
            raise StudyError(f"no figure {name!r}; nearest: {nearest(name, known)}")
    return FIGURES if not names else tuple(one for one in FIGURES if one.name in names)


def shabalin_figures(
    bench: Bench, figures: Sequence[PaperFigure] = FIGURES, *, command: str | None = None,
    tell: Callable[[str], None] = lambda words: None,
) -> Shabalin:  # fmt: skip
    """Measure and draw the figures; the same call again goes on where it stopped.

    In the folder of the bench stand ``FIGURE.html``, ``FIGURE.json``, ``FIGURE_TABLE.csv`` for each, ``index.html``
    with all, ``settings.json``; ``activations/``, ``dictionaries/``, ``pictures/``, ``strips/`` may be deleted at the
    end.

    Args:
        bench: The model, its inputs and sizes.
        figures: The figures.
        command: The command that makes this again; None where there is none.
        tell: Is told what was found, figure by figure.

    Raises:
        OutputError: The folder holds figures of other settings, or other things, or cannot be written.
        DictionaryError: Something cannot be learnt or measured.
    """
    folder = as_path(bench.folder, OutputError, "out")
    about = bench.about()
    own_folder(folder, about)
    left_out = {one.name: words for one in figures if (words := one.lacks(bench)) is not None}
    findings: dict[str, str] = {}
    drawn: dict[str, go.Figure] = {}
    for one in figures:
        if one.name in left_out:
            continue
        tables = _measured(one, bench, folder, about, command)
        finding = one.finding(tables, about)
        findings[one.name] = str(finding)
        drawn[one.name] = titled(one.draw(tables, about), finding)
        save(drawn[one.name], folder / f"{one.name}.html")
        tell(f"{one.name}: {finding}")
    page = _write_page(folder / "index.html", figures, drawn, left_out, about, command)
    return Shabalin(findings=findings, left_out=left_out, page=page)


def _measured(
    one: PaperFigure, bench: Bench, folder: Path, about: Mapping[str, Any], command: str | None
) -> dict[str, list[dict[str, Any]]]:
    """Return the tables of a figure: those in the folder, or those that are measured now, and kept."""
    path = folder / f"{one.name}.json"
    if path.is_file():
        kept = read_json(path, OutputError, _ADVICE)
        if kept.get("format") != _FORMAT or not isinstance(kept.get("tables"), dict):
            raise OutputError(f"{path} holds no numbers of a figure; {_ADVICE}")
        return kept["tables"]
    tables = plain(one.measure(bench))
    for name, rows in tables.items():
        write_atomic(folder / f"{one.name}_{name}.csv", csv_bytes(pd.DataFrame(rows)))
    said = {"format": _FORMAT, "figure": one.name, "finding": str(one.finding(tables, about)), "command": command}
    text = json.dumps({**said, "about": about, "tables": tables}, indent=1, allow_nan=False)
    write_atomic(path, (text + "\n").encode())
    return tables


def own_folder(folder: Path, about: Mapping[str, Any]) -> None:
    """Keep what a folder is of; refuse one that is of other figures, or holds other things.

    Raises:
        OutputError: It does.
    """
    path, text = folder / "settings.json", json.dumps(about, sort_keys=True, indent=1) + "\n"
    if path.is_file():
        if path.read_text() != text:
            raise OutputError(
                f"--out {folder} holds figures of another model, other inputs or other sizes (settings.json); choose "
                "another folder, or run the same command"
            )
        return
    if folder.is_dir() and (left := sorted(each.name for each in folder.iterdir())):
        raise OutputError(f"--out {folder} holds {', '.join(left[:3])} already; choose a folder of its own")
    make_directory(folder)
    write_atomic(path, text.encode())


def _write_page(
    path: Path, figures: Sequence[PaperFigure], drawn: Mapping[str, go.Figure], left_out: Mapping[str, str],
    about: Mapping[str, Any], command: str | None,
) -> Path:  # fmt: skip
    """Write one page with all figures; plotly's script stands in it once."""
    parts = []
    for index, one in enumerate(one for one in figures if one.name in drawn):
        shown = drawn[one.name].to_html(include_plotlyjs=index == 0, full_html=False)
        parts.append(f"<section><p>{html.escape(one.words)} <a href='{one.name}.json'>numbers</a></p>{shown}</section>")
    model, run = html.escape(str(about["model"])), html.escape(command or "")
    lead = (
        f"<h1>Dictionaries of {model}</h1><p>The figures of {_PAPER}, on this model: {about['n_inputs']} "
        f"{about['unit']}, {about['n_held_out']} of them held out; k = {about['k']}, {about['width']} features, "
        f"{about['n_tokens']:,} tokens learnt from. One seed: intervals are over {about['unit']} or features, not over "
        f"trainings.</p><p><code>{run}</code></p>"
    )
    gaps = "".join(f"<li>{html.escape(name)}: not drawn, {html.escape(words)}</li>" for name, words in left_out.items())
    style = "body{font-family:system-ui,Helvetica,Arial,sans-serif;max-width:1180px;margin:24px auto;color:#1c1b19}"
    text = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Dictionaries of {model}</title>"
        f"<style>{style}</style></head><body>{lead}{''.join(parts)}<ul>{gaps}</ul></body></html>\n"
    )
    write_atomic(path, text.encode())
    return path
