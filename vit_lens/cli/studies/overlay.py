"""The command `vit-lens study overlay`."""

__all__ = ["overlay"]

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vit_lens.cli.options import At, Decode, Draws, N, Out, Overlays, Scales, Untrained, split_list
from vit_lens.cli.reading import command_line
from vit_lens.cli.studies.options import StudyOnImages, finish, open_setup
from vit_lens.errors import StudyError

if TYPE_CHECKING:
    from vit_lens.studies.overlay.study import Overlay


def overlay(
    study: StudyOnImages,
    overlay: Overlays = None,
    at: At = None,
    scale: Scales = None,
    n: N = 50,
    n_rank: Annotated[
        int, typer.Option(help="Other images, on which heads are ranked; drawn with and without each overlay.")
    ] = 4,
    n_effects: Annotated[int, typer.Option(help="More images, for the orders by effect: those and these.")] = 4,
    out: Out = Path("vit-lens-study-overlay"),
    decode: Decode = None,
    draws: Draws = 20,
    untrained: Untrained = True,
) -> None:
    """Paste overlays on images and ablate the heads that show them: which lens finds the heads that carry them?

    No image may hold the overlay beforehand. --at and --scale are given once, or once for each --overlay. Pictures are
    kept, so that an interrupted study goes on.
    """
    from vit_lens.figures.studies import score_figure
    from vit_lens.figures.study_overlay import trajectory_figure
    from vit_lens.studies.overlay.scoring import AREA
    from vit_lens.studies.overlay.study import LENSES, overlay_study

    overlays = _overlays(overlay, at, scale, study.images)
    given = split_list(study.lens or ())
    drawn = _drawn(split_list(decode or ()), given, study.decoder)
    sets = study.find(n + n_rank + n_effects, overlay=0.0)
    setup = open_setup(study, sets, out, lenses=list(dict.fromkeys([*(given or LENSES), *drawn])))
    result = overlay_study(
        setup, overlays, n=n, decoded=drawn, n_rank=n_rank, draws=draws, untrained=untrained, command=command_line()
    )
    figures = {
        "removal": score_figure(result.frame(), AREA, "Overlay removal"),
        "trajectories": trajectory_figure(result.frame("trajectories")),
    }
    finish(result, out, figures)


def _drawn(decode: Sequence[str], lenses: Sequence[str], decoder: str) -> list[str]:
    from vit_lens.studies.overlay.study import DECODED

    if decoder != "none":
        return list(decode or lenses or DECODED)
    if decode:
        raise StudyError("--decode asks for pictures, and --decoder none draws none; give a decoder, or leave it")
    return []


def _overlays(
    files: list[Path] | None, at: list[str] | None, scale: list[float] | None, images: list[Path] | None
) -> "list[Overlay]":
    from vit_lens.mini.study_overlays import study_overlays
    from vit_lens.studies.overlay.study import Overlay

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
