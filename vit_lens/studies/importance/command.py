"""The command `vit-lens study importance`."""

__all__ = ["importance"]

from pathlib import Path
from typing import Annotated

import typer

from vit_lens.cli import flags, intake
from vit_lens.errors import StudyError
from vit_lens.studies import command_parts as parts
from vit_lens.studies.usual_lenses import DECODED

_SHOWN = "dsl-mean:alpha=5"


def importance(
    study: parts.StudyOnImages,
    n: Annotated[int, parts.n_tested(3)] = 200,
    out: flags.Out = Path("vit-lens-study-importance"),
    n_decoded: Annotated[int, parts.n_drawn(3)] = 12,
    decode: parts.Decode = None,
    draws: parts.Draws = 20,
    picture_draws: Annotated[int, typer.Option(min=1, help="Of the equal-norm placebo's pictures.")] = 1,
    untrained: parts.Untrained = True,
) -> None:
    """Is the head whose lens result resembles the input the one that matters, beyond its size?"""
    from vit_lens.studies.importance.figures import importance_heads, importance_scores
    from vit_lens.studies.importance.study import LENSES
    from vit_lens.studies.importance.study import importance_study as run

    if study.decoder != "none" and n_decoded > n:
        raise StudyError(f"--n-decoded {n_decoded} of --n {n} images: at most all of them can be drawn")
    given = flags.split_list(study.lens or ())
    drawn = flags.split_list(decode or ()) or given or list(DECODED)
    lenses = list(dict.fromkeys([*(given or LENSES), *drawn]))
    setup = parts.open_setup(study, study.find(n), out, lenses=lenses)
    result = run(
        setup, n_decoded=n_decoded, decoded=drawn, draws=draws, picture_draws=picture_draws, untrained=untrained,
        command=intake.command_line(),
    )  # fmt: skip
    shown = _SHOWN if _SHOWN in lenses else lenses[0]
    figures = {
        "scores": importance_scores(result.frame()),
        "scores_given_norms": importance_scores(result.frame(), given=True),
        "heads": importance_heads(result.frame("heads"), shown),
    }
    parts.finish(result, out, figures)
