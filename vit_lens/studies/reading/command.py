"""The command `vit-lens study reading`."""

__all__ = ["reading"]

from pathlib import Path
from typing import Annotated

import typer

from vit_lens.cli import flags, intake
from vit_lens.studies import command_parts as parts

_SEEDS = [0, 1, 2]


def reading(
    tower: flags.Tower,
    out: flags.Out = Path("vit-lens-study-reading"),
    dictionary_seed: Annotated[
        list[int], typer.Option("--dictionary-seed", min=0, help="Of dictionaries; repeat. Averaged within the model.")
    ] = _SEEDS,
    dictionaries: Annotated[
        Path | None,
        typer.Option(
            help="Folder of dictionaries, topk-0.safetensors, itda-0.safetensors and so on; what is not there is "
            "learnt and put there. Default: a folder below --out."
        ),
    ] = None,
    scenes: Annotated[
        int,
        typer.Option(
            min=50,
            help="Scenes of the embedded world, where it gives the images, or captions, where it gives the prompts.",
        ),
    ] = 4000,
    learn: Annotated[int, typer.Option(min=20, help="Scenes that dictionaries are learnt from.")] = 8000,
    features: Annotated[int, typer.Option(min=1, help="Features.")] = 512,
    k: Annotated[int, typer.Option("--k", min=1, help="Codes of a token.")] = 16,
    n_tokens: Annotated[
        int, typer.Option("--n-tokens", min=1, help="Tokens that are learnt from at most, over all passes.")
    ] = 500_000,
    units: Annotated[int, typer.Option(min=1, help="Units of each kind that are explained at most.")] = 512,
    least: Annotated[int, typer.Option(min=10, help="Images of each half on which a unit has to fire.")] = 40,
    image_seed: parts.ImageSeed = 0,
) -> None:
    """Can features of a dictionary be read, more than what was not learnt? On encoders of the embedded world."""
    from vit_lens.studies.reading.figures import figures_of
    from vit_lens.studies.reading.material import Sizes, make_material
    from vit_lens.studies.reading.study import captions
    from vit_lens.studies.reading.study import reading_study as run

    sizes = Sizes(
        scenes=scenes, learn=learn, features=features, k=k, n_tokens=n_tokens, units=units, least=least
    )  # fmt: skip
    model, texts = tower.load().requires_grad_(False), intake.embed_captions(captions(), tower)
    texts.check(model, other_encoder=True)
    material = make_material(model, texts, sizes, out, dictionaries=dictionaries, seed=image_seed)
    result = run(material, seeds=dictionary_seed, command=intake.command_line(), progress=True)
    parts.finish(result, out, figures_of(result))
