"""Figure 5: an image, an overlay, both together, and the heads that show the overlay most."""

__all__ = ["OVERLAY_LENSES", "overlay_plate"]

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.errors import StudyError
from vit_lens.lenses import Lens
from vit_lens.metrics import cosine
from vit_lens.studies.overlay import Overlay, as_seen, mean_colour, paste, pixels_of_seen
from vit_lens.studies.paper.paper_setup import PaperSetup
from vit_lens.studies.paper.plate import Plate, Strip
from vit_lens.studies.paper.site_readings import SiteReading, read_sites
from vit_lens.studies.paper.tiles import Chosen, Layer, best, image_tile, layers_of, read_tiles
from vit_lens.studies.paper.top_plates import anchor_tiles, lens_title, make_plate, ranking_facts

OVERLAY_LENSES = ("diffusion", "dsl:alpha=10", "dsl-mean:alpha=5")
"""The lenses of figure 5."""
_RANK = (
    "cosine of what a head's lens embedding gains with the overlay (composite minus image alone) with what the overlay "
    "alone adds to the embedding of a blank"
)


def overlay_plate(
    setup: PaperSetup,
    image: Any,
    overlay: Overlay,
    *,
    lenses: Sequence[str | Lens] = OVERLAY_LENSES,
    top: int = 6,
    command: str | None = None,
) -> Plate:
    """Draw the heads whose lens result shows an overlay most, with it and without it (figure 5).

    Args:
        setup: The pair and the reference images.
        image: The image without the overlay.
        overlay: The picture with transparency that is pasted on it.
        lenses: Lenses or their spellings, one strip for each; spelt ones as for :func:`ladder_plate`.
        top: How many heads are shown of each.
        command: The command that makes the plate again; None where there is none.

    Raises:
        StudyError: The image is a reference image, the overlay is larger than it or does not show on it, or there are
            fewer heads, or no lens.
        LensError: A spelling names no lens.
    """
    if not lenses:
        raise StudyError("an overlay is looked for through at least one lens, and lenses= is empty")
    setup.see(image)
    base = as_seen(setup.model, [image])[0]
    blank = np.broadcast_to(mean_colour(setup.model, setup.pixels), base.shape)
    both, alone = paste(base, overlay), paste(blank, overlay)
    if (both == base).all() or (alone == blank).all():
        raise StudyError(
            f"overlay {overlay.name!r} changes no pixel of the image, or of a blank; give a less faint one"
        )
    sites = Site.heads(setup.model)
    named = {one.describe().id: one for one in setup.lenses(lenses)}
    readings = read_sites(setup, pixels_of_seen(setup.model, np.stack([both, base])), named, sites)
    toward = _gain(setup, alone, blank)
    chosen, scores = [], []
    for with_it, without in readings.values():
        layers, score = _layers(with_it, without, toward)
        chosen.append(Chosen(sites=tuple(map(str, sites)), order=best(score[0], top), layers=layers))
        scores.append(score)
    own, lists = read_tiles(setup, next(iter(readings.values()))[0].clean, chosen)
    start = [("image", base), ("overlay", alone), ("both", both)]
    tiles = (*(image_tile(label, picture) for label, picture in start), own)
    strips = [
        Strip(
            title=lens_title(reading.lens), words=reading.lens.describe().words,
            tiles=(*tiles, *anchor_tiles(reading.lens), *columns),
            facts=ranking_facts(score, replace(reading, others={}), control),
        )
        for (reading, _), columns, (score, control) in zip(readings.values(), lists, scores, strict=True)
    ]  # fmt: skip
    here = {"Similarity that ranks heads": _RANK, "Overlay": f"{overlay.name}, {overlay.at}", "Strength alpha": "10"}
    return make_plate(
        setup, "fig5", f"The {top} heads that show an overlay most",
        "Each head's picture with the overlay, the same head's without it, and a control.", strips, here, command,
    )  # fmt: skip


def _layers(
    with_it: SiteReading, without: SiteReading, toward: Float[Tensor, " d_embed"]
) -> tuple[list[Layer], tuple[Float[Tensor, " site"], Float[Tensor, " site"]]]:
    """Return pictures with the overlay, without it, and of the control; and how much site and control show of it."""
    own = cosine(with_it.embeds - without.embeds, toward)
    control = cosine(with_it.controls - without.controls, toward).mean(0)
    first, last, *more = layers_of(with_it)
    middle = Layer(label="without", embeds=without.embeds, clean=without.clean, numbers={})
    shown = [
        Layer(label=None, embeds=first.embeds, clean=first.clean, numbers={"overlay": own, **first.numbers}),
        middle,
        Layer(label="control", embeds=last.embeds, clean=last.clean, numbers={"overlay": control, **last.numbers}),
        *more,
    ]
    return shown, (own, control)


@torch.no_grad()
def _gain(
    setup: PaperSetup, alone: UInt8[np.ndarray, "height width 3"], blank: UInt8[np.ndarray, "height width 3"]
) -> Float[Tensor, " d_embed"]:
    found = setup.model(pixels_of_seen(setup.model, np.stack([alone, blank])))
    return (found[0] - found[1]).float().cpu()
