"""The command that joins results of several encoders."""

__all__ = ["pool"]

from pathlib import Path
from typing import Annotated

import typer

from vit_lens.cli.options import Out
from vit_lens.cli.reading import command_line
from vit_lens.cli.studies.options import finish


def pool(
    results: Annotated[list[Path], typer.Argument(help="Folders of one study on several encoders.")],
    out: Out,
) -> None:
    """Average a study over encoders, which are its unit of inference, with intervals and paired differences."""
    from vit_lens.figures.studies import score_figure
    from vit_lens.studies import load_result
    from vit_lens.studies import pool as join
    from vit_lens.studies.headlines import headlines

    found = join([load_result(path) for path in results], command=command_line())
    frame = found.frame()
    known = set(frame.loc[frame["value"].notna(), "measure"])
    measures = [measure for measure in headlines(found) if measure in known]
    finish(found, out, {f"scores_{k}": score_figure(frame, measure) for k, measure in enumerate(measures)})
