"""Figures 2 to 4: the residual stream layer by layer, and the heads most like the input under each lens."""

__all__ = [
    "ALPHAS",
    "diffusion_plate",
    "ladder_plate",
    "lens_title",
    "make_plate",
    "ranking_facts",
    "residual_plate",
]

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.errors import StudyError
from vit_lens.lenses import DiffusionLens, DiffusionSteeringLens, Lens, parse_lens
from vit_lens.studies.overlay import as_seen
from vit_lens.studies.paper.paper_setup import PaperSetup
from vit_lens.studies.paper.plate import Plate, Strip, Tile
from vit_lens.studies.paper.site_readings import SiteReading, read_sites
from vit_lens.studies.paper.tiles import RANKS, Chosen, best, image_tile, layers_of, rank_by, read_tiles
from vit_lens.studies.paper.unknown import ANY_FIGURE, EQUATIONS, NO_INTERVAL, TOP_LIST, unknown_settings
from vit_lens.studies.statistics import spearman

ALPHAS = (1.5, 2.0, 5.0, 10.0, 25.0, 100.0)
"""The ladder of figure 4; the paper's own value is not known."""
MEAN_ANCHORED = "dsl-mean:alpha=5"
_LAYERS_SHOWN = 12
_OWN = {"other": "another image", "covariance": "covariance-matched directions"}
_BY_ANALOGY = {EQUATIONS: "LN(v) proj, by analogy with the Diffusion Lens for text (Toker et al. 2024)"}


