"""The paper's figures on any pair: fig2, fig3, fig4, fig5."""

__all__ = ["paper"]

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vit_lens.cli.options import Device, torch_device
from vit_lens.cli.studies.options import Encoder, Guidance, Steps, command_line
from vit_lens.cli.sweeps import Model, QuickGelu, Tag
from vit_lens.errors import OutputError, StudyError

if TYPE_CHECKING:
    from vit_lens.records.plates import Plate
    from vit_lens.studies.overlay.pasting import Overlay
    from vit_lens.studies.paper import PaperSetup

_MINI_SETTINGS = {"steps": 5, "guidance": 1.0}
_MINI_REFERENCE = 256

Image = Annotated[Path | None, typer.Option(help="What is shown; the embedded pair has a scene of its own.")]
ReferenceImages = Annotated[
    list[Path] | None,
    typer.Option(
        help="Images, or folders of them, to compare with: a few hundred that are not shown. The embedded pair has "
        "scenes of its own."
    ),
]
Decoder = Annotated[str, typer.Option(help="mini, a Hub id or a local directory.")]
Size = Annotated[int | None, typer.Option(help="Height and width of the pictures.")]
NoiseSeed = Annotated[int, typer.Option(help="Of the decoder: one start and one noise sequence for all pictures.")]
Seed = Annotated[int, typer.Option(help="Of the controls' random directions.")]
BatchSize = Annotated[int, typer.Option(help="Pictures drawn together.")]
Out = Annotated[Path, typer.Option(help="Folder of the figure; the same command again goes on where it stopped.")]
Top = Annotated[int, typer.Option(help="Heads shown.")]
By = Annotated[
    str,
    typer.Option(
        help="What ranks the heads: cos or S (raw or centred similarity of the embedding to the input), or picture "
        "(of the re-encoded picture; draws every head)."
    ),
]

paper = typer.Typer(
    help="The paper's figures on any encoder and decoder that fit each other, every picture beside its control.\n\n"
    "A reconstruction: the paper's settings could not be read, and the page lists what is unknown.",
    no_args_is_help=True,
)


@paper.command()
def fig2(
    image: Image = None,
    reference_images: ReferenceImages = None,
    model: Model = "mini",
    tag: Tag = None,
    quick_gelu: QuickGelu = None,
    decoder: Decoder = "mini",
    encoder: Encoder = None,
    stride: Annotated[
        int | None, typer.Option(help="Show every so many layers; default: as many as give about 12.")
    ] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    size: Size = None,
    noise_seed: NoiseSeed = 0,
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    device: Device = "cpu",
    out: Out = Path("vit-lens-paper"),
) -> None:
    """The residual stream, layer by layer, under the Diffusion Lens."""
    from vit_lens.studies.paper import residual_plate

    setup, shown = _open(
        image, reference_images, model, tag, quick_gelu, decoder, encoder, steps, guidance, size, noise_seed, seed,
        batch_size, device, out,
    )  # fmt: skip
    _write(residual_plate(setup, shown, stride=stride, command=command_line()), out)


@paper.command()
def fig3(
    image: Image = None,
    reference_images: ReferenceImages = None,
    model: Model = "mini",
    tag: Tag = None,
    quick_gelu: QuickGelu = None,
    decoder: Decoder = "mini",
    encoder: Encoder = None,
    top: Top = 6,
    by: By = "cos",
    steps: Steps = None,
    guidance: Guidance = None,
    size: Size = None,
    noise_seed: NoiseSeed = 0,
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    device: Device = "cpu",
    out: Out = Path("vit-lens-paper"),
) -> None:
    """The heads most like the input under the Diffusion Lens."""
    from vit_lens.studies.paper import diffusion_plate

    setup, shown = _open(
        image, reference_images, model, tag, quick_gelu, decoder, encoder, steps, guidance, size, noise_seed, seed,
        batch_size, device, out,
    )  # fmt: skip
    _write(diffusion_plate(setup, shown, top=top, by=by, command=command_line()), out)


@paper.command()
def fig4(
    image: Image = None,
    reference_images: ReferenceImages = None,
    model: Model = "mini",
    tag: Tag = None,
    quick_gelu: QuickGelu = None,
    decoder: Decoder = "mini",
    encoder: Encoder = None,
    alpha: Annotated[
        list[float] | None, typer.Option(help="Strength; repeat for a ladder. Default: 1.5, 2, 5, 10, 25, 100.")
    ] = None,
    top: Top = 10,
    by: By = "cos",
    steps: Steps = None,
    guidance: Guidance = None,
    size: Size = None,
    noise_seed: NoiseSeed = 0,
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    device: Device = "cpu",
    out: Out = Path("vit-lens-paper"),
) -> None:
    """The heads most like the input under D1 (reconstruction) at several strengths, and mean-anchored."""
    from vit_lens.studies.paper import ALPHAS, ladder_plate

    setup, shown = _open(
        image, reference_images, model, tag, quick_gelu, decoder, encoder, steps, guidance, size, noise_seed, seed,
        batch_size, device, out,
    )  # fmt: skip
    _write(ladder_plate(setup, shown, alphas=alpha or ALPHAS, top=top, by=by, command=command_line()), out)


