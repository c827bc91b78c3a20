"""Commands for the embedded pair: train it again, from any seed."""

__all__ = ["mount"]

import logging
from typing import Annotated

import typer

from vit_lens.cli import flags

mini = typer.Typer(help="The embedded pair: a small CLIP and a small decoder.", no_args_is_help=True)
TrainingSeed = Annotated[
    int, typer.Option(min=0, max=2**31 - 1, help="Of weights, images and their order; 0: as the shipped encoder.")
]


def mount(app: typer.Typer) -> None:
    """Add ``mini train`` and ``mini replica``."""
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


@mini.command()
def replica(out: flags.Out, training_seed: TrainingSeed) -> None:
    """Train another encoder and fit the shipped decoder to it, for studies: 15 minutes on one free CPU core.

    Use it with `--model OUT/pair/encoder --decoder OUT/pair/decoder`.
    """
    from vit_lens.mini.training.replica import train_replica

    logging.getLogger("vit_lens").setLevel(logging.INFO)
    found = train_replica(out, training_seed)
    typer.echo(f"pair: {out / 'pair'}; round trip {found['cosine_round_trip']}")
