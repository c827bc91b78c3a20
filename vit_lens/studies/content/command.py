"""The command `vit-lens study content`."""

__all__ = ["content", "find_pairs"]

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vit_lens.cli import flags, intake
from vit_lens.errors import StudyError
from vit_lens.studies import command_parts as parts
from vit_lens.studies.usual_lenses import LENSES

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
    study: parts.Study,
    images: flags.Images = None,
    reference_images: flags.ReferenceImages = None,
    n: Annotated[int | None, parts.n_tested(1)] = None,
    n_decoded: Annotated[int, parts.n_drawn(1)] = 6,
    out: flags.Out = Path("vit-lens-study-content"),
    decode: parts.Decode = None,
    sites: flags.Sites = _SITES,
    captions_from: parts.CaptionsFrom = None,
    control_kind: flags.ControlKinds = None,
) -> None:
    """Swap one attribute: does the picture of a site change in what the site changes? Needs captions of both.

    The table of --images has the columns image,partner,attribute,caption,partner_caption; rows with the same image
    share a base. By default 24 scenes of the embedded pair's world, or all of the table.
    """
    from vit_lens.studies.content.study import content_study as run

    if control_kind and study.decoder == "none":
        raise StudyError(
            "--control-kind says which controls are drawn, and --decoder none draws none; before decoding all are read"
        )
    pairs, sets = find_pairs(flags.one(images, "--images"), reference_images, n, study.image_seed)
    given, shown = flags.split_list(study.lens or ()), flags.split_list(sites)
    drawn = parts.decoded(decode, given, study.decoder)
    lenses = list(dict.fromkeys([*(given or LENSES), *drawn]))
    texts = parts.embed_for(study, pairs.captions, captions_from)
    setup = parts.open_setup(study, sets, out, lenses=lenses, judge_captions=pairs.captions, texts=texts)
    if captions_from is not None:  # the user says whose they are
        texts = replace(texts, encoder_id=setup.model.encoder_id)
    result = run(
        setup, pairs, texts, sites=shown, decoded=drawn, n_decoded=n_decoded, controls=control_kind or ("random",),
        command=intake.command_line(),
    )  # fmt: skip
    parts.finish(result, out, _figures(result))


def find_pairs(
    images: Path | None, reference: list[Path] | None, n: int | None, seed: int
) -> "tuple[AttributePairs, StudyImages]":
    """Return the pairs of a table, or of the embedded pair's world, with the images of the setup.

    Raises:
        StudyError: The images are no table, or there are no reference images for it.
    """
    from vit_lens.images import find_images
    from vit_lens.studies import StudyImages
    from vit_lens.studies.content.mini_set import pair_images, study_pairs
    from vit_lens.studies.content.pairs import AttributePairs

    if images is None:
        if reference:
            raise StudyError("--reference-images goes with --images; the world has its own")
        pairs = study_pairs(_BASES if n is None else n, seed=seed)
        return pairs, pair_images(pairs, seed=seed)
    if images.suffix.lower() != ".csv":
        raise StudyError(
            f"--images {images}: this study compares attributes and needs to know them: give a table (.csv) with "
            "the columns image,partner,attribute,caption,partner_caption"
        )
    if not reference:
        raise StudyError("--images needs --reference-images: other images, for the means of lenses")
    pairs = AttributePairs.from_csv(images)
    pairs = pairs if n is None else pairs.first(n)
    others = find_images(reference)
    return pairs, StudyImages(pairs.images, others[::2], others[1::2])


def _figures(result: "StudyResult") -> "dict[str, go.Figure]":
    from vit_lens.studies.content.figures import content_matrices
    from vit_lens.studies.score_figures import score_figure

    scores, matrix = result.frame(), result.frame("matrix")
    figures = {name: score_figure(scores, measure) for name, measure in _FIGURES.items()}
    readings = [column for column in matrix.columns if column.endswith((", decoded", ", embedding"))]
    order = sorted(readings, key=lambda name: (not name.endswith("decoded"), not name.startswith(_SHOWN)))
    return figures | {"matrices": content_matrices(matrix, order[0])}
