"""The papers' figures on any pair: fig2, fig3, fig4, fig5; of text encoders toker, of dictionaries shabalin."""

__all__ = ["paper"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vit_lens.cli import dictionary_inputs as read
from vit_lens.cli import flags, intake
from vit_lens.errors import OutputError, StudyError
from vit_lens.studies import command_parts as parts

if TYPE_CHECKING:
    from vit_lens.studies import Overlay
    from vit_lens.studies.paper import PaperSetup, Plate

_SMALL_STEPS = 5
_MINI_REFERENCE = 256
_BATCH = 16
_STRIDE = typer.Option(
    min=1, help="Show every so many layers. Default: as many as give about 12; toker: 4, counted back from the last."
)


@dataclass(kw_only=True)
class Figure(flags.Pair):
    """Options of every figure."""

    images: flags.Images = None
    reference_images: flags.ReferenceImages = None
    lens: flags.Lenses = None
    jacobian: flags.Jacobian = None
    image_seed: parts.ImageSeed = 0
    control_seed: flags.ControlSeed = 0
    size: flags.Size = None
    batch_size: flags.BatchSize = None
    out: flags.Out = Path("vit-lens-paper")

    @property
    def more_lenses(self) -> list[str]:
        """The lenses that are drawn beside the figure's own."""
        return flags.split_list(self.lens or ())

    def open(self, *, overlay: float) -> "tuple[PaperSetup, object]":
        """Load what the options name; return the setup and the image to show."""
        from vit_lens.images import find_images
        from vit_lens.reference import Jacobians
        from vit_lens.studies.mini_images import study_images
        from vit_lens.studies.paper import make_paper

        if self.decoder == "none":
            raise StudyError("the paper's figures are pictures: give a --decoder that was made for the model")
        if self.model != "mini" and not (self.images and self.reference_images):
            raise StudyError(
                "give --images, and --reference-images to compare it with; only the embedded pair has scenes of its own"
            )
        intake.check_lenses_of_reference(self.more_lenses, self.jacobian)
        seed = flags.one(self.decoder_seed, "--decoder-seed")
        shown, reference = find_images(self.images or ()), find_images(self.reference_images or ())
        if len(shown) > 1:
            raise StudyError(f"a figure shows one image, and --images holds {', '.join(map(str, shown))}: give one")
        if not (shown and reference):
            own = study_images(1, seed=self.image_seed, overlay=overlay, n_means=_MINI_REFERENCE)
            shown, reference = shown or own.test, reference or own.anchor
        vit = self.load()
        drawer, settings = parts.load_drawer(self, vit, _SMALL_STEPS, height=self.size, width=self.size, seed=seed)
        setup = make_paper(
            vit, drawer, reference, out=self.out, settings=settings, seed=self.control_seed,
            batch_size=_BATCH if self.batch_size is None else self.batch_size, progress=True,
            jacobians=None if self.jacobian is None else Jacobians.load(self.jacobian),
        )  # fmt: skip
        return setup, shown[0]


def fig2(
    figure: Figure,
    stride: Annotated[int | None, _STRIDE] = None,
) -> None:
    """The residual stream, layer by layer, under the Diffusion Lens."""
    from vit_lens.studies.paper import residual_plate

    _draw(figure, residual_plate, stride=stride)


def fig3(figure: Figure, top: parts.Top = 6, by: parts.By = "cos") -> None:
    """The heads most like the input under the Diffusion Lens."""
    from vit_lens.studies.paper import diffusion_plate

    _draw(figure, diffusion_plate, top=top, by=by)


def fig4(
    figure: Figure,
    alpha: Annotated[
        list[float] | None, typer.Option(help="Strength; repeat for a ladder. Default: 1.5, 2, 5, 10, 25, 100.")
    ] = None,
    top: parts.Top = 10,
    by: parts.By = "cos",
) -> None:
    """The heads most like the input under D1 (reconstruction) at several strengths, and mean-anchored."""
    from vit_lens import DiffusionSteeringLens
    from vit_lens.studies.paper import ALPHAS, ladder_plate

    for strength in alpha or ():  # refused before a model is loaded
        DiffusionSteeringLens(alpha=strength)
    _draw(figure, ladder_plate, alphas=alpha or ALPHAS, top=top, by=by)


def fig5(
    figure: Figure, overlay: parts.Overlays = None, at: parts.At = None, scale: parts.Scales = None, top: parts.Top = 6
) -> None:
    """An image, an overlay, both together, and the heads that show the overlay most."""
    from vit_lens.studies.paper import OVERLAY_LENSES, overlay_plate

    pasted = _overlay(flags.one(overlay, "--overlay"), flags.one(at, "--at"), flags.one(scale, "--scale"), figure.model)
    _draw(figure, overlay_plate, first=OVERLAY_LENSES, overlay=pasted, top=top)


def toker(
    checkout: Annotated[Path, typer.Argument(help="A checkout of github.com/tokeron/DiffusionLens.")],
    model: flags.Model,
    judge: Annotated[str, flags.JUDGE],
    family: Annotated[
        list[str] | None,
        typer.Option(help="Which prompts, such as simple_objects; commas or repeat. Default: all ten families."),
    ] = None,
    stride: Annotated[int, _STRIDE] = 4,
    text_encoder: Annotated[
        str | None, typer.Option(help="Whose layers, where there are several, such as text_encoder_2.")
    ] = None,
    decoder_seed: flags.DecoderSeeds = None,
    steps: flags.Steps = None,
    guidance: flags.Guidance = None,
    size: flags.Size = None,
    batch_size: flags.BatchSize = None,
    device: flags.Device = "cpu",
    encoder_dtype: flags.EncoderDtype = "float32",
    decoder_dtype: flags.DecoderDtype = "float32",
    plan: flags.OnlyPlan = False,
    out: flags.Out = Path("vit-lens-paper-toker"),
) -> None:
    """The layer curves of Toker et al. 2024 on any text-to-image pipeline, beside what people answered.

    The prompts and people's answers are read from the checkout. The same command again goes on.
    """
    from vit_lens import Drawing
    from vit_lens.decoders import PromptEncoder, TextDecoder
    from vit_lens.studies.annotate import (
        FAMILIES,
        cost_words,
        named_judge,
        read_families,
        toker_curves,
        toker_plan,
    )

    if not judge.startswith(("clip:", "vqa:")):
        raise StudyError(f"--judge {judge}: expected clip:NAME or vqa:DIR, which look at pictures of any model")
    families = flags.split_list(family or FAMILIES)
    read_families(checkout, families)  # refused before a model is loaded
    looks = None if plan else named_judge(judge, device)
    place = flags.torch_device(device)
    reader = PromptEncoder.from_pretrained(model, dtype=flags.torch_dtype(encoder_dtype), device=place)
    drawer = TextDecoder.from_pretrained(model, dtype=flags.torch_dtype(decoder_dtype), device=place)
    settings = drawer.settings(**flags.known(steps=steps, guidance=guidance, height=size, width=size))
    drawing = Drawing(settings=settings, seeds=list(decoder_seed or range(4)), batch_size=batch_size)
    how: dict[str, Any] = {"families": families, "stride": stride, "encoder": text_encoder, "drawing": drawing}
    plans = toker_plan(checkout, reader, drawer, **how)
    for name, one in plans.items():
        typer.echo(f"{name}: {len(one.inputs)} prompts, {one.n_rows:,} pictures")
    typer.echo(cost_words(plans, reader, drawer))
    if looks is None:
        return
    found = toker_curves(checkout, reader, drawer, looks, out=out, progress=True, command=intake.command_line(), **how)
    for (name, question), part in found.curves.groupby(["family", "question"], sort=False):
        shares = ", ".join(f"{layer} {mean:.2f}" for layer, mean in zip(part["layer"], part["mean"], strict=True))
        typer.echo(f"{name} {question}, share by layer: {shares} (n {part['n'].max()})")
    figures = ", ".join(str(out / f"{name}.html") for name in families)
    typer.echo(f"written: {out / 'curves.json'}, {out / 'curves.csv'}, {out / 'people.csv'}\nfigures: {figures}")


@dataclass(kw_only=True)
class Drawn(read.Reads):
    """Options that name a model whose activations are read, the model first."""

    model: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL]",
            help="A pipeline (mini-flux, mini-sd, a folder with model_index.json), an image encoder as for --model of "
            "sweep, or with --prompts and an --at-block such as L3.resid_post a text encoder.",
        ),
    ] = "mini-flux"


