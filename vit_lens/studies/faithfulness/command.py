"""The command `vit-lens study faithfulness`."""

__all__ = ["faithfulness"]

from pathlib import Path
from typing import Annotated

from vit_lens.cli import flags, intake
from vit_lens.errors import StudyError
from vit_lens.studies import command_parts as parts
from vit_lens.studies.usual_lenses import DECODED

_DECODER_SEEDS = (0, 1, 2, 3)
_SITES = ["heads", "mlp", "resid_post"]


def faithfulness(
    study: parts.StudyOnImages,
    n: Annotated[int, parts.n_tested(2)] = 6,
    out: flags.Out = Path("vit-lens-study-faithfulness"),
    sites: flags.Sites = _SITES,
    control_kind: flags.ControlKinds = None,
) -> None:
    """Draw what the sites say with several seeds of noise: does the decoder draw what it is asked to, every time?"""
    from vit_lens.studies.faithfulness.figures import faithfulness_layers
    from vit_lens.studies.faithfulness.study import faithfulness_study as run
    from vit_lens.studies.score_figures import score_figure

    if study.decoder == "none":
        raise StudyError("study faithfulness is about pictures; --decoder none draws none")
    lenses, shown = flags.split_list(study.lens or ()) or DECODED, flags.split_list(sites)
    setup = parts.open_setup(study, study.find(n), out, lenses=lenses, decoder_seeds=_DECODER_SEEDS)
    result = run(setup, sites=shown, controls=control_kind or ("random",), command=intake.command_line())
    figures = {"faithfulness": score_figure(result.frame(), "faithfulness", "Faithfulness of pictures")}
    parts.finish(result, out, figures | {"layers": faithfulness_layers(result.frame("layers"))})
