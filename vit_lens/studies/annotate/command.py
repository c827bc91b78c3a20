"""The group of commands `vit-lens annotate`."""

__all__ = ["annotate"]

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vit_lens.cli import flags
from vit_lens.errors import StudyError
from vit_lens.studies.command_parts import n_tested

if TYPE_CHECKING:
    from vit_lens.records import Record

Records = Annotated[list[Path], typer.Argument(help="Folders of sweeps, as of `vit-lens sweep --prompts`.")]
Questions = Annotated[
    Path | None,
    typer.Option(
        help="CSV of questions: prompt,question,text and maybe caption,alternatives. An empty prompt is every prompt, "
        "{prompt} stands for it. Default: Does the picture show: {prompt}?"
    ),
]
Most = Annotated[int | None, n_tested(1)]
Seed = Annotated[int, typer.Option("--sheet-seed", min=0, help="Decides which pictures, and their order.")]
Layers = Annotated[list[str] | None, typer.Option(help="Layers that are shown, such as 3,7,11. Default: all.")]
_KEY = typer.Option(
    help="The .key.json that was written beside the page; judge answers that page, and without it a sheet by the "
    "options below."
)
Key = Annotated[Path, _KEY]


def page(
    records: Records,
    out: flags.OutFile,
    questions: Questions = None,
    n: Most = None,
    seed: Seed = 0,
    layers: Layers = None,
) -> None:
    """Write one offline page that asks people about pictures, and beside it the key of what they were.

    The page knows no layer, lens or control. Keep the key from annotators.
    """
    from vit_lens.studies.annotate import make_sheet, write_annotation_page
    from vit_lens.studies.annotate.page import key_path

    found = _load(records)
    sheet = make_sheet(found, questions=questions, n=n, seed=seed, layers=_layers(layers))
    target = write_annotation_page(sheet, found, out)
    _say_left_out(found)
    counts = f"pictures: {len(sheet.items)}, questions: {len(sheet.tasks)}"
    typer.echo(f"{counts}\npage: {target}\nkey: {key_path(target)}")


def judge(
    records: Records,
    judge: Annotated[str, flags.JUDGE],
    out: flags.OutFile,
    key: Annotated[Path | None, _KEY] = None,
    questions: Questions = None,
    n: Most = None,
    seed: Seed = 0,
    layers: Layers = None,
    device: flags.Device = "cpu",
) -> None:
    """Answer the questions of a page by a judge, in the form in which people answer."""
    from vit_lens.studies.annotate import Sheet, judge_sheet, make_sheet, named_judge, write_answers
    from vit_lens.studies.annotate.page import key_path

    if key is not None and (questions is not None or n is not None or seed or layers):
        raise StudyError("--key says what is asked: leave --questions, --n, --sheet-seed and --layers out")
    found, made = _load(records), named_judge(judge, device)
    if key is not None:
        sheet = Sheet.load(key)
    else:
        sheet = make_sheet(found, questions=questions, n=n, seed=seed, layers=_layers(layers))
    answers = judge_sheet(made, sheet, found, progress=True)
    typer.echo(f"{len(answers)} answers of {made.name}: {write_answers(answers, out)}")
    if key is None:
        _say_left_out(found)
        typer.echo(f"key: {sheet.save(key_path(out))}")


def read(
    answers: Annotated[list[Path], typer.Argument(help="Tables of answers to one page, of people and of judges.")],
    key: Key,
    out: flags.Out,
) -> None:
    """Join answers with the key: means by site beside the controls, and Fleiss' kappa, with intervals."""
    from vit_lens.studies.annotate import read_annotations

    found = read_annotations(answers, key, out)
    told = found.joined["annotator"].value_counts(sort=False)
    typer.echo(f"answers: {', '.join(f'{name} {count}' for name, count in told.items())}")
    if found.answers.repeated:
        typer.echo(f"{found.answers.repeated} lines say again what an earlier one says; each counts once")
    if found.answers.changed:
        typer.echo(f"{found.answers.changed} lines change an earlier answer of the same annotator; the last one counts")
    for row in found.agreement.to_dict("records"):
        said = _told(row["kappa"], row["low"], row["high"]) or f"undefined ({row['why']})"
        typer.echo(
            f"kappa, {row['question']}, {row['raters']}, {row['categories']}: {said}; "
            f"{row['rated_twice']} rated twice, {row['unsure']:.0%} cannot tell"
        )
    _say_written(out, "answers.csv", "means.csv", "agreement.csv", "means.html")


