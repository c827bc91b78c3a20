"""The command `vit-lens study overlay`."""

__all__ = ["overlay"]

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vit_lens.cli.options import Device, split_list
from vit_lens.cli.studies.options import (
    AblationImages,
    Decoder,
    Encoder,
    Guidance,
    Images,
    JudgeName,
    JudgeTag,
    Lenses,
    NoiseSeeds,
    Out,
    ReferenceImages,
    Seed,
    Steps,
    command_line,
    finish,
    open_setup,
)
from vit_lens.cli.sweeps import Model, QuickGelu, Tag
from vit_lens.errors import StudyError

if TYPE_CHECKING:
    from vit_lens.studies.overlay.study import Overlay


def overlay(
    model: Model = "mini",
    decoder: Decoder = "mini",
    images: Images = None,
    overlay: Annotated[
        list[Path] | None,
        typer.Option(help="Picture with transparency, such as a PNG; repeat for more. Default: symbols of the world."),
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            help="Where: top left, top right, bottom left, bottom right, centre, full. Once, or once for each overlay. "
            "Default: top left."
        ),
    ] = None,
    size: Annotated[
        list[float] | None,
        typer.Option(help="Width as a share of the image's. Once, or once for each overlay. Default: its own pixels."),
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Images from which heads are taken away.")] = 50,
    n_rank: Annotated[
        int, typer.Option(help="Other images, on which heads are ranked; drawn with and without each overlay.")
    ] = 4,
    n_effects: Annotated[int, typer.Option(help="More images, for the orders by effect: those and these.")] = 4,
    seed: Seed = 0,
    out: Out = Path("vit-lens-study-overlay"),
    lens: Lenses = None,
    decode: Annotated[
        list[str] | None,
        typer.Option(help="Lenses whose pictures rank heads, too; repeat. Default: four, or those of --lens."),
    ] = None,
    draws: Annotated[int, typer.Option(help="Random orders, and draws of each placebo before decoding.")] = 20,
    untrained: Annotated[bool, typer.Option(help="Take heads away from a model with random weights, too.")] = True,
    noise_seed: NoiseSeeds = None,
    judge: JudgeName = "mini",
    judge_tag: JudgeTag = None,
    tag: Tag = None,
    quick_gelu: QuickGelu = None,
    encoder: Encoder = None,
    reference_images: ReferenceImages = None,
    ablation_images: AblationImages = None,
    steps: Steps = None,
    guidance: Guidance = None,
    device: Device = "cpu",
) -> None:
    """Paste overlays on images and ablate the heads that show them: which lens finds the heads that carry them?

    No image may hold the overlay beforehand. Pictures are kept, so that an interrupted study goes on.
    """
    from vit_lens.figures.studies import score_figure
    from vit_lens.figures.study_overlay import trajectory_figure
    from vit_lens.studies.overlay.scoring import AREA
    from vit_lens.studies.overlay.study import LENSES, overlay_study

    overlays = _overlays(overlay, at, size, images)
    drawn = _drawn(split_list(decode or ()), split_list(lens or ()), decoder)
    setup = open_setup(
        model=model, decoder=decoder, judge=judge, images=images, n=n + n_rank + n_effects, seed=seed, out=out,
        lenses=list(dict.fromkeys([*(split_list(lens or ()) or LENSES), *drawn])), tag=tag, quick_gelu=quick_gelu,
        encoder=encoder, judge_tag=judge_tag, reference_images=reference_images, ablation_images=ablation_images,
        noise_seeds=noise_seed, steps=steps, guidance=guidance, overlay=0.0, device=device,
    )  # fmt: skip
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
    files: list[Path] | None, at: list[str] | None, size: list[float] | None, images: list[Path] | None
) -> "list[Overlay]":
    from vit_lens.mini.study_overlays import study_overlays
    from vit_lens.studies.overlay.study import Overlay

    if not files:
        if images or at or size:
            raise StudyError("--images, --at and --size go with --overlay FILE.png; the world's symbols fit its scenes")
        return study_overlays()
    places, sizes = (_each(values, len(files), name) for values, name in ((at, "--at"), (size, "--size")))
    return [
        Overlay.from_file(path, at=place or "top left", scale=share)
        for path, place, share in zip(files, places, sizes, strict=True)
    ]


def _each(values: list | None, n: int, name: str) -> list:
    """Return a value for every overlay: none, the one that is given, or its own."""
    given = values or [None]
    if len(given) not in (1, n):
        raise StudyError(f"{name} is given {len(given)} times for {n} overlays; give it once, or once for each")
    return given * n if len(given) == 1 else given
