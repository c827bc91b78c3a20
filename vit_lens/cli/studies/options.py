"""What all study commands share: their options, and from options to a setup."""

__all__ = [
    "AblationImages",
    "Decoder",
    "Encoder",
    "Guidance",
    "Images",
    "JudgeName",
    "JudgeTag",
    "Lenses",
    "NoiseSeeds",
    "Out",
    "ReferenceImages",
    "Seed",
    "Steps",
    "command_line",
    "finish",
    "open_setup",
    "read_bank",
]

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vit_lens.cli.options import split_list, torch_device
from vit_lens.errors import StudyError, VitLensError

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vit_lens.studies import StudyImages, StudyResult, StudySetup
    from vit_lens.texts import TextBank

Decoder = Annotated[
    str, typer.Option(help="mini, a Hub id, a local directory, or none for what can be said before decoding.")
]
Encoder = Annotated[
    str | None, typer.Option(help="Which encoder the decoder was made for, where its files do not say it.")
]
JudgeName = Annotated[
    str,
    typer.Option(
        help="Encoder that reads pictures and never conditioned the decoder: mini (its judge), a name as for --model, "
        "or none."
    ),
]
JudgeTag = Annotated[str | None, typer.Option(help="For an open_clip judge: its pretrained tag or checkpoint.")]
Images = Annotated[
    list[Path] | None,
    typer.Option(help="Images, or folders of them; repeat for more. Default: scenes of the embedded pair's world."),
]
ReferenceImages = Annotated[
    Path | None, typer.Option(help="Folder whose means anchor the mean-anchored lenses. Default: a part of --images.")
]
AblationImages = Annotated[
    Path | None, typer.Option(help="Folder whose means replace what is ablated. Default: another part of --images.")
]
Lenses = Annotated[
    list[str] | None, typer.Option("--lens", help="diffusion, dsl:alpha=10, dsl:share=1, dsl-mean:alpha=5. Repeat.")
]
NoiseSeeds = Annotated[list[int] | None, typer.Option("--noise-seed", help="Of the decoder; repeat. Default: 0 and 1.")]
Seed = Annotated[int, typer.Option(help="Of images, draws and resamples.")]
Out = Annotated[Path, typer.Option(help="Folder of the study; the same command again goes on where it stopped.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps; mini: 3, others: the decoder's own.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale; mini: none, others: the decoder's own.")]

# Held-out scenes come back at a cosine of .998 with these, as with ten steps, in a quarter of the time.
_MINI_SETTINGS = {"steps": 3, "guidance": 1.0}