def released(
    checkout: Annotated[Path, typer.Argument(help="A checkout of github.com/tokeron/DiffusionLens.")],
    out: flags.Out,
) -> None:
    """Recompute the tables that Toker et al. 2024 released: means, emergence, GPT against people."""
    from vit_lens.studies.annotate import recompute

    found = recompute(checkout, out)
    people, gpt = found.counts["human"], found.counts["gpt"]
    typer.echo(
        f"people: {people['files']} files, of which {len(people['repeats'])} repeat another's bytes and count once: "
        f"{people['tables']} tables, {people['cells']} answers, {people['empty']} cells empty\n"
        f"GPT: {gpt['tables']} tables, {gpt['cells']} scores, {gpt['unreadable']} cells without a number, "
        f"{gpt['twice']} of prompts that stand there twice"
    )
    for (table, question, model), part in found.means.groupby(["table", "question", "model"]):
        shares = ", ".join(f"{layer} {mean:.2f}" for layer, mean in zip(part["layer"], part["mean"], strict=True))
        typer.echo(f"{table} {question} {model}, share by layer: {shares} (n {part['n'].max()})")
    for row in found.emergence.to_dict("records"):
        first, stays, equal = (
            _told(row[name], row[f"{name}: low"], row[f"{name}: high"]) or "undefined"
            for name in ("first", "stays", "equal")
        )
        typer.echo(
            f"{row['table']} {row['question']} {row['model']}: first right at {first}, right from {stays} on, "
            f"equal {equal} (n {row['n']}); right earlier and wrong at the end {row['lost']} of {row['wrong']} wrong"
        )
    for row in found.gpt.to_dict("records"):
        typer.echo(
            f"GPT against people, {row['question']}: {row['pairs']} pairs, AUC {_told(row['auc']) or 'undefined'}, "
            f"accuracy {row['accuracy']:.3f}"
        )
    _say_written(out, "means.csv", "emergence.csv", "gpt.csv", "counts.json", "curves.html")


def _load(paths: Sequence[Path]) -> "list[Record]":
    from vit_lens.records import Record

    return [Record.load(path) for path in paths]


def _layers(given: Sequence[str] | None) -> list[int] | None:
    said = flags.split_list(given) if given else []
    if wrong := [word for word in said if not word.isdecimal()]:
        raise StudyError(f"--layers {wrong[0]!r}; expected numbers, such as 3,7,11")
    return [int(word) for word in said] or None


def _say_left_out(records: "Sequence[Record]") -> None:
    from vit_lens.studies.annotate.collecting import drawn_rows

    for record in records:
        if left := int((~drawn_rows(record)).sum()):
            typer.echo(f"{record.path}: {left} pictures are not drawn, or only coarsely, and were left out")


def _told(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """Return a number with its interval, in words; empty where there is none."""
    known = [None if one is None or one != one else float(one) for one in (value, low, high)]
    if known[0] is None:
        return ""
    ends = "" if known[1] is None or known[2] is None else f" [{known[1]:.2f}, {known[2]:.2f}]"
    return f"{known[0]:.{2 if ends else 3}f}{ends}"


def _say_written(folder: Path, *names: str) -> None:
    typer.echo(f"written: {', '.join(str(folder / name) for name in names)}")


annotate = typer.Typer(
    help="What do pictures of text encoders show? People and judges answer, blind to layer and control.\n\n"
    "docs/annotation.md has an example from the sweep to kappa.",
    no_args_is_help=True,
)
for command in (page, judge, read, released):
    annotate.command()(flags.grouped(command))
