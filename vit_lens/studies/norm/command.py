"""The command `vit-lens study norm`."""

__all__ = ["norm"]

from pathlib import Path
from typing import Annotated

from vit_lens.cli import flags, intake
from vit_lens.studies import command_parts as parts
from vit_lens.studies.text_parts import TextStudy


def norm(
    study: TextStudy,
    n: Annotated[int, parts.n_tested(2)] = 60,
    out: flags.Out = Path("vit-lens-study-norm"),
) -> None:
    """How much of what a layer's picture shows is the final norm's doing?"""
    from vit_lens.studies.norm.figures import figures_of
    from vit_lens.studies.norm.study import norm_study as run

    setup, asked = study.open(out, {"single": n, "pair, head first": n})
    result = run(setup, asked, command=intake.command_line())
    parts.finish(result, out, figures_of(result))
