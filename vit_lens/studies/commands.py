"""The commands of studies, mounted on the command line: each folder here has its own, which bears the folder's name."""

__all__ = ["mount"]

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from vit_lens.cli import flags, intake
from vit_lens.studies import STUDIES
from vit_lens.studies.command_parts import finish


def mount(app: typer.Typer) -> None:
    """Add ``study``, with a command for each study, and the groups of those that are no single command."""
    study = typer.Typer(
        help="Can the picture be trusted? Studies hold what a lens shows against what a site does, nulls beside it.\n\n"
        "On the embedded pair they need no download. docs/protocol.md says what is measured, docs/trust.md what was "
        "found.",
        no_args_is_help=True,
    )
    app.add_typer(study, name="study")
    for name in STUDIES:
        command = getattr(import_module(f"vit_lens.studies.{name}.command"), name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            study.command()(flags.grouped(command))
    study.command()(pool)


def pool(
    results: Annotated[list[Path], typer.Argument(help="Folders of one study on several encoders.")],
    out: flags.Out,
    comparisons: Annotated[
        int,
        typer.Option(min=1, max=1000, help="Readings compared to choose one: differences get a wider interval, too."),
    ] = 1,
) -> None:
    """Average a study over encoders, which are its unit of inference, with intervals and paired differences."""
    from vit_lens.studies import load_result, score_figure
    from vit_lens.studies import pool as join
    from vit_lens.studies.headlines import figures_of, headlines

    found = join([load_result(path) for path in results], comparisons=comparisons, command=intake.command_line())
    frame = found.frame()
    known = set(frame.loc[frame["value"].notna(), "measure"])
    measures = [measure for measure in headlines(found) if measure in known]
    scores = {f"scores_{k}": score_figure(frame, measure) for k, measure in enumerate(measures)}
    finish(found, out, scores | figures_of(found))