def shabalin(
    reads: Drawn,
    images: flags.Images = None,
    prompts: flags.Prompts = None,
    figure: Annotated[
        list[str] | None, typer.Option(help="Which figures, such as spectrum; commas or repeat. Default: all.")
    ] = None,
    block: Annotated[
        str | None,
        typer.Option(
            "--at-block",
            help="The hook point at which all but the block varies. Default: the last double block, the middle of a "
            "UNet, the middle block of an encoder.",
        ),
    ] = None,
    blocks: Annotated[
        list[str] | None,
        typer.Option(help="Hook points over which figures are; commas or repeat. Default: six, evenly spread."),
    ] = None,
    k: read.K = 16,
    ks: Annotated[
        list[int] | None,
        typer.Option("--ks", min=1, help="Codes of a token; repeat. Default: a quarter of --k to twice."),
    ] = None,
    features: read.NFeatures = 512,
    widths: Annotated[
        list[int] | None, typer.Option(min=1, help="Features; repeat. Default: a quarter of --features to twice.")
    ] = None,
    n_inputs: Annotated[int, typer.Option("--n-inputs", min=10, help="Prompts or images that are read.")] = 400,
    n_tokens: read.NTokens = 200_000,
    threshold: read.Threshold = 0.2,
    held_out: read.HeldOut = 0.2,
    tokens: read.Tokens = None,
    learning_seed: read.LearningSeed = 0,
    decoder: flags.Decoder = "mini",
    plan: flags.OnlyPlan = False,
    out: flags.Out = Path("vit-lens-paper-shabalin"),
) -> None:
    """The figures of Shabalin et al. 2025 on any model: norms, spectrum, what is explained, over steps, steering.

    Every dictionary is drawn beside untrained directions, random data points and principal components. Without --images
    or --prompts the embedded models read their own worlds. The same command again goes on.
    """
    from vit_lens.studies.paper import Bench, Sizes, chosen_figures, cost_of, shabalin_figures

    chosen = chosen_figures(flags.split_list(figure or ()) or None)
    at = flags.split_list(blocks or ())
    model, inputs, run, usual = read.given(reads, block or (at[0] if at else ""), None, images, prompts)
    sizes = Sizes(
        k=k, width=features, ks=tuple(ks or _around(k)), widths=tuple(widths or _around(features)), n_tokens=n_tokens,
        held_out=held_out, threshold=threshold, seed=learning_seed, device=reads.device,
    )  # fmt: skip
    bench = Bench(
        model,
        inputs[:n_inputs],
        run,
        tokens or usual,
        sizes,
        folder=None if plan else out,
        block=block,
        blocks=at or None,
        decoder=_drawer(reads, decoder, model),
    )
    for one in chosen:
        lacks = one.lacks(bench)
        typer.echo(f"{one.name}: {one.words if lacks is None else f'left out, {lacks}'}")
    if plan:
        typer.echo(cost_of(bench, [one for one in chosen if one.lacks(bench) is None]).words)
        return
    found = shabalin_figures(bench, chosen, command=intake.command_line(), tell=typer.echo)
    typer.echo(f"page: {found.page}")


