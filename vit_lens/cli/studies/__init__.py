"""Commands of studies: content, importance, overlay, planted, faithfulness; pool joins those of several encoders."""

__all__ = ["study"]

import typer

from vit_lens.cli.options import grouped
from vit_lens.cli.studies.content import content
from vit_lens.cli.studies.faithfulness import faithfulness
from vit_lens.cli.studies.importance import importance
from vit_lens.cli.studies.overlay import overlay
from vit_lens.cli.studies.planted import planted
from vit_lens.cli.studies.pool import pool

study = typer.Typer(
    help="Can the picture be trusted? Studies hold what a lens shows against what a site does, nulls beside it.\n\n"
    "On the embedded pair they need no download. docs/protocol.md says what is measured, docs/trust.md what was found.",
    no_args_is_help=True,
)
for command in (content, importance, overlay, planted, faithfulness, pool):
    study.command()(grouped(command))
