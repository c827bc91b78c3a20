"""Commands for the embedded models: train them again, from any seed."""

__all__ = ["mount"]

import logging
from pathlib import Path
from typing import Annotated

import typer

from vit_lens.cli import flags
from vit_lens.mini.text_kinds import TextKind

mini = typer.Typer(
    help="The embedded models: a small CLIP with a small decoder, two text-to-image models, dictionaries of each.",
    no_args_is_help=True,
)
TrainingSeed = Annotated[
    int, typer.Option(min=0, max=2**31 - 1, help="Of weights, images and their order; as shipped: 0, of train-ip 7.")
]
TextSeed = Annotated[int, typer.Option("--text-seed", min=0, max=2**31 - 1, help="Of names, sentences and weights.")]
Kind = Annotated[
    TextKind,
    typer.Option(
        "--text-kind",
        help="Of the text encoder: clip, or with relative positions (relative), which see later words (bidirectional), "
        "trained to restore hidden ones (denoising).",
    ),
]
TextSteps = Annotated[
    int, typer.Option("--text-steps", min=1, help="Of the text encoder's training; kinds are compared at one number.")
]
PainterSeed = Annotated[
    int | None, typer.Option(min=0, max=2**31 - 1, help="Of the UNet. Default: that of the text encoder.")
]


def mount(app: typer.Typer) -> None:
    """Add ``mini train``, ``train-ip``, ``train-rae``, ``replica``, ``train-text`` and the others."""
    app.add_typer(mini, name="mini")


@mini.command()
def train(out: flags.Out, training_seed: TrainingSeed = 0) -> None:
    """Train a pair from scratch on the procedural world: about an hour and a half on two CPU cores.

    Use it with `--model OUT/pair/encoder --decoder OUT/pair/decoder --reference OUT/pair/reference_means.safetensors`.
    """
    from vit_lens.mini.training.pair import train_pair

    logging.getLogger("vit_lens").setLevel(logging.INFO)
    train_pair(out, training_seed)
    typer.echo(f"pair: {out / 'pair'}")


@mini.command("train-ip")
def train_ip(out: flags.Out, training_seed: TrainingSeed = 7) -> None:
    """Train a second decoder for the embedded encoder, as SDXL with an image adapter: an hour on one free CPU core.

    Use it with `--second-decoder OUT/ip`.
    """
    from vit_lens.mini.training.ip import measure_ip
    from vit_lens.mini.training.ip import train_ip as train

    logging.getLogger("vit_lens").setLevel(logging.INFO)
    found = measure_ip(train(out, training_seed))
    typer.echo(f"decoder: {out / 'ip'}; round trip {found['cosine_round_trip']}")


@mini.command()
def replica(out: flags.Out, training_seed: TrainingSeed) -> None:
    """Train another encoder and fit the shipped decoders to it, for studies: 15 minutes on one free CPU core.

    Use it with `--model OUT/pair/encoder --decoder OUT/pair/decoder --second-decoder OUT/ip`. A folder of an earlier
    version gets what it lacks.
    """
    from vit_lens.mini.training.replica import train_replica

    logging.getLogger("vit_lens").setLevel(logging.INFO)
    found = train_replica(out, training_seed)
    typer.echo(f"pair: {out / 'pair'}; round trip {found['cosine_round_trip']}")
    typer.echo(f"second decoder: {out / 'ip'}; round trip {found['ip']['cosine_round_trip']}")


@mini.command("train-rae")
def train_rae(out: flags.Out, training_seed: TrainingSeed = 0, model: flags.Model = "mini") -> None:
    """Train a decoder of patch tokens for an encoder of the procedural world: ten minutes on one free CPU core.

    Use it with `--decoder OUT/rae --reference OUT/rae/reference_means.safetensors`.
    """
    from vit_lens.mini.training.rae import make_rae

    logging.getLogger("vit_lens").setLevel(logging.INFO)
    found = make_rae(out, flags.Tower(model=model).load().requires_grad_(False), seed=training_seed)
    typer.echo(f"decoder: {out / 'rae'}; PSNR {found['psnr']}")


@mini.command("train-text")
def train_text(
    out: flags.Out, text_seed: TextSeed, painter_seed: PainterSeed = None, kind: Kind = "clip",
    text_steps: TextSteps = 700,
) -> None:  # fmt: skip
    """Train a text encoder with a UNet of its own, in Stable Diffusion's format: forty minutes on one free CPU core.

    Use it with `DiffusionPipeline.from_pretrained("OUT/sd")`.
    """
    from vit_lens.mini.training.text_encoder import TextSettings
    from vit_lens.mini.training.text_to_image import train_text_to_image

    logging.getLogger("vit_lens").setLevel(logging.INFO)
    text = TextSettings(n_steps=text_steps)
    bars = train_text_to_image(out, text_seed, painter_seed=painter_seed, kind=kind, text=text)["bars"]
    typer.echo(f"pipeline: {out / 'sd'}; bars {bars}")


@mini.command("train-reader")
def train_reader(
    pipeline: Annotated[Path, typer.Argument(help="Folder that train-text wrote: OUT/sd.")],
    out: flags.Out,
    reads: Annotated[str, typer.Option(help="What the UNet is shown: blocks before it (0, 4), or eos.")] = "0",
    painter_seed: PainterSeed = None,
) -> None:
    """Train another UNet on an earlier layer of a text encoder, or on its end alone: 25 minutes on one free CPU core.

    Whose work is the picture? What such a UNet draws, the encoder had worked out by there.
    """
    from vit_lens.mini.training.text_to_image import train_reader as train

    logging.getLogger("vit_lens").setLevel(logging.INFO)
    folder = train(pipeline, out, int(reads) if reads.isdecimal() else reads, painter_seed=painter_seed)  # pyright: ignore[reportArgumentType]
    typer.echo(f"pipeline: {folder}; its UNet is shown {reads}")


@mini.command("train-flux")
def train_flux(out: flags.Out, text_seed: TextSeed) -> None:
    """Train a small model in the format of FLUX.1 [schnell], text encoders included: an hour on one free CPU core.

    Use it with `FluxPipeline.from_pretrained("OUT/flux")`, 64 x 64 pixels and max_sequence_length=16.
    """
    from vit_lens.mini.training.flux_pipeline import train_flux as train

    logging.getLogger("vit_lens").setLevel(logging.INFO)
    bars = train(out, text_seed)["bars"]
    typer.echo(f"pipeline: {out / 'flux'}; bars {bars}")


@mini.command("train-dictionaries")
def train_dictionaries(out: flags.Out) -> None:
    """Learn the dictionaries that ship, of every embedded model, with their cards: half an hour on a free CPU core."""
    from vit_lens.mini.training.dictionaries import RECIPES
    from vit_lens.mini.training.dictionaries import train_dictionaries as train

    logging.getLogger("vit_lens").setLevel(logging.INFO)
    for name in RECIPES:
        for file in train(out, name):
            typer.echo(f"dictionary: {file}")
