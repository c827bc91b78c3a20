"""Commands of studies: content, importance, overlay, planted, faithfulness; pool joins those of several encoders."""

__all__ = ["study"]

import typer

study = typer.Typer(
    help="Can the picture be trusted? Studies hold what a lens shows against what a site does, nulls beside it.\n\n"
    "On the embedded pair they need no download. docs/protocol.md says what is measured, docs/trust.md what was found.",
    no_args_is_help=True,
)
for command in ():
    study.command()(command)
