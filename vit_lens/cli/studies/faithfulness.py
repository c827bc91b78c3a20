"""The command `vit-lens study faithfulness`."""

__all__ = ["faithfulness"]

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
    Out,
    ReferenceImages,
    Seed,
    Steps,
    command_line,
    finish,
    open_setup,
)
from vit_lens.cli.sweeps import Model, QuickGelu, Tag

_LENSES = ("diffusion", "dsl:alpha=10", "dsl:share=1", "dsl-mean:alpha=5")
_NOISE_SEEDS = (0, 1, 2, 3)


def faithfulness(
    model: Model = "mini",
    decoder: Decoder = "mini",
    images: Images = None,
    n: Annotated[int, typer.Option("--n", help="Test images.")] = 6,
    seed: Seed = 0,
    out: Out = Path("vit-lens-study-faithfulness"),
    lens: Lenses = None,
    sites: Annotated[
        list[str] | None, typer.Option(help="As for sweep. Default: heads,mlp,resid_post; each lens reads its own.")
    ] = None,
    noise_seed: Annotated[
        list[int] | None, typer.Option("--noise-seed", help="Of the decoder; repeat. Default: 0, 1, 2 and 3.")
    ] = None,
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
    """Draw what the sites say with several noise seeds: does the decoder draw what it is asked to, every time?"""
    from vit_lens.errors import StudyError
    from vit_lens.figures.studies import score_figure
    from vit_lens.figures.study_faithfulness import faithfulness_layers
    from vit_lens.studies.faithfulness.study import SITES
    from vit_lens.studies.faithfulness.study import faithfulness_study as run

    if decoder == "none":
        raise StudyError("study faithfulness is about pictures; --decoder none draws none")
    setup = open_setup(
        model=model, decoder=decoder, judge=judge, images=images, n=n, seed=seed, out=out,
        lenses=split_list(lens or ()) or _LENSES, tag=tag, quick_gelu=quick_gelu, encoder=encoder, judge_tag=judge_tag,
        reference_images=reference_images, ablation_images=ablation_images, noise_seeds=noise_seed or _NOISE_SEEDS,
        steps=steps, guidance=guidance, device=device,
    )  # fmt: skip
    result = run(setup, sites=split_list(sites or ()) or SITES, command=command_line())
    figures = {"faithfulness": score_figure(result.frame(), "faithfulness", "Faithfulness of pictures")}
    finish(result, out, figures | {"layers": faithfulness_layers(result.frame("layers"))})