def open_setup(
    *,
    model: str,
    decoder: str,
    judge: str,
    images: list[Path] | None,
    n: int,
    seed: int,
    out: Path,
    lenses: Sequence[str],
    tag: str | None = None,
    quick_gelu: bool | None = None,
    encoder: str | None = None,
    judge_tag: str | None = None,
    judge_captions: Sequence[str] | None = None,
    reference_images: Path | None = None,
    ablation_images: Path | None = None,
    noise_seeds: Sequence[int] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    overlay: float = 0.5,
    sets: "StudyImages | None" = None,
    device: str = "cpu",
) -> "StudySetup":
    """Load what the options name, and return the setup.

    Args:
        model: As for ``vit-lens sweep``.
        decoder: As there, or ``none``.
        judge: ``mini``, a model's name, or ``none``.
        images: None for scenes of the embedded pair's world.
        n: Test images.
        seed: Of everything drawn at random.
        out: Folder of the study.
        lenses: Spellings.
        tag: Of ``model``.
        quick_gelu: Of ``model``.
        encoder: Which the decoder was made for.
        judge_tag: Of ``judge``.
        judge_captions: That the judge reads; None for a study that needs none.
        reference_images: Folder.
        ablation_images: Folder.
        noise_seeds: Of the decoder.
        steps: Of the decoder.
        guidance: Of the decoder.
        overlay: Share of scenes with an overlay, in the world of the embedded pair.
        sets: Instead of ``images`` and ``n``, for a study with images of its own.
        device: Of all models.
    """
    import torch

    from vit_lens import HookedViT, KandinskyDecoder
    from vit_lens.lenses import parse_lens
    from vit_lens.mini.shipped import JUDGE
    from vit_lens.studies import Judge, make_setup

    chosen = {name: value for name, value in (("steps", steps), ("guidance", guidance)) if value is not None}
    if decoder == "none" and (chosen or noise_seeds):
        raise VitLensError("with --decoder none nothing is drawn: --steps, --guidance and --noise-seed have no effect")
    if decoder == "none" and judge not in ("mini", "none"):
        raise VitLensError(f"with --decoder none there are no pictures to judge: --judge {judge} has no effect")
    for spec in split_list(lenses):  # a misspelt one is told before anything is loaded
        parse_lens(spec.replace("dsl-mean", "dsl", 1), None)
    place = torch_device(device)
    vit = HookedViT.from_pretrained(model, tag=tag, quick_gelu=quick_gelu, device=place)
    sets = sets or _images(images, reference_images, ablation_images, n, seed, overlay)
    drawer = reader = settings = None
    if decoder != "none":
        is_small = decoder == "mini" or (Path(decoder) / "vit_lens.json").is_file()
        dtype = torch.bfloat16 if is_small or place.type != "cpu" else torch.float32
        drawer = KandinskyDecoder.from_pretrained(decoder, encoder=encoder, dtype=dtype, device=place)
        settings = drawer.settings(**{**(_MINI_SETTINGS if is_small else {}), **chosen})
        if judge != "none":
            name = str(JUDGE) if judge == "mini" else judge
            bank = None if judge_captions is None else read_bank(name, judge_tag, judge_captions, device)
            reader = Judge(HookedViT.from_pretrained(name, tag=judge_tag, device=place), bank)
    return make_setup(
        vit, sets, lenses=split_list(lenses), out=out, decoder=drawer, judge=reader, settings=settings,
        noise_seeds=tuple(noise_seeds or (0, 1)), seed=seed, progress=True,
    )  # fmt: skip


def read_bank(name: str, tag: str | None, captions: Sequence[str], device: str) -> "TextBank":
    """Embed captions with a model's own text tower."""
    from vit_lens import TextBank

    if tag is None:
        return TextBank.from_pretrained(name, captions, device=device)
    return TextBank.from_open_clip(name, tag, captions, device=device)


def finish(result: "StudyResult", out: Path, figures: "dict[str, go.Figure]") -> None:
    """Write a result and its figures, and print the measures that count."""
    from vit_lens.figures import save
    from vit_lens.studies.headlines import headlines

    path = result.save(out)
    for name, figure in figures.items():
        save(figure, out / f"{name}.html")
    typer.echo(result.summary(headlines(result)))
    typer.echo(f"\nresult: {path}" + "".join(f"\nfigure: {out / name}.html" for name in figures))


def command_line() -> str:
    """Return the command that is running, for its result."""
    return shlex.join(["vit-lens", *sys.argv[1:]])


def _images(
    images: list[Path] | None, reference: Path | None, ablation: Path | None, n: int, seed: int, overlay: float
) -> "StudyImages":
    from vit_lens.images import find_images
    from vit_lens.mini.study_images import study_images
    from vit_lens.studies import StudyImages

    if images is None:
        if reference is not None or ablation is not None:
            raise StudyError("--reference-images and --ablation-images go with --images; the world has its own")
        return study_images(n, seed=seed, overlay=overlay)
    if (reference is None) != (ablation is None):
        raise StudyError("give both --reference-images and --ablation-images, or neither (then --images is divided)")
    found = find_images(images)
    if reference is None or ablation is None:
        return StudyImages.split(found, n, seed=seed)
    if len(found) < n:
        raise StudyError(f"--n {n} test images, and --images holds {len(found)}: give --n {len(found)} or less")
    return StudyImages(found[:n], find_images([reference]), find_images([ablation]))
