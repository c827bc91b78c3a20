"""What study commands share: groups of options, and from options to a setup and to files."""

__all__ = ["Study", "StudyOnImages", "finish", "open_setup"]

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vit_lens.cli.options import (
    AblationImages,
    Images,
    ImageSeed,
    JudgeName,
    JudgeTag,
    Lenses,
    Pair,
    ReferenceImages,
    Tower,
)
from vit_lens.cli.reading import check_lenses, embed_captions
from vit_lens.errors import StudyError, VitLensError

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vit_lens.studies import StudyImages, StudyResult, StudySetup

# Held-out scenes come back at a cosine of .998 with these, as with ten steps, in a quarter of the time.
_SMALL_STEPS = 3


@dataclass(kw_only=True)
class Study(Pair):
    """Options of every study."""

    image_seed: ImageSeed = 0
    lens: Lenses = None
    judge: JudgeName = "mini"
    judge_tag: JudgeTag = None


@dataclass(kw_only=True)
class StudyOnImages(Study):
    """Options of a study whose images need no labels."""

    images: Images = None
    reference_images: ReferenceImages = None
    ablation_images: AblationImages = None

    def find(self, n: int, *, overlay: float = 0.5) -> "StudyImages":
        """Return ``n`` images to test and those for means; ``overlay`` is the share of the world's scenes with one."""
        from vit_lens.images import find_images
        from vit_lens.mini.study_images import study_images
        from vit_lens.studies import StudyImages

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
    from vit_lens.mini.shipped import JUDGE
    from vit_lens.studies import Judge, make_setup

    if study.decoder == "none" and any(each is not None for each in (study.steps, study.guidance, study.decoder_seed)):
        raise VitLensError(
            "with --decoder none nothing is drawn: --steps, --guidance and --decoder-seed have no effect"
        )
    if study.decoder == "none" and study.judge not in ("mini", "none"):
        raise VitLensError(f"with --decoder none there are no pictures to judge: --judge {study.judge} has no effect")
    check_lenses(lenses, None)
    vit = study.load()
    drawer = reader = settings = None
    if study.decoder != "none":
        drawer, settings = study.load_drawer(_SMALL_STEPS)
        if study.judge != "none":
            name = str(JUDGE) if study.judge == "mini" else study.judge
            tower = Tower(model=name, tag=study.judge_tag, device=study.device)
            bank = None if judge_captions is None else embed_captions(judge_captions, tower)
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