def _drawer(reads: Drawn, decoder: str, model: Any) -> Any:
    """Return what draws an image encoder's embeddings, and how; None where nothing does: mini draws its own encoder's.

    Raises:
        StudyError: A decoder is named for a model of prompts.
    """
    from vit_lens import HookedViT
    from vit_lens.identity import MINI_ENCODER

    if not isinstance(model, HookedViT):
        if decoder != "mini":
            raise StudyError(f"--decoder {decoder} would have no effect on {reads.model}, which reads prompts")
        return None
    if decoder == "none" or (decoder == "mini" and model.encoder_id != MINI_ENCODER):
        return None
    pair = flags.Pair(model=reads.model, tag=reads.tag, decoder=decoder, device=reads.device)
    return parts.load_drawer(pair, model)


def _around(value: int) -> list[int]:
    return sorted({max(1, value // 4), max(1, value // 2), value, 2 * value})


def _overlay(path: Path | None, at: str | None, scale: float | None, model: str) -> "Overlay":
    from vit_lens.studies.overlay import Overlay, study_overlays

    if path is not None:
        return Overlay.from_file(path, at=at or "top left", scale=scale)
    if model != "mini":
        raise StudyError("give --overlay, a PNG with an alpha channel; only the embedded pair has one of its own")
    if at is not None or scale is not None:
        raise StudyError("--at and --scale place the file of --overlay; the embedded pair's own symbol has its corner")
    return study_overlays()[0]


def _draw(figure: Figure, plate_of: Callable[..., "Plate"], *, first: Sequence[str] = (), **options: Any) -> None:
    from vit_lens.figures import save
    from vit_lens.studies.paper import plate_figure, write_plate

    # The pair's own overlays are symbols of its world: an image of it that holds none shows them.
    setup, image = figure.open(overlay=0.0 if "overlay" in options else 0.5)
    lenses = [*first, *figure.more_lenses]
    plate, out = plate_of(setup, image, lenses=lenses, **options, command=intake.command_line()), figure.out
    typer.echo(f"numbers: {plate.save(out)}\npage: {write_plate(plate, out / f'{plate.name}.html')}")
    try:
        typer.echo(f"figure: {save(plate_figure(plate), out / f'{plate.name}.png')}")
    except OutputError as error:  # the page holds the same
        typer.secho(f"no figure: {error}", err=True, fg=typer.colors.YELLOW)


paper = typer.Typer(
    help="The paper's figures on any encoder and decoder that fit each other, every picture beside its control.\n\n"
    "--lens adds strips by other lenses, which start from the reference images: counterfactual from the first three, "
    "and :project projects on all of them.\n\n"
    "A reconstruction: the paper's settings could not be read, and the page lists what is unknown.",
    no_args_is_help=True,
)
for command in (fig2, fig3, fig4, fig5, toker, shabalin):
    paper.command()(flags.grouped(command))
