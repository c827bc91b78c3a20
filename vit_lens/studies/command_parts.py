"""What study commands share: options and groups of them, and from options to a setup and to files."""

__all__ = [
    "AblationImages", "At", "By", "Decode", "Draws", "ImageSeed", "JudgeName", "JudgeTag", "N", "NDecoded", "NMaybe",
    "Overlays", "Scales", "Study", "StudyOnImages", "Top", "Untrained", "finish", "load_drawer", "open_setup",
]  # fmt: skip

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vit_lens.cli import flags, intake
from vit_lens.errors import StudyError

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vit_lens.decoders import Decoder
    from vit_lens.studies import StudyImages, StudyResult, StudySetup

# Held-out scenes come back at a cosine of .998 with these, as with ten steps, in a quarter of the time.
_SMALL_STEPS = 3
AblationImages = Annotated[
    list[Path] | None,
    typer.Option(help=f"{flags.IMAGES}, whose means replace what is ablated. Default: a part of --images."),
]
Overlays = Annotated[
    list[Path] | None,
    typer.Option("--overlay", help="Picture with transparency, such as a PNG. Default: of the embedded pair's world."),
]
At = Annotated[
    list[str] | None,
    typer.Option(help="Of an overlay: top left (the default), top right, bottom left, bottom right, centre or full."),
]
Scales = Annotated[
    list[float] | None,
    typer.Option("--scale", help="Width of an overlay as a share of the image's. Default: its own pixels."),
]
JudgeName = Annotated[
    str,
    typer.Option(
        help="Encoder that reads pictures and never conditioned the decoder: mini (its judge), a name as for --model, "
        "or none."
    ),
]
JudgeTag = Annotated[str | None, typer.Option(help="For an open_clip judge: its pretrained tag or checkpoint.")]
Decode = Annotated[
    list[str] | None,
    typer.Option(help="Lenses whose pictures are drawn. Commas or repeat. Default: four, or those of --lens."),
]
Top = Annotated[int, typer.Option(help="Heads shown.")]
By = Annotated[
    str,
    typer.Option(
        help="What ranks the heads: cos or S (raw or centred similarity of the embedding to the input), or picture "
        "(of the re-encoded picture; draws every head)."
    ),
]
ImageSeed = Annotated[int, typer.Option(help="Which images and draws are taken at random.")]
_N = typer.Option("--n", help="Images that are tested (content: bases; overlay: those from which heads are taken).")
N = Annotated[int, _N]
NMaybe = Annotated[int | None, _N]
NDecoded = Annotated[int, typer.Option(help="How many of them are drawn (content: with their partners).")]
Draws = Annotated[int, typer.Option(help="Of each null before decoding.")]
Untrained = Annotated[bool, typer.Option(help="Test a model with random weights, too.")]


@dataclass(kw_only=True)
class Study(flags.Pair):
    """Options of every study."""

    image_seed: ImageSeed = 0
    lens: flags.Lenses = None
    judge: JudgeName = "mini"
    judge_tag: JudgeTag = None


@dataclass(kw_only=True)
class StudyOnImages(Study):
    """Options of a study whose images need no labels."""

    images: flags.Images = None
    reference_images: flags.ReferenceImages = None
    ablation_images: AblationImages = None

    def find(self, n: int, *, overlay: float = 0.5) -> "StudyImages":
        """Return ``n`` images to test and those for means; ``overlay`` is the share of the world's scenes with one."""
        from vit_lens.images import find_images
        from vit_lens.studies import StudyImages, study_images

        if not self.images:
            if self.reference_images or self.ablation_images:
                raise StudyError("--reference-images and --ablation-images go with --images; the world has its own")
            return study_images(n, seed=self.image_seed, overlay=overlay)
        if not self.reference_images and not self.ablation_images:
            return StudyImages.split(find_images(self.images), n, seed=self.image_seed)
        if not self.reference_images or not self.ablation_images:
            raise StudyError(
                "give both --reference-images and --ablation-images, or neither (then --images is divided)"
            )
        found = find_images(self.images)
        if len(found) < n:
            raise StudyError(f"--n {n} test images, and --images holds {len(found)}: give --n {len(found)} or less")
        return StudyImages(found[:n], find_images(self.reference_images), find_images(self.ablation_images))


def load_drawer(pair: flags.Pair, small_steps: int, **more: int | None) -> "tuple[Decoder, Any]":
    """Load what draws for a study, in half precision where that is fast; a small one takes few steps."""
    is_small = pair.decoder == "mini" or (Path(pair.decoder) / "vit_lens.json").is_file()
    drawer = pair.load_decoder("bfloat16" if is_small or not pair.device.startswith("cpu") else "float32")
    usual = {"steps": small_steps, "guidance": 1.0} if is_small else {}
    return drawer, drawer.settings(**usual | flags.known(steps=pair.steps, guidance=pair.guidance, **more))


def open_setup(
    study: Study,
    sets: "StudyImages",
    out: Path,
    *,
    lenses: Sequence[str],
    decoder_seeds: Sequence[int] = (0, 1),
    judge_captions: Sequence[str] | None = None,
) -> "StudySetup":
    """Load what the options name, and return the setup.

    Args:
        study: The options.
        sets: Images.
        out: Folder of the study.
        lenses: Spellings.
        decoder_seeds: Where the options name none.
        judge_captions: That the judge reads; None for a study that needs none.
    """
    from vit_lens.mini import JUDGE
    from vit_lens.studies import Judge, make_setup

    intake.check_drawn(
        study.decoder, steps=study.steps, guidance=study.guidance, decoder_seed=study.decoder_seed,
        decoder_encoder=study.decoder_encoder, judge=study.judge not in ("mini", "none"), judge_tag=study.judge_tag,
    )  # fmt: skip
    intake.check_lenses(lenses, None)
    vit = study.load()
    drawer = reader = settings = None
    if study.decoder != "none":
        drawer, settings = load_drawer(study, _SMALL_STEPS)
        if study.judge != "none":
            name = str(JUDGE) if study.judge == "mini" else study.judge
            tower = flags.Tower(model=name, tag=study.judge_tag, device=study.device)
            bank = None if judge_captions is None else intake.embed_captions(judge_captions, tower)
            reader = Judge(tower.load(), bank)
    return make_setup(
        vit, sets, lenses=lenses, out=out, decoder=drawer, judge=reader, settings=settings,
        noise_seeds=tuple(study.decoder_seed or decoder_seeds), seed=study.image_seed, progress=True,
    )  # fmt: skip


def finish(result: "StudyResult", out: Path, figures: "dict[str, go.Figure]") -> None:
    """Write a result and its figures, and print the measures that count."""
    from vit_lens.figures import save
    from vit_lens.studies.headlines import headlines

    path = result.save(out)
    for name, figure in figures.items():
        save(figure, out / f"{name}.html")
    typer.echo(result.summary(headlines(result)))
    typer.echo(f"\nresult: {path}" + "".join(f"\nfigure: {out / name}.html" for name in figures))
