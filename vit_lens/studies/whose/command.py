"""The command `vit-lens study whose`."""

__all__ = ["whose"]

from pathlib import Path
from typing import Annotated

import typer

from vit_lens.cli import flags, intake
from vit_lens.studies import command_parts as parts
from vit_lens.studies.text_parts import TextStudy


def whose(
    study: TextStudy,
    reader: Annotated[
        list[str] | None,
        typer.Option(
            help="Denoiser of another layer, as `vit-lens mini train-reader` trains it: h0=FOLDER, h4=FOLDER, "
            "eos=FOLDER. Default: none, and the study says so."
        ),
    ] = None,
    n: Annotated[int, parts.n_tested(2)] = 120,
    n_names: Annotated[int, typer.Option(min=4, max=64, help="Names, half of them rare.")] = 60,
    n_fit: Annotated[
        int, typer.Option(min=10, help="Other sentences, which maps between layers and probes are fitted on.")
    ] = 600,
    out: flags.Out = Path("vit-lens-study-whose"),
) -> None:
    """Whose work is the picture? Other denoisers, an interpolation, a tuned lens, probes, and no encoder at all."""
    from vit_lens.studies.whose.figures import figures_of
    from vit_lens.studies.whose.other_layers import open_reader
    from vit_lens.studies.whose.study import whose_study as run

    study.refuse_table("study whose fits maps and probes on sentences of the embedded world, whose truth it knows")
    kinds = {"single": n, "pair, head first": n, "pair, fronted": n}
    setup, asked = study.open(out, kinds | {"common name": n_names - n_names // 2, "rare name": n_names // 2})
    where = {"dtype": flags.torch_dtype(study.decoder_dtype), "device": flags.torch_device(study.device)}
    readers = [open_reader(spec, setup.reader, **where) for spec in reader or ()]
    result = run(setup, asked, readers=readers, n_fit=n_fit, command=intake.command_line())
    parts.finish(result, out, figures_of(result))
