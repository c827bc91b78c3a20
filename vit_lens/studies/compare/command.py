"""The command `vit-lens study compare`."""

__all__ = ["compare"]

from pathlib import Path
from typing import Annotated

import typer

from vit_lens.cli import flags, intake
from vit_lens.studies import command_parts as parts
from vit_lens.studies.text_parts import TextStudy


def compare(
    study: TextStudy,
    n: Annotated[int, parts.n_tested(2)] = 60,
    method: Annotated[
        list[str] | None, typer.Option(help="A method by its name; repeat. Default: all that there are.")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="A method that is left out; repeat.")] = None,
    n_fit: Annotated[
        int, typer.Option(min=10, help="Other sentences, which maps between layers and probes are fitted on.")
    ] = 600,
    out: flags.Out = Path("vit-lens-study-compare"),
) -> None:
    """Which words are there? Pictures, attention, logit and tuned lens, probes, against words that were erased."""
    from vit_lens.studies.compare.figures import figures_of, prompt_sheet
    from vit_lens.studies.compare.methods import chosen_methods
    from vit_lens.studies.compare.pictures import shown_pictures
    from vit_lens.studies.compare.study import compare_study as run

    study.refuse_table("study compare erases words by class, and a table of prompts does not say the classes")
    methods = chosen_methods(method or (), skip or ())
    setup, asked = study.open(out, {"single": n})
    result = run(setup, asked, methods=methods, n_fit=n_fit, command=intake.command_line())
    pictures = shown_pictures(setup, asked) if any(one.name == "diffusion lens" for one in methods) else {}
    parts.finish(result, out, figures_of(result) | {"prompt": prompt_sheet(result.frame("items"), pictures)})
