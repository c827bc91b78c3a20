"""The command `vit-lens study content`."""

__all__ = ["content"]

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from vit_lens.errors import StudyError

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vit_lens.studies import StudyImages, StudyResult
    from vit_lens.studies.content.pairs import AttributePairs

_SHOWN = "dsl-mean:alpha=5"
_BASES = 24
_FIGURES = {
    "content": "excess over shuffled sites within sites, total effect",
    "content-top-sites": "excess over shuffled sites within top sites, total effect",
    "agreement-total": "agreement within sites, total effect",
    "agreement-direct": "agreement within sites, direct effect",
}


def content(
    model: Model = "mini",
    decoder: Decoder = "mini",
    images: Annotated[
        Path | None,
        typer.Option(
            help="Table (.csv) of pairs that differ in one attribute: image,partner,attribute,caption,partner_caption; "
            "rows with the same image share a base. Default: scenes of the embedded pair's world."
        ),
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", help=f"Base images. Default: {_BASES} scenes, or all of the table.")
    ] = None,
    n_decoded: Annotated[int, typer.Option(help="Bases that are drawn with their partners, at most.")] = 6,
    seed: Seed = 0,
    out: Out = Path("vit-lens-study-content"),
    lens: Lenses = None,
    sites: Annotated[list[str] | None, typer.Option(help="As for sweep. Default: heads,mlp.")] = None,
    noise_seed: NoiseSeeds = None,
    judge: JudgeName = "mini",
    judge_tag: JudgeTag = None,
    tag: Tag = None,
    quick_gelu: QuickGelu = None,
    encoder: Encoder = None,
    reference_images: Annotated[
        Path | None, typer.Option(help="Folder of other images, for means; goes with --images and is needed with it.")
    ] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    device: Device = "cpu",
) -> None:
    """Swap one attribute: does the picture of a site change in what the site changes? Needs captions of both."""
    from vit_lens.studies.content.study import LENSES
    from vit_lens.studies.content.study import content_study as run

    pairs, sets = _pairs(images, reference_images, n, seed)
    setup = open_setup(
        model=model, decoder=decoder, judge=judge, images=None, n=len(pairs.images), seed=seed, out=out,
        lenses=split_list(lens or ()) or LENSES, tag=tag, quick_gelu=quick_gelu, encoder=encoder, judge_tag=judge_tag,
        judge_captions=pairs.captions, noise_seeds=noise_seed, steps=steps, guidance=guidance, sets=sets, device=device,
    )  # fmt: skip
    texts = read_bank(model, tag, pairs.captions, device)
    result = run(
        setup, pairs, texts, sites=split_list(sites or ()) or ("heads", "mlp"), n_decoded=n_decoded,
        command=command_line(),
    )  # fmt: skip
    finish(result, out, _figures(result))


def _pairs(
    images: Path | None, reference: Path | None, n: int | None, seed: int
) -> "tuple[AttributePairs, StudyImages]":
    from vit_lens.images import find_images
    from vit_lens.mini.study_pairs import pair_images, study_pairs
    from vit_lens.studies import StudyImages
    from vit_lens.studies.content.pairs import AttributePairs

    if images is None:
        if reference is not None:
            raise StudyError("--reference-images goes with --images; the world has its own")
        pairs = study_pairs(_BASES if n is None else n, seed=seed)
        return pairs, pair_images(pairs, seed=seed)
    if images.suffix.lower() != ".csv":
        raise StudyError(
            f"--images {images}: study content compares attributes and needs to know them: give a table (.csv) with "
            "the columns image,partner,attribute,caption,partner_caption"
        )
    if reference is None:
        raise StudyError("--images needs --reference-images: a folder of other images, for the means of lenses")
    pairs = AttributePairs.from_csv(images)
    pairs = pairs if n is None else pairs.first(n)
    others = find_images([reference])
    return pairs, StudyImages(pairs.images, others[::2], others[1::2])


def _figures(result: "StudyResult") -> "dict[str, go.Figure]":
    from vit_lens.figures.studies import score_figure
    from vit_lens.figures.study_content import content_matrices

    scores, matrix = result.frame(), result.frame("matrix")
    figures = {name: score_figure(scores, measure) for name, measure in _FIGURES.items()}
    readings = [column for column in matrix.columns if column.endswith((", decoded", ", embedding"))]
    order = sorted(readings, key=lambda name: (not name.endswith("decoded"), not name.startswith(_SHOWN)))
    return figures | {"matrices": content_matrices(matrix, order[0])}