def residual_plate(
    setup: PaperSetup, image: Any, *, lenses: Sequence[str | Lens] = (), stride: int | None = None,
    command: str | None = None,
) -> Plate:  # fmt: skip
    """Draw the Diffusion Lens on the residual stream, before the first layer and after each (figure 2).

    Args:
        setup: The pair and the reference images.
        image: The image that is shown.
        lenses: More lenses, as for :func:`ladder_plate`.
        stride: How many layers lie between two pictures, the last layer among them; None takes as many as give about
            12 pictures.
        command: The command that makes the plate again; None where there is none.

    Raises:
        StudyError: The image is a reference image, or the stride skips all layers.
        LensError: A lens is not defined on the residual stream.
    """
    pixels, n_layers = setup.see(image), setup.model.cfg.n_layers
    stride = -(-n_layers // _LAYERS_SHOWN) if stride is None else stride
    if not 1 <= stride <= n_layers:
        raise StudyError(f"stride {stride}; the model has {n_layers} layers: take 1 to {n_layers}")
    layers = sorted(range(n_layers - 1, -1, -stride))
    sites = [Site(0, "resid_pre"), *(Site(layer, "resid_post") for layer in layers)]
    readings = [own for (own,) in read_sites(setup, pixels, _shown(setup, [DiffusionLens()], lenses), sites).values()]
    chosen = [
        Chosen(sites=tuple(map(str, sites)), order=list(range(len(sites))), layers=layers_of(reading))
        for reading in readings
    ]
    own, lists = read_tiles(setup, readings[0].clean, chosen)
    start = (image_tile("input", as_seen(setup.model, [image])[0]), own)
    strips = [
        Strip(title=lens_title(reading.lens), tiles=(*start, *tiles), words=reading.lens.describe().words)
        for reading, tiles in zip(readings, lists, strict=True)
    ]
    shown = "every layer" if stride == 1 else f"every {stride} layers, the last among them"
    return make_plate(
        setup, "fig2", "Layer by layer: the residual stream under the Diffusion Lens",
        f"The stream at the read-out token, before the first layer and after {shown}, read as if it were the last.",
        strips, _BY_ANALOGY | {"Layers shown": shown}, command, notes=(*ANY_FIGURE, NO_INTERVAL),
    )  # fmt: skip


def diffusion_plate(
    setup: PaperSetup, image: Any, *, lenses: Sequence[str | Lens] = (), top: int = 6, by: str = "cos",
    command: str | None = None,
) -> Plate:  # fmt: skip
    """Draw the heads most like the input under the Diffusion Lens (figure 3).

    Args:
        setup: The pair and the reference images.
        image: The image that is shown.
        lenses: More lenses, as for :func:`ladder_plate`.
        top: How many heads are shown.
        by: What ranks them: ``cos``, ``S`` or ``picture``.
        command: The command that makes the plate again; None where there is none.

    Raises:
        StudyError: The image is a reference image, there is no such ranking, or there are fewer heads.
    """
    strips = _top_strips(setup, image, _shown(setup, [DiffusionLens()], lenses), top, by)
    return make_plate(
        setup, "fig3", f"The {top} heads most like the input under the Diffusion Lens",
        "What each head writes, read on its own.", strips, _BY_ANALOGY | _ranked(by), command,
    )  # fmt: skip


def ladder_plate(
    setup: PaperSetup,
    image: Any,
    *,
    alphas: Sequence[float | int] = ALPHAS,
    lenses: Sequence[str | Lens] = (),
    top: int = 10,
    by: str = "cos",
    command: str | None = None,
) -> Plate:
    """Draw the heads most like the input under D1 at each strength, and under the mean-anchored lens (figure 4).

    Spelt lenses start from the reference images: ``counterfactual`` from the first three, and ``:project`` projects on
    all of them.

    Args:
        setup: The pair and the reference images.
        image: The image that is shown.
        alphas: The strengths of D1, all different.
        lenses: More lenses, by spelling or as they are, which are drawn behind these.
        top: How many heads are shown of each.
        by: What ranks them: ``cos``, ``S`` or ``picture``.
        command: The command that makes the plate again; None where there is none.

    Raises:
        StudyError: No strength, equal ones, or as for :func:`diffusion_plate`.
        LensError: A strength is not finite.
    """
    if not alphas or len(set(alphas)) < len(alphas):
        raise StudyError(f"alphas {list(alphas)}: give different strengths, at least one")
    ladder = [DiffusionSteeringLens(alpha=alpha) for alpha in alphas]
    shown = _shown(setup, [*ladder, parse_lens(MEAN_ANCHORED, setup.means)], lenses)
    strips = _top_strips(setup, image, shown, top, by)
    return make_plate(
        setup, "fig4", f"The {top} heads most like the input when each is made louder",
        "D1 (reconstruction) at several strengths, each with its own list; behind them the mean-anchored form, which "
        f"starts from the average image{', and the lenses that were asked for' if lenses else ''}.",
        strips, _ranked(by) | {"Strength alpha": f"a ladder: {', '.join(f'{alpha:g}' for alpha in alphas)}"}, command,
    )  # fmt: skip


def anchor_tiles(lens: Lens) -> list[Tile]:
    """Return the images that a lens starts from, beside which its pictures are to be seen."""
    return [image_tile("anchor", np.asarray(picture.convert("RGB"))) for picture in lens.starts().values()]


def _shown(setup: PaperSetup, own: Sequence[Lens], more: Sequence[str | Lens]) -> dict[str, Lens]:
    return {one.describe().id: one for one in [*own, *setup.lenses(more)]}


def _top_strips(setup: PaperSetup, image: Any, lenses: Mapping[str, Lens], top: int, by: str) -> list[Strip]:
    sites = Site.heads(setup.model)
    readings = [reading for (reading,) in read_sites(setup, setup.see(image), lenses, sites).values()]
    scores = [rank_by(setup, reading, by) for reading in readings]
    chosen = [
        Chosen(sites=tuple(map(str, sites)), order=best(score, top), layers=layers_of(reading))
        for reading, score in zip(readings, scores, strict=True)
    ]
    own, lists = read_tiles(setup, readings[0].clean, chosen)
    start = (image_tile("input", as_seen(setup.model, [image])[0]), own)
    return [
        Strip(
            title=lens_title(reading.lens), words=reading.lens.describe().words,
            tiles=(*start, *anchor_tiles(reading.lens), *tiles),
            facts=ranking_facts(score, reading, reading.control_S if by == "S" else reading.control_cos, by),
        )
        for reading, score, tiles in zip(readings, scores, lists, strict=True)
    ]  # fmt: skip


def ranking_facts(
    score: Float[Tensor, " site"], reading: SiteReading, control: Float[Tensor, " site"], by: str = "cos"
) -> dict[str, float | None]:
    """Return how far a ranking follows what needs no lens: size alone, and random directions of equal norm."""
    beside = {"with the size of what the lens adds": reading.size, "with the controls' own": control}
    for kind, found in reading.others.items():
        beside[f"with that of {_OWN.get(kind, kind)}"] = (found.S if by == "S" else found.cos).mean(0)
    return {what: spearman(score.double().numpy(), other.double().numpy()) for what, other in beside.items()}


def _ranked(by: str) -> dict[str, str]:
    return {"Similarity that ranks heads": RANKS[by]}


def lens_title(lens: Lens) -> str:
    """Name a lens with its strength, and a reconstruction as one."""
    said = lens.describe()
    definition = str(said.settings.get("definition"))
    return f"{definition}, {said.label.rpartition(', ')[2]}" if "reconstruction" in definition else said.label


def make_plate(
    setup: PaperSetup,
    name: str,
    title: str,
    words: str,
    strips: Sequence[Strip],
    here: Mapping[str, str],
    command: str | None,
    *,
    notes: tuple[str, ...] = (*ANY_FIGURE, TOP_LIST),
) -> Plate:
    """Return a plate with what is unknown of the paper, and ``here`` what stands in its place."""
    return Plate(
        name=name, title=title, words=words, strips=tuple(strips), settings=setup.describe(),
        unknown=unknown_settings(setup, **here), notes=notes, command=command,
    )  # fmt: skip
