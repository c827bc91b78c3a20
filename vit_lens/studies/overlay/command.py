"""The command `vit-lens study overlay`."""

__all__ = ["overlay"]

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vit_lens.cli import flags, intake
from vit_lens.errors import StudyError
from vit_lens.studies import command_parts as parts
from vit_lens.studies.statistics import MIN_FOR_INTERVAL
from vit_lens.studies.usual_lenses import LENSES

if TYPE_CHECKING:
    from vit_lens.studies.overlay.pasting import Overlay


def overlay(
    study: parts.StudyOnImages,
    overlay: parts.Overlays = None,
    at: parts.At = None,
    scale: parts.Scales = None,
    n: Annotated[int, parts.n_tested(MIN_FOR_INTERVAL)] = 50,
    n_rank: Annotated[
        int, typer.Option(min=1, help="Other images, on which heads are ranked; drawn with and without each overlay.")
    ] = 4,
    n_effects: Annotated[int, typer.Option(min=0, help="More images, for the orders by effect: those and these.")] = 4,
    out: flags.Out = Path("vit-lens-study-overlay"),
    decode: parts.Decode = None,
    draws: parts.Draws = 20,
    untrained: parts.Untrained = True,
) -> None:
    """Paste overlays on images and ablate the heads that show them: which lens finds the heads that carry them?

    No image may hold the overlay beforehand. --at and --scale are given once, or once for each --overlay. Pictures are
    kept, so that an interrupted study goes on.
    """
    from vit_lens.studies.overlay.figures import trajectory_figure
    from vit_lens.studies.overlay.scoring import AREA
    from vit_lens.studies.overlay.study import overlay_study
    from vit_lens.studies.score_figures import score_figure

    overlays = _overlays(overlay, at, scale, study.images)
    given = flags.split_list(study.lens or ())
    drawn = parts.decoded(decode, given, study.decoder)
    sets = study.find(n + n_rank + n_effects, overlay=0.0)
    setup = parts.open_setup(study, sets, out, lenses=list(dict.fromkeys([*(given or LENSES), *drawn])))
    result = overlay_study(
        setup, overlays, n=n, decoded=drawn, n_rank=n_rank, draws=draws, untrained=untrained,
        command=intake.command_line(),
    )  # fmt: skip
    figures = {
        "removal": score_figure(result.frame(), AREA, "Overlay removal"),
        "trajectories": trajectory_figure(result.frame("trajectories")),
    }
    parts.finish(result, out, figures)


def _overlays(
    files: list[Path] | None, at: list[str] | None, scale: list[float] | None, images: list[Path] | None
) -> "list[Overlay]":
    from vit_lens.studies.overlay.mini_set import study_overlays
    from vit_lens.studies.overlay.pasting import Overlay

    if not files:
        if images or at or scale:
            raise StudyError(
                "--images, --at and --scale go with --overlay FILE.png; the world's symbols fit its scenes"
            )
        return study_overlays()
    places, scales = (_each(values, len(files), name) for values, name in ((at, "--at"), (scale, "--scale")))
    return [
        Overlay.from_file(path, at=place or "top left", scale=width)
        for path, place, width in zip(files, places, scales, strict=True)
    ]


def _each(values: list | None, n: int, name: str) -> list:
    """Return a value for every overlay: none, the one that is given, or its own."""
    given = values or [None]
    if len(given) not in (1, n):
        raise StudyError(f"{name} is given {len(given)} times for {n} overlays; give it once, or once for each")
    return given * n if len(given) == 1 else given
