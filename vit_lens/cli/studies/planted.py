"""The command `vit-lens study planted`."""

__all__ = ["planted"]

from pathlib import Path
from typing import Annotated

import typer

from vit_lens.cli.options import Device, split_list
from vit_lens.cli.studies.options import (
    Decoder,
    Encoder,
    Guidance,
    JudgeName,
    JudgeTag,
    Lenses,
    NoiseSeeds,
    Out,
    Seed,
    Steps,
    command_line,
    finish,
    open_setup,
    read_bank,
)
from vit_lens.cli.sweeps import Model, QuickGelu, Tag

_LENSES = ("diffusion", "dsl:alpha=10", "dsl:share=1", "dsl-mean:alpha=1", "dsl-mean:alpha=5", "dsl-mean:share=1")
_DECODED = ("diffusion", "dsl:alpha=10", "dsl:share=1", "dsl-mean:alpha=5")


def planted(
    model: Model = "mini",
    decoder: Decoder = "mini",
    labels: Annotated[
        Path | None,
        typer.Option(
            help="CSV with a column image and one for each attribute, whose cells are captions, two for each "
            "attribute. Default: scenes of the embedded pair's world."
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Test images.")] = 64,
    seed: Seed = 0,
    out: Out = Path("vit-lens-study-planted"),
    lens: Lenses = None,
    decode: Annotated[
        list[str] | None, typer.Option(help="Lens whose pictures are read, of those of --lens. Repeat.")
    ] = None,
    heads: Annotated[int, typer.Option(help="Heads that each attribute is planted in.")] = 3,
    bar: Annotated[float, typer.Option(help="R2 with which such a head must tell the attribute.")] = 0.5,
    n_plants_decoded: Annotated[int, typer.Option(help="Plants of each kind whose pictures are read.")] = 2,
    n_decoded: Annotated[int, typer.Option(help="Images whose pictures are read, half of each class.")] = 8,
    noise_seed: NoiseSeeds = None,
    judge: JudgeName = "mini",
    judge_tag: JudgeTag = None,
    tag: Tag = None,
    quick_gelu: QuickGelu = None,
    encoder: Encoder = None,
    steps: Steps = None,
    guidance: Guidance = None,
    device: Device = "cpu",
) -> None:
    """Plant attributes in heads: does a lens find the head that is known to tell them?"""
    from vit_lens.errors import StudyError
    from vit_lens.figures.studies import score_figure
    from vit_lens.figures.study_planted import planted_figure
    from vit_lens.mini.study_labels import labelled_images
    from vit_lens.studies.planted.labels import LabelledImages
    from vit_lens.studies.planted.study import planted_study as run
    from vit_lens.studies.planted.tables import FINDS

    if decoder == "none" and decode:
        raise StudyError("with --decoder none nothing is drawn: --decode has no effect")
    known = labelled_images(n, seed=seed) if labels is None else LabelledImages.from_csv(labels, n, seed=seed)
    lenses = split_list(lens or ()) or list(_LENSES)
    decoded = split_list(decode or ()) or [name for name in _DECODED if name in lenses]
    setup = open_setup(
        model=model, decoder=decoder, judge=judge, images=None, sets=known.images, n=n, seed=seed, out=out,
        lenses=lenses, tag=tag, quick_gelu=quick_gelu, encoder=encoder, judge_tag=judge_tag,
        judge_captions=known.captions, noise_seeds=noise_seed, steps=steps, guidance=guidance, device=device,
    )  # fmt: skip
    result = run(
        setup, read_bank(model, tag, known.captions, device), known.attributes, n_heads=heads, bar=bar,
        decoded=() if decoder == "none" else decoded, n_plants_decoded=n_plants_decoded, n_decoded=n_decoded,
        command=command_line(),
    )  # fmt: skip
    figures, table = {}, result.frame("heads")
    for kind in table["kind"].unique():
        title = f"Planted truth: does the lens find the head? ({kind} plants)"
        figures[f"scores_{kind}"] = score_figure(result.frame(), f"{FINDS}, {kind} plants", title)
        figures[f"heads_{kind}"] = planted_figure(table.loc[table["kind"] == kind], list(setup.lenses))
    finish(result, out, figures)