@paper.command()
def fig5(
    image: Image = None,
    overlay: Annotated[
        Path | None, typer.Option(help="PNG with an alpha channel; the embedded pair has a symbol of its own.")
    ] = None,
    at: Annotated[
        str | None, typer.Option(help="top left, top right, bottom left, bottom right, centre or full.")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="Width of the overlay as a share of the image's.")] = None,
    reference_images: ReferenceImages = None,
    model: Model = "mini",
    tag: Tag = None,
    quick_gelu: QuickGelu = None,
    decoder: Decoder = "mini",
    encoder: Encoder = None,
    top: Top = 6,
    steps: Steps = None,
    guidance: Guidance = None,
    size: Size = None,
    noise_seed: NoiseSeed = 0,
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    device: Device = "cpu",
    out: Out = Path("vit-lens-paper"),
) -> None:
    """An image, an overlay, both together, and the heads that show the overlay most."""
    from vit_lens.studies.paper import overlay_plate

    pasted = _overlay(overlay, at, scale, model)
    setup, shown = _open(
        image, reference_images, model, tag, quick_gelu, decoder, encoder, steps, guidance, size, noise_seed, seed,
        batch_size, device, out, overlay=0.0,
    )  # fmt: skip
    _write(overlay_plate(setup, shown, pasted, top=top, command=command_line()), out)


def _open(
    image: Path | None,
    reference_images: list[Path] | None,
    model: str,
    tag: str | None,
    quick_gelu: bool | None,
    decoder: str,
    encoder: str | None,
    steps: int | None,
    guidance: float | None,
    size: int | None,
    noise_seed: int,
    seed: int,
    batch_size: int,
    device: str,
    out: Path,
    *,
    overlay: float = 0.5,
) -> "tuple[PaperSetup, object]":
    """Load what the options name; return the setup and the image to show."""
    import torch

    from vit_lens import HookedViT, KandinskyDecoder
    from vit_lens.images import find_images
    from vit_lens.mini.study_images import study_images
    from vit_lens.studies.paper import make_paper

    if decoder == "none":
        raise StudyError("the paper's figures are pictures: give a --decoder that was made for the model")
    if model != "mini" and (image is None or reference_images is None):
        raise StudyError(
            "give --image, and --reference-images to compare it with; only the embedded pair has scenes of its own"
        )
    own = study_images(1, seed=seed, overlay=overlay, n_means=_MINI_REFERENCE) if model == "mini" else None
    shown = image if image is not None else own and own.test[0]
    reference = find_images(reference_images) if reference_images is not None else own and own.anchor
    place = torch_device(device)
    vit = HookedViT.from_pretrained(model, tag=tag, quick_gelu=quick_gelu, device=place)
    is_small = decoder == "mini" or (Path(decoder) / "vit_lens.json").is_file()
    dtype = torch.bfloat16 if is_small or place.type != "cpu" else torch.float32
    drawer = KandinskyDecoder.from_pretrained(decoder, encoder=encoder, dtype=dtype, device=place)
    given = {"steps": steps, "guidance": guidance, "height": size, "width": size}
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = drawer.settings(**{**(_MINI_SETTINGS if is_small else {}), **chosen, "seed": noise_seed})
    setup = make_paper(
        vit, drawer, reference or (), out=out, settings=settings, seed=seed, batch_size=batch_size, progress=True
    )
    return setup, shown


def _overlay(path: Path | None, at: str | None, scale: float | None, model: str) -> "Overlay":
    from vit_lens.mini.study_overlays import study_overlays
    from vit_lens.studies.overlay.pasting import Overlay

    if path is not None:
        return Overlay.from_file(path, at=at or "top left", scale=scale)
    if model != "mini":
        raise StudyError("give --overlay, a PNG with an alpha channel; only the embedded pair has one of its own")
    if at is not None or scale is not None:
        raise StudyError("--at and --scale place the file of --overlay; the embedded pair's own symbol has its corner")
    return study_overlays()[0]


def _write(plate: "Plate", out: Path) -> None:
    from vit_lens.figures import plate_figure, save
    from vit_lens.report import write_plate

    numbers = plate.save(out)
    typer.echo(f"numbers: {numbers}\npage: {write_plate(plate, out / f'{plate.name}.html')}")
    try:
        typer.echo(f"figure: {save(plate_figure(plate), out / f'{plate.name}.png')}")
    except OutputError as error:  # the page holds the same
        typer.secho(f"no figure: {error}", err=True, fg=typer.colors.YELLOW)
