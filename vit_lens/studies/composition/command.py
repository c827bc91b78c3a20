"""The command `vit-lens study composition`."""

__all__ = ["composition"]

from pathlib import Path
from typing import Annotated

from vit_lens.cli import flags, intake
from vit_lens.studies import command_parts as parts
from vit_lens.studies.text_parts import TextStudy


def composition(
    study: TextStudy,
    n: Annotated[int, parts.n_tested(2)] = 120,
    out: flags.Out = Path("vit-lens-study-composition"),
) -> None:
    """Does a scene come later than its parts? Compounds against the product of their parts, layer by layer."""
    from vit_lens.studies.composition.figures import figures_of
    from vit_lens.studies.composition.study import composition_study as run

    kinds = {"single": n, "pair, head first": n, "pair, fronted": n}
    setup, asked = study.open(out, kinds)
    result = run(setup, asked, command=intake.command_line())
    parts.finish(result, out, figures_of(result))
