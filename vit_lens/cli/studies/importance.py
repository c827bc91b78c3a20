"""The command `vit-lens study importance`."""

__all__ = ["importance"]

from pathlib import Path
from typing import Annotated

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

_SHOWN = "dsl-mean:alpha=5"


def importance(
    model: Model = "mini",
    decoder: Decoder = "mini",
    images: Images = None,
    n: Annotated[int, typer.Option(help="Test images, scored before decoding.")] = 200,
    seed: Seed = 0,
    out: Out = Path("vit-lens-study-importance"),
    lens: Lenses = None,
    n_decoded: Annotated[int, typer.Option(help="How many of them are decoded, at every head.")] = 12,
    decode: Annotated[
        list[str] | None,
        typer.Option(help="Lenses whose pictures are drawn; repeat. Default: four, or those of --lens."),
    ] = None,
    draws: Annotated[int, typer.Option(help="Of each null before decoding.")] = 20,
    picture_draws: Annotated[int, typer.Option(help="Of the equal-norm placebo's pictures.")] = 1,
    untrained: Annotated[bool, typer.Option(help="Score a model with random weights beside it.")] = True,
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
    """Is the head whose lens result resembles the input the one that matters, beyond its size?"""
    from vit_lens.figures.study_importance import importance_heads, importance_scores
    from vit_lens.studies.importance.study import DECODED, LENSES
    from vit_lens.studies.importance.study import importance_study as run

    drawn = split_list(decode or ()) or split_list(lens or ()) or list(DECODED)
    lenses = list(dict.fromkeys([*(split_list(lens or ()) or LENSES), *drawn]))
    setup = open_setup(
        model=model, decoder=decoder, judge=judge, images=images, n=n, seed=seed, out=out, lenses=lenses, tag=tag,
        quick_gelu=quick_gelu, encoder=encoder, judge_tag=judge_tag, reference_images=reference_images,
        ablation_images=ablation_images, noise_seeds=noise_seed, steps=steps, guidance=guidance, device=device,
    )  # fmt: skip
    result = run(
        setup, n_decoded=n_decoded, decoded=drawn, draws=draws, picture_draws=picture_draws, untrained=untrained,
        command=command_line(),
    )  # fmt: skip
    shown = _SHOWN if _SHOWN in lenses else lenses[0]
    figures = {
        "scores": importance_scores(result.frame()),
        "scores_given_norms": importance_scores(result.frame(), given=True),
        "heads": importance_heads(result.frame("heads"), shown),
    }
    finish(result, out, figures)
