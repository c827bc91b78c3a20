"""The command `vit-lens study faithfulness`."""

__all__ = ["faithfulness"]

from pathlib import Path

from vit_lens.cli.options import N, Out, Sites, split_list
from vit_lens.cli.reading import command_line
from vit_lens.cli.studies.options import StudyOnImages, finish, open_setup

_LENSES = ("diffusion", "dsl:alpha=10", "dsl:share=1", "dsl-mean:alpha=5")
_DECODER_SEEDS = (0, 1, 2, 3)
_SITES = ["heads", "mlp", "resid_post"]


def faithfulness(
    study: StudyOnImages, n: N = 6, out: Out = Path("vit-lens-study-faithfulness"), sites: Sites = _SITES
) -> None:
    """Draw what the sites say with several seeds of noise: does the decoder draw what it is asked to, every time?"""
    from vit_lens.errors import StudyError
    from vit_lens.figures.studies import score_figure
    from vit_lens.figures.study_faithfulness import faithfulness_layers
    from vit_lens.studies.faithfulness.study import faithfulness_study as run

    if study.decoder == "none":
        raise StudyError("study faithfulness is about pictures; --decoder none draws none")
    lenses = split_list(study.lens or ()) or _LENSES
    setup = open_setup(study, study.find(n), out, lenses=lenses, decoder_seeds=_DECODER_SEEDS)
    result = run(setup, sites=split_list(sites), command=command_line())
    figures = {"faithfulness": score_figure(result.frame(), "faithfulness", "Faithfulness of pictures")}
    finish(result, out, figures | {"layers": faithfulness_layers(result.frame("layers"))})
