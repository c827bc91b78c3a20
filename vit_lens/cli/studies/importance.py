"""The command `vit-lens study importance`."""

__all__ = ["importance"]

from pathlib import Path
from typing import Annotated

import typer

from vit_lens.cli.options import Decode, Draws, N, NDecoded, Out, Untrained, split_list
from vit_lens.cli.reading import command_line
from vit_lens.cli.studies.options import StudyOnImages, finish, open_setup

_SHOWN = "dsl-mean:alpha=5"


def importance(
    study: StudyOnImages,
    n: N = 200,
    out: Out = Path("vit-lens-study-importance"),
    n_decoded: NDecoded = 12,
    decode: Decode = None,
    draws: Draws = 20,
    picture_draws: Annotated[int, typer.Option(help="Of the equal-norm placebo's pictures.")] = 1,
    untrained: Untrained = True,
) -> None:
    """Is the head whose lens result resembles the input the one that matters, beyond its size?"""
    from vit_lens.figures.study_importance import importance_heads, importance_scores
    from vit_lens.studies.importance.study import DECODED, LENSES
    from vit_lens.studies.importance.study import importance_study as run

    given = split_list(study.lens or ())
    drawn = split_list(decode or ()) or given or list(DECODED)
    lenses = list(dict.fromkeys([*(given or LENSES), *drawn]))
    setup = open_setup(study, study.find(n), out, lenses=lenses)
    result = run(
        setup, n_decoded=n_decoded, decoded=drawn, draws=draws, picture_draws=picture_draws, untrained=untrained,
        command=command_line(),
    )  # fmt: skip
    shown = _SHOWN if _SHOWN in lenses else lenses[0]
    figures = {
        "scores": importance_scores(result.frame()),
        "scores_given_norms": importance_scores(result.frame(), given=True),
        "heads": importance_heads(result.frame("heads"), shown),
    }
    finish(result, out, figures)
