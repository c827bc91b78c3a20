"""What study commands share: options and groups of them, and from options to a setup and to files."""

__all__ = [
    "AblationImages", "At", "By", "CaptionsFrom", "Decode", "Draws", "ImageSeed", "JudgeName", "JudgeTag", "Overlays",
    "Scales", "Study", "StudyOnImages", "Top", "Untrained", "decoded", "embed_for", "finish", "load_drawer", "n_drawn",
    "n_tested", "open_setup",
]  # fmt: skip

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vit_lens.cli import flags, intake
from vit_lens.errors import StudyError, TextError
from vit_lens.studies.usual_lenses import DECODED

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vit_lens.decoders import Decoder
    from vit_lens.models import HookedViT
    from vit_lens.studies import StudyImages, StudyResult, StudySetup
    from vit_lens.texts import TextBank

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
JudgeName = Annotated[str, flags.JUDGE]
JudgeTag = Annotated[str | None, typer.Option(help="For an open_clip judge: its pretrained tag or checkpoint.")]
CaptionsFrom = Annotated[
    str | None,
    typer.Option(
        help="Where captions are embedded, for a model without a text tower: the CLIP that it was part of, as for "
        "--model, or a saved text bank (.safetensors). Default: the model's own text tower."
    ),
]
Decode = Annotated[
    list[str] | None,
    typer.Option(help="Lenses whose pictures are drawn. Commas or repeat. Default: four, or those of --lens."),
]
Top = Annotated[int, typer.Option(min=1, help="Heads shown.")]
By = Annotated[
    Literal["cos", "S", "picture"],
    typer.Option(
        help="What ranks the heads: cos or S (raw or centred similarity of the embedding to the input), or picture "
        "(of the re-encoded picture; draws every head)."
    ),
]
ImageSeed = Annotated[int, typer.Option(min=0, help="Which images and draws are taken at random.")]
Draws = Annotated[int, typer.Option(min=1, help="Of each null before decoding.")]
Untrained = Annotated[bool, typer.Option(help="Test a model with random weights, too.")]


def n_tested(at_least: int) -> Any:
    """Return the option ``--n`` of a study that needs so many images, prompts or pictures."""
    told = (
        "Images that are tested (content: bases; overlay: those from which heads are taken); of prompts, how many of "
    )
    told += "each kind (knowledge: names; order: scenes or captions). annotate: pictures at most."
    return typer.Option("--n", min=at_least, help=told)


def n_drawn(at_least: int) -> Any:
    """Return the option ``--n-decoded`` of a study that needs so many pictures."""
    told = "How many of them are drawn (content: with their partners; planted: an even number)."
    return typer.Option("--n-decoded", min=at_least, help=told)


@dataclass(kw_only=True)
class Study(flags.Pair):
    """Options of every study."""

    image_seed: ImageSeed = 0
    lens: flags.Lenses = None
    jacobian: flags.Jacobian = None
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


def embed_for(study: Study, captions: Sequence[str], captions_from: str | None) -> "TextBank":
    """Embed the captions of a study, before anything that takes longer.

    Raises:
        TextError: There is no text tower, or no such bank.
    """
    from vit_lens.texts import TextBank

    if captions_from is not None and captions_from.endswith(".safetensors"):
        return TextBank.load(captions_from)
    if captions_from is not None:
        return intake.embed_captions(captions, flags.Tower(model=captions_from, device=study.device))
    try:
        return intake.embed_captions(captions, study)
    except TextError as error:
        raise TextError(f"{error}; or give --captions-from, the CLIP that the tower was part of") from error


def load_drawer(
    pair: flags.Pair, model: "HookedViT", small_steps: int = _SMALL_STEPS, **more: Any
) -> "tuple[Decoder, Any]":
    """Load what draws for a study, in half precision where that is fast; a small one takes few steps."""
    is_small = pair.decoder in ("mini", "mini-ip") or (Path(pair.decoder) / "vit_lens.json").is_file()
    drawer = pair.load_decoder("bfloat16" if is_small or not pair.device.startswith("cpu") else "float32", model)
    has = {field.name for field in fields(drawer.defaults)}
    wanted = {"steps": small_steps, "guidance": 1.0} if is_small else {}
    usual = {name: value for name, value in wanted.items() if name in has}
    return drawer, drawer.settings(**usual | flags.known(**{"steps": pair.steps, "guidance": pair.guidance, **more}))


def decoded(decode: Sequence[str] | None, lenses: Sequence[str], decoder: str) -> list[str]:
    """Return the lenses whose pictures are read: those of --decode, else those of --lens, else the usual ones.

    Raises:
        StudyError: There is no decoder, and pictures are asked for.
    """
    asked = flags.split_list(decode or ())
    if decoder != "none":
        return list(asked or lenses or DECODED)
    if asked:
        raise StudyError("--decode asks for pictures, and --decoder none draws none; give a decoder, or leave it")
    return []


def open_setup(
    study: Study,
    sets: "StudyImages",
    out: Path,
    *,
    lenses: Sequence[str],
    decoder_seeds: Sequence[int] = (0, 1),
    judge_captions: Sequence[str] | None = None,
    texts: "TextBank | None" = None,
) -> "StudySetup":
    """Load what the options name, and return the setup.

    Args:
        study: The options.
        sets: Images.
        out: Folder of the study.
        lenses: Spellings.
        decoder_seeds: Where the options name none.
        judge_captions: That the judge reads; None for a study that needs none.
        texts: Captions that the encoder's embeddings are compared with, of that width.
    """
    from vit_lens.mini import JUDGE
    from vit_lens.reference import Jacobians
    from vit_lens.studies import Judge, make_setup

    intake.check_drawn(
        study.decoder, steps=study.steps, guidance=study.guidance, decoder_seed=study.decoder_seed,
        decoder_encoder=study.decoder_encoder, judge=study.judge not in ("mini", "none"), judge_tag=study.judge_tag,
    )  # fmt: skip
    intake.check_lenses_of_reference(lenses, study.jacobian)
    vit = study.load()
    jacobians = None if study.jacobian is None else Jacobians.load(study.jacobian)
    if texts is not None:
        texts.check(vit, other_encoder=True)
    drawer = reader = settings = None
    if study.decoder != "none":
        drawer, settings = load_drawer(study, vit)
        if study.judge != "none":
            name = str(JUDGE) if study.judge == "mini" else study.judge
            tower = flags.Tower(model=name, tag=study.judge_tag, device=study.device)
            bank = None if judge_captions is None else intake.embed_captions(judge_captions, tower)
            reader = Judge(tower.load(), bank)
    return make_setup(
        vit, sets, lenses=lenses, out=out, decoder=drawer, judge=reader, settings=settings,
        noise_seeds=tuple(study.decoder_seed or decoder_seeds), seed=study.image_seed, progress=True,
        jacobians=jacobians,
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
