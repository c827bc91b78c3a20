"""The command `vit-lens study planted`."""

__all__ = ["planted"]

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vit_lens.cli import flags, intake
from vit_lens.errors import StudyError
from vit_lens.studies import command_parts as parts
from vit_lens.studies.usual_lenses import LENSES


def planted(
    study: parts.Study,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="CSV with a column image and one for each attribute, whose cells are captions, two for each "
            "attribute. Default: scenes of the embedded pair's world."
        ),
    ] = None,
    n: Annotated[int, parts.n_tested(4)] = 64,
    out: flags.Out = Path("vit-lens-study-planted"),
    decode: parts.Decode = None,
    heads: Annotated[int, typer.Option(min=1, help="Heads that each attribute is planted in.")] = 3,
    bar: Annotated[float, typer.Option(min=0, max=1, help="R2 with which such a head must tell the attribute.")] = 0.5,
    n_plants_decoded: Annotated[int, typer.Option(min=1, help="Plants of each kind whose pictures are read.")] = 2,
    n_decoded: Annotated[int, parts.n_drawn(4)] = 8,
    captions_from: parts.CaptionsFrom = None,
) -> None:
    """Plant attributes in heads: does a lens find the head that is known to tell them?

    Of the images that are drawn, half are of each class.
    """
    from vit_lens.studies.planted.figures import planted_figure
    from vit_lens.studies.planted.labelled import LabelledImages
    from vit_lens.studies.planted.mini_set import labelled_images
    from vit_lens.studies.planted.plant_tables import FINDS
    from vit_lens.studies.planted.study import planted_study as run
    from vit_lens.studies.score_figures import score_figure

    pictures = study.decoder != "none"
    if pictures and n_decoded % 2:
        raise StudyError(f"--n-decoded {n_decoded}: give an even number, half of each class")
    seed = study.image_seed
    known = labelled_images(n, seed=seed) if labels is None else LabelledImages.from_csv(labels, n, seed=seed)
    given = flags.split_list(study.lens or ())
    decoded = parts.decoded(decode, given, study.decoder)
    lenses = list(dict.fromkeys([*(given or LENSES), *decoded]))
    texts = parts.embed_for(study, known.captions, captions_from)
    setup = parts.open_setup(study, known.images, out, lenses=lenses, judge_captions=known.captions, texts=texts)
    if captions_from is not None:  # the user says whose they are
        texts = replace(texts, encoder_id=setup.model.encoder_id)
    result = run(
        setup, texts, known.attributes, n_heads=heads, bar=bar,
        decoded=decoded, n_plants_decoded=n_plants_decoded, n_decoded=n_decoded,
        command=intake.command_line(),
    )  # fmt: skip
    figures, table = {}, result.frame("heads")
    for kind in table["kind"].unique():
        title = f"Planted truth: does the lens find the head? ({kind} plants)"
        figures[f"scores_{kind}"] = score_figure(result.frame(), f"{FINDS}, {kind} plants", title)
        figures[f"heads_{kind}"] = planted_figure(table.loc[table["kind"] == kind], list(setup.lenses))
    parts.finish(result, out, figures)
