"""The command `vit-lens study knowledge`."""

__all__ = ["knowledge"]

from pathlib import Path
from typing import Annotated

import typer

from vit_lens.cli import flags, intake
from vit_lens.studies import command_parts as parts
from vit_lens.studies.text_parts import TextStudy


def knowledge(
    study: TextStudy,
    n: Annotated[int, parts.n_tested(2)] = 32,
    common: Annotated[str, typer.Option(help="Which kind of --prompt-table has common names.")] = "common name",
    rare: Annotated[str, typer.Option(help="Which kind of --prompt-table has rare names.")] = "rare name",
    plant: Annotated[
        list[int] | None,
        typer.Option(help="Block that a table is planted in, as a control; repeat. Default: three, over the depth."),
    ] = None,
    out: flags.Out = Path("vit-lens-study-knowledge"),
) -> None:
    """Are rare names drawn later than common ones, and is what a name means looked up in one place?"""
    from vit_lens.studies.knowledge.figures import figures_of
    from vit_lens.studies.knowledge.study import COMMON, RARE
    from vit_lens.studies.knowledge.study import knowledge_study as run

    setup, asked = study.open(out, {COMMON: n, RARE: n})
    result = run(setup, asked, common=common, rare=rare, plant=plant, command=intake.command_line())
    parts.finish(result, out, figures_of(result))
