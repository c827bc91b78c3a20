"""The command `vit-lens study order`."""

__all__ = ["order"]

from pathlib import Path
from typing import Annotated

import typer

from vit_lens.cli import flags, intake
from vit_lens.studies import command_parts as parts
from vit_lens.studies.text_parts import TextStudy


def order(
    study: TextStudy,
    n: Annotated[int, typer.Option("--n", min=2, help="Scenes, each said in both orders.")] = 120,
    out: flags.Out = Path("vit-lens-study-order"),
) -> None:
    """Does an object appear by its place in the sentence, or by its place in the syntax?"""
    from vit_lens.studies.order.figures import figures_of
    from vit_lens.studies.order.study import FRONTED, IN_ORDER
    from vit_lens.studies.order.study import order_study as run

    setup, asked = study.open(out, {IN_ORDER: n, FRONTED: n})
    result = run(setup, asked, command=intake.command_line())
    parts.finish(result, out, figures_of(result))
