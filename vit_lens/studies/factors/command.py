"""The command `vit-lens study factors`."""

__all__ = ["factors"]

from pathlib import Path
from typing import Annotated

import typer

from vit_lens.cli import flags, intake
from vit_lens.studies import command_parts as parts


def factors(
    results: Annotated[list[Path], typer.Argument(help="Folders of one study on encoders of several kinds.")],
    out: flags.Out = Path("vit-lens-study-factors"),
) -> None:
    """Is it attention, positions or objective? One study on encoders that differ in one of them at a time."""
    from vit_lens.studies import load_result
    from vit_lens.studies.factors.figures import factors_figure
    from vit_lens.studies.factors.study import factors_study as run

    found = run([load_result(path) for path in results], command=intake.command_line())
    frame = found.frame()
    known = dict.fromkeys(frame.loc[frame["value"].notna(), "measure"])
    parts.finish(found, out, {f"scores_{k}": factors_figure(found, measure) for k, measure in enumerate(known)})
