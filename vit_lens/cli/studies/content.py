"""The command `vit-lens study content`."""

__all__ = ["content"]

from pathlib import Path
from typing import TYPE_CHECKING

from vit_lens.cli.options import Images, NDecoded, NMaybe, Out, ReferenceImages, Sites, one, split_list
from vit_lens.cli.reading import command_line, embed_captions
from vit_lens.cli.studies.options import Study, finish, open_setup
from vit_lens.errors import StudyError

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vit_lens.studies import StudyImages, StudyResult
    from vit_lens.studies.content.pairs import AttributePairs

_SHOWN = "dsl-mean:alpha=5"
_BASES = 24
_SITES = ["heads", "mlp"]
_FIGURES = {
    "content": "excess over shuffled sites within sites, total effect",
    "content-top-sites": "excess over shuffled sites within top sites, total effect",
    "agreement-total": "agreement within sites, total effect",
    "agreement-direct": "agreement within sites, direct effect",
}


def content(
    study: Study,
    images: Images = None,
    reference_images: ReferenceImages = None,
    n: NMaybe = None,
    n_decoded: NDecoded = 6,
    out: Out = Path("vit-lens-study-content"),
    sites: Sites = _SITES,
) -> None:
    """Swap one attribute: does the picture of a site change in what the site changes? Needs captions of both.

    The table of --images has the columns image,partner,attribute,caption,partner_caption; rows with the same image
    share a base. By default 24 scenes of the embedded pair's world, or all of the table.
    """
    from vit_lens.studies.content.study import LENSES
    from vit_lens.studies.content.study import content_study as run

    pairs, sets = _pairs(one(images, "--images"), reference_images, n, study.image_seed)
    lenses = split_list(study.lens or ()) or LENSES
    setup = open_setup(study, sets, out, lenses=lenses, judge_captions=pairs.captions)
    texts = embed_captions(pairs.captions, study)
    result = run(setup, pairs, texts, sites=split_list(sites), n_decoded=n_decoded, command=command_line())
    finish(result, out, _figures(result))


def _pairs(
    images: Path | None, reference: list[Path] | None, n: int | None, seed: int
) -> "tuple[AttributePairs, StudyImages]":
    from vit_lens.images import find_images
    from vit_lens.mini.study_pairs import pair_images, study_pairs
    from vit_lens.studies import StudyImages
    from vit_lens.studies.content.pairs import AttributePairs

    if images is None:
        if reference:
            raise StudyError("--reference-images goes with --images; the world has its own")
        pairs = study_pairs(_BASES if n is None else n, seed=seed)
        return pairs, pair_images(pairs, seed=seed)
    if images.suffix.lower() != ".csv":
        raise StudyError(
            f"--images {images}: study content compares attributes and needs to know them: give a table (.csv) with "
            "the columns image,partner,attribute,caption,partner_caption"
        )
    if not reference:
        raise StudyError("--images needs --reference-images: other images, for the means of lenses")
    pairs = AttributePairs.from_csv(images)
    pairs = pairs if n is None else pairs.first(n)
    others = find_images(reference)
    return pairs, StudyImages(pairs.images, others[::2], others[1::2])


def _figures(result: "StudyResult") -> "dict[str, go.Figure]":
    from vit_lens.figures.studies import score_figure
    from vit_lens.figures.study_content import content_matrices

    scores, matrix = result.frame(), result.frame("matrix")
    figures = {name: score_figure(scores, measure) for name, measure in _FIGURES.items()}
    readings = [column for column in matrix.columns if column.endswith((", decoded", ", embedding"))]
    order = sorted(readings, key=lambda name: (not name.endswith("decoded"), not name.startswith(_SHOWN)))
    return figures | {"matrices": content_matrices(matrix, order[0])}
